package screen

import (
	"math"
	"strings"
)

// blocks are an eighth of a character high, two eighths, and so on.
var blocks = []rune(" ▁▂▃▄▅▆▇█")

// spark draws values as bars from left to right, the newest at the right, as so many lines of so many characters. What is NaN is not known, and left out. The highest bar
// is as high as most; a value above 0 is seen always.
func spark(values []float64, most float64, width, height int) []string {
	values = values[max(len(values)-width, 0):]
	lines := make([]string, height)
	for row := range height { // from the bottom
		var b strings.Builder
		b.WriteString(strings.Repeat(" ", width-len(values)))
		for _, v := range values {
			level := 0
			if v > 0 && most > 0 {
				level = max(int(math.Round(min(v/most, 1)*float64(8*height))), 1)
			}
			level = min(max(level-8*row, 0), 8)
			switch {
			case math.IsNaN(v):
				b.WriteByte(' ')
			case level == 0 && row == 0:
				b.WriteRune(blocks[1]) // nothing, where there was an answer
			default:
				b.WriteRune(blocks[level])
			}
		}
		lines[height-1-row] = b.String()
	}
	return lines
}

// highest returns the highest of the values that a spark of this width shows.
func highest(values []float64, width int) float64 {
	most := 0.0
	for _, v := range values[max(len(values)-width, 0):] {
		if v > most { // which NaN is not
			most = v
		}
	}
	return most
}
