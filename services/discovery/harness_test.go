package discovery

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	_ "github.com/prometheus/prometheus/discovery/consul"
	_ "github.com/prometheus/prometheus/discovery/dns"
	_ "github.com/prometheus/prometheus/discovery/file"
	_ "github.com/prometheus/prometheus/discovery/http"
	_ "github.com/prometheus/prometheus/discovery/kubernetes"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
	"github.com/millrace/millrace/pkg/target"
)

// bed is a NATS server with the streams, and what a scraper sees of TARGETS.
type bed struct {
	t      *testing.T
	dir    string
	server *stream.Server
	conn   *stream.Conn
	log    *slog.Logger

	mu       sync.Mutex
	live     map[string]*target.Target // by subject
	events   []string                  // "+address" and "-address" as messages came
	ttls     []string                  // of removals
	messages int
	changed  chan struct{} // replaced and closed at each message
}

func newBed(t *testing.T) *bed {
	t.Helper()
	f := newUnwatchedFleet(t)
	f.watch()
	return f
}

// newUnwatchedFleet returns a fleet that nobody reads TARGETS of.
func newUnwatchedFleet(t *testing.T) *bed {
	t.Helper()
	f := &bed{t: t, dir: t.TempDir(), live: map[string]*target.Target{}, changed: make(chan struct{})}
	f.log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.server = streamtest.Server(t, f.dir)
	f.conn = f.connect()
	if err := f.conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *bed) connect() *stream.Conn {
	f.t.Helper()
	return streamtest.Connect(f.t, f.server, f.log)
}

// watch follows TARGETS as a scraper does.
func (f *bed) watch() {
	f.t.Helper()
	c, err := f.conn.JS.OrderedConsumer(f.t.Context(), f.conn.Stream(stream.Targets), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{f.conn.AllTargets()}, DeliverPolicy: jetstream.DeliverAllPolicy,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	cc, err := c.Consume(func(m jetstream.Msg) { f.saw(m.Subject(), m.Headers().Get(jetstream.MsgTTLHeader), m.Data()) })
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		cc.Stop()
		<-cc.Closed()
	})
}

func (f *bed) saw(subject, ttl string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages++
	if len(data) == 0 {
		f.ttls = append(f.ttls, ttl)
		if t := f.live[subject]; t != nil {
			f.events = append(f.events, "-"+t.Labels.Get("__address__"))
		}
		delete(f.live, subject)
	} else if t, err := target.Decode(data); err != nil {
		f.t.Errorf("message on %s: %v", subject, err)
	} else {
		if want := f.conn.Target(t.Shard(), t.ID); want != subject {
			f.t.Errorf("target came on %s, want %s", subject, want)
		}
		f.live[subject] = t
		f.events = append(f.events, "+"+t.Labels.Get("__address__"))
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// targets returns what is published now.
func (f *bed) targets() []*target.Target {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.live))
}

func (f *bed) history() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// wait waits until the published targets, described by key, are just these.
func (f *bed) wait(key func(*target.Target) string, want ...string) {
	f.t.Helper()
	slices.Sort(want)
	deadline := time.After(await.Patience)
	for {
		f.mu.Lock()
		changed := f.changed
		got := []string{}
		for _, t := range f.live {
			got = append(got, key(t))
		}
		f.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			f.t.Fatalf("published targets differ after %v (-want +got):\n%s", await.Patience, cmp.Diff(want, got))
		}
	}
}

func address(t *target.Target) string { return t.Job + " " + t.Labels.Get("__address__") }

// running is a discovery service that runs.
type running struct {
	*Service
	f    *bed
	reg  *prometheus.Registry
	once sync.Once
	end  func()
}

// settleForTests is short, so that tests of removals are.
const settleForTests = 300 * time.Millisecond

// start runs a service with a configuration, until stop or the end of the test.
func (f *bed) start(yaml string, change ...func(*Config)) *running {
	f.t.Helper()
	r := &running{f: f, reg: prometheus.NewPedanticRegistry()}
	sys := actor.NewSystem("test", f.log, r.reg)
	member, leave := fleettest.Join(f.t, f.conn, "discovery")
	cfg := Config{Conn: f.conn, Fleet: member, Actors: sys, Logger: f.log, Registerer: r.reg, Settle: settleForTests}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if r.Service, err = New(cfg); err != nil {
		f.t.Fatal(err)
	}
	if yaml != "" {
		r.apply(yaml)
	}
	sys.Spawn("discovery", r.Service)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sys.Serve(ctx) }()
	r.end = func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("the system ended with %v", err)
		}
		leave()
	}
	f.t.Cleanup(r.stop)
	return r
}

func (r *running) stop() { r.once.Do(r.end) }

func (r *running) apply(yaml string) {
	r.f.t.Helper()
	if err := r.ApplyConfig(parse(r.f.t, yaml)); err != nil {
		r.f.t.Fatal(err)
	}
}

func parse(t *testing.T, yaml string) []*promconfig.ScrapeConfig {
	t.Helper()
	cfg, err := promconfig.Load("scrape_configs:\n"+yaml, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatalf("test configuration: %v\n%s", err, yaml)
	}
	scs, err := cfg.GetScrapeConfigs()
	if err != nil {
		t.Fatal(err)
	}
	return scs
}

// value returns a metric's value, summed over its series where job is empty.
func (r *running) value(name, job string) float64 {
	r.f.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.f.t.Fatal(err)
	}
	var sum float64
	for _, fam := range families {
		if fam.GetName() != name {
			continue
		}
		for _, m := range fam.GetMetric() {
			if job == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == job {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func static(job string, addresses ...string) string {
	return fmt.Sprintf("- job_name: %s\n  static_configs:\n  - targets: [%s]\n", job, quoted(addresses))
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// checkLeaks fails the test where goroutines outlive it. It must be called first, so that its check comes last.
func checkLeaks(t *testing.T) {
	t.Helper()
	// Of client-go's package, imported with Kubernetes discovery.
	ignore := []goleak.Option{goleak.IgnoreCurrent(), goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1")}
	t.Cleanup(func() {
		// A mechanism ends with its last request, which nobody waits for: DNS gives up after 2 s on a server that is gone.
		err := goleak.Find(ignore...)
		for deadline := time.Now().Add(await.Patience); err != nil && time.Now().Before(deadline); {
			err = goleak.Find(ignore...) // it sleeps between its own tries
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// testWriter shows the log of a failed test.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (n int, err error) {
	defer func() {
		_ = recover() // a mechanism that logs after the test has ended
	}()
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}
