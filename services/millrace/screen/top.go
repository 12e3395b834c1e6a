package screen

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/services/millrace/terminal"
)

// Top is what `millrace top` shows: how a fleet stands now, and how that has changed since it was started.
type Top struct {
	// Place says who is asked, Every how often.
	Place string
	Every time.Duration

	doc    *status.Document // the newest; nil before the first
	past   history
	err    error // why there is no newer one
	since  time.Time
	paused bool
	help   bool

	section int
	order   [sections]int // how each is sorted
	scroll  int
	page    int // how many lines are seen of what is scrolled
	lines   int // how many there are
}

// Answer notes an answer.
func (t *Top) Answer(d *status.Document) {
	t.doc, t.err = d, nil
	t.past.add(d)
}

// Failed notes that there was none.
func (t *Top) Failed(err error, at time.Time) {
	if t.err == nil {
		t.since = at
	}
	t.err = err
	t.past.add(nil)
}

// Paused reports whether nobody is to be asked.
func (t *Top) Paused() bool { return t.paused }

// Press does what a key asks for, and reports whether that is the end.
func (t *Top) Press(k terminal.Key) (quit bool) {
	if t.help && k != 'q' && k != terminal.CtrlC {
		t.help = false
		return false
	}
	switch k {
	case 'q', 'Q', terminal.CtrlC:
		return true
	case '?', 'h':
		t.help = true
	case 'p', ' ':
		t.paused = !t.paused
	case terminal.Tab:
		t.show((t.section + 1) % sections)
	case terminal.BackTab:
		t.show((t.section + sections - 1) % sections)
	case 'o':
		if n := len(orders[t.section]); n > 0 {
			t.order[t.section] = (t.order[t.section] + 1) % n
		}
	case terminal.Up, 'k':
		t.scroll--
	case terminal.Down, 'j':
		t.scroll++
	case terminal.PageUp, 'b':
		t.scroll -= t.page
	case terminal.PageDown, 'f':
		t.scroll += t.page
	case terminal.Home, 'g':
		t.scroll = 0
	case terminal.End, 'G':
		t.scroll = t.lines
	default:
		if i := slices.IndexFunc(names[:], func(n string) bool { return n[0] == byte(k) && k < 128 && k > 0 }); i >= 0 {
			t.show(i)
		}
	}
	t.scroll = min(max(t.scroll, 0), max(t.lines-t.page, 0))
	return false
}

func (t *Top) show(section int) { t.section, t.scroll = section, 0 }

// Lines returns the whole screen: as many lines as it is high, each as wide.
func (t *Top) Lines(size Size, now time.Time) []Line {
	width, height := max(size.Width, 20), max(size.Height, 6)
	head := append([]Line{t.title(width, now)}, t.summary(width, now)...)
	if t.doc != nil {
		head = append(head, t.charts(width, height)...)
	}
	head = append(head, t.tabs(width))
	head = head[:min(len(head), height-3)] // on a very low screen
	body := t.body(width)
	t.page, t.lines = height-len(head)-1, len(body)
	t.scroll = min(max(t.scroll, 0), max(t.lines-t.page, 0))
	seen := body[t.scroll:min(t.scroll+t.page, len(body))]
	lines := append(head, seen...)
	for len(lines) < height-1 {
		lines = append(lines, nil)
	}
	lines = append(lines, t.footer(width))
	for i := range lines {
		lines[i] = lines[i].fit(width)
	}
	return lines
}

func (t *Top) title(width int, now time.Time) Line {
	mode := "every " + readable.Duration(t.Every)
	if t.paused {
		mode = "PAUSED"
	}
	right := now.UTC().Format(" 15:04:05 UTC ")
	left := fmt.Sprintf(" millrace top  %s  %s", plain(t.Place), mode)
	return between(lineOf(cut(left, width-len(right)-1), Bar), lineOf(right, Bar), width)
}

// maxErrorLines is how many lines an error may take.
const maxErrorLines = 3

// summary says how many members there are, and what does not work.
func (t *Top) summary(width int, now time.Time) (lines []Line) {
	if t.err != nil {
		how := "no answer yet, for "
		if t.doc != nil {
			how = "no answer for "
		}
		text := fmt.Sprintf("%s%s, trying every %s: %s", how, readable.Duration(max(now.Sub(t.since).Truncate(time.Second), 0)), readable.Duration(t.Every), plain(t.err.Error()))
		lines = append(lines, wrapped("! ", text, width, maxErrorLines, Bad)...)
	}
	if t.doc == nil {
		if t.err == nil {
			lines = append(lines, lineOf("asking", Faint))
		}
		return lines
	}
	line := Line{{" members ", Strong}}
	count := map[string]int{}
	for _, m := range t.doc.Members {
		count[m.State]++
	}
	for _, s := range []string{status.Ready, status.Waiting, status.Starting, status.Silent} {
		if count[s] > 0 {
			line = append(line, Span{fmt.Sprintf(" %d %s ", count[s], s), stateStyles[s]})
		}
	}
	if t.err != nil {
		line = append(line, Span{" as of " + t.doc.Time.UTC().Format("15:04:05"), Faint})
	}
	problems := lineOf("no problems ", Faint)
	if n := len(t.doc.Problems); n > 0 {
		problems = lineOf(plural(n, "problem")+" ", Bad)
	}
	return append(lines, between(line, problems, width))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// chart is one of those at the top.
type chart struct {
	name, unit string
	values     series
	style      Style
	write      func(float64) string
}

// charts draws what is taken and sent, and the longest lag: beside each other where the screen is wide, below each other where it is not.
func (t *Top) charts(width, height int) (lines []Line) {
	list := []chart{
		{"taken", "/s", t.past.taken, First, readable.Count}, {"sent", "/s", t.past.sent, Second, readable.Count}, {"lag", "", t.past.lag, Third, readable.Seconds},
	}
	const wide, high = 120, 36
	tall := 1
	if height >= high {
		tall = 3
	}
	if width < wide {
		for _, c := range list {
			lines = append(lines, c.row(width, tall)...)
		}
		return lines
	}
	each := width / len(list)
	lines = make([]Line, 1+max(tall+1, 2))
	for _, c := range list {
		for i, l := range c.box(each, len(lines)-1) {
			lines[i] = append(lines[i], l...)
		}
	}
	return lines
}

// row draws a chart behind its name and value.
func (c *chart) row(width, tall int) (lines []Line) {
	const before, after = 20, 16
	room := max(width-before-after, 0)
	most := highest(c.values, room)
	for i, s := range spark(c.values, most, room, tall) {
		line := lineOf(strings.Repeat(" ", before), Normal)
		if i == tall-1 {
			line = Line{{fmt.Sprintf(" %-6s", c.name), Strong}, {fmt.Sprintf("%12s ", c.write(c.values.last())+c.unit), Normal}}
		}
		line = append(line, Span{s, c.style})
		if i == 0 && most > 0 {
			line = append(line, Span{" max " + c.write(most) + c.unit, Faint})
		}
		lines = append(lines, line)
	}
	return lines
}

// box draws a chart below its name and value.
func (c *chart) box(width, tall int) (lines []Line) {
	room := width - 2
	most := highest(c.values, room)
	head := Line{{" " + c.name + " ", Strong}, {c.write(c.values.last()) + c.unit, Normal}}
	var right Line
	if most > 0 {
		right = lineOf("max "+c.write(most)+c.unit+" ", Faint)
	}
	lines = append(lines, between(head, right, width).fit(width))
	for _, s := range spark(c.values, most, room, tall) {
		lines = append(lines, Line{{" ", Normal}, {s, c.style}}.fit(width))
	}
	return lines
}

// tabs are the names of the sections.
func (t *Top) tabs(width int) Line {
	var line Line
	for i, n := range names {
		if t.doc != nil {
			if c := t.count(i); c >= 0 {
				n += fmt.Sprintf(" %d", c)
			}
		}
		style := Faint
		if i == t.section {
			style = Bar
		}
		line = append(line, Span{" ", Normal}, Span{" " + n + " ", style})
	}
	return line.cut(width)
}

func (t *Top) footer(width int) Line {
	left := Line{{" q", Strong}, {" quit ", Faint}, {" tab", Strong}, {" section ", Faint}}
	if list := orders[t.section]; len(list) > 0 {
		left = append(left, Span{" o", Strong}, Span{" order: " + list[t.order[t.section]] + " ", Faint})
	}
	left = append(left, Span{" p", Strong}, Span{" pause ", Faint}, Span{" ?", Strong}, Span{" help ", Faint})
	var right Line
	if t.lines > t.page {
		right = lineOf(fmt.Sprintf("↑↓ %d-%d of %d ", t.scroll+1, min(t.scroll+t.page, t.lines), t.lines), Faint)
	}
	return between(left, right, width)
}
