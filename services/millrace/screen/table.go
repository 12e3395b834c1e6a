package screen

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// column is a column of a table.
type column struct {
	title string
	right bool // numbers stand at the right
	least int  // to how many characters it may be cut where the line is too long; 0: never
}

// gap stands between two columns.
const gap = 2

// texts makes cells of texts.
func texts(list ...string) []Span {
	cells := make([]Span, len(list))
	for i, s := range list {
		cells[i] = Span{s, Normal}
	}
	return cells
}

// table lays out rows under a heading such that no line is longer than width characters; 0 is no limit. The columns that may be cut are, the longest first. What is in the rows
// may come from outside.
func table(columns []column, rows [][]Span, width int) []Line {
	for _, r := range rows {
		for i := range r {
			r[i].Text = plain(r[i].Text)
		}
	}
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, r := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i].Text))
		}
	}
	for width > 0 {
		total, longest := -gap, -1
		for i, c := range columns {
			total += widths[i] + gap
			if c.least > 0 && widths[i] > c.least && (longest < 0 || widths[i] > widths[longest]) {
				longest = i
			}
		}
		if total <= width || longest < 0 {
			break
		}
		widths[longest]--
	}
	heading := make([]Span, len(columns))
	for i, c := range columns {
		heading[i] = Span{c.title, Strong}
	}
	lines := []Line{}
	for _, r := range append([][]Span{heading}, rows...) {
		var line Line
		blank := 0 // spaces that are written only where something follows
		for i, c := range columns {
			text := cut(r[i].Text, widths[i])
			pad := widths[i] - utf8.RuneCountInString(text)
			if i > 0 {
				blank += gap
			}
			if c.right {
				blank, pad = blank+pad, 0
			}
			if trimmed := strings.TrimRight(text, " "); trimmed != "" {
				if blank > 0 {
					line = append(line, Span{strings.Repeat(" ", blank), Normal})
				}
				line = append(line, Span{trimmed, r[i].Style})
				blank, text = 0, text[len(trimmed):]
			}
			blank += len(text) + pad
		}
		lines = append(lines, line.cut(width))
	}
	return lines
}

// OneLine makes one line of at most width characters of a text from outside; 0 is no limit.
func OneLine(s string, width int) string { return cut(plain(s), width) }

// cut shortens a text to at most width characters; 0 is no limit.
func cut(s string, width int) string {
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// plain makes one line of a text from outside, without anything that a terminal would take for a command.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '�'
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}
