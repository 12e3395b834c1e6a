package scraper

import (
	"bytes"
	"math"
)

// starts finds the start timestamps of OpenMetrics text, where the scraper is to read them. A series of a counter, summary or histogram has the one that
// the next line whose name ends with _created tells, if that is of the same group, and before a comment. Prometheus's parser looks ahead for it; here series wait until
// it comes. A start timestamp that was found once serves the lines of its group behind it too, unless another was looked for in between.
type starts struct {
	on      bool
	found   bool
	group   uint64 // of what was found last
	start   int64  // the same, in milliseconds
	waiting []waiting
}

// waiting is a sample that has no start timestamp yet.
type waiting struct {
	group  uint64
	series uint32 // or unknown where the sample was not taken
	extra  int32  // number + 1 among the appender's further samples; 0 for a first one
}

func (s *starts) reset(on bool) { *s = starts{on: on, waiting: s.waiting[:0]} }

// awaitStart is called when a sample has been offered: n and extra tell how many, and how many further ones, the appender had before.
func (c *collector) awaitStart(series uint32, n, extra int) {
	if c.kind == otherType {
		c.starts.found = false
		return
	}
	w := waiting{group: c.group, series: series}
	switch {
	case c.a.n == n:
		w.series = unknown
	case len(c.a.extra) > extra:
		w.extra = int32(extra + 1)
	}
	c.starts.waiting = append(c.starts.waiting, w)
}

// takeCreated takes the value of a line whose name ends with _created.
func (c *collector) takeCreated(group uint64, seconds float64) {
	c.settleStarts(true, group, int64(seconds*1000))
}

// endStarts is called where no start timestamp can follow for what waits.
func (c *collector) endStarts() { c.settleStarts(false, 0, 0) }

func (c *collector) settleStarts(created bool, group uint64, start int64) {
	s := &c.starts
	for _, w := range s.waiting {
		switch {
		case s.found && s.group == w.group && s.start > 0:
		case created && group == w.group:
			s.found, s.group, s.start = true, group, start
		default:
			s.found = false
			continue
		}
		if w.series != unknown {
			c.a.setStart(w.series, int(w.extra)-1, s.start)
		}
	}
	s.waiting = s.waiting[:0]
}

var createdSuffix = []byte("_created")

// groupOf returns what the lines have in common that share a start timestamp: the name of their family and their labels, but for those that tell a bucket or
// quantile. Series is the text of one in OpenMetrics, and where it ends with _created in a family that has start timestamps, that is told too.
func (c *collector) groupOf(series []byte) (group uint64, created bool) {
	if c.known.metricType == otherType {
		return 0, false
	}
	h := &c.hasher
	h.SetSeed(c.shared.seed)
	h.Reset()
	name, at := 0, bytes.IndexByte(series, '{')
	if at < 0 {
		at = len(series)
	}
	nameEnd := at
	for at++; at < len(series); {
		from, to := at, quotedEnd(series, at) // of a label's name, or the metric's
		if series[at] == '"' {
			from, at = at+1, to
			to--
		} else {
			for series[at] != '=' && series[at] != '}' && series[at] != ',' {
				at++
			}
			to = at
		}
		if at == len(series) || series[at] != '=' { // a comma or the end: it was the metric's name
			if to > from {
				name, nameEnd = from, to
			}
			at++
			continue
		}
		value := at + 2
		at = quotedEnd(series, at+1)
		if !c.isDivision(series[from:to]) {
			_, _ = h.Write(series[from:to])
			_, _ = h.Write(series[value : at-1])
		}
		if at < len(series) && series[at] == ',' {
			at++
		}
		if at < len(series) && series[at] == '}' {
			break
		}
	}
	if created = bytes.HasSuffix(series[name:nameEnd], createdSuffix); created {
		_, _ = h.Write(series[name : nameEnd-len(createdSuffix)])
		return h.Sum64(), true
	}
	end := int(c.known.family)
	if len(series) > 1 && series[0] == '{' && series[1] == '"' {
		end += 2
	}
	if name > end || end > len(series) {
		return math.MaxUint64, false // there is no such family
	}
	_, _ = h.Write(series[name:end])
	return h.Sum64(), false
}

// quotedEnd returns where the quoted text that begins at the given place has ended; where there is none, the place itself.
func quotedEnd(text []byte, at int) int {
	if at >= len(text) || text[at] != '"' {
		return at
	}
	for at++; at < len(text) && text[at] != '"'; at++ {
		if text[at] == '\\' {
			at++
		}
	}
	return at + 1
}

// isDivision reports whether a label tells the lines of one histogram or summary apart.
func (c *collector) isDivision(label []byte) bool {
	switch c.known.metricType {
	case histogramType:
		return string(label) == "le"
	case summaryType:
		return string(label) == "quantile"
	default:
		return false
	}
}
