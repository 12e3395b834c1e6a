package screen

import (
	"strings"
	"unicode/utf8"
)

// Style is how a piece of text looks on a terminal.
type Style uint8

// The styles.
const (
	Normal   Style = iota
	Strong         // headings
	Faint          // what is there for completeness
	Good           // at work
	Doubtful       // waits, or lags behind
	Bad            // does not work
	First          // the charts, each its own
	Second
	Third
	Bar // the title
)

// codes are the parameters of the terminal's command for a style: with colours, and without.
var codes = [...]struct{ colour, plain string }{
	Strong: {"1", "1"}, Faint: {"2", "2"}, Good: {"32", ""}, Doubtful: {"33", "1"}, Bad: {"1;31", "1"},
	First: {"36", ""}, Second: {"32", ""}, Third: {"33", ""}, Bar: {"7", "7"},
}

// Span is a piece of a line in one style.
type Span struct {
	Text  string
	Style Style
}

// Line is a line on a screen.
type Line []Span

// width is how many characters a line has.
func (l Line) width() (n int) {
	for _, s := range l {
		n += utf8.RuneCountInString(s.Text)
	}
	return n
}

// String returns the text alone.
func (l Line) String() string {
	var b strings.Builder
	for _, s := range l {
		b.WriteString(s.Text)
	}
	return b.String()
}

// cut shortens a line to at most width characters; 0 is no limit.
func (l Line) cut(width int) Line {
	if width <= 0 || l.width() <= width {
		return l
	}
	var out Line
	for _, s := range l {
		n := utf8.RuneCountInString(s.Text)
		if n >= width { // more follows, or this is too long
			return append(out, Span{string([]rune(s.Text)[:width-1]) + "…", s.Style})
		}
		width -= n
		out = append(out, s)
	}
	return out
}

// fit makes a line exactly so many characters wide, with spaces in the style of its last piece.
func (l Line) fit(width int) Line {
	l = l.cut(width)
	if n := width - l.width(); n > 0 {
		style := Normal
		if len(l) > 0 && l[len(l)-1].Style == Bar {
			style = Bar
		}
		l = append(l[:len(l):len(l)], Span{strings.Repeat(" ", n), style})
	}
	return l
}

// Styled returns the line with a terminal's commands for its styles.
func (l Line) Styled(colours bool) string {
	var b strings.Builder
	for _, s := range l {
		code := codes[s.Style].plain
		if colours {
			code = codes[s.Style].colour
		}
		if code == "" {
			b.WriteString(s.Text)
			continue
		}
		b.WriteString("\x1b[" + code + "m" + s.Text + "\x1b[0m")
	}
	return b.String()
}

// lineOf is a line of one style.
func lineOf(text string, style Style) Line { return Line{{text, style}} }

// between puts two texts at both ends of a line.
func between(left, right Line, width int) Line {
	gap := width - left.width() - right.width()
	if gap < 1 {
		return left.fit(width)
	}
	style := Normal
	if len(left) > 0 && left[0].Style == Bar {
		style = Bar
	}
	return append(append(left[:len(left):len(left)], Span{strings.Repeat(" ", gap), style}), right...)
}
