package screen

import (
	"cmp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
)

// The sections of [Top], in the order of their names.
const (
	all = iota
	ofEndpoints
	ofMembers
	ofShares
	ofStreams
	ofReplays
	ofProblems
	sections
)

// names begin with the key that shows a section.
var names = [sections]string{"all", "endpoints", "members", "work", "streams", "replays", "!problems"}

// orders are how sections can be sorted; the first is that of the document.
var orders = [sections][]string{
	all: {"name", "lag", "sent", "pending"}, ofEndpoints: {"name", "lag", "sent", "pending"}, ofMembers: {"name", "state", "newest"}, ofStreams: {"flow", "bytes", "fill"},
}

// count returns how many things a section has, or -1.
func (t *Top) count(section int) int {
	switch section {
	case ofEndpoints:
		return len(t.doc.Endpoints)
	case ofMembers:
		return len(t.doc.Members)
	case ofReplays:
		return len(t.doc.Replays)
	case ofProblems:
		return len(t.doc.Problems)
	}
	return -1
}

// body returns the lines of the section that is shown.
func (t *Top) body(width int) []Line {
	if t.help {
		return help
	}
	if t.doc == nil {
		return nil
	}
	order := orders[t.section]
	by := ""
	if len(order) > 0 {
		by = order[t.order[t.section]]
	}
	switch t.section {
	case ofEndpoints:
		return t.endpoints(width, by)
	case ofMembers:
		return members(sortedMembers(t.doc, by), width).text(width)
	case ofShares:
		return orNone(shares(t.doc, width), "work")
	case ofStreams:
		return orNone(streams(sortedStreams(t.doc, by), width), "streams")
	case ofReplays:
		return replays(t.doc).text(width)
	case ofProblems:
		return orNone(t.problems(width), "problems")
	}
	var lines []Line
	for _, block := range [][]Line{
		t.problems(width), t.endpoints(width, by), members(t.doc, width).text(width), shares(t.doc, width), streams(t.doc, width), t.running(width),
	} {
		if len(block) == 0 {
			continue
		}
		if len(lines) > 0 {
			lines = append(lines, nil)
		}
		lines = append(lines, block...)
	}
	return lines
}

func orNone(lines []Line, what string) []Line {
	if len(lines) == 0 {
		return []Line{lineOf("No "+what+".", Faint)}
	}
	return lines
}

// problems are sentences, which go on in the next line where they are long.
func (t *Top) problems(width int) (lines []Line) {
	for _, p := range t.doc.Problems {
		lines = append(lines, wrapped("! ", p, width, len(p), Bad)...)
	}
	return lines
}

// wrapped is a text behind a mark, which goes on in the next lines where it is long, and is cut where those are more than most.
func wrapped(mark, text string, width, most int, style Style) (lines []Line) {
	parts := wrap(plain(text), max(width-len(mark), 8))
	for i, part := range parts[:min(len(parts), most)] {
		switch {
		case i == most-1 && i < len(parts)-1:
			part = strings.Join(parts[i:], " ") // and cut
		case i > 0:
			mark = strings.Repeat(" ", len(mark))
		}
		lines = append(lines, lineOf(mark+part, style).cut(width))
	}
	return lines
}

// wrap breaks a text between words where that is possible.
func wrap(s string, width int) (lines []string) {
	for {
		r := []rune(s)
		if len(r) <= width {
			return append(lines, s)
		}
		at := strings.LastIndexByte(string(r[:width+1]), ' ')
		if at <= 0 {
			at = len(string(r[:width]))
		}
		lines, s = append(lines, s[:at]), strings.TrimPrefix(s[at:], " ")
	}
}

// running are the replays, where there are any.
func (t *Top) running(width int) []Line {
	if len(t.doc.Replays) == 0 {
		return nil
	}
	return replays(t.doc).text(width)
}

// endpoints are a table with what was sent, and the lag, as charts.
func (t *Top) endpoints(width int, by string) []Line {
	l := list{what: "endpoints", columns: []column{
		{title: "ENDPOINT", least: 8}, {title: "STATE"}, {title: "SENT/S", right: true}, {title: ""}, {title: "LAG", right: true}, {title: ""}, {title: "PENDING", right: true},
		{title: "REJECTED", right: true}, {title: "LOST", right: true},
	}}
	sorted := sortedEndpoints(t.doc, by)
	for i := range sorted {
		e := &sorted[i]
		r := row{trouble: troubled(e), cells: texts(
			e.Name, "", readable.Count(e.SamplesPerSecond), "", readable.Seconds(e.LagSeconds), "", pending(e), "", "",
		)}
		r.cells[1], r.cells[7], r.cells[8] = state(e.State), counted(e.RejectedSamples, Doubtful), counted(e.LostSamples, Bad)
		if e.State == status.Waiting {
			r.cells[4].Style = Doubtful
		}
		for _, text := range append([]string{e.URL + ", " + e.Protocol}, trouble(t.doc.Time, e, width)...) {
			r.below = append(r.below, wrap(plain(text), width-2)...)
		}
		l.rows = append(l.rows, r)
	}
	room := min(max((width-l.natural())/2, leastChart), mostChart) // what the others leave
	for i := range l.rows {
		past := t.past.of(&sorted[i])
		l.rows[i].cells[3], l.rows[i].cells[5] = Span{chartOf(past.sent, room), Second}, Span{chartOf(past.lag, room), Third}
	}
	return l.text(width)
}

// leastChart and mostChart bound the width of the charts of endpoints.
const leastChart, mostChart = 4, 48

// natural is how wide a table is that is not cut.
func (l *list) natural() int {
	total := -gap
	for i, c := range l.columns {
		width := utf8.RuneCountInString(c.title)
		for _, r := range l.rows {
			width = max(width, utf8.RuneCountInString(r.cells[i].Text))
		}
		total += width + gap
	}
	return total
}

// chartOf is a chart in a cell. What is not known is no space, which tables leave out.
func chartOf(values series, width int) string {
	s := spark(values, highest(values, width), width, 1)[0]
	return strings.ReplaceAll(s, " ", "·")
}

func sortedEndpoints(d *status.Document, by string) []status.Endpoint {
	l := slices.Clone(d.Endpoints)
	slices.SortStableFunc(l, func(a, b status.Endpoint) int {
		switch by {
		case "lag":
			return cmp.Compare(b.LagSeconds, a.LagSeconds)
		case "sent":
			return cmp.Compare(b.SamplesPerSecond, a.SamplesPerSecond)
		case "pending":
			return cmp.Compare(b.PendingSamples, a.PendingSamples)
		}
		return 0
	})
	return l
}

// memberOrder is what of members needs a look first.
var memberOrder = []string{status.Silent, status.Waiting, status.Starting, status.Ready}

func sortedMembers(d *status.Document, by string) *status.Document {
	out := *d
	out.Members = slices.Clone(d.Members)
	slices.SortStableFunc(out.Members, func(a, b status.Member) int {
		switch by {
		case "state":
			return slices.Index(memberOrder, a.State) - slices.Index(memberOrder, b.State)
		case "newest":
			return b.Started.Compare(a.Started)
		}
		return 0
	})
	return &out
}

func sortedStreams(d *status.Document, by string) *status.Document {
	out := *d
	out.Streams = slices.Clone(d.Streams)
	fill := func(s *status.Stream) float64 {
		if s.MaxBytes == 0 {
			return 0
		}
		return float64(s.Bytes) / float64(s.MaxBytes)
	}
	slices.SortStableFunc(out.Streams, func(a, b status.Stream) int {
		switch by {
		case "bytes":
			return cmp.Compare(b.Bytes, a.Bytes)
		case "fill":
			return cmp.Compare(fill(&b), fill(&a))
		}
		return 0
	})
	return &out
}

// help is what the keys do.
var help = func() (lines []Line) {
	for _, k := range [][2]string{
		{"q, Ctrl-C", "quit"},
		{"tab, shift-tab", "the next section, the one before"},
		{"a e m w s r !", "all, endpoints, members, work, streams, replays, problems"},
		{"o", "another order of the section"},
		{"↑ ↓, k j", "scroll by a line"},
		{"PgUp PgDn, b f", "scroll by a page"},
		{"Home End, g G", "to the beginning, to the end"},
		{"p, space", "pause: nobody is asked, and the screen stays"},
		{"Ctrl-L", "draw the screen anew"},
		{"Ctrl-Z", "stop, and let the shell go on; fg comes back"},
		{"?, h", "this page; any key leaves it"},
		{"", ""},
		{"taken", "samples a second from scrapes and pushes of all members"},
		{"sent", "samples a second that endpoints have accepted"},
		{"lag", "age of the oldest sample that is not accepted; the longest one"},
		{"charts", "a bar each time, the newest at the right; · is not known"},
	} {
		lines = append(lines, Line{{"  " + (k[0] + strings.Repeat(" ", 18))[:18+len(k[0])-len([]rune(k[0]))], Strong}, {k[1], Normal}})
	}
	return lines
}()
