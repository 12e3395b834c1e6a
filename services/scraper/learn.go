package scraper

import "github.com/prometheus/prometheus/model/textparse"

// remember gives a new line an ID.
func (c *collector) remember(met []byte, series uint32) {
	if !c.index.filled {
		c.fillIndex()
	}
	line := uint32(c.lines) // of the draft, where the text is about to be
	if c.differs {
		line = uint32(len(c.draft.lines))
	}
	c.seen.set(c.addLine(met, line, series))
}

// record notes a line for the next template.
func (c *collector) record(met []byte, p textparse.Parser, f format, series uint32, again bool) {
	if again {
		series = unknown // the line is looked at anew each time
	}
	if f != formatParsed {
		c.recordLine(met, p, series)
		return
	}
	if k := c.lines; !c.differs {
		if k < len(c.old.lines) && c.old.format == f && c.view.series[k] == series && c.old.met(k) == string(met) {
			c.lines++
			return
		}
		c.differ(k)
	}
	c.recordStrange(met, templateLine{}, series)
}

// learn makes the body the one that the next is compared with.
func (c *collector) learn(f format) {
	v := c.view
	v.spare = nil
	if v.meta != nil && c.meta == v.meta {
		v.meta.expire()
	}
	if !c.differs {
		if c.old.format != f || c.packs(len(c.old.text)) == (v.packed != nil) {
			return
		}
		c.differ(len(c.old.lines)) // the interval has changed
	}
	d := &c.draft
	v.size = len(d.lines)
	if c.strange {
		v.spare = make(map[string]uint32, len(d.lines))
		for k, line := range d.lines {
			if d.series[k] < created || d.series[k] == dropped {
				v.spare[string(d.text[line.met:line.metEnd])] = d.series[k]
			}
		}
		v.template, v.packed, v.series, v.gone = noTemplate, nil, nil, goneLines{}
		return
	}
	if f != formatParsed {
		d.text = append(d.text, c.body[c.at:]...)
	}
	v.gone.learn(c, f)
	v.series = d.takeSeries()
	if c.packs(len(d.text)) {
		v.template, v.packed = noTemplate, c.shared.pack(f, d)
	} else {
		v.template, v.packed = c.shared.share(f, d), nil
	}
}

// packs reports whether a template with so many bytes of text is kept packed. A huge one is not: it would have to be in memory as a whole each time.
func (c *collector) packs(text int) bool { return c.seldom && text <= hugeTemplate }
