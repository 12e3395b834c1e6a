package scraper

import (
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
	"weak"

	"github.com/prometheus/common/model"
)

// template is the text of an exposition without its values. Line k, which is a sample, has a prefix: all bytes from the end of the
// line k-1, so with comments and blank lines, to where its value begins. A body that repeats all prefixes lists the same series in the same
// order, and only values have to be read. Templates are immutable, and shared by the targets whose expositions are alike.
type template struct {
	format format
	text   string // the prefixes one after the other, then what follows the last sample
	lines  []templateLine
	groups []uint64 // for each line what [collector.group] returns; nil where start timestamps are not looked for
}

type templateLine struct {
	end         uint32 // the prefix ends at text[end]
	met, metEnd uint32 // text[met:metEnd] is the series as it is exposed
	lineContext        // in which the line stands
	typed       bool   // a TYPE comment in the prefix makes it so, whatever there was before
	described   bool   // there are HELP, TYPE or UNIT comments in the prefix
}

// lineContext is what the comments before a line, wherever they stand, say of it as far as a parser makes something of that.
type lineContext struct {
	family uint16 // how long the name in the last comment is; 0 where start timestamps are not looked for
	metricType
}

// metricType tells of the last TYPE comment before a line what the parsers make labels and start timestamps depend on.
type metricType uint8

const (
	otherType metricType = iota
	histogramType
	summaryType
	counterType
)

func metricTypeOf(t model.MetricType) metricType {
	switch t {
	case model.MetricTypeHistogram:
		return histogramType
	case model.MetricTypeSummary:
		return summaryType
	case model.MetricTypeCounter:
		return counterType
	default:
		return otherType
	}
}

// size returns the bytes that the template takes.
func (t *template) size() int64 {
	return int64(len(t.text) + bytesOf(t.lines) + bytesOf(t.groups))
}

// start returns where the prefix of line k begins in the text; k may be the number of lines.
func (t *template) start(k int) uint32 {
	if k == 0 {
		return 0
	}
	return t.lines[k-1].end
}

func (t *template) prefix(k int) string { return t.text[t.start(k):t.lines[k].end] }

func (t *template) met(k int) string { return t.text[t.lines[k].met:t.lines[k].metEnd] }

// tail is what follows the last sample.
func (t *template) tail() string { return t.text[t.start(len(t.lines)):] }

// before returns the context in which the text before line k ends.
func (t *template) before(k int) lineContext {
	if k == 0 {
		return lineContext{}
	}
	return t.lines[k-1].lineContext
}

// templates holds all templates that are in use, to share them.
type templates struct {
	seed, further maphash.Seed

	mu     sync.Mutex
	byHash map[uint64]weak.Pointer[template]
	byName map[packedName]weak.Pointer[packed]

	bytes atomic.Int64 // of all of them, until their memory is freed
}

func newTemplates() *templates {
	return &templates{
		seed: maphash.MakeSeed(), further: maphash.MakeSeed(),
		byHash: map[uint64]weak.Pointer[template]{}, byName: map[packedName]weak.Pointer[packed]{},
	}
}

// share returns a template with the content of a draft: one that is in use already, or a new one.
func (ts *templates) share(f format, d *draft) *template {
	hash := maphash.Bytes(ts.seed, d.text)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.byHash[hash].Value(); t != nil && t.format == f && len(t.lines) == len(d.lines) && len(t.groups) == len(d.groups) && t.text == string(d.text) {
		return t // all else follows from the text
	}
	t := d.template(f)
	ts.byHash[hash] = weak.Make(t)
	ts.bytes.Add(t.size())
	runtime.AddCleanup(t, ts.forget, forgotten[uint64]{hash, t.size()})
	return t
}

// forgotten is a template whose memory is freed, by what it was found by.
type forgotten[T any] struct {
	by   T
	size int64
}

// forget drops a template that nobody uses any more, unless another has taken its place.
func (ts *templates) forget(t forgotten[uint64]) { forget(ts, ts.byHash, t) }

func forget[K comparable, T any](ts *templates, all map[K]weak.Pointer[T], t forgotten[K]) {
	ts.bytes.Add(-t.size)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if all[t.by].Value() == nil {
		delete(all, t.by)
	}
}

// draft is a template in the making.
type draft struct {
	text   []byte
	lines  []templateLine
	groups []uint64 // empty where start timestamps are not looked for
	series []uint32 // as view.series
}

const (
	// maxTemplate is the largest text of a template, in bytes. Larger bodies are read without one.
	maxTemplate = 1 << 30
	// hugeTemplate is how large a text is that is not copied, in bytes.
	hugeTemplate = 4 << 20
)

// add appends a line, whose prefix ends at the present end of the text.
func (d *draft) add(line templateLine, group uint64, grouped bool, series uint32) {
	line.end = uint32(len(d.text))
	d.lines = append(d.lines, line)
	d.series = append(d.series, series)
	if grouped {
		d.groups = append(d.groups, group)
	}
}

// repeat appends the lines [from, to) of a template.
func (d *draft) repeat(t *template, series []uint32, from, to int) {
	shift := uint32(len(d.text)) - t.start(from)
	d.text = append(d.text, t.text[t.start(from):t.start(to)]...)
	n := len(d.lines)
	d.lines = append(d.lines, t.lines[from:to]...)
	if shift != 0 {
		for i := range d.lines[n:] {
			line := &d.lines[n+i]
			line.end, line.met, line.metEnd = line.end+shift, line.met+shift, line.metEnd+shift
		}
	}
	d.series = append(d.series, series[from:to]...)
	if len(t.groups) > 0 {
		d.groups = append(d.groups, t.groups[from:to]...)
	}
}

// gives reports whether the memory of the draft becomes the template's: it is huge, and about as large as what it holds.
func (d *draft) gives() bool { return cap(d.text) > hugeTemplate && len(d.text) > cap(d.text)/2 }

// template returns the draft as a template.
func (d *draft) template(f format) *template {
	if !d.gives() {
		return &template{f, string(d.text), slices.Clone(d.lines), slices.Clone(d.groups)}
	}
	t := &template{f, unsafe.String(unsafe.SliceData(d.text), len(d.text)), d.lines, d.groups}
	d.text, d.lines, d.groups = nil, nil, nil
	return t
}

// reserve makes room for the successor of a huge template, since text that grows by and by is copied several times: as much as the old one takes, and a little more.
func (d *draft) reserve(old *template) {
	if len(old.text) <= hugeTemplate {
		return
	}
	text, lines := len(old.text)+len(old.text)/16, len(old.lines)+len(old.lines)/16
	d.text, d.lines, d.series = slices.Grow(d.text, text), slices.Grow(d.lines, lines), slices.Grow(d.series, lines)
	if len(old.groups) > 0 {
		d.groups = slices.Grow(d.groups, lines)
	}
}

// takeSeries returns the series in memory of their own. It comes before template.
func (d *draft) takeSeries() []uint32 {
	if !d.gives() {
		return append(make([]uint32, 0, len(d.series)), d.series...)
	}
	series := d.series
	d.series = nil
	return series
}

func (d *draft) reset() {
	if cap(d.text) > hugeTemplate {
		*d = draft{}
	}
	d.text, d.lines, d.groups, d.series = d.text[:0], d.lines[:0], d.groups[:0], d.series[:0]
}
