package scraper

import (
	"hash/maphash"
	"runtime"
	"sync"
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
}

type templateLine struct {
	end         uint32 // the prefix ends at text[end]
	met, metEnd uint32 // text[met:metEnd] is the series as it is exposed
	metricType  metricType
}

// metricType tells of the last TYPE comment before a line what the parsers make labels depend on.
type metricType uint8

const (
	otherType metricType = iota
	histogramType
	summaryType
)

func metricTypeOf(t model.MetricType) metricType {
	switch t {
	case model.MetricTypeHistogram:
		return histogramType
	case model.MetricTypeSummary:
		return summaryType
	default:
		return otherType
	}
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

// templates holds all templates that are in use, to share them.
type templates struct {
	seed maphash.Seed

	mu     sync.Mutex
	byHash map[uint64]weak.Pointer[template]
}

func newTemplates() *templates {
	return &templates{seed: maphash.MakeSeed(), byHash: map[uint64]weak.Pointer[template]{}}
}

// share returns a template with the given content: one that is in use already, or a new one with a copy of it.
func (ts *templates) share(f format, text []byte, lines []templateLine) *template {
	hash := maphash.Bytes(ts.seed, text)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.byHash[hash].Value(); t != nil && t.format == f && len(t.lines) == len(lines) && t.text == string(text) {
		return t // the lines follow from the text
	}
	t := &template{format: f, text: string(text), lines: append([]templateLine(nil), lines...)}
	ts.byHash[hash] = weak.Make(t)
	runtime.AddCleanup(t, ts.forget, hash)
	return t
}

// forget drops a template that nobody uses any more, unless another has taken its place.
func (ts *templates) forget(hash uint64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.byHash[hash].Value() == nil {
		delete(ts.byHash, hash)
	}
}

// draft is a template in the making.
type draft struct {
	text   []byte
	lines  []templateLine
	series []uint32 // as view.series
}

// maxTemplate is the largest text of a template, in bytes. Larger bodies are read without one.
const maxTemplate = 1 << 30

// copyFrom begins the draft with the first n lines of a template.
func (d *draft) copyFrom(t *template, series []uint32, n int) {
	d.reset()
	if t == nil {
		return
	}
	d.text = append(d.text, t.text[:t.start(n)]...)
	d.lines = append(d.lines, t.lines[:n]...)
	d.series = append(d.series, series[:n]...)
}

// add appends a line: the text before the series, the series, the text between the series and its value.
func (d *draft) add(before, met, after []byte, mt metricType, series uint32) {
	d.text = append(d.text, before...)
	start := len(d.text)
	d.text = append(d.text, met...)
	end := len(d.text)
	d.text = append(d.text, after...)
	d.lines = append(d.lines, templateLine{end: uint32(len(d.text)), met: uint32(start), metEnd: uint32(end), metricType: mt})
	d.series = append(d.series, series)
}

// repeat appends line k of a template.
func (d *draft) repeat(t *template, k int, series uint32) {
	line := t.lines[k]
	shift := uint32(len(d.text)) - t.start(k)
	d.text = append(d.text, t.prefix(k)...)
	d.lines = append(d.lines, templateLine{end: line.end + shift, met: line.met + shift, metEnd: line.metEnd + shift, metricType: line.metricType})
	d.series = append(d.series, series)
}

func (d *draft) reset() { d.text, d.lines, d.series = d.text[:0], d.lines[:0], d.series[:0] }

// shrink frees the memory of a huge exposition.
func (d *draft) shrink() {
	if cap(d.text) > 4<<20 {
		*d = draft{}
	}
}
