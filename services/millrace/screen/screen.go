// Package screen shows on a terminal how a fleet stands. It knows the document only, not where it comes from.
package screen

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
)

// Size is that of the terminal, in characters; 0 is no limit. Where there is not room for all, members, endpoints and replays that are well are left out, and counted.
type Size struct{ Width, Height int }

// least is how many members, and lines about endpoints, are shown however low the screen is.
const least = 3

// Text returns the document as lines of text.
func Text(d *status.Document, size Size) string {
	blocks := [][]Line{headline(d, size.Width), shares(d, size.Width), streams(d, size.Width)}
	members, endpoints, replays := members(d, size.Width), endpoints(d, size.Width), replays(d)
	if size.Height > 0 {
		free := size.Height - 1 // for the prompt
		for _, b := range blocks {
			free -= len(b) + 1
		}
		free -= 1 + 2 // the headings, and what stands between
		if len(replays.rows) > 0 {
			free -= 2
			replays = replays.within(max(free-members.lines()-endpoints.lines(), free/4, least))
			free -= replays.lines()
		}
		forEndpoints := max(min(endpoints.lines(), free-min(len(members.rows), max(free/2, least))), least)
		members = members.within(max(free-forEndpoints, least))
		endpoints = endpoints.within(max(free-members.lines(), least))
	}
	blocks = slices.Insert(blocks, 1, members.text(size.Width))
	blocks = append(blocks, endpoints.text(size.Width))
	if len(replays.rows) > 0 {
		blocks = append(blocks, replays.text(size.Width))
	}
	var b strings.Builder
	for i, block := range blocks {
		if len(block) == 0 {
			continue
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, line := range block {
			b.WriteString(line.String())
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// headline says whether all is well, and what is not.
func headline(d *status.Document, width int) []Line {
	count := map[string]int{}
	for _, m := range d.Members {
		count[m.State]++
	}
	var states []string
	for _, s := range []string{status.Ready, status.Waiting, status.Starting, status.Silent} {
		if count[s] > 0 {
			states = append(states, fmt.Sprintf("%d %s", count[s], s))
		}
	}
	lines := []Line{lineOf(fmt.Sprintf("Millrace at %s: members: %s", d.Time.UTC().Format("2006-01-02 15:04:05 UTC"), cmp.Or(strings.Join(states, ", "), "none")), Normal).cut(width)}
	for i, p := range d.Problems {
		if i == maxProblems && width > 0 {
			lines = append(lines, lineOf(fmt.Sprintf("! and %d more", len(d.Problems)-i), Bad).cut(width))
			break
		}
		lines = append(lines, lineOf("! "+plain(p), Bad).cut(width))
	}
	return lines
}

// maxProblems is how many problems are shown on a terminal.
const maxProblems = 5

// list is a table with lines below some of its rows, of which there may be too many.
type list struct {
	columns []column
	rows    []row
	what    string // of the rows
	left    int    // how many rows were left out
}

type row struct {
	cells   []Span
	below   []string
	trouble bool
}

func (l list) lines() (n int) {
	for _, r := range l.rows {
		n += 1 + len(r.below)
	}
	if l.left > 0 {
		n++
	}
	return n
}

// within leaves out as much as it takes: first what stands below rows that are well, then such rows, and at last others, each time the last first.
func (l list) within(height int) list {
	l.rows = slices.Clone(l.rows)
	for i := len(l.rows) - 1; i >= 0 && l.lines() > height; i-- {
		if r := &l.rows[i]; !r.trouble {
			r.below = nil
		}
	}
	for l.lines() > height && len(l.rows) > 1 {
		drop := len(l.rows) - 1
		for i := drop; i >= 0; i-- {
			if !l.rows[i].trouble {
				drop = i
				break
			}
		}
		l.rows = slices.Delete(l.rows, drop, drop+1)
		l.left++
	}
	return l
}

func (l list) text(width int) []Line {
	if len(l.rows) == 0 {
		return []Line{lineOf("No "+l.what+".", Faint).cut(width)}
	}
	cells := make([][]Span, len(l.rows))
	for i, r := range l.rows {
		cells[i] = r.cells
	}
	laid := table(l.columns, cells, width)
	lines := laid[:1:1]
	for i, r := range l.rows {
		lines = append(lines, laid[i+1])
		style := Faint
		if r.trouble {
			style = Doubtful
		}
		for _, b := range r.below {
			lines = append(lines, lineOf("  "+plain(b), style).cut(width))
		}
	}
	if l.left > 0 {
		lines = append(lines, lineOf(fmt.Sprintf("and %d more %s", l.left, l.what), Faint).cut(width))
	}
	return lines
}

// state is the cell that says how something stands.
func state(s string) Span { return Span{s, stateStyles[s]} }

var stateStyles = map[string]Style{
	status.Ready: Good, status.Sending: Good, status.OK: Good, status.Idle: Faint, status.Waiting: Doubtful, status.Starting: Doubtful, status.Degraded: Doubtful,
	status.Silent: Bad, status.NoLeader: Bad, status.Unknown: Bad, replay.Running: Good, replay.Stopped: Doubtful, replay.Done: Faint,
}

// everything is what a process runs that runs all services.
var everything = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

func members(d *status.Document, width int) list {
	l := list{what: "members", columns: []column{
		{title: "MEMBER", least: 12}, {title: "STATE"}, {title: "UP", right: true}, {title: "SEEN", right: true}, {title: "VERSION", least: 8}, {title: "SERVICES", least: 16},
	}}
	for _, m := range d.Members {
		var services []string
		for _, s := range m.Services {
			services = append(services, s.Name)
		}
		if slices.Equal(services, everything) {
			services = []string{"all"}
		}
		id := m.ID
		if m.Asked {
			id += " *"
		}
		r := row{trouble: m.State != status.Ready, cells: texts(
			id, "", since(d.Time, m.Started), since(d.Time, m.LastSeen), cmp.Or(m.Version, "-"), strings.Join(services, " "),
		)}
		r.cells[1] = state(m.State)
		if m.OtherConfig {
			r.trouble = true
			r.below = append(r.below, "has another configuration than most")
		}
		r.below = append(r.below, reasons("waits for ", m.WaitingFor, width)...)
		l.rows = append(l.rows, r)
	}
	return l
}

// reasons returns a line for each of some texts; on a terminal only for the first.
func reasons(what string, list []string, width int) (lines []string) {
	for i, w := range list {
		if i == 1 && width > 0 {
			lines[0] = fmt.Sprintf("%s (and %d more)", lines[0], len(list)-1)
			break
		}
		lines = append(lines, what+w)
	}
	return lines
}

func shares(d *status.Document, width int) []Line {
	if len(d.Shares) == 0 {
		return nil
	}
	var rows [][]Span
	for _, s := range d.Shares {
		var owners []string
		for _, o := range s.Owners {
			owners = append(owners, fmt.Sprintf("%s %d", o.Member, len(o.Shares)))
		}
		r := texts(s.Service, strconv.Itoa(s.All), "-", cmp.Or(strings.Join(owners, ", "), "nobody"))
		if len(s.Free) > 0 {
			r[2] = Span{strconv.Itoa(len(s.Free)), Bad}
		}
		rows = append(rows, r)
	}
	return table([]column{{title: "SHARES"}, {title: "ALL", right: true}, {title: "FREE", right: true}, {title: "OWNED BY", least: 16}}, rows, width)
}

func streams(d *status.Document, width int) []Line {
	var rows [][]Span
	for _, s := range d.Streams {
		if s.Bucket {
			continue // they hold little; what is wrong with one is a problem
		}
		rows = append(rows, streamRow(&s))
	}
	if len(rows) == 0 {
		return nil
	}
	return table(streamColumns, rows, width)
}

var streamColumns = []column{
	{title: "STREAM"}, {title: "STATE"}, {title: "MESSAGES", right: true}, {title: "BYTES", right: true}, {title: "OF", right: true}, {title: "KEPT", right: true},
	{title: "OLDEST", right: true}, {title: "NODES", least: 8},
}

func streamRow(s *status.Stream) []Span {
	r := texts(s.Name, "", "-", "-", "-", "-", "-", "-")
	r[1] = state(s.State)
	if s.State == status.Unknown {
		return r
	}
	r[2].Text, r[3].Text, r[7].Text = readable.Count(float64(s.Messages)), readable.Bytes(s.Bytes), nodes(s)
	if s.MaxBytes > 0 {
		r[4].Text = readable.Bytes(s.MaxBytes)
		if 10*s.Bytes > 9*s.MaxBytes {
			r[3].Style = Doubtful
		}
	}
	if s.MaxAgeSeconds > 0 {
		r[5].Text = readable.Seconds(s.MaxAgeSeconds)
	}
	if s.Messages > 0 {
		r[6].Text = readable.Seconds(s.OldestAgeSeconds)
	}
	return r
}

// nodes says who holds a stream.
func nodes(s *status.Stream) string {
	if s.Leader == "" && len(s.Followers) == 0 {
		return strconv.Itoa(s.Replicas)
	}
	well := 0
	if s.Leader != "" {
		well++
	}
	for _, f := range s.Followers {
		if f.Current && !f.Offline {
			well++
		}
	}
	return fmt.Sprintf("%d/%d, led by %s", well, s.Replicas, cmp.Or(s.Leader, "nobody"))
}

func endpoints(d *status.Document, width int) list {
	l := list{what: "endpoints", columns: []column{
		{title: "ENDPOINT", least: 10}, {title: "STATE"}, {title: "LAG", right: true}, {title: "PENDING", right: true}, {title: "SENT/S", right: true}, {title: "SENT", right: true},
		{title: "REJECTED", right: true}, {title: "LOST", right: true},
	}}
	for _, e := range d.Endpoints {
		r := row{trouble: troubled(&e), cells: texts(
			e.Name, "", readable.Seconds(e.LagSeconds), pending(&e), readable.Count(e.SamplesPerSecond), readable.Count(float64(e.SentSamples)), "", "",
		)}
		r.cells[1], r.cells[6], r.cells[7] = state(e.State), counted(e.RejectedSamples, Doubtful), counted(e.LostSamples, Bad)
		r.below = append(r.below, e.URL+", "+e.Protocol)
		if e.BacklogMessages > 0 {
			r.below = append(r.below, "backlog: "+readable.Count(float64(e.BacklogMessages))+" older messages go beside new samples")
		}
		r.below = append(r.below, trouble(d.Time, &e, width)...)
		l.rows = append(l.rows, r)
	}
	return l
}

// troubled reports whether an endpoint needs a look.
func troubled(e *status.Endpoint) bool { return e.State == status.Waiting || e.LostSamples > 0 }

func pending(e *status.Endpoint) string {
	if e.PendingSamples > 0 {
		return "~" + readable.Count(float64(e.PendingSamples))
	}
	return "0"
}

// counted is the cell of a number that should be 0.
func counted(n uint64, style Style) Span {
	if n == 0 {
		style = Normal
	}
	return Span{readable.Count(float64(n)), style}
}

// trouble tells of the last error, and on what the endpoint waits, which mostly is the same.
func trouble(now time.Time, e *status.Endpoint, width int) []string {
	brief := strings.NewReplacer(`Post "`+e.URL+`": `, "") // it stands above
	var waits []string
	for _, w := range e.WaitingFor {
		waits = append(waits, brief.Replace(w))
	}
	if e.LastError == "" {
		return reasons("waits: ", waits, width)
	}
	last := brief.Replace(e.LastError)
	head := fmt.Sprintf("error %s ago at %s: ", since(now, e.LastErrorTime), e.LastErrorMember)
	if i := slices.IndexFunc(waits, func(w string) bool { return strings.HasPrefix(w, last) }); i >= 0 {
		waits[0], waits[i] = waits[i], waits[0]
		return reasons(head, waits, width)
	}
	return append(reasons("waits: ", waits, width), head+last)
}

// replays are what is sent again, what runs first.
func replays(d *status.Document) list {
	l := list{what: "replays", columns: []column{
		{title: "REPLAY", least: 10}, {title: "STATE"}, {title: "DONE", right: true}, {title: "SAMPLES", right: true}, {title: "SENT", right: true}, {title: "REFUSED", right: true},
		{title: "SKIPPED", right: true},
	}}
	sorted := slices.Clone(d.Replays)
	slices.SortStableFunc(sorted, func(a, b replay.Status) int {
		return slices.Index(replayOrder, a.State) - slices.Index(replayOrder, b.State)
	})
	for _, st := range sorted {
		r := row{trouble: st.Waiting != "" || st.Refused > 0, cells: texts(
			st.Name, "", fmt.Sprintf("%d %%", int(100*st.Fraction())), readable.Count(float64(st.Samples)), readable.Count(float64(st.Sent)),
			readable.Count(float64(st.Refused)), readable.Count(float64(st.Skipped)),
		)}
		r.cells[1] = state(st.State)
		r.below = append(r.below, replayed(&st))
		if st.Waiting != "" {
			r.below = append(r.below, "waits: "+strings.TrimPrefix(strings.TrimPrefix(st.Waiting, "waiting: "), "waiting for "))
		}
		l.rows = append(l.rows, r)
	}
	return l
}

// replayOrder is what of replays matters most.
var replayOrder = []string{replay.Running, replay.Stopped, replay.Done}

// replayed says what is sent again, and where to.
func replayed(st *replay.Status) string {
	const layout = "2006-01-02 15:04:05"
	var words []string
	if st.DryRun {
		words = append(words, "counts only")
	}
	if st.Rejected {
		words = append(words, "what was refused")
	}
	if !st.FromTime.IsZero() {
		words = append(words, "from "+st.FromTime.UTC().Format(layout))
	}
	if !st.ToTime.IsZero() {
		words = append(words, "to "+st.ToTime.UTC().Format(layout))
	}
	return strings.Join(append(words, "for "+cmp.Or(st.Endpoint, st.URL)), " ")
}

// since says how long ago something was.
func since(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	return readable.Seconds(max(now.Sub(then).Truncate(time.Second), 0).Seconds())
}
