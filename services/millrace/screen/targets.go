package screen

import (
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
)

// TargetsView is what is shown of targets.
type TargetsView struct {
	// Page holds them, and the counts.
	Page *status.TargetPage
	// Now is the time that ages are counted from, Width that of the terminal; 0 for no limit.
	Now   time.Time
	Width int
	// Dropped also shows how many targets relabelling has dropped, by job.
	Dropped bool
	// Left is how many were asked for and are not in the page.
	Left int
}

// Targets returns targets as lines of text.
func Targets(v TargetsView) string {
	p := v.Page
	lines := []Line{lineOf(fmt.Sprintf("%s: %d up, %d down, %d unknown; %d dropped by relabelling", plural(p.All.Total(), "target"), p.All.Up, p.All.Down, p.All.Unknown, p.All.Dropped), Normal)}
	for _, problem := range p.Problems {
		lines = append(lines, lineOf("! "+plain(problem), Bad))
	}
	if v.Dropped {
		var rows [][]Span
		for _, pool := range p.Pools {
			rows = append(rows, texts(pool.Name, fmt.Sprint(pool.Up), fmt.Sprint(pool.Down), fmt.Sprint(pool.Unknown), fmt.Sprint(pool.Dropped)))
		}
		lines = append(append(lines, nil), table([]column{
			{title: "JOB", least: 12}, {title: "UP", right: true}, {title: "DOWN", right: true}, {title: "UNKNOWN", right: true}, {title: "DROPPED", right: true},
		}, rows, v.Width)...)
	}
	l := list{what: "targets", columns: []column{
		{title: "HEALTH"}, {title: "JOB", least: 8}, {title: "TARGET", least: 16}, {title: "SCRAPED", right: true}, {title: "TOOK", right: true}, {title: "OWNER", least: 8},
	}, left: v.Left}
	for i := range p.Targets {
		t := &p.Targets[i]
		took := "-"
		if !t.LastScrape.IsZero() {
			took = readable.Seconds(t.LastScrapeSeconds)
		}
		r := row{trouble: t.Health == "down", cells: texts("", t.Pool, t.URL, since(v.Now, t.LastScrape), took, t.Owner)}
		r.cells[0] = Span{t.Health, healthStyles[t.Health]}
		if t.LastError != "" {
			r.below = []string{"error: " + t.LastError}
		}
		l.rows = append(l.rows, r)
	}
	if len(l.rows) == 0 {
		l.what = "targets that match"
	}
	lines = append(append(lines, nil), l.text(v.Width)...)
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line.cut(v.Width).String() + "\n")
	}
	return b.String()
}

var healthStyles = map[string]Style{"up": Good, "down": Bad, "unknown": Doubtful}
