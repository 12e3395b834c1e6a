package web

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/common/model"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/readable"
)

// cardinalityPage counts series when it is told to, and shows what was counted.
var cardinalityPage = page{
	name: "cardinality", path: "/cardinality", Title: "Cardinality", Style: "cardinality.css", still: true,
	view: (*Server).viewCardinality, act: (*Server).actCardinality,
	absent: func(c *Config) bool { return c.Cardinality == nil },
}

// SeriesLimit is a limit on series of the running configuration.
type SeriesLimit struct {
	// Of says of what, such as "metric"; Max is how many there may be, and Action what is done with new ones beyond.
	Of     string
	Max    int
	Action string
}

// cardinalityView is what the page shows.
type cardinalityView struct {
	// Window, Since, Top and Metric are what is filled in. All leaves the metric out.
	Window, Since, Top, Metric, All string
	Tops                            []string
	// Running is a count on its way, with how long it takes already; nil where there is none.
	Running *surveyRun
	For     string
	// Failed says why there is no report.
	Failed string
	Report *cardinalityReport
	Limits []SeriesLimit
}

// cardinalityReport is a report for the template.
type cardinalityReport struct {
	*cardinality.Report
	Window, Took string
	Groups       []groupsView
	// MaxValues is the length of the labels' bars.
	MaxValues int
}

// groupsView is one of the lists.
type groupsView struct {
	ID, Title, Column string
	Groups            []cardinality.Group
	// Max is the length of the bars. Drill says that a name can be asked for.
	Max   int
	Drill bool
}

func (s *Server) viewCardinality(_ context.Context, r *http.Request) (view, error) {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		form = r.PostForm
	}
	q, err := cardinality.Parse(cardinalityForm(form))
	v := cardinalityView{Window: form.Get("window"), Since: form.Get("since"), Top: form.Get("top"), Metric: form.Get("metric"), Tops: []string{"25", "100", "500"}, Limits: s.cfg.SeriesLimits()}
	if err == nil {
		v.Window, v.Since, v.Top = model.Duration(q.Window).String(), model.Duration(q.Since).String(), strconv.Itoa(q.Top)
		all := q
		all.Metric = ""
		v.All = "cardinality?" + all.Values().Encode()
	}
	if !slices.Contains(v.Tops, v.Top) && err == nil {
		v.Tops = append(v.Tops, v.Top)
	}
	running, done := s.surveys.find(q, err == nil && len(form) > 0)
	if running != nil {
		v.Running, v.For = running, readable.Duration(time.Since(running.Started).Round(time.Second))
	}
	if done != nil {
		if done.err != nil {
			v.Failed = done.err.Error()
		} else {
			v.Report = newCardinalityReport(done)
			v.Metric = done.report.Metric
		}
	}
	return view{Content: v, Live: running != nil}, nil
}

// cardinalityForm gives a form the page's own defaults.
func cardinalityForm(form url.Values) url.Values {
	out := url.Values{"top": {"25"}}
	for _, name := range []string{"window", "since", "top", "metric"} {
		if form.Get(name) != "" {
			out.Set(name, form.Get(name))
		}
	}
	return out
}

func newCardinalityReport(done *surveyResult) *cardinalityReport {
	r := done.report
	out := &cardinalityReport{Report: r, Window: readable.Seconds(r.WindowSeconds), Took: readable.Duration(done.took), MaxValues: 1}
	for _, l := range r.Labels {
		out.MaxValues = max(out.MaxValues, l.Values)
	}
	lists := []groupsView{
		{ID: "metrics", Title: "Metrics", Column: "Metric", Groups: r.Metrics, Drill: true},
		{ID: "jobs", Title: "Jobs", Column: "Job", Groups: r.Jobs},
		{ID: "targets", Title: "Targets", Column: "Job and instance", Groups: r.Targets},
	}
	if r.Metric != "" {
		lists = lists[1:]
	}
	for _, g := range lists {
		g.Max = 1
		for _, x := range g.Groups {
			g.Max = max(g.Max, x.Series)
		}
		out.Groups = append(out.Groups, g)
	}
	return out
}

func (s *Server) actCardinality(_ context.Context, r *http.Request) (string, error) {
	q, err := cardinality.Parse(cardinalityForm(r.PostForm))
	if err != nil {
		if field, ok := errors.AsType[*cardinality.ParameterError](err); ok {
			return "", &fieldError{field.Name, errors.New(field.Message)}
		}
		return "", err
	}
	if q.Top == 0 || q.Top > maxTop {
		return "", &fieldError{"top", fmt.Errorf("the page shows 1 to %d of each", maxTop)}
	}
	if err := s.surveys.start(s.survey, q); err != nil {
		return "", err
	}
	return "cardinality?" + q.Values().Encode(), nil
}

const (
	// maxTop bounds each list of the page, keptSurveys how many counts are kept, and surveyKept for how long.
	maxTop      = 1000
	keptSurveys = 8
	surveyKept  = time.Hour
)

// surveys are counts that the page has started: they go on when the browser has gone, and are kept for a while. One runs at a time.
type surveys struct {
	mu      sync.Mutex
	running *surveyRun
	done    map[cardinality.Query]*surveyResult
	ended   sync.WaitGroup
	stopped bool
}

// surveyRun is a count on its way.
type surveyRun struct {
	Query   cardinality.Query
	Started time.Time
	cancel  context.CancelFunc
}

// surveyResult is what came of a count.
type surveyResult struct {
	report *cardinality.Report
	err    error
	at     time.Time
	took   time.Duration
}

// start counts, unless the same is being counted already. That something else is, is an error.
func (s *surveys) start(count func(context.Context, cardinality.Query) (*cardinality.Report, error), q cardinality.Query) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return errors.New("this process is stopping")
	case s.running != nil && s.running.Query == q:
		return nil
	case s.running != nil:
		return errors.New("series are being counted already, and only one count runs at a time; wait until it is done")
	}
	ctx, cancel := context.WithTimeout(context.Background(), CardinalityTimeout)
	run := &surveyRun{q, time.Now(), cancel}
	s.running = run
	delete(s.done, q)
	s.ended.Go(func() {
		defer cancel()
		report, err := count(ctx, q)
		s.finish(run, report, err)
	})
	return nil
}

func (s *surveys) finish(run *surveyRun, report *cardinality.Report, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = nil
	if s.done == nil {
		s.done = map[cardinality.Query]*surveyResult{}
	}
	if len(s.done) >= keptSurveys {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(s.done)), func(a, b cardinality.Query) int { return s.done[a].at.Compare(s.done[b].at) })
		delete(s.done, oldest)
	}
	s.done[run.Query] = &surveyResult{report, err, time.Now(), time.Since(run.Started)}
}

// find returns the count that runs, and what was counted: of the query where one is asked for, else the newest of all metrics.
func (s *surveys) find(q cardinality.Query, asked bool) (running *surveyRun, done *surveyResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.done, func(_ cardinality.Query, r *surveyResult) bool { return time.Since(r.at) > surveyKept })
	if asked {
		return s.running, s.done[q]
	}
	for have, r := range s.done {
		if have.Metric == "" && (done == nil || r.at.After(done.at)) {
			done = r
		}
	}
	return s.running, done
}

// stop ends the count that runs, and waits for it.
func (s *surveys) stop() {
	s.mu.Lock()
	s.stopped = true
	if s.running != nil {
		s.running.cancel()
	}
	s.mu.Unlock()
	s.ended.Wait()
}
