package scraper

import (
	"bytes"
	"errors"
	"io"
	"math"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/storage"
)

// readText reads the body against the template, and has Prometheus's parser read what is different.
func (c *collector) readText() error {
	if c.old.format != formatText && len(c.old.lines) > 0 {
		c.differ(0)
	}
	for {
		if c.old.format == formatText {
			c.matchLines(formatText)
		}
		if c.next == len(c.old.lines) && string(c.body[c.at:]) == c.old.tail() {
			return nil
		}
		c.differ(c.next)
		if end, err := c.parseText(); end || err != nil {
			return err
		}
	}
}

// parseText has Prometheus's parser read lines until one follows that the template has, or to the end.
func (c *collector) parseText() (end bool, err error) {
	p := c.textParser()
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		switch entry {
		case textparse.EntryType:
			_, t := p.Type()
			c.mtype = metricTypeOf(t)
			c.redescribe = true
		case textparse.EntryHelp:
			c.redescribe = true
		case textparse.EntrySeries:
			if err := c.take(p, entry, formatText); err != nil {
				return false, err
			}
			if c.expected() {
				return false, nil
			}
		}
	}
}

// expected reports whether the text goes on as the template expects.
func (c *collector) expected() bool {
	if c.strange || c.old.format != formatText || c.next == len(c.old.lines) || c.view.series[c.next] == unknown {
		return false
	}
	prefix := c.old.prefix(c.next)
	return len(c.body)-c.at >= len(prefix) && string(c.body[c.at:c.at+len(prefix)]) == prefix
}

// typeComments tell the parser what type the lines that follow are of.
var typeComments = map[metricType]string{histogramType: "# TYPE a histogram\n", summaryType: "# TYPE a summary\n"}

// textParser returns a parser for the rest of the body. Labels depend on the last TYPE comment, which the parser of a rest has not
// seen: it is told of it by one written over what was read already, and restored at once.
func (c *collector) textParser() textparse.Parser {
	comment := typeComments[c.mtype]
	start := c.at - len(comment)
	if comment == "" || start < 0 {
		return textparse.NewPromParser(c.body[c.at:], nil, false)
	}
	read := c.body[start:c.at]
	was := string(read)
	copy(read, comment)
	p := textparse.NewPromParser(c.body[start:], nil, false)
	_, _ = p.Next()
	copy(read, was)
	return p
}

// matchLines takes the lines that are as the template expects them: only their values are read.
func (c *collector) matchLines(f format) {
	t, v, body := c.old, c.view, c.body
	plain := c.rules.sampleLimit == 0 && !c.redescribe
	c.a.reserve()
	from := c.next
	for ; c.next < len(t.lines); c.next++ {
		k := c.next
		series := v.series[k]
		if series == unknown || c.differs && c.seen.has(uint32(k)) {
			break
		}
		prefix := t.prefix(k)
		if len(body)-c.at < len(prefix) || string(body[c.at:c.at+len(prefix)]) != prefix {
			break
		}
		at := c.at + len(prefix)
		value, n, ok := readValue(body[at:])
		if !ok {
			break
		}
		if at += n; body[at] == '\n' {
			at++
			c.total++
			switch {
			case series == dropped:
			case plain && c.a.take(series, c.now, value):
				v.current.set(series)
				c.added++
			default:
				c.takeKnown(k, series, scraped{t: c.now, v: value}, false)
			}
		} else if n, ok := c.matchRest(f, k, series, at, value); ok {
			at += n
		} else {
			break
		}
		c.at = at
		if c.differs {
			c.seen.set(uint32(k))
			c.draft.repeat(t, k, series)
		}
	}
	if c.next > from {
		c.mtype = t.lines[c.next-1].metricType
	}
}

// matchRest takes a line of the template that has more than a value, and returns how long the rest is that begins at the given place.
func (c *collector) matchRest(f format, k int, series uint32, at int, value float64) (int, bool) {
	if f == formatOpenMetrics {
		return c.matchOpenMetrics(k, series, at)
	}
	t, n, ok := readTimestamp(c.body[at+1:])
	if !ok {
		return 0, false
	}
	c.total++
	if series != dropped {
		x := scraped{t: c.now, v: value}
		if c.rules.honorTimestamps {
			x.t = t
		}
		c.takeKnown(k, series, x, c.rules.honorTimestamps)
	}
	return 1 + n, true
}

// matchOpenMetrics has Prometheus's parser read a line with a timestamp or an exemplar.
func (c *collector) matchOpenMetrics(k int, series uint32, at int) (int, bool) {
	n := bytes.IndexByte(c.body[at:], '\n') + 1
	if n == 0 {
		return 0, false
	}
	line := c.old.lines[k]
	c.scratch = append(c.scratch[:0], c.body[c.at+int(line.met-c.old.start(k)):at+n]...)
	c.scratch = append(c.scratch, "# EOF\n"...)
	p := textparse.NewOpenMetricsParser(c.scratch, nil)
	entry, err := p.Next()
	if err != nil || entry != textparse.EntrySeries {
		return 0, false
	}
	c.total++
	if series == dropped {
		return n, true
	}
	met, t, v := p.Series()
	x := scraped{t: c.now, v: v}
	explicit := t != nil && c.rules.honorTimestamps
	if explicit {
		x.t = *t
	}
	_, err = c.takeSample(p, entry, met, series, x, explicit, false)
	return n, err == nil
}

// takeKnown appends a float sample of a series that the source has.
func (c *collector) takeKnown(k int, series uint32, x scraped, explicit bool) {
	c.exs = c.exs[:0]
	i, err := c.offer(series, x)
	taken, _ := c.judge(nil, err) // the appender returns no other errors for a series that it has
	if taken && (!explicit || c.rules.trackTimestamps) {
		c.view.current.set(i)
	}
	if err == nil {
		c.view.series[k] = i
	}
	c.added++
}

// find returns the ID of a line by its series, or unknown: its number in the template, or what follows for other lines.
func (c *collector) find(met []byte) uint32 {
	if k := c.next; k < len(c.old.lines) && c.old.met(k) == string(met) {
		c.next++
		if c.view.series[k] != unknown {
			return uint32(k)
		}
	}
	if c.index == nil {
		c.fillIndex()
	}
	id, ok := c.index[string(met)]
	if !ok {
		return unknown
	}
	if int(id) < len(c.old.lines) {
		c.next = int(id) + 1
	}
	return id
}

func (c *collector) fillIndex() {
	c.index = make(map[string]uint32, len(c.old.lines))
	for k := range c.old.lines {
		if c.view.series[k] != unknown {
			c.index[c.old.met(k)] = uint32(k)
		}
	}
	for met, series := range c.view.spare {
		c.addID(met, series)
	}
}

func (c *collector) addID(met string, series uint32) uint32 {
	id := uint32(len(c.old.lines) + len(c.fresh))
	c.index[met] = id
	c.fresh = append(c.fresh, series)
	return id
}

// seriesOf returns the number of the series of a line.
func (c *collector) seriesOf(id uint32) uint32 {
	switch {
	case id == unknown:
		return unknown
	case int(id) < len(c.old.lines):
		return c.view.series[id]
	default:
		return c.fresh[int(id)-len(c.old.lines)]
	}
}

// remember gives a new line an ID.
func (c *collector) remember(met []byte, series uint32) { c.seen.set(c.addID(string(met), series)) }

// differ begins a new template with the first k lines of the old one.
func (c *collector) differ(k int) {
	if c.differs {
		return
	}
	c.differs = true
	c.draft.copyFrom(c.old, c.view.series, k)
	for i := range k {
		c.seen.set(uint32(i))
	}
}

// record notes a line for the next template.
func (c *collector) record(met []byte, p textparse.Parser, f format, series uint32, again bool) {
	if again {
		series = unknown // the line is looked at anew each time
	}
	if f != formatParsed {
		c.recordText(met, p, series)
		return
	}
	if k := c.lines; !c.differs {
		if k < len(c.old.lines) && c.old.format == f && c.view.series[k] == series && c.old.met(k) == string(met) {
			c.lines++
			return
		}
		c.differ(k)
	}
	c.draft.add(nil, met, nil, c.mtype, series)
}

// recordText notes a line of a text format, with its place in the body.
func (c *collector) recordText(met []byte, p textparse.Parser, series uint32) {
	start := int(uintptr(unsafe.Pointer(unsafe.SliceData(met))) - uintptr(unsafe.Pointer(unsafe.SliceData(c.body))))
	if c.strange = c.strange || start < c.at || start > len(c.body)-len(met); c.strange {
		c.draft.add(nil, met, nil, c.mtype, series)
		return
	}
	at := start + len(met)
	for at < len(c.body) && (c.body[at] == ' ' || c.body[at] == '\t') {
		at++
	}
	_, _, want := p.Series()
	if v, _, ok := readValue(c.body[at:]); ok && math.Float64bits(v) != math.Float64bits(want) {
		c.strange = true
	}
	c.draft.add(c.body[c.at:start], met, c.body[start+len(met):at], c.mtype, series)
	c.at = len(c.body)
	if n := bytes.IndexByte(c.body[at:], '\n'); n >= 0 {
		c.at = at + n + 1
	}
}

// learn makes the body the one that the next is compared with.
func (c *collector) learn(f format) {
	v := c.view
	v.spare = nil
	if v.meta != nil && c.meta == v.meta {
		v.meta.expire()
	}
	if !c.differs {
		return
	}
	d := &c.draft
	v.size = len(d.lines)
	if c.strange {
		v.spare = make(map[string]uint32, len(d.lines))
		for k, line := range d.lines {
			if d.series[k] != unknown {
				v.spare[string(d.text[line.met:line.metEnd])] = d.series[k]
			}
		}
		v.template, v.series = noTemplate, nil
		return
	}
	if f != formatParsed {
		d.text = append(d.text, c.body[c.at:]...)
	}
	v.template = c.shared.share(f, d.text, d.lines)
	v.series = append(make([]uint32, 0, len(d.series)), d.series...)
}

// spare keeps what a scrape that failed has told of lines. Where failing scrapes show ever more of them, those of earlier ones are forgotten.
func (c *collector) spare() {
	v, n := c.view, len(c.old.lines)
	if n+len(c.fresh) > 2*v.size+1000 {
		v.spare = nil
	}
	for met, id := range c.index {
		if int(id) >= n && c.seen.has(id) {
			if v.spare == nil {
				v.spare = map[string]uint32{}
			}
			v.spare[met] = c.fresh[int(id)-n]
		}
	}
}

// reset makes the collector ready for another body.
func (c *collector) reset() {
	c.body, c.old = nil, nil
	c.next, c.lines, c.at, c.mtype, c.differs, c.strange = 0, 0, 0, otherType, false, false
	c.index, c.fresh = nil, c.fresh[:0]
	c.seen.reset()
	c.draft.shrink()
	c.meta, c.redescribe = nil, false
	c.counted, c.limitErr, c.bucketErr, c.problems = 0, nil, nil, problems{}
	c.ls, c.opts = labels.EmptyLabels(), storage.AOptions{}
	clear(c.exs[:cap(c.exs)])
}
