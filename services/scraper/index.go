package scraper

import (
	"hash/maphash"
	"strings"
	"unsafe"
)

// lineIndex finds the ID of a line by its series. The IDs below the number of the template's lines are those lines; what follows are others. The zero value
// is one that is empty and not filled.
type lineIndex struct {
	filled bool
	slots  []uint32 // open-addressed: ID + 1
	used   int

	// Of the lines that the template does not have: those that are gone, behind them those that only failed scrapes have shown, and then those of the draft.
	spare  []string     // of the first two kinds
	gone   int          // how many of them are gone
	types  []metricType // of those
	lines  []uint32     // where they are in the draft
	series []uint32     // of all of them
}

func (x *lineIndex) reset() {
	clear(x.spare)
	x.filled, x.gone = false, 0
	x.spare, x.types, x.lines, x.series = x.spare[:0], x.types[:0], x.lines[:0], x.series[:0]
}

// makeRoom empties the table, and sizes it for n lines.
func (x *lineIndex) makeRoom(n int) {
	size := 64
	for size < 2*n {
		size *= 2
	}
	if cap(x.slots) < size || cap(x.slots) > 64*size {
		x.slots = make([]uint32, size)
	}
	x.slots, x.used = x.slots[:size], 0
	clear(x.slots)
}

// text returns the series of a line by its ID, as long as the draft does not change.
func (c *collector) text(id uint32) string {
	n := int(id) - len(c.old.lines)
	if n < 0 {
		return c.old.met(int(id))
	}
	if n < len(c.index.spare) {
		return c.index.spare[n]
	}
	line := &c.draft.lines[c.index.lines[n-len(c.index.spare)]]
	met := c.draft.text[line.met:line.metEnd]
	return unsafe.String(unsafe.SliceData(met), len(met))
}

// find returns the ID of a line by its series, or unknown. It also looks where the template goes on.
func (c *collector) find(met []byte) uint32 {
	if k := c.next; k < len(c.old.lines) && c.old.met(k) == string(met) {
		c.next++
		if series := c.view.series[k]; series != unknown && series != created { // a failed scrape may have had it as a series
			return uint32(k)
		}
	}
	if !c.index.filled {
		c.fillIndex()
	}
	mask := uint32(len(c.index.slots) - 1)
	for h := uint32(maphash.Bytes(c.shared.seed, met)) & mask; c.index.slots[h] != 0; h = (h + 1) & mask {
		if id := c.index.slots[h] - 1; c.text(id) == string(met) {
			if int(id) < len(c.old.lines) {
				c.next = int(id) + 1
			}
			return id
		}
	}
	return unknown
}

// fillIndex enters the lines of the template, and those that only failed scrapes have shown.
func (c *collector) fillIndex() {
	x := &c.index
	x.filled = true
	x.makeRoom(len(c.old.lines) + len(c.view.spare) + len(c.view.gone.lines) + len(c.old.lines)/8 + 16)
	mask := uint32(len(x.slots) - 1)
	for k := range c.old.lines {
		if c.view.series[k] == unknown {
			continue
		}
		h := uint32(maphash.String(c.shared.seed, c.old.met(k))) & mask
		for x.slots[h] != 0 {
			h = (h + 1) & mask
		}
		x.slots[h] = uint32(k) + 1
		x.used++
	}
	add := func(met string, series uint32) {
		x.spare = append(x.spare, met)
		x.series = append(x.series, series)
		c.enter(uint32(len(c.old.lines)+len(x.series)-1), met)
	}
	if c.view.gone.format == c.format {
		for met, line := range c.view.gone.lines {
			add(met, line.series)
			x.types = append(x.types, line.metricType)
		}
	}
	x.gone = len(x.spare)
	for met, series := range c.view.spare {
		add(met, series)
	}
}

// isGone reports whether a line is one that the last body did not have.
func (c *collector) isGone(id uint32) bool {
	n := int(id) - len(c.old.lines)
	return n >= 0 && n < c.index.gone
}

// enter puts a line into the table, in place of another with the same series.
func (c *collector) enter(id uint32, met string) {
	x := &c.index
	if 3*x.used >= 2*len(x.slots) {
		c.growIndex()
	}
	mask := uint32(len(x.slots) - 1)
	h := uint32(maphash.String(c.shared.seed, met)) & mask
	for x.slots[h] != 0 && c.text(x.slots[h]-1) != met {
		h = (h + 1) & mask
	}
	if x.slots[h] == 0 {
		x.used++
	}
	x.slots[h] = id + 1
}

// growIndex enters all lines into a larger table.
func (c *collector) growIndex() {
	old := c.index.slots
	c.index.slots = make([]uint32, 2*len(old))
	mask := uint32(len(c.index.slots) - 1)
	for _, s := range old {
		if s == 0 {
			continue
		}
		h := uint32(maphash.String(c.shared.seed, c.text(s-1))) & mask
		for c.index.slots[h] != 0 {
			h = (h + 1) & mask
		}
		c.index.slots[h] = s
	}
}

// addLine gives a line an ID that the template does not have. Its text will be in the draft.
func (c *collector) addLine(met []byte, line, series uint32) uint32 {
	x := &c.index
	id := uint32(len(c.old.lines) + len(x.series))
	c.enter(id, unsafe.String(unsafe.SliceData(met), len(met)))
	x.lines = append(x.lines, line)
	x.series = append(x.series, series)
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
		return c.index.series[int(id)-len(c.old.lines)]
	}
}

// spare keeps what a scrape that failed has told of lines. Where failing scrapes show ever more of them, those of earlier ones are forgotten.
func (c *collector) spare() {
	v, n := c.view, len(c.old.lines)
	if n+len(c.index.series) > 2*v.size+1000 {
		v.spare = nil
	}
	for k, series := range c.index.series {
		if c.seen.has(uint32(n + k)) {
			if v.spare == nil {
				v.spare = map[string]uint32{}
			}
			v.spare[strings.Clone(c.text(uint32(n+k)))] = series
		}
	}
}
