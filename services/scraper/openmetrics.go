package scraper

import (
	"math"
	"unicode/utf8"
	"unsafe"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
)

// matchRest takes line k of the template, whose value ends at the given place, and returns how long the rest of the line is. It is not ok where that is
// anything but what instrumentation libraries write; then nothing was taken.
func (c *collector) matchRest(f format, k int, series uint32, at int, value float64) (n int, ok bool) {
	x, explicit := scraped{t: c.now, v: value}, false
	c.exs = c.exs[:0]
	rest := c.body[at:]
	e := &c.exemplar
	e.n = 0
	switch {
	case rest[0] == '\n':
		n = 1
	case f == formatText:
		t, end, ok := readTimestamp(rest[1:])
		if !ok {
			return 0, false
		}
		n = 1 + end
		if explicit = c.rules.honorTimestamps; explicit {
			x.t = t
		}
	default:
		if len(rest) > 2 && rest[1] != '#' {
			t, end, ok := readSeconds(rest[1:])
			if !ok {
				return 0, false
			}
			n = 1 + end
			if explicit = c.rules.honorTimestamps; explicit {
				x.t = t
			}
		}
		if rest[n] == ' ' {
			if !e.read(rest[n:]) {
				return 0, false
			}
			n += e.n
		}
		if rest[n] != '\n' {
			return 0, false
		}
		n++
	}
	if c.starts.on {
		c.group, c.kind = c.old.groups[k], c.old.lines[k].metricType
		if c.old.lines[k].described {
			c.endStarts()
		}
		if series == created {
			c.takeCreated(c.group, value)
			return n, true
		}
	}
	if c.total++; series == dropped {
		return n, true
	}
	if e.n > 0 {
		c.exs = append(c.exs, c.exemplarOf(series, x.t))
	}
	c.takeKnown(k, series, x, explicit)
	return n, true
}

// readSeconds reads a timestamp of OpenMetrics, and returns it in milliseconds and where it ends.
func readSeconds(text []byte) (t int64, end int, ok bool) {
	s, end, ok := readValue(text)
	if !ok || math.IsNaN(s) || math.IsInf(s, 0) {
		return 0, 0, false
	}
	return int64(s * 1000), end, true
}

// maxExemplarLabels is how many labels an exemplar has at most that is read here.
const maxExemplarLabels = 4

// exemplarText is an exemplar as it stands in a line.
type exemplarText struct {
	text   []byte // from the space before it on
	n      int    // how much of text it is; 0 for none
	labels int
	bounds [4 * maxExemplarLabels]int // of each label: where its name begins and ends, and its value
	value  float64
	t      int64 // in milliseconds
	hasT   bool
}

func (e *exemplarText) name(i int) []byte  { return e.text[e.bounds[4*i]:e.bounds[4*i+1]] }
func (e *exemplarText) label(i int) []byte { return e.text[e.bounds[4*i+2]:e.bounds[4*i+3]] }

// read reads an exemplar. It takes those with few labels, with names that need no quotes and values without escapes.
func (e *exemplarText) read(text []byte) bool {
	e.text, e.n, e.labels, e.hasT = text, 0, 0, false
	if len(text) < 5 || string(text[:4]) != " # {" {
		return false
	}
	at := 4
	for at < len(text) && text[at] != '}' {
		end := e.readLabel(at)
		if end < 0 || end >= len(text) {
			return false
		}
		if at = end; text[at] == ',' {
			if at++; at >= len(text) || text[at] == '}' {
				return false
			}
		} else if text[at] != '}' {
			return false
		}
	}
	if at++; at+1 >= len(text) || text[at] != ' ' {
		return false
	}
	at++
	v, n, ok := readValue(text[at:])
	if !ok {
		return false
	}
	e.value = v
	if at += n; text[at] == ' ' {
		at++
		if e.t, n, ok = readSeconds(text[at:]); !ok {
			return false
		}
		e.hasT = true
		at += n
	}
	e.n = at
	return true
}

// readLabel reads the label that begins at the given place and returns where it has ended, below 0 where it is none.
func (e *exemplarText) readLabel(at int) int {
	text, from := e.text, at
	for at < len(text) && isNameByte(text[at], at > from) {
		at++
	}
	if at == from || at+2 >= len(text) || text[at] != '=' || text[at+1] != '"' || e.labels == maxExemplarLabels {
		return -1
	}
	nameEnd, value := at, at+2
	for at = value; at < len(text) && text[at] >= ' ' && text[at] != '"' && text[at] != '\\'; {
		at++
	}
	if at >= len(text) || text[at] != '"' || !utf8.Valid(text[value:at]) {
		return -1
	}
	for i := range e.labels {
		if string(e.name(i)) == string(text[from:nameEnd]) {
			return -1
		}
	}
	copy(e.bounds[4*e.labels:], []int{from, nameEnd, value, at})
	e.labels++
	return at + 1
}

func isNameByte(b byte, further bool) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b == '_' || further && b-'0' <= 9
}

// exemplarOf returns the exemplar that was read, as one of a series whose sample has the time t. Where its labels are those of the series' last one, it shares them.
func (c *collector) exemplarOf(series uint32, t int64) exemplar.Exemplar {
	e := &c.exemplar
	x := exemplar.Exemplar{Value: e.value, Ts: t, HasTs: e.hasT}
	if e.hasT {
		x.Ts = e.t
	}
	if last, ok := c.a.src.exemplars[c.a.src.resolve(series)]; ok && e.hasLabels(last.Labels) {
		x.Labels = last.Labels
		return x
	}
	text := string(e.text[:e.n]) // the labels may keep it
	c.builder.Reset()
	for i := range e.labels {
		b := e.bounds[4*i:]
		c.builder.Add(text[b[0]:b[1]], text[b[2]:b[3]])
	}
	c.builder.Sort()
	x.Labels = c.builder.Labels()
	return x
}

// hasLabels reports whether the exemplar's labels are the given ones.
func (e *exemplarText) hasLabels(ls labels.Labels) bool {
	if ls.Len() != e.labels {
		return false
	}
	for i := range e.labels {
		name, value := e.name(i), e.label(i)
		if len(value) == 0 || ls.Get(unsafe.String(unsafe.SliceData(name), len(name))) != string(value) {
			return false
		}
	}
	return true
}

// takeKnown appends a float sample of a series that the source has, with the exemplars that were read.
func (c *collector) takeKnown(k int, series uint32, x scraped, explicit bool) {
	n, further := c.a.n, len(c.a.extra)
	i, err := c.offer(series, x)
	if c.starts.on {
		c.awaitStart(i, n, further)
	}
	taken, _ := c.judge(nil, err) // the appender returns no other errors for a series that it has
	if taken && (!explicit || c.rules.trackTimestamps) {
		c.view.current.set(i)
	}
	if err == nil {
		c.view.series[k] = i
	}
	c.added++
}
