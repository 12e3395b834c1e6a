package scraper

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// bed is a running service with a target to scrape.
type bed struct {
	*rig
	conn     *stream.Conn
	exporter *httptest.Server
	scrapes  atomic.Int64
	text     atomic.Pointer[string]
	status   atomic.Int64 // of the exporter's answers, if it is not 200
	hanging  atomic.Int64 // requests with a timeout of 5 s, which the exporter does not answer
	marks    marks
	global   promconfig.GlobalConfig
	stop     func()
}

// marks are the values of the header Mark that requests to the exporter had, in the order in which they came.
type marks struct {
	mu   sync.Mutex
	list []string
}

func (m *marks) note(req *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, req.Header.Get("Mark"))
}

// all returns the marks so far; "" stands for a request without one.
func (m *marks) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

func newBed(t *testing.T, jobs ...string) *bed {
	t.Helper()
	f := &bed{conn: server(t)}
	text := "metric 1\n"
	f.text.Store(&text)
	f.exporter = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		f.scrapes.Add(1)
		f.marks.note(req)
		if req.Header.Get("X-Prometheus-Scrape-Timeout-Seconds") == "5" {
			f.hanging.Add(1)
			<-req.Context().Done()
			return
		}
		if status := f.status.Load(); status != 0 {
			w.WriteHeader(int(status))
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, *f.text.Load())
	}))
	t.Cleanup(f.exporter.Close)
	f.rig = newRig(t, onServer(f.conn))
	f.apply(jobs...)
	f.start()
	return f
}

// start runs the service until the test ends or stop is called.
func (f *bed) start() {
	t := f.t
	member, leave := fleettest.Join(t, f.conn, "scraper")
	f.cfg.Fleet = member
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	system := actor.NewSystem("outer", f.cfg.Logger, prometheus.NewPedanticRegistry())
	system.Spawn("scraper-service", f.Service)
	unpublish := f.runPublishers()
	go func() { ended <- system.Serve(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
		unpublish()
		leave()
	})
	t.Cleanup(f.stop)
}

// active returns what is shown of a target.
func (f *bed) active(id uint64) *Active {
	for _, a := range f.Targets() {
		if a.Discovered.ID == id {
			return &a
		}
	}
	return nil
}

// apply sets the jobs. Each is a name and further lines of YAML.
func (f *bed) apply(jobs ...string) {
	f.t.Helper()
	text := "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n"
	for _, job := range jobs {
		text += "- job_name: " + strings.ReplaceAll(job, "\n", "\n  ") + "\n"
	}
	cfg, err := promconfig.Load(text, f.cfg.Logger)
	if err != nil {
		f.t.Fatal(err)
	}
	list, err := cfg.GetScrapeConfigs()
	if err != nil {
		f.t.Fatal(err)
	}
	f.global = cfg.GlobalConfig
	if err := f.ApplyConfig(cfg.GlobalConfig, list); err != nil {
		f.t.Fatal(err)
	}
}

// publishTarget publishes the exporter as a target with the given labels besides those that each has. One with an empty value is removed. Its timeout is so long that no
// scrape fails because the machine is busy, which would leave staleness markers.
func (f *bed) publishTarget(job string, extra ...string) *target.Target {
	f.t.Helper()
	b := labels.NewBuilder(labels.FromStrings(
		"__address__", strings.TrimPrefix(f.exporter.URL, "http://"), "__scheme__", "http", "__metrics_path__", "/metrics",
		"__scrape_interval__", "200ms", "__scrape_timeout__", await.Patience.String(), "job", job, "instance", "one",
	))
	for i := 0; i < len(extra); i += 2 {
		b.Set(extra[i], extra[i+1])
	}
	t := target.New(job, b.Labels(), labels.EmptyLabels(), nil)
	msg, err := target.Encode(t)
	if err != nil {
		f.t.Fatal(err)
	}
	f.publish(f.conn.Target(t.Shard(), t.ID), msg)
	return t
}

func (f *bed) removeTarget(t *target.Target) { f.publish(f.conn.Target(t.Shard(), t.ID), nil) }

func (f *bed) publish(subject string, data []byte) {
	f.t.Helper()
	if _, err := f.conn.Publish(f.t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
		f.t.Fatal(err)
	}
}

// published returns all samples in the stream, in the order of their partition.
func (f *bed) published() (list []sample) {
	f.t.Helper()
	t := f.t.(*testing.T)
	for p := range f.cfg.Partitions {
		frames := stored(t, f.conn, p)
		dicts := map[frame.DictID][]frame.Series{}
		for _, fr := range frames {
			for _, s := range fr.Sections {
				if dicts[s.Dict] != nil {
					continue
				}
				msg, err := f.conn.Last(t.Context(), stream.Dicts, f.conn.Dict(p, s.Dict))
				if err != nil {
					t.Fatalf("a frame came before its dictionary: %v", err)
				}
				d, err := frame.ReadDictionary(msg.Data, s.Dict)
				if err != nil {
					t.Fatal(err)
				}
				dicts[s.Dict] = d.Series
			}
		}
		list = append(list, samples(t, frames, dicts)...)
	}
	return list
}

// count returns how many samples a series has that are not staleness markers, and how many that are.
func (f *bed) count(series string) (n, stale int) {
	for _, x := range f.published() {
		switch {
		case x.Series != series:
		case value.IsStaleNaN(x.V):
			stale++
		default:
			n++
		}
	}
	return n, stale
}

func (f *bed) waitFor(series string) {
	f.t.Helper()
	await.True(f.t, "samples of "+series, func() bool { n, _ := f.count(series); return n > 0 })
}

func TestTargetsComeAndGo(t *testing.T) {
	f := newBed(t, "a", "b")
	first := f.publishTarget("a")
	f.waitFor(`{__name__="metric", instance="one", job="a"}`)
	f.waitFor(`{__name__="up", instance="one", job="a"}`)
	second := f.publishTarget("b", "instance", "two", "zone", "west")
	f.waitFor(`{__name__="metric", instance="two", job="b", zone="west"}`)
	if n := len(f.Targets()); n != 2 || f.active(first.ID) == nil {
		t.Errorf("%d targets are shown", n)
	}

	// What is gone ends with a staleness marker. A changed target is another one, in the place of the first.
	third := f.publishTarget("a", "instance", "three")
	f.removeTarget(first)
	f.waitFor(`{__name__="metric", instance="three", job="a"}`)
	f.removeTarget(third)
	f.removeTarget(second)
	for _, series := range []string{
		`{__name__="metric", instance="one", job="a"}`, `{__name__="up", instance="three", job="a"}`, `{__name__="metric", instance="two", job="b", zone="west"}`,
	} {
		await.True(t, "a staleness marker of "+series, func() bool { _, stale := f.count(series); return stale == 1 })
	}
	await.True(t, "no targets", func() bool { return len(f.Targets()) == 0 })
	for _, x := range f.published() {
		if x.T == math.MinInt64 {
			t.Errorf("sample %+v", x)
		}
	}
}

func TestTargetsThatAreThereBeforeComeAtOnce(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(`{__name__="metric", instance="one", job="a"}`)
	f.stop()
	scrapes := f.scrapes.Load()
	other := &bed{conn: f.conn, exporter: f.exporter}
	other.rig = newRig(t, onServer(f.conn))
	other.apply("a")
	other.start()
	await.True(t, "the target of before", func() bool { return len(other.Targets()) == 1 && f.scrapes.Load() > scrapes })
}

func TestMessagesThatAreNoTargetsAreIgnored(t *testing.T) {
	f := newBed(t, "a")
	good := f.publishTarget("a")
	f.waitFor(`{__name__="up", instance="one", job="a"}`)
	f.publish(f.conn.Target(1, 1), []byte{200, 1})
	f.publish("test.targets.1.what", []byte("ever"))
	f.publish(f.conn.Target(good.Shard(), good.ID), []byte("broken now"))
	next := f.publishTarget("a", "instance", "two")
	f.waitFor(`{__name__="up", instance="two", job="a"}`)
	if len(f.Targets()) != 2 || f.active(good.ID) == nil || f.active(next.ID) == nil {
		t.Errorf("targets %v", f.Targets())
	}
	for _, part := range []string{"test.targets.1.what", f.conn.Target(1, 1), f.conn.Target(good.Shard(), good.ID)} {
		if !strings.Contains(f.log.String(), part) {
			t.Errorf("the log does not name %s", part)
		}
	}
}

func TestRemovedLabelsStayRemoved(t *testing.T) {
	f := newBed(t, "a\nmetrics_path: /other\nscheme: https")
	target := f.publishTarget("a", "job", "")
	if len(target.Absent) != 1 {
		t.Fatalf("absent are %v", target.Absent)
	}
	f.waitFor(`{__name__="metric", instance="one"}`)
	for _, x := range f.published() {
		if strings.Contains(x.Series, "millrace") || strings.Contains(x.Series, "job") {
			t.Errorf("series %s", x.Series)
		}
	}
}

func TestJobsOfAnotherConfigurationAreLeftOut(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("b")
	f.publishTarget("a")
	f.waitFor(`{__name__="metric", instance="one", job="a"}`)
	if n, _ := f.count(`{__name__="metric", instance="one", job="b"}`); n > 0 || len(f.Targets()) != 1 {
		t.Errorf("%d samples of a job that is not configured", n)
	}
	f.apply("a", "b")
	f.waitFor(`{__name__="metric", instance="one", job="b"}`)
	f.apply("b")
	await.True(t, "the end of the job a", func() bool { return len(f.Targets()) == 1 && f.Targets()[0].Discovered.Job == "b" })
	if stats := f.Stats(); stats.Samples == 0 || stats.Series == 0 || stats.DroppedScrapes > 0 {
		t.Errorf("stats %+v", stats)
	}
	if reasons := f.Waiting(); len(reasons) > 0 {
		t.Errorf("it waits: %v", reasons)
	}
}

func TestBodiesAreLimitedUnlessTheJobSaysSo(t *testing.T) {
	plain, own := &promconfig.ScrapeConfig{JobName: "a"}, &promconfig.ScrapeConfig{JobName: "b", BodySizeLimit: 7}
	p, err := newPlan(nil, promconfig.GlobalConfig{}, []*promconfig.ScrapeConfig{plain, own}, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got := p.jobs["a"].config.BodySizeLimit; got != 100 || plain.BodySizeLimit != 0 {
		t.Errorf("limit %v of a job without one", got)
	}
	if got := p.jobs["b"].config.BodySizeLimit; got != 7 {
		t.Errorf("limit %v of a job with 7", got)
	}
}
