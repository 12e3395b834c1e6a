package scraper

import (
	"bytes"
	"errors"
	"io"
	"math"
	"unsafe"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/textparse"
)

// readLines reads a body of a text format against the template, and has Prometheus's parser read what is different.
func (c *collector) readLines(f format) error {
	if c.old.format != f && len(c.old.lines) > 0 {
		c.differ(0)
	}
	if c.whole {
		c.more()
	}
	for {
		if c.old.format == f {
			c.matchLines(f)
		}
		if c.next == len(c.old.lines) && c.old.format == f && c.isTail(c.old.tail()) {
			c.endStarts()
			return nil
		}
		c.differ(c.next)
		if c.takeMoved(f) {
			continue
		}
		if end, err := c.parseLines(f); end || err != nil {
			return err
		}
	}
}

// isTail reports whether nothing but the given text follows.
func (c *collector) isTail(tail string) bool {
	for c.rest != nil && len(c.body)-c.at <= len(tail) {
		c.more()
	}
	return c.rest == nil && string(c.body[c.at:]) == tail
}

// matchLines takes the lines that are as the template expects them: only their values are read. Where lines of the template are not there any more,
// it goes on behind them.
func (c *collector) matchLines(f format) {
	c.a.reserve()
	for c.inContext(c.next) {
		from := c.next
		c.matchRun(f)
		if c.next > from {
			c.known = c.old.lines[c.next-1].lineContext
			if c.differs {
				c.repeat(from, c.next)
			}
		}
		if !c.skipLines() {
			return
		}
	}
}

// matchRun takes lines as long as they follow each other as in the template.
func (c *collector) matchRun(f format) {
	t, v := c.old, c.view
	plain := c.rules.sampleLimit == 0 && !c.redescribe
	for c.next < len(t.lines) {
		k := c.next
		series := v.series[k]
		if series == unknown || c.differs && c.seen.has(uint32(k)) {
			return
		}
		prefix := t.prefix(k)
		body := c.body
		if len(body)-c.at < len(prefix) {
			if c.more() {
				continue
			}
			return
		}
		if string(body[c.at:c.at+len(prefix)]) != prefix {
			return
		}
		at := c.at + len(prefix)
		value, n, ok := readValue(body[at:])
		if !ok {
			return
		}
		at += n
		switch {
		case body[at] != '\n' || c.starts.on:
			if n, ok = c.matchRest(f, k, series, at, value); !ok {
				return
			}
			at += n
		case series == dropped:
			at++
			c.total++
		case plain && c.a.take(series, c.now, value):
			at++
			c.total++
			v.current.set(series)
			c.added++
		default:
			at++
			c.total++
			c.exs = c.exs[:0]
			c.takeKnown(k, series, scraped{t: c.now, v: value}, false)
		}
		c.at = at
		c.next++
		if c.differs {
			c.seen.set(uint32(k))
		}
	}
}

// maxSkipped is how many lines of the template are passed over without a look at the whole of it.
const maxSkipped = 32

// skipLines looks whether the body goes on near by in the template, and moves there.
func (c *collector) skipLines() bool {
	for k := c.next + 1; k < len(c.old.lines) && k <= c.next+maxSkipped; k++ {
		if c.fits(k) {
			c.differ(c.next)
			c.next = k
			return true
		}
	}
	return false
}

// inContext reports whether line k of the template means here what it meant there.
func (c *collector) inContext(k int) bool {
	t := c.old
	return !c.strange && k < len(t.lines) && (t.lines[k].typed || t.before(k) == c.known)
}

// fits reports whether line k of the template follows, and has not been there yet.
func (c *collector) fits(k int) bool {
	if !c.inContext(k) || c.view.series[k] == unknown || c.seen.has(uint32(k)) {
		return false
	}
	prefix := c.old.prefix(k)
	return len(c.body)-c.at >= len(prefix) && string(c.body[c.at:c.at+len(prefix)]) == prefix
}

// parseLines has Prometheus's parser read lines until one follows that the template has, or to the end of the window or the body.
func (c *collector) parseLines(f format) (end bool, err error) {
	p := c.lineParser(f)
	coming := c.known
	c.comments = lineComments{}
	for {
		entry, err := p.Next()
		if err != nil {
			return c.endOfParser(f, err)
		}
		if entry != textparse.EntrySeries {
			c.takeComment(p, entry, &coming)
			continue
		}
		c.known = coming
		if err := c.take(p, entry, f); err != nil {
			return false, err
		}
		coming, c.comments = c.known, lineComments{}
		if c.old.format == f && c.next < len(c.old.lines) && c.fits(c.next) {
			return false, nil
		}
	}
}

// lineComments tells of the comments before a line.
type lineComments struct{ typed, described bool }

// takeComment notes what a comment says.
func (c *collector) takeComment(p textparse.Parser, entry textparse.Entry, coming *lineContext) {
	var name []byte
	switch entry {
	case textparse.EntryType:
		var t model.MetricType
		name, t = p.Type()
		coming.metricType = metricTypeOf(t)
		c.comments.typed = true
	case textparse.EntryHelp:
		name, _ = p.Help()
	case textparse.EntryUnit:
		name, _ = p.Unit()
	default:
		return
	}
	c.comments.described = true
	c.needMetadata()
	c.meta.take(p, entry)
	c.redescribe = c.redescribe || !c.isCommentOfTemplate(name)
	if c.starts.on {
		c.endStarts()
		if coming.family = uint16(len(name)); len(name) > math.MaxUint16 {
			c.strange = true
		}
	}
}

// endOfParser tells what an error of the parser means, which may be that of the body's end or the window's.
func (c *collector) endOfParser(f format, err error) (end bool, _ error) {
	if c.rest == nil {
		if errors.Is(err, io.EOF) {
			c.endStarts()
			return true, nil
		}
		return false, err
	}
	// A line that is faulty is so with more behind it, and is called so in the same words. One that ends with the window is not.
	if place := c.place(); !errors.Is(err, io.EOF) && err.Error() != noEOF {
		if place == c.faultAt && err.Error() == c.fault {
			return false, err
		}
		c.faultAt, c.fault = place, err.Error()
	}
	c.more()
	return false, nil
}

// noEOF is what the OpenMetrics parser says where a body ends too early.
const noEOF = "data does not end with # EOF"

// typeComments tell the parser what type the lines that follow are of.
var typeComments = [...]string{histogramType: "# TYPE a histogram\n", summaryType: "# TYPE a summary\n", counterType: ""}

// lineParser returns a parser for the rest of the window. Labels depend on the last TYPE comment, which the parser of a rest has not
// seen: it is told of it by one written over what was read already, and restored at once.
func (c *collector) lineParser(f format) textparse.Parser {
	newParser := func(text []byte) textparse.Parser {
		if f == formatOpenMetrics {
			return textparse.NewOpenMetricsParser(text, nil)
		}
		return textparse.NewPromParser(text, nil, false)
	}
	comment := typeComments[c.known.metricType]
	start := c.at - len(comment)
	// The parser of OpenMetrics takes a NUL byte for a part of the comment before it. No line that begins with one has a type.
	if comment == "" || start < 0 || c.at < len(c.body) && c.body[c.at] == 0 {
		return newParser(c.body[c.at:])
	}
	read := c.body[start:c.at]
	was := string(read)
	copy(read, comment)
	p := newParser(c.body[start:])
	_, _ = p.Next()
	copy(read, was)
	return p
}

// differ begins a new template with the first k lines of the old one.
func (c *collector) differ(k int) {
	if c.differs {
		return
	}
	c.differs = true
	c.draft.reset()
	c.draft.reserve(c.old)
	c.commented = -1
	c.repeat(0, k)
	for i := range k {
		c.seen.set(uint32(i))
	}
}

// repeat takes lines of the old template over into the new one.
func (c *collector) repeat(from, to int) {
	for k := to - 1; k >= from; k-- {
		if c.old.lines[k].described {
			c.commented = len(c.draft.lines) + k - from
			break
		}
	}
	c.draft.repeat(c.old, c.view.series, from, to)
}

// recordLine notes a line of a text format for the next template, with its place in the body.
func (c *collector) recordLine(met []byte, p textparse.Parser, series uint32) {
	start := int(uintptr(unsafe.Pointer(unsafe.SliceData(met))) - uintptr(unsafe.Pointer(unsafe.SliceData(c.body))))
	d := &c.draft
	line := templateLine{lineContext: c.known, typed: c.comments.typed, described: c.comments.described}
	if line.described {
		c.commented, c.block = len(d.lines), len(d.lines) // the parser has read them
	}
	if start < c.at || start > len(c.body)-len(met) { // the parser has another copy of the body
		c.strange = true
		c.recordStrange(met, line, series)
		return
	}
	at := start + len(met)
	for at < len(c.body) && (c.body[at] == ' ' || c.body[at] == '\t') {
		at++
	}
	_, _, want := p.Series()
	v, _, ok := readValue(c.body[at:])
	end := len(c.body)
	if n := bytes.IndexByte(c.body[at:], '\n'); n >= 0 {
		end = at + n // neither format has line breaks behind the value
	}
	// What follows a blank at the end of a line of OpenMetrics is an error, which the parser has yet to meet.
	blank := c.format == formatOpenMetrics && end > at && c.body[end-1] == ' '
	if c.strange = c.strange || blank || ok && math.Float64bits(v) != math.Float64bits(want) || len(d.text) > maxTemplate; c.strange {
		c.recordStrange(met, line, series)
	} else {
		shift := len(d.text) - c.at
		d.text = append(d.text, c.body[c.at:at]...)
		line.met, line.metEnd = uint32(start+shift), uint32(start+len(met)+shift)
		d.add(line, c.group, c.starts.on, series)
	}
	if c.at = end; !blank && end < len(c.body) {
		c.at++
	}
}

// recordStrange notes a line of a body of which there will be no template.
func (c *collector) recordStrange(met []byte, line templateLine, series uint32) {
	d := &c.draft
	line.met = uint32(len(d.text))
	d.text = append(d.text, met...)
	line.metEnd = uint32(len(d.text))
	d.add(line, 0, c.starts.on, series)
}
