package scraper

import (
	"bytes"
	"strings"
)

// goneLines are lines that come and go: the last body did not have them, but the one before. Prometheus would read them as new ones.
type goneLines struct {
	format format
	lines  map[string]goneLine // by their text
}

type goneLine struct {
	series     uint32 // its number
	metricType        // under which its labels were made: Prometheus would make them anew under another
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
		g.lines = map[string]goneLine{}
	}
	for k, series := range c.view.series {
		if series == unknown || c.seen.has(uint32(k)) {
			continue
		}
		if met := c.old.met(k); !c.view.retyped || !dependsOnType(met) {
			g.lines[strings.Clone(met)] = goneLine{series, c.old.lines[k].metricType}
		}
	}
}

// dependsOnType reports whether the labels of a line may depend on the TYPE comment before it: those named le and quantile do.
func dependsOnType(met string) bool { return strings.Contains(met, "le") }

// noteType is called for a line that stands in another place than before, and keeps the labels that it has got there.
func (c *collector) noteType(id uint32, met []byte) {
	if t := c.old; int(id) < len(t.lines) && t.format == c.format && t.lines[id].metricType == c.known.metricType {
		return
	}
	c.view.retyped = c.view.retyped || dependsOnType(string(met))
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
	if gone && c.index.types[int(id)-len(c.old.lines)] != c.known.metricType {
		return false
	}
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
		c.noteType(id, met)
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
