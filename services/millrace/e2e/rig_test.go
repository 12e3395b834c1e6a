package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/receiver"
)

// rig is a load generator whose targets a millrace process finds in a file.
type rig struct {
	t    testing.TB
	dir  string
	gen  *loadgen.Generator
	sd   string
	shut atomic.Bool // targets fail from now on
}

func newRig(t testing.TB, targets, series int) *rig {
	t.Helper()
	return newRigOf(t, loadgen.Config{Targets: targets, Series: series})
}

// newRigOf returns a rig with targets of any kind.
func newRigOf(t testing.TB, config loadgen.Config) *rig {
	t.Helper()
	gen, err := loadgen.New(config)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), gen: gen}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.shut.Load() {
			http.Error(w, "the test is over", http.StatusServiceUnavailable)
			return
		}
		gen.ServeHTTP(w, req)
	}))
	t.Cleanup(server.Close)
	r.sd = filepath.Join(r.dir, "targets.json")
	if err := gen.WriteSDFile(r.sd, server.Listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return r
}

// config returns a configuration that scrapes the targets every second and writes to endpoints: items of remote_write.
// millrace is the content of the millrace block, indented by two; it may be empty.
func (r *rig) config(millrace string, endpoints ...string) string {
	c := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: load
  file_sd_configs: [{files: [%q], refresh_interval: 1s}]
`, r.sd)
	if len(endpoints) > 0 {
		c += "remote_write:\n" + strings.Join(endpoints, "")
	}
	if millrace != "" {
		c += "millrace:\n" + millrace
	}
	return c
}

// remoteWrite returns an item of remote_write whose tries are at most a second apart. more are further lines, without indentation.
func remoteWrite(name, url string, more ...string) string {
	s := fmt.Sprintf("- name: %s\n  url: %s\n  metadata_config: {send: false}\n", name, url)
	queue := "queue_config: {min_backoff: 30ms, max_backoff: 1s}"
	for _, line := range more {
		if strings.HasPrefix(line, "queue_config:") {
			queue = line
			continue
		}
		s += "  " + line + "\n"
	}
	return s + "  " + queue + "\n"
}

// end ends scraping such that no scrape is cut off: the targets fail at first, then they are gone.
func (r *rig) end(p *proc) {
	r.t.Helper()
	r.shut.Store(true)
	scrapes := func() float64 { return p.Metric("millrace_scraper_frames_total", nil) }
	last := scrapes()
	eventually(r.t, 20*time.Second, "the scrapes of the failing targets", func() error {
		if scrapes() == last {
			return fmt.Errorf("%v frames", last)
		}
		return nil
	})
	replaceFile(r.t, r.sd, "[]")
	eventually(r.t, 20*time.Second, "no targets any more", func() error {
		if _, body := p.Get("/api/v1/targets?state=active"); !strings.Contains(string(body), `"activeTargets":[]`) {
			return fmt.Errorf("targets: %.200s", body)
		}
		return nil
	})
}

// settled waits until all that the scraper has taken is in the stream and every one of the endpoints has it. Scraping has ended.
func (r *rig) settled(p *proc, within time.Duration, endpoints ...string) {
	r.t.Helper()
	// Staleness markers follow a target's end by two intervals and a bit.
	last, since := -1.0, time.Now()
	eventually(r.t, within, "everything sent", func() error {
		frames, pending := p.Metric("millrace_scraper_frames_total", nil), p.Metric("millrace_scraper_pending_bytes", nil)
		if frames != last || pending != 0 {
			last, since = frames, time.Now()
			return fmt.Errorf("the scraper made %v frames, %v bytes are not published", frames, pending)
		}
		if time.Since(since) < 4*time.Second {
			return fmt.Errorf("no new frames for %s only", time.Since(since))
		}
		for _, name := range endpoints {
			if lag := p.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": name}); lag != 0 {
				return fmt.Errorf("endpoint %s lags by %v messages", name, lag)
			}
		}
		return nil
	})
}

// endpoint is a verifying receiver at an address, with a ledger of what it accepted.
type endpoint struct {
	*receiver.Receiver
	*ledger
	URL string
}

func newEndpoint(t testing.TB) *endpoint {
	t.Helper()
	rcv := receiver.New(receiver.Config{})
	e := &endpoint{Receiver: rcv, ledger: newLedger(t, rcv)}
	server := httptest.NewServer(e.ledger)
	t.Cleanup(func() {
		rcv.Control(receiver.Control{Mode: receiver.OK}) // lets go of requests that hang
		server.CloseClientConnections()
		server.Close()
	})
	e.URL = server.URL + "/api/v1/write"
	return e
}

func (e *endpoint) control(t testing.TB, c receiver.Control) {
	t.Helper()
	if err := e.Control(c); err != nil {
		t.Fatal(err)
	}
}

// inOrder fails the test where something arrived out of order or with two values.
func (e *endpoint) inOrder(t testing.TB) {
	t.Helper()
	rep := e.Report()
	t.Logf("samples %d, repeated %d, lost %d, reordered %d, changed %d, requests %d, failed %d, refused %d, latency p50 %.2f s p99 %.2f s max %.2f s",
		rep.Samples, rep.Repeated, rep.Lost, rep.Reordered, rep.Changed, rep.Requests, rep.Failed, rep.Refused, rep.Latency.P50, rep.Latency.P99, rep.Latency.Max)
	if rep.Reordered != 0 || rep.Changed != 0 || rep.BeyondHistory != 0 {
		t.Errorf("%d reordered, %d changed, %d beyond history: %+v", rep.Reordered, rep.Changed, rep.BeyondHistory, rep.Examples)
	}
	if rep.Samples == 0 {
		t.Error("no samples arrived")
	}
}

// window is a time in which scrapes may be lost, because the process was killed.
type window struct{ from, to time.Time }

// whole fails the test unless every scrape served arrived whole, except those of the windows, which arrived whole or not at all.
func (e *endpoint) whole(t testing.TB, log numbered.Log, except ...window) {
	t.Helper()
	c := e.Complete(log)
	excused, missing := 0, 0
	for _, ref := range c.Missing {
		s := log[ref.Target][ref.Number-1]
		if during(s.At, except) || !s.Completed && s.Samples == 0 {
			excused++
			continue
		}
		if missing++; missing <= 5 {
			t.Errorf("%s scrape %d of %d, served at %s, is missing", ref.Target, ref.Number, len(log[ref.Target]), s.At.Format(time.StampMilli))
		}
	}
	if missing > 5 {
		t.Errorf("%d scrapes are missing", missing)
	}
	for i, ref := range c.Partial {
		if i < 5 {
			t.Errorf("%s scrape %d arrived in part: %d of %d samples", ref.Target, ref.Number, ref.Arrived, ref.Served)
		}
	}
	if len(c.Partial) > 0 {
		t.Errorf("%d scrapes arrived in part", len(c.Partial))
	}
	t.Logf("%d scrapes, %d samples served; %d samples arrived; %d scrapes lost around kills", c.Scrapes, c.Samples, c.ArrivedSamples, excused)
	if c.Scrapes == 0 {
		t.Error("no scrapes were served")
	}
}

func during(at time.Time, windows []window) bool {
	for _, w := range windows {
		if !at.Before(w.from) && !at.After(w.to) {
			return true
		}
	}
	return false
}

// arrived waits until an endpoint has samples of scrapes of every target that were served after now.
func (r *rig) arrived(e *endpoint, within time.Duration) {
	r.t.Helper()
	start := r.gen.Served()
	eventually(r.t, within, "samples of new scrapes", func() error {
		log := r.gen.Log()
		missing := map[string]int{}
		for _, ref := range e.Complete(log).Missing {
			if int(ref.Number) > start[ref.Target] {
				missing[ref.Target]++
			}
		}
		for target, served := range log {
			if n := len(served) - start[target]; n <= missing[target] {
				return fmt.Errorf("target %s: %d scrapes since, %d of them missing", target, n, missing[target])
			}
		}
		return nil
	})
}

// rss returns the resident memory of a process in bytes.
func (p *proc) rss() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", p.cmd.Process.Pid)
}

// watchRSS measures the resident memory until stop is called, which returns the peak in bytes.
func (p *proc) watchRSS() (stop func() int64) {
	quit, peak := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		most := int64(0)
		for {
			select {
			case <-quit:
				peak <- most
				return
			case <-tick.C:
				if n, err := p.rss(); err == nil {
					most = max(most, n)
				}
			}
		}
	}()
	return func() int64 {
		close(quit)
		return <-peak
	}
}

// require skips the test where something outside of the repository is missing, and fails it in CI, where nothing may be missing.
func require(t testing.TB, err error, what string) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s: %v", what, err)
	default:
		t.Skipf("%s: %v", what, err)
	}
}

// hangingAddress returns the address of a server that takes connections and never answers.
func hangingAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		for _, c := range open {
			c.Close()
		}
	})
	return l.Addr().String()
}
