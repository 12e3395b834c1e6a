package scraper

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/await"
)

const (
	metricOfOne = `{__name__="metric", instance="one", job="a"}`
	upOfOne     = `{__name__="up", instance="one", job="a"}`
)

// TestAReloadKeepsSeries has a job go on with another interval: nothing ends. Other relabelling ends what it does away with.
func TestAReloadKeepsSeries(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	n, _ := f.count(metricOfOne)
	f.apply("a\nsample_limit: 100\nscrape_timeout: 100ms")
	await.True(t, "samples after the reload", func() bool { now, _ := f.count(metricOfOne); return now > n+3 })
	if _, stale := f.count(metricOfOne); stale != 0 {
		t.Errorf("a reload left %d staleness markers", stale)
	}
	f.apply("a\nmetric_relabel_configs: [{source_labels: [__name__], regex: metric, target_label: __name__, replacement: renamed}]")
	f.waitFor(`{__name__="renamed", instance="one", job="a"}`)
	await.True(t, "the end of the old series", func() bool { _, stale := f.count(metricOfOne); return stale == 1 })
	if _, stale := f.count(upOfOne); stale != 0 {
		t.Errorf("up has %d staleness markers though its target is there", stale)
	}
}

// TestReloadsInARowLeaveOneLoop reloads faster than loops can follow. Each configuration marks its scrapes.
func TestReloadsInARowLeaveOneLoop(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	const reloads = 20
	mark := func(i int) string { return fmt.Sprintf("%02d", i) }
	for i := range reloads {
		f.apply(fmt.Sprintf("a\nhttp_headers: {Mark: {values: [%q]}}", mark(i)))
	}
	last := func() int {
		list := f.marks.all()
		return len(list) - slices.Index(append(list, mark(reloads-1)), mark(reloads-1))
	}
	await.True(t, "the first scrape with the last configuration", func() bool { return last() > 0 })
	one := func() {
		t.Helper()
		if n := f.running("target"); n != 1 {
			t.Errorf("%d loops run, want one: each begins when the one before it has ended", n)
		}
	}
	one()
	n, _ := f.count(metricOfOne)
	await.True(t, "samples after the reloads", func() bool { now, _ := f.count(metricOfOne); return now > n+5 && last() > 5 })
	one()
	if list := f.marks.all(); !slices.IsSorted(list) {
		t.Errorf("scrapes with a configuration followed ones with a later one: %q", list)
	}
	failed := map[int64]bool{} // such a scrape leaves a marker, on a busy machine
	for _, x := range f.published() {
		if x.Series == upOfOne && x.V == 0 {
			failed[x.T] = true
		}
	}
	for _, x := range f.published() {
		if x.Series == upOfOne && value.IsStaleNaN(x.V) || x.Series == metricOfOne && value.IsStaleNaN(x.V) && !failed[x.T] {
			t.Errorf("a reload left a staleness marker for %s", x.Series)
		}
	}
}

// TestABrokenJobLeavesTheOldOnes has a configuration that cannot be used.
func TestABrokenJobLeavesTheOldOnes(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	before := f.plan.Load()
	jobs := before.jobs["a"].config
	bad := *jobs
	bad.ScrapeFailureLogFile = filepath.Join(t.TempDir(), "no", "such", "folder", "log")
	if err := f.ApplyConfig(f.global, []*promconfig.ScrapeConfig{&bad}); err == nil || !strings.Contains(err.Error(), "scrape_failure_log_file") {
		t.Errorf("error %v", err)
	}
	if f.plan.Load() != before {
		t.Error("a bad configuration took effect")
	}
}

// TestFailedScrapesAreLogged reads scrape_failure_log_file, and moves it away as a log rotation does.
func TestFailedScrapesAreLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "failures.json")
	job := "a\nscrape_failure_log_file: " + path
	f := newBed(t, job)
	f.status.Store(http.StatusTeapot)
	f.publishTarget("a")
	logged := func() bool {
		text, _ := os.ReadFile(path)
		var line struct{ Msg, Job_name, Target string }
		first, _, _ := strings.Cut(string(text), "\n")
		return json.Unmarshal([]byte(first), &line) == nil && line.Job_name == "a" && strings.Contains(line.Msg, "418") && strings.Contains(line.Target, "/metrics")
	}
	await.True(t, "a line in the failure log", logged)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	f.apply(job)
	await.True(t, "a line in the new failure log", logged)
}

// TestTooManyTargetsFail follows target_limit.
func TestTooManyTargetsFail(t *testing.T) {
	f := newBed(t, "a\ntarget_limit: 1")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	second := f.publishTarget("a", "instance", "two")
	await.True(t, "failing targets", func() bool {
		failing := 0
		for _, a := range f.Targets() {
			if err := a.LastError(); err != nil && strings.Contains(err.Error(), "target_limit exceeded (number of targets: 2, limit: 1)") {
				failing++
			}
		}
		return failing == 2
	})
	await.True(t, "the end of the series", func() bool { _, stale := f.count(metricOfOne); return stale == 1 })
	f.removeTarget(second)
	await.True(t, "a good scrape", func() bool { return len(f.Targets()) == 1 && f.Targets()[0].LastError() == nil })
}

// TestStoppingDoesNotWaitForHangingTargets stops the service while a scrape hangs.
func TestStoppingDoesNotWaitForHangingTargets(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	f.publishTarget("a", "instance", "slow", "__scrape_interval__", "5s", "__scrape_timeout__", "5s")
	await.True(t, "a hanging scrape", func() bool { return f.hanging.Load() > 0 })
	f.stop()
	for _, x := range f.published() {
		if value.IsStaleNaN(x.V) || strings.Contains(x.Series, `"up"`) && x.V != 1 {
			t.Errorf("stopping left %v", x)
		}
	}
}

// TestAPanicCostsOneScrape has a scrape panic with the source locked.
func TestAPanicCostsOneScrape(t *testing.T) {
	r := newRig(t)
	l := r.plainLoop(1)
	r.give(l, step{body: "x 1\n", contentType: plainText}, 1000)
	l.view.template = &template{format: formatText, text: "x ", lines: []templateLine{{end: 2, met: 0, metEnd: 1}}}
	l.view.series = []uint32{12345} // there is no such series
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		r.give(l, step{body: "x 2\n", contentType: plainText}, 2000)
	}()
	got := r.give(l, step{body: "x 3\n", contentType: plainText}, 3000)
	if len(got.Samples) != 6 {
		t.Errorf("the next scrape has %v", got.Samples)
	}
}

// TestBeatsFollowFromTheTarget shows that a loop scrapes at the same times wherever and whenever it starts.
func TestBeatsFollowFromTheTarget(t *testing.T) {
	r := newRig(t)
	start := time.UnixMilli(1_800_000_000_000)
	phases := map[time.Duration]bool{}
	for n := range 20 {
		l := r.plainLoop(n)
		l.interval = 10 * time.Second
		first := l.nextBeat(start)
		phases[first.Sub(start)] = true
		if first.Before(start) || first.Sub(start) >= l.interval {
			t.Fatalf("the first beat after %v is %v", start, first)
		}
		for _, later := range []time.Duration{0, 1, time.Second, 9 * time.Second, 10 * time.Second, 12345 * time.Second} {
			beat := l.nextBeat(start.Add(later))
			if d := beat.Sub(first); d < 0 || d%l.interval != 0 || beat.Before(start.Add(later)) || beat.Sub(start.Add(later)) >= l.interval {
				t.Fatalf("the beat after %v is %v later than the first", later, d)
			}
		}
	}
	if len(phases) < 20 {
		t.Errorf("20 targets have %d phases", len(phases))
	}
}

// TestUnixSocketsAreScraped follows the label __unix_socket__.
func TestUnixSocketsAreScraped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", plainText)
		fmt.Fprint(w, "by_socket 1\n")
	})}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	f := newBed(t, "a")
	f.publishTarget("a", "__unix_socket__", path, "__address__", "nowhere:1")
	f.waitFor(`{__name__="by_socket", instance="one", job="a"}`)
	f.stop()
}

// TestTimestampsKeepTheBeat looks at the timestamps of consecutive scrapes.
func TestTimestampsKeepTheBeat(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	await.True(t, "some scrapes", func() bool { n, _ := f.count(metricOfOne); return n > 8 })
	await.True(t, "an interval of 200 ms", func() bool {
		var last int64
		for _, x := range f.published() {
			if x.Series != metricOfOne {
				continue
			}
			if last != 0 && math.Abs(float64(x.T-last-200)) <= 1 {
				return true
			}
			last = x.T
		}
		return false
	})
}
