package scraper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/target"
)

// The reference is Prometheus's own scrape manager: it scrapes the same sequences of bodies over HTTP, by a clock of its own, and what its loops append goes
// through the same appender. Then the bodies are given to a loop of this package, at the same times, and the frames are compared.

// step is one answer of a target.
type step struct {
	body        string
	contentType string
	status      int // 0 for 200
	cut         int // after so many bytes of the body the connection breaks; 0 for never
}

// sequence is what one target answers, scrape after scrape.
type sequence struct {
	job   string
	steps []step
}

// taken is what became of one scrape.
type taken struct {
	Time      int64
	Samples   []sample
	Exemplars []takenExemplar
	Error     string // with which it failed
	// Families are those of the series with samples that are no staleness markers, by the series' labels. There are those of good scrapes whose body says once what is to be said of
	// them, in the format of all bodies before: metadata belongs to a series from its first scrape on wherever in the body the comment stands, and Prometheus remembers comments that are gone.
	Families map[string]takenFamily
}

type takenFamily struct {
	Name string
	metadata.Metadata
}

type takenExemplar struct {
	Series string
	exemplar.Exemplar
}

// readUnit decodes a unit. Timestamps that are the scrape's own become 0, and what depends on the clock as well.
func readUnit(t testing.TB, u *publish.Unit) *taken {
	frames, dicts := decode(t, u)
	r := &taken{Time: frames[len(frames)-1].Time, Samples: samples(t, frames, dicts)}
	for i := range r.Samples {
		s := &r.Samples[i]
		if s.T == r.Time {
			s.T = 0
		}
		if strings.Contains(s.Series, `"scrape_duration_seconds"`) && s.V < 1000 {
			s.V = 0
		}
	}
	for _, f := range frames {
		for _, sec := range f.Sections {
			for _, x := range sec.Exemplars {
				if x.Ts == r.Time {
					x.Ts = 0
				}
				r.Exemplars = append(r.Exemplars, takenExemplar{dicts[sec.Dict][x.Index].Labels.String(), x.Exemplar})
			}
		}
	}
	r.Families = map[string]takenFamily{}
	for _, f := range frames {
		for _, sec := range f.Sections {
			note := func(i uint32) {
				if x := &dicts[sec.Dict][i]; x.Family != "" {
					r.Families[x.Labels.String()] = takenFamily{x.Family, x.Metadata}
				}
			}
			for k := range sec.Values {
				if sec.Present != nil {
					k = int(sec.Present[k])
				}
				note(uint32(k))
			}
			for _, h := range sec.Histograms {
				note(h.Index)
			}
		}
	}
	slices.SortStableFunc(r.Samples, func(a, b sample) int { return cmp.Compare(a.Series, b.Series) })
	slices.SortStableFunc(r.Exemplars, func(a, b takenExemplar) int { return cmp.Compare(a.Series, b.Series) })
	return r
}

// judge completes what came of scrape k of a sequence: with the error with which it failed, unless that is of a kind that give makes up, and with the families that find tells
// of series. Report series are left out.
func (r *taken) judge(s *sequence, k int, err error, find func(series string) (takenFamily, bool)) {
	st, list := &s.steps[k], map[string]takenFamily{}
	switch {
	case err != nil && st.status != 0 && st.status != http.StatusOK:
		r.Error = "status"
	case err != nil:
		r.Error = err.Error()
	case strings.HasPrefix(s.job, "convert") && (k == 0 || s.steps[k-1] != *st):
		// Bodies that are parsed as a whole tell of comments behind a series in the next scrape.
	case !slices.ContainsFunc(s.steps[:k], func(before step) bool { return before.contentType != st.contentType }):
		for _, x := range r.Samples {
			if value.IsStaleNaN(x.V) || strings.HasPrefix(x.Series, `{__name__="scrape_`) || strings.HasPrefix(x.Series, `{__name__="up"`) {
				continue
			}
			if family, ok := find(x.Series); ok {
				list[x.Series] = family
			}
		}
	}
	r.Families = list
}

// isTold reports whether a body has the comments from which all comes that is known of a family, each once.
func (f *takenFamily) isTold(body string) bool {
	n := func(comment string) int { return strings.Count(body, "# "+comment+" "+f.Name+" ") }
	types, helps, units := n("TYPE"), n("HELP"), n("UNIT")
	return types <= 1 && helps <= 1 && units <= 1 && types+helps+units > 0 && (f.Type == model.MetricTypeUnknown || types == 1) && (f.Help == "" || helps == 1) && (f.Unit == "" || units == 1)
}

// isToldFirst reports whether the comments stand before all series of the family, so that they count where the body comes in pieces.
func (f *takenFamily) isToldFirst(body string) bool {
	first := len(body)
	for _, text := range []string{"\n" + f.Name, "\"" + f.Name} {
		if i := strings.Index("\n"+body, text); i >= 0 {
			first = min(first, i)
		}
	}
	for _, comment := range []string{"TYPE", "HELP", "UNIT"} {
		if strings.LastIndex(body, "# "+comment+" "+f.Name+" ") > first {
			return false
		}
	}
	return true
}

// familyIn returns a function for [taken.judge] that looks for the family of a series in what Prometheus knows of a target, if the body says that.
func familyIn(list []scrape.MetricMetadata, nameOf map[string]string, body string) func(string) (takenFamily, bool) {
	known, told := map[string]takenFamily{}, map[string]bool{}
	for _, f := range list {
		family := takenFamily{f.MetricFamily, metadata.Metadata{Type: f.Type, Unit: f.Unit, Help: f.Help}}
		known[f.MetricFamily], told[f.MetricFamily] = family, family.isTold(body)
	}
	return func(series string) (takenFamily, bool) {
		name := nameOf[series]
		if f, ok := known[name]; ok {
			return f, told[name]
		}
		for _, s := range suffixes {
			family := strings.TrimSuffix(name, s.suffix)
			if f, ok := known[family]; ok && slices.Contains(s.types, f.Type) {
				return f, told[family]
			}
		}
		return takenFamily{}, false
	}
}

// reference collects what Prometheus's loops append, by target.
type reference struct {
	*rig
	registry *prometheus.Registry // of Prometheus

	mu      sync.Mutex
	scrapes map[string][]scraping // by the label "sequence"

	commits   chan *testAppender // are committed by a goroutine outside of the bubble, to which pooled encoders may not belong
	committed chan error
}

// scraping is what a scrape of Prometheus has brought.
type scraping struct {
	unit     *publish.Unit
	err      error
	families []scrape.MetricMetadata // that the target has told of so far
}

// commitAll commits what comes until there is no more.
func (r *reference) commitAll() {
	for a := range r.commits {
		r.committed <- a.Commit()
	}
}

// AppenderV2 makes the reference a [storage.AppendableV2].
func (r *reference) AppenderV2(ctx context.Context) storage.AppenderV2 {
	t, ok := scrape.TargetFromContext(ctx)
	if !ok {
		panic("no target: the option PassMetadataInContext has no effect")
	}
	b := labels.NewBuilder(labels.EmptyLabels())
	return &referenceAppender{testAppender: *r.appender(t.Labels(b)), r: r, target: t}
}

type referenceAppender struct {
	testAppender
	r      *reference
	target *scrape.Target
}

func (a *referenceAppender) Append(ref storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AOptions) (storage.SeriesRef, error) {
	return a.testAppender.Append(ref, ls, st, t, v, h, fh, storage.AOptions{RejectOutOfOrder: opts.RejectOutOfOrder, Exemplars: opts.Exemplars})
}

func (a *referenceAppender) Commit() error {
	a.r.mu.Lock()
	defer a.r.mu.Unlock()
	a.r.commits <- &a.testAppender
	err := <-a.r.committed
	if u := a.r.unitOf(a.to); u != nil {
		sequence := a.target.GetValue("sequence")
		a.r.scrapes[sequence] = append(a.r.scrapes[sequence], scraping{u, a.target.LastError(), a.target.ListMetadata()})
	}
	return err
}

// pipes is a listener for connections in memory. A goroutine that waits for one is idle as [synctest] understands it, other than with those of the system.
type pipes struct {
	connections chan net.Conn
	closed      chan struct{}
	close       func()
}

func newPipes() *pipes {
	p := &pipes{connections: make(chan net.Conn), closed: make(chan struct{})}
	p.close = sync.OnceFunc(func() { close(p.closed) })
	return p
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.connections:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.close()
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.connections <- server:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answering returns a handler that answers the sequences, by path, scrape after scrape.
func answering(list []sequence) http.HandlerFunc {
	var mu sync.Mutex
	served := make([]int, len(list))
	return func(w http.ResponseWriter, req *http.Request) {
		i, _ := strconv.Atoi(strings.TrimPrefix(req.URL.Path, "/"))
		mu.Lock()
		k := served[i]
		served[i]++
		mu.Unlock()
		if k >= len(list[i].steps) {
			http.Error(w, "the sequence is over", http.StatusGone)
			return
		}
		s := list[i].steps[k]
		w.Header()["Content-Type"] = []string{s.contentType}
		if s.status != 0 {
			w.WriteHeader(s.status)
		}
		if s.cut > 0 && s.cut < len(s.body) {
			fmt.Fprint(w, s.body[:s.cut])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, s.body)
	}
}

// referenceInterval is the one at which Prometheus scrapes, by the clock of the test.
const referenceInterval = time.Second

// runReference has Prometheus scrape all sequences and returns what came of each scrape, and what was counted.
func runReference(t *testing.T, cfg *promconfig.Config, list []sequence, startTimestamps bool) ([][]*taken, map[string]float64) {
	r := &reference{rig: newRig(t), registry: prometheus.NewRegistry(), scrapes: map[string][]scraping{}, commits: make(chan *testAppender), committed: make(chan error)}
	go r.commitAll()
	defer close(r.commits)
	begin := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(begin)) // the clock of a bubble begins in the past
		r.run(t, cfg, list, startTimestamps)
	})
	result := make([][]*taken, len(list))
	for i, s := range list {
		scrapes := r.scrapes[fmt.Sprint(i)]
		if len(scrapes) < len(s.steps) {
			t.Fatalf("sequence %d of %d scrapes: Prometheus made %d", i, len(s.steps), len(scrapes))
		}
		for k, x := range scrapes[:len(s.steps)] {
			got := readUnit(t, x.unit)
			got.judge(&s, k, x.err, familyIn(x.families, namesIn(t, x.unit), s.steps[k].body))
			result[i] = append(result[i], got)
		}
	}
	return result, counted(t, r.registry)
}

// namesIn returns the names of metrics by the labels of their series.
func namesIn(t testing.TB, u *publish.Unit) map[string]string {
	_, dicts := decode(t, u)
	names := map[string]string{}
	for _, series := range dicts {
		for i := range series {
			names[series[i].Labels.String()] = series[i].Labels.Get(model.MetricNameLabel)
		}
	}
	return names
}

// counted returns what the metrics say that count samples and scrapes that were refused.
func counted(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]float64{}
	for _, f := range families {
		if name := f.GetName(); strings.HasPrefix(name, "prometheus_target_scrapes_") && name != "prometheus_target_scrapes_cache_flush_forced_total" || name == "prometheus_target_scrape_pool_exceeded_label_limits_total" {
			list[name] = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	return list
}

// run has Prometheus scrape all sequences to their ends. The clock stands still while anything is done, so that no scrape is late.
func (r *reference) run(t *testing.T, cfg *promconfig.Config, list []sequence, startTimestamps bool) {
	listener := newPipes()
	server := &http.Server{Handler: answering(list)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	manager, err := scrape.NewManager(&scrape.Options{
		PassMetadataInContext: true, ParseST: startTimestamps, EnableZstdScrape: true,
		DiscoveryReloadInterval: model.Duration(10 * time.Millisecond), DiscoveryReloadOnStartup: true,
		HTTPClientOptions: []commonconfig.HTTPClientOption{commonconfig.WithDialContextFunc(listener.dial)},
	}, slog.New(slog.DiscardHandler), nil, nil, r, r.registry)
	if err != nil {
		t.Fatal(err)
	}
	if err := manager.ApplyConfig(cfg); err != nil {
		t.Fatal(err)
	}
	sets, steps := map[string][]*targetgroup.Group{}, 0
	for i, s := range list {
		steps = max(steps, len(s.steps))
		sets[s.job] = append(sets[s.job], &targetgroup.Group{Source: fmt.Sprint(i), Targets: []model.LabelSet{{
			model.AddressLabel: "localhost:1", model.MetricsPathLabel: model.LabelValue(fmt.Sprint("/", i)),
			model.ScrapeIntervalLabel: model.LabelValue(model.Duration(referenceInterval).String()), model.ScrapeTimeoutLabel: model.LabelValue(model.Duration(referenceInterval).String()),
			model.InstanceLabel: "one", "sequence": model.LabelValue(fmt.Sprint(i)),
		}}})
	}
	feed := make(chan map[string][]*targetgroup.Group)
	ended := make(chan error, 1)
	go func() { ended <- manager.Run(feed) }()
	feed <- sets
	time.Sleep(time.Duration(steps+2) * referenceInterval)
	manager.Stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	_ = server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// newTestLoop returns a loop that does not run, for a target that answers a sequence.
func (r *rig) newTestLoop(cfg *promconfig.ScrapeConfig, number int) *loop {
	r.t.Helper()
	return r.newLoopTo(cfg, "localhost:1", number)
}

// newLoopTo returns a loop that does not run, for a target at an address.
func (r *rig) newLoopTo(cfg *promconfig.ScrapeConfig, address string, number int) *loop {
	r.t.Helper()
	j := &job{jobPlan: &jobPlan{config: cfg}, w: newWatcher(r.Service, nil, r.t.Context()), name: cfg.JobName, loops: map[uint64]*loop{}}
	var err error
	if j.clients, err = newClients(cfg); err != nil {
		r.t.Fatal(err)
	}
	return j.newLoop(target.New(cfg.JobName, labels.FromStrings(
		"__address__", address, "__scheme__", "http", "__metrics_path__", "/", "__scrape_interval__", "1s", "__scrape_timeout__", "60s",
		"instance", "one", "job", cfg.JobName, "sequence", fmt.Sprint(number),
	), labels.EmptyLabels(), nil))
}

// give has the loop read an answer as if it had been fetched.
func (r *rig) give(l *loop, s step, t int64) *taken {
	r.t.Helper()
	o, x := outcome{}, &exposition{}
	if s.status != 0 && s.status != http.StatusOK {
		o.err = errors.New("server returned HTTP status")
	} else if err := r.answer(x, s, l.fetch.limit); err != nil {
		x.close()
		l.note(err, &o)
	}
	l.deliver(time.Now(), t, x, &o)
	x.close()
	u := r.unitOf(l.source)
	if u == nil {
		r.t.Fatal("a scrape left nothing")
	}
	return readUnit(r.t, u)
}

// answer makes x an answer as it is when the body, or as much of it as is in a piece, was fetched.
func (r *rig) answer(x *exposition, s step, limit int64) error {
	var body io.Reader = strings.NewReader(s.body)
	if s.cut > 0 && s.cut < len(s.body) {
		body = io.MultiReader(strings.NewReader(s.body[:s.cut]), iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	*x = exposition{contentType: s.contentType, limit: limit, response: &http.Response{Body: io.NopCloser(body)}}
	return x.begin(min(len(s.body)+2, r.piece), r.piece)
}

// compareWithPrometheus scrapes the sequences with Prometheus and with this package.
func compareWithPrometheus(t *testing.T, cfg *promconfig.Config, list []sequence, startTimestamps bool) {
	t.Helper()
	want, counts := runReference(t, cfg, list, startTimestamps)
	for _, n := range []int{piece, 700, 40} {
		if d := gocmp.Diff(counts, compareSequences(t, cfg, list, want, n, startTimestamps)); d != "" {
			t.Errorf("in pieces of %d bytes, what is counted differs (-Prometheus +Millrace):\n%s", n, d)
		}
	}
}

// compareSequences gives the sequences to loops of this package, in pieces of n bytes, and returns what was counted.
func compareSequences(t *testing.T, cfg *promconfig.Config, list []sequence, want [][]*taken, n int, startTimestamps bool) map[string]float64 {
	t.Helper()
	jobs := map[string]*promconfig.ScrapeConfig{}
	for _, c := range cfg.ScrapeConfigs {
		jobs[c.JobName] = c
	}
	r := newRig(t, func(c *Config) { c.StartTimestamps = startTimestamps })
	r.piece = n
	for i, s := range list {
		c := *jobs[s.job]
		l := r.newTestLoop(&c, i)
		l.rules.timeout = referenceInterval
		late := map[string]bool{} // families of which something was told behind series, which may not have heard of it since
		for k, step := range s.steps {
			got := r.give(l, step, want[i][k].Time)
			families := got.Families
			got.judge(&s, k, l.target.LastError(), func(series string) (takenFamily, bool) {
				_, ok := want[i][k].Families[series]
				return families[series], ok
			})
			want := *want[i][k]
			if n < piece {
				// What the parser shows of a faulty line depends on what is in memory behind it.
				want.Error, _, _ = strings.Cut(want.Error, ", got ")
				got.Error, _, _ = strings.Cut(got.Error, ", got ")
				want.Families = maps.Clone(want.Families)
				for series, f := range want.Families {
					if !late[f.Name] {
						late[f.Name] = !f.isToldFirst(step.body)
					}
					if late[f.Name] {
						delete(want.Families, series)
						delete(got.Families, series)
					}
				}
			}
			if maps.Equal(want.Families, got.Families) {
				want.Families, got.Families = nil, nil // it is much faster
			}
			if d := gocmp.Diff(&want, got, exact); d != "" {
				t.Fatalf("job %s, sequence %d, scrape %d of %d, in pieces of %d bytes, differs (-Prometheus +Millrace):\n%s\nbodies:\n%s", s.job, i, k+1, len(s.steps), n, d, s.show(k))
			}
		}
	}
	return counted(t, r.reg)
}

func (s *sequence) show(k int) string {
	var b strings.Builder
	for i := max(0, k-2); i <= k; i++ {
		fmt.Fprintf(&b, "--- scrape %d: status %d, cut %d, %s\n%.4000q\n", i+1, s.steps[i].status, s.steps[i].cut, s.steps[i].contentType, s.steps[i].body)
	}
	return b.String()
}
