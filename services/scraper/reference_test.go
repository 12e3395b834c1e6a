package scraper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
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

// The reference is Prometheus's own scrape manager: it scrapes the same sequences of bodies over HTTP, and what its loops append goes
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
	taken map[string][]*taken // by the label "sequence"
	late  bool                // a scrape ran into its timeout, which says nothing about its body
}

// AppenderV2 makes the reference a [storage.AppendableV2].
func (r *reference) AppenderV2(ctx context.Context) storage.AppenderV2 {
	t, ok := scrape.TargetFromContext(ctx)
	if !ok {
		r.t.Fatal("no target")
	}
	if errors.Is(t.LastError(), context.DeadlineExceeded) {
		r.mu.Lock()
		r.late = true
		r.mu.Unlock()
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
	err := a.testAppender.Commit()
	if u := a.r.unitOf(a.to); u != nil {
		a.r.taken[a.sequence] = append(a.r.taken[a.sequence], readUnit(a.r.t, u))
	}
	return err
}

// runReference has Prometheus scrape all sequences and returns what came of each scrape; nil where the machine was too slow.
func runReference(t testing.TB, cfg *promconfig.Config, list []sequence, interval time.Duration, startTimestamps bool) [][]*taken {
	r := &reference{rig: newRig(t), taken: map[string][]*taken{}}
	var mu sync.Mutex
	served := make([]int, len(list))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
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
	}))
	defer server.Close()
	manager, err := scrape.NewManager(&scrape.Options{
		PassMetadataInContext: true, ParseST: startTimestamps, EnableZstdScrape: true,
		DiscoveryReloadInterval: model.Duration(10 * time.Millisecond), DiscoveryReloadOnStartup: true,
	}, slog.New(slog.DiscardHandler), nil, nil, r, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if err := manager.ApplyConfig(cfg); err != nil {
		t.Fatal(err)
	}
	sets := map[string][]*targetgroup.Group{}
	for i, s := range list {
		sets[s.job] = append(sets[s.job], &targetgroup.Group{Source: fmt.Sprint(i), Targets: []model.LabelSet{{
			model.AddressLabel: model.LabelValue(strings.TrimPrefix(server.URL, "http://")), model.MetricsPathLabel: model.LabelValue(fmt.Sprint("/", i)),
			model.ScrapeIntervalLabel: model.LabelValue(model.Duration(interval).String()), model.ScrapeTimeoutLabel: model.LabelValue(model.Duration(interval).String()),
			model.InstanceLabel: "one", "sequence": model.LabelValue(fmt.Sprint(i)),
		}}})
	}
	feed := make(chan map[string][]*targetgroup.Group)
	ended := make(chan error, 1)
	go func() { ended <- manager.Run(feed) }()
	feed <- sets
	eventually(t, "all scrapes of the reference", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i, s := range list {
			if len(r.taken[fmt.Sprint(i)]) <= len(s.steps) { // the next scrape tells of a late one
				return r.late
			}
		}
		return true
	})
	manager.Stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if r.late {
		return nil
	}
	result := make([][]*taken, len(list))
	for i, s := range list {
		result[i] = r.taken[fmt.Sprint(i)][:len(s.steps)]
	}
	return result
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
func compareWithPrometheus(t testing.TB, cfg *promconfig.Config, list []sequence, interval time.Duration, startTimestamps bool) {
	t.Helper()
	jobs := map[string]*promconfig.ScrapeConfig{}
	for _, c := range cfg.ScrapeConfigs {
		jobs[c.JobName] = c
	}
	want := runReference(t, cfg, list, interval, startTimestamps)
	for want == nil {
		interval *= 2
		want = runReference(t, cfg, list, interval, startTimestamps)
	}
	for _, n := range []int{piece, 700, 40} {
		r := newRig(t, func(c *Config) { c.StartTimestamps = startTimestamps })
		r.piece = n
		for i, s := range list {
			c := *jobs[s.job]
			l := r.newTestLoop(&c, i)
			l.rules.timeout = interval
			for k, step := range s.steps {
				got := r.give(l, step, want[i][k].Time)
				if d := gocmp.Diff(want[i][k], got, exact); d != "" {
					t.Fatalf("job %s, sequence %d, scrape %d of %d, in pieces of %d bytes, differs (-Prometheus +Millrace):\n%s\nbodies:\n%s", s.job, i, k+1, len(s.steps), n, d, s.show(k))
				}
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
