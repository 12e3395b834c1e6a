package scraper

import (
	"bytes"
	"strings"
)

// goneLines are lines that come and go: the last body did not have them, but the one before. Prometheus would read them as new ones.
type goneLines struct {
	format format
	lines  map[string]uint32 // the numbers of their series, by their text
}

// learn notes which lines of the template the body lacks, if they are few.
func (g *goneLines) learn(c *collector, f format) {
	g.format = f
	clear(g.lines)
	if f == formatParsed || c.old.format != f || c.starts.on {
		return
	}
	n := 0
	for k := range c.old.lines {
		if c.seen.has(uint32(k)) || c.view.series[k] == unknown {
			continue
		}
		if n++; n > len(c.old.lines)/8+8 {
			g.lines = nil // they are replaced by others all the time
			return
		}
	}
	if n == 0 {
		return
	}
	if g.lines == nil {
		g.lines = map[string]uint32{}
	}
	for k, series := range c.view.series {
		if series != unknown && !c.seen.has(uint32(k)) {
			g.lines[strings.Clone(c.old.met(k))] = series
		}
	}
}

// takeMoved takes the line that follows if it is nothing but a series that the template has elsewhere, or that is gone, and a value. The parser has read that text before,
// so it need not read it again.
func (c *collector) takeMoved(f format) bool {
	if c.strange || c.starts.on || c.old.format != f {
		return false
	}
	line := c.body[c.at:]
	n := seriesEnd(line)
	if n <= 0 || n >= len(line) || line[n] != ' ' {
		return false
	}
	value, m, ok := readValue(line[n+1:])
	if end := n + 1 + m; !ok || line[end] != '\n' {
		return false
	}
	met := line[:n]
	id := c.find(met)
	known, gone := int(id) < len(c.old.lines), c.isGone(id)
	series := c.seriesOf(id)
	if !known && !gone || c.seen.has(id) || series == unknown || series == created {
		return false
	}
	c.total++
	if series != dropped {
		c.exs = c.exs[:0]
		i, err := c.offer(series, scraped{t: c.now, v: value})
		taken, _ := c.judge(met, err) // the appender returns no other errors for a series that it has
		if taken {
			c.view.current.set(i)
		}
		if c.added++; gone && taken && c.limitErr == nil && c.bucketErr == nil {
			c.seriesAdded++
		}
		if err == nil {
			series = i
		} else if gone {
			series = unknown
		}
	}
	if known {
		c.seen.set(id)
	} else if series != unknown {
		c.remember(met, series)
	}
	d := &c.draft
	start := uint32(len(d.text))
	d.text = append(d.text, line[:n+1]...)
	d.add(templateLine{lineContext: c.known, met: start, metEnd: start + uint32(n)}, 0, false, series)
	c.at += n + 1 + m + 1
	return true
}

// seriesEnd returns where the series has ended with which a line begins, if it is one; what is behind it says that.
func seriesEnd(line []byte) int {
	n := bytes.IndexAny(line[:min(len(line), 256)], "{ \n#")
	if n < 0 || line[n] != '{' {
		return n
	}
	for n++; n < len(line) && line[n] != '}'; n++ {
		if line[n] == '"' {
			for n++; n < len(line) && line[n] != '"'; n++ {
				if line[n] == '\\' {
					n++
				}
			}
		}
	}
	return n + 1
}
