package web

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/rejected"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
)

// fakeReplays are replays that nobody works on.
type fakeReplays struct {
	list []replay.Status
	// done is what was asked for, and wrong what is answered.
	done  []string
	wrong error
}

func (f *fakeReplays) find(name string) (*replay.Status, error) {
	for i := range f.list {
		if f.list[i].Name == name {
			return &f.list[i], nil
		}
	}
	return nil, fmt.Errorf("replay %q: %w", name, replay.ErrUnknown)
}

func (f *fakeReplays) Start(_ context.Context, spec replay.Spec, hold bool) (replay.Status, error) {
	f.done = append(f.done, fmt.Sprintf("start %s hold %t", spec.Name, hold))
	if f.wrong != nil {
		return replay.Status{}, f.wrong
	}
	if st, err := f.find(spec.Name); err == nil {
		return *st, nil
	}
	st := replay.Status{Spec: spec, State: replay.Stopped, Created: time.Now(), AllMessages: 7, HeldSince: time.Now()}
	f.list = append(f.list, st)
	return st, nil
}

func (f *fakeReplays) Stop(_ context.Context, name string) (replay.Status, error) {
	f.done = append(f.done, "stop "+name)
	st, err := f.find(name)
	if err != nil {
		return replay.Status{}, err
	}
	return *st, nil
}

func (f *fakeReplays) Get(_ context.Context, name string) (replay.Status, error) {
	st, err := f.find(name)
	if err != nil {
		return replay.Status{}, err
	}
	return *st, nil
}

func (f *fakeReplays) List(context.Context) ([]replay.Status, error) { return f.list, f.wrong }

// fakeRejected are batches of which all are alike.
type fakeRejected struct {
	text string
	mu   sync.Mutex
	asks []string
}

func (f *fakeRejected) ask(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asks = append(f.asks, fmt.Sprintf(format, args...))
}

func (f *fakeRejected) batch(message uint64) rejected.Batch {
	return rejected.Batch{
		Message: message, Endpoint: f.text, Time: time.Now(), Protocol: "remote_write 2.0", Samples: 450, Bytes: 12_345, Status: 400, Answer: f.text,
	}
}

func (f *fakeRejected) List(_ context.Context, endpoint string, before uint64, n int) (*rejected.Page, error) {
	f.ask("list %s %d %d", endpoint, before, n)
	p := &rejected.Page{Older: 1230, Messages: 1234, Bytes: 1 << 20}
	for i := range uint64(3) {
		p.Batches = append(p.Batches, f.batch(1234-i))
	}
	return p, nil
}

func (f *fakeRejected) Open(_ context.Context, message uint64, from int) (*rejected.Look, error) {
	f.ask("open %d %d", message, from)
	if message == 404 {
		return nil, rejected.ErrGone
	}
	l := &rejected.Look{Batch: f.batch(message), Series: 3, All: 450, From: from}
	for i := range min(rejected.MaxRows, 450-from) {
		l.Rows = append(l.Rows, rejected.Row{
			Labels: labels.FromStrings("__name__", "up", "job", f.text, "n", fmt.Sprint(from+i)), Time: time.UnixMilli(1_700_000_000_000), Value: "1", Histogram: i == 1,
		})
	}
	if from+len(l.Rows) < 450 {
		l.Next = from + len(l.Rows)
	}
	return l, nil
}

// sampleHistory has two endpoints, of which one begins late and has a gap.
func sampleHistory() *status.History {
	points := func(from int, f func(i int) float64) (out []float32) {
		for i := range status.HistoryPoints {
			v := -1.0
			if i >= from && (i < 150 || i > 170 || from == 0) {
				v = f(i)
			}
			out = append(out, float32(v))
		}
		return out
	}
	return &status.History{End: time.Now(), Tracks: []status.Track{
		{
			Name: "mimir", URL: "https://mimir/push", Lag: points(0, func(i int) float64 { return 1 + math.Abs(math.Sin(float64(i)/9)) }),
			Rate: points(0, func(i int) float64 { return 40_000 + 4000*math.Sin(float64(i)/5) }),
		},
		{Name: "dead", URL: "http://dead/", Lag: points(60, func(i int) float64 { return float64(i - 60) }), Rate: points(60, func(int) float64 { return 0 })},
	}}
}

func sampleReplays() *fakeReplays {
	now := time.Now()
	spec := func(name string) replay.Spec {
		return replay.Spec{Name: name, From: "-2h", To: "now", Match: []string{`{job="api"}`, `{job="web"}`}, Endpoint: "mimir", Rate: 50_000}
	}
	return &fakeReplays{list: []replay.Status{
		{Spec: spec("incident"), State: replay.Running, Created: now.Add(-time.Minute), FromTime: now.Add(-2 * time.Hour), ToTime: now, Samples: 1_234_567, Sent: 1_234_000, Refused: 567, Bytes: 5 << 20, Messages: 40, AllMessages: 100, Waiting: "waiting: 503 Service Unavailable"},
		{Spec: spec("held"), State: replay.Stopped, Created: now.Add(-time.Hour), FromTime: now.Add(-26 * time.Hour), ToTime: now, AllMessages: 900, HeldSince: now.Add(-24 * time.Hour)},
		{Spec: replay.Spec{Name: "counted", Endpoint: "mimir", DryRun: true, Rejected: true}, State: replay.Done, Created: now.Add(-3 * time.Hour), Samples: 12_345, Series: 99, SeriesAtLeast: true, Messages: 10, AllMessages: 10, Skipped: 4, Lost: 4},
	}}
}

func sampleReport(metric string) *cardinality.Report {
	r := &cardinality.Report{
		Time: time.Now(), Since: time.Now().Add(-time.Hour), WindowSeconds: 300, Metric: metric, Series: 12_345, New: 17, Refused: 3, Unknown: 2, Partial: metric != "",
		Labels:  []cardinality.Label{{Name: "user_id", Series: 900, Values: 900, New: 12}, {Name: "instance", Series: 12_345, Values: 31}},
		Jobs:    []cardinality.Group{{Name: "node", Series: 12_000}, {Name: "", Series: 345, New: 17}},
		Targets: []cardinality.Group{{Name: "node", Instance: "a:9100", Series: 400}},
	}
	for i, name := range []string{"node_cpu_seconds_total", "http_requests_total", "up", ""} {
		r.Metrics = append(r.Metrics, cardinality.Group{Name: name, Series: 9000 / (i + 1), New: i, Refused: i / 2})
	}
	return r
}

func sampleRules() []RuleSet {
	rule := func(action relabel.Action, target, replacement string) *relabel.Config {
		c := relabel.DefaultRelabelConfig
		c.Action, c.TargetLabel, c.Replacement = action, target, replacement
		return &c
	}
	return []RuleSet{
		{Of: RulesOfTargets, Name: "node", Rules: []*relabel.Config{rule(relabel.Replace, "zone", "eu")}},
		{Of: RulesOfMetrics, Name: "node"},
		{Of: RulesOfEndpoint, Name: "mimir", External: labels.FromStrings("cluster", "c1"), Rules: []*relabel.Config{rule(relabel.Replace, "zone", "us")}},
	}
}

// sampleRest gives a server what the pages show that are not about targets and processes.
func sampleRest(c *Config) {
	c.History = func(context.Context) (*status.History, error) { return sampleHistory(), nil }
	c.Rejected, c.Replays, c.Rules = &fakeRejected{text: "mimir"}, sampleReplays(), sampleRules
	c.Endpoints = func() []string { return []string{"mimir", "dead"} }
	c.SeriesLimits = func() []SeriesLimit { return []SeriesLimit{{"metric", 10_000, "refuse"}} }
	c.Cardinality = func(_ context.Context, q cardinality.Query) (*cardinality.Report, error) {
		return sampleReport(q.Metric), nil
	}
}

// hostileRest has the hostile text wherever these pages may show one.
func hostileRest(c *Config) {
	sampleRest(c)
	c.History = func(context.Context) (*status.History, error) {
		h := sampleHistory()
		h.Tracks[0].Name, h.Tracks[0].URL = hostile, "http://h/"+hostile
		return h, nil
	}
	c.Rejected = &fakeRejected{text: hostile}
	replays := sampleReplays()
	for i := range replays.list {
		st := &replays.list[i]
		st.Name, st.Endpoint, st.Match, st.Waiting = hostile, hostile, []string{hostile}, hostile
	}
	c.Replays = replays
	c.Endpoints = func() []string { return []string{hostile} }
	c.SeriesLimits = func() []SeriesLimit { return []SeriesLimit{{hostile, 1, hostile}} }
	c.Rules = func() []RuleSet {
		sets := sampleRules()
		for i := range sets {
			sets[i].Name, sets[i].External = hostile, labels.FromStrings(hostile, hostile)
		}
		return sets
	}
	c.Cardinality = func(context.Context, cardinality.Query) (*cardinality.Report, error) {
		r := sampleReport(hostile)
		r.Metrics = []cardinality.Group{{Name: hostile, Series: 1}}
		r.Jobs, r.Targets = r.Metrics, []cardinality.Group{{Name: hostile, Instance: hostile}}
		r.Labels = []cardinality.Label{{Name: hostile}}
		return r, nil
	}
}
