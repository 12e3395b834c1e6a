package web

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
)

// chart is a line over the last hour. The template draws it as SVG; its labels are text beside it, so that they keep their size on a narrow screen.
type chart struct {
	// Title is what the line is of, Now its newest value; empty where there is none.
	Title, Now string
	// Words say in a sentence what the line shows.
	Words string
	// Top and Middle are the labels of the vertical axis, which begins at 0.
	Top, Middle string
	// Line and Area are paths in a box of chartWidth and chartHeight; nothing where there are no points.
	Line, Area string
}

// The box of a chart's paths. It is stretched to the room there is.
const (
	chartWidth  = 600
	chartHeight = 100
)

// unit says how values of a chart are written, and which tops its axis may have.
type unit struct {
	write func(float64) string
	tops  []float64
}

var (
	ofSeconds = unit{readable.Seconds, []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 4 * 3600, 8 * 3600, 16 * 3600, 24 * 3600, 2 * 86400, 4 * 86400, 8 * 86400}}
	ofRate    = unit{func(v float64) string { return readable.Count(v) + "/s" }, nil}
)

// top returns where the axis ends.
func (u *unit) top(most float64) float64 {
	for _, t := range u.tops {
		if most <= t {
			return t
		}
	}
	if most <= 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{1, 2, 4, 5} {
		if most <= f*power {
			return f * power
		}
	}
	return 10 * power
}

// newChart draws points, the oldest first, of which those below 0 are gaps.
func newChart(title string, u unit, points []float32) chart {
	c := chart{Title: title}
	least, most, known, first := math.Inf(1), 0.0, 0, -1
	for i, p := range points {
		if p < 0 || math.IsNaN(float64(p)) || math.IsInf(float64(p), 0) {
			continue
		}
		if known++; first < 0 {
			first = i
		}
		least, most = min(least, float64(p)), max(most, float64(p))
	}
	top := u.top(most)
	c.Top, c.Middle = u.write(top), u.write(top/2)
	if known == 0 {
		c.Words = title + ": nothing is known of the last hour yet"
		return c
	}
	for i := len(points) - 1; i >= len(points)-2 && i >= 0; i-- { // the newest step may have no point yet
		if points[i] >= 0 {
			c.Now = u.write(float64(points[i]))
			break
		}
	}
	c.Line, c.Area = paths(points, top)
	c.Words = c.words(u, least, most, len(points)-first, known)
	return c
}

func (c *chart) words(u unit, least, most float64, steps, known int) string {
	words := fmt.Sprintf("%s over the last %s: ", c.Title, readable.Duration(time.Duration(steps)*status.HistoryStep))
	if low, high := u.write(least), u.write(most); low == high {
		words += low + " all the time"
	} else {
		words += fmt.Sprintf("from %s to %s", low, high)
	}
	if c.Now != "" {
		words += ", now " + c.Now
	}
	if gaps := steps - known; gaps > 1 {
		words += fmt.Sprintf("; nothing is known of %s in between", readable.Duration(time.Duration(gaps)*status.HistoryStep))
	}
	return words
}

// paths returns the line through the points, and the area below it.
func paths(points []float32, top float64) (line, area string) {
	var l, a strings.Builder
	at := func(i int) (x, y string) {
		number := func(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }
		return number(float64(i) * chartWidth / float64(max(len(points)-1, 1))), number(chartHeight - math.Min(float64(points[i])/top, 1)*chartHeight)
	}
	known := func(i int) bool { return i < len(points) && points[i] >= 0 }
	for i := 0; i < len(points); i++ {
		if !known(i) {
			continue
		}
		x, y := at(i)
		fmt.Fprintf(&l, "M%s %s", x, y)
		fmt.Fprintf(&a, "M%s %dL%s %s", x, chartHeight, x, y)
		if !known(i + 1) {
			l.WriteString("h0.1") // a point by itself
		}
		for known(i + 1) {
			i++
			x, y = at(i)
			fmt.Fprintf(&l, "L%s %s", x, y)
			fmt.Fprintf(&a, "L%s %s", x, y)
		}
		fmt.Fprintf(&a, "V%dZ", chartHeight)
	}
	return l.String(), a.String()
}
