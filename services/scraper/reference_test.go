package scraper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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
	slices.SortStableFunc(r.Samples, func(a, b sample) int { return cmp.Compare(a.Series, b.Series) })
	slices.SortStableFunc(r.Exemplars, func(a, b takenExemplar) int { return cmp.Compare(a.Series, b.Series) })
	return r
}

// reference collects what Prometheus's loops append, by target.
type reference struct {
	*rig
	mu    sync.Mutex
	units map[string][]*publish.Unit // by the label "sequence"

	commits   chan *testAppender // are committed by a goroutine outside of the bubble, to which pooled encoders may not belong
	committed chan error
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
	return &referenceAppender{testAppender: *r.appender(t.Labels(b)), r: r, sequence: t.GetValue("sequence")}
}

type referenceAppender struct {
	testAppender
	r        *reference
	sequence string
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
		a.r.units[a.sequence] = append(a.r.units[a.sequence], u)
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

// runReference has Prometheus scrape all sequences and returns what came of each scrape.
func runReference(t *testing.T, cfg *promconfig.Config, list []sequence, startTimestamps bool) [][]*taken {
	r := &reference{rig: newRig(t), units: map[string][]*publish.Unit{}, commits: make(chan *testAppender), committed: make(chan error)}
	go r.commitAll()
	defer close(r.commits)
	begin := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(begin)) // the clock of a bubble begins in the past
		r.run(t, cfg, list, startTimestamps)
	})
	result := make([][]*taken, len(list))
	for i, s := range list {
		units := r.units[fmt.Sprint(i)]
		if len(units) < len(s.steps) {
			t.Fatalf("sequence %d of %d scrapes: Prometheus made %d", i, len(s.steps), len(units))
		}
		for _, u := range units[:len(s.steps)] {
			result[i] = append(result[i], readUnit(t, u))
		}
	}
	return result
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
	}, slog.New(slog.DiscardHandler), nil, nil, r, prometheus.NewRegistry())
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
	want := runReference(t, cfg, list, startTimestamps)
	for _, n := range []int{piece, 700, 40} {
		compareSequences(t, cfg, list, want, n, startTimestamps)
	}
}

// compareSequences gives the sequences to loops of this package, in pieces of n bytes.
func compareSequences(t *testing.T, cfg *promconfig.Config, list []sequence, want [][]*taken, n int, startTimestamps bool) {
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
		for k, step := range s.steps {
			got := r.give(l, step, want[i][k].Time)
			if d := gocmp.Diff(want[i][k], got, exact); d != "" {
				t.Fatalf("job %s, sequence %d, scrape %d of %d, in pieces of %d bytes, differs (-Prometheus +Millrace):\n%s\nbodies:\n%s", s.job, i, k+1, len(s.steps), n, d, s.show(k))
			}
		}
	}
}

func (s *sequence) show(k int) string {
	var b strings.Builder
	for i := max(0, k-2); i <= k; i++ {
		fmt.Fprintf(&b, "--- scrape %d: status %d, cut %d, %s\n%.4000q\n", i+1, s.steps[i].status, s.steps[i].cut, s.steps[i].contentType, s.steps[i].body)
	}
	return b.String()
}
