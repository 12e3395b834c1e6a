package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/millrace/millrace/pkg/status"
)

func TestRoutesAnswerTheirMethodsOnly(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Reload = func(context.Context) error { return nil }
		c.Fleet = func(context.Context) (*status.Document, error) { return sampleFleet(), nil }
	})
	for _, tc := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/", 200},
		{"HEAD", "/", 200},
		{"POST", "/", 405},
		{"GET", "/process", 200},
		{"POST", "/process", 405},
		{"GET", "/missing", 404},
		{"GET", "/metrics", 200},
		{"GET", "/-/healthy", 200},
		{"HEAD", "/-/healthy", 200},
		{"POST", "/-/healthy", 405},
		{"GET", "/-/ready", 200},
		{"HEAD", "/-/ready", 200},
		{"GET", "/-/reload", 405},
		{"HEAD", "/-/reload", 405},
		{"POST", "/-/reload", 200},
		{"PUT", "/-/reload", 200},
		{"GET", "/debug/pprof/", 200},
		{"GET", "/debug/pprof/goroutine?debug=1", 200},
		{"GET", "/debug/pprof/heap", 200},
		{"GET", "/debug/pprof/cmdline", 404},
		{"GET", "/debug/pprof/symbol", 200},
		{"GET", "/debug/pprof/trace?seconds=0.01", 200},
		{"GET", "/assets/page.css", 200},
		{"GET", "/assets/icon.svg", 200},
		{"GET", "/assets/", 404},
		{"GET", "/assets/page.js", 200},
		{"GET", "/assets/layout.html", 404},
		{"GET", "/assets/missing.css", 404},
		{"GET", "/api/v1/targets", 200},
		{"POST", "/api/v1/targets", 405},
		{"GET", "/api/v1/status", 200},
		{"GET", "/api/v1/missing", 404},
	} {
		w := do(t, s, tc.method, tc.path)
		if w.Code != tc.code {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, w.Code, tc.code)
		}
		for header, want := range map[string]string{
			"X-Content-Type-Options":  "nosniff",
			"X-Frame-Options":         "deny",
			"Referrer-Policy":         "same-origin",
			"Content-Security-Policy": "default-src 'none'; ",
		} {
			if got := w.Header().Get(header); !strings.HasPrefix(got, want) {
				t.Errorf("%s %s: %s is %q, want %q", tc.method, tc.path, header, got, want)
			}
		}
	}
	if got := do(t, s, "GET", "/-/reload").Header().Get("Allow"); got != "POST, PUT" {
		t.Errorf("GET /-/reload: Allow is %q", got)
	}
}

func TestMetricsAreExposedInPrometheusAndOpenMetricsFormat(t *testing.T) {
	s := newServer(t, nil)
	do(t, s, "GET", "/-/healthy")
	for accept, want := range map[string]string{
		"":                             "text/plain; version=0.0.4",
		"application/openmetrics-text": "application/openmetrics-text",
	} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: Content-Type %q", accept, got)
		}
		if !strings.Contains(w.Body.String(), `millrace_web_requests_total{code="200",handler="/-/healthy"} 1`) {
			t.Errorf("Accept %q: the healthy request is not counted:\n%s", accept, w.Body)
		}
	}
}

func TestFailingCollectorDoesNotHideOthers(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "fine", Help: "Fine."}, func() float64 { return 1 }))
	var log bytes.Buffer
	s := newServer(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		c.Gatherer = prometheus.Gatherers{reg, brokenGatherer()}
	})
	w := do(t, s, "GET", "/metrics")
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "fine 1") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "collector is broken") {
		t.Errorf("the failure is not logged: %s", log.String())
	}
}

func brokenGatherer() prometheus.Gatherer {
	reg := prometheus.NewRegistry()
	desc := prometheus.NewDesc("broken", "Broken.", nil, nil)
	reg.MustRegister(collectorFunc(func(ch chan<- prometheus.Metric) {
		ch <- prometheus.NewInvalidMetric(desc, errors.New("collector is broken"))
	}))
	return reg
}

type collectorFunc func(chan<- prometheus.Metric)

func (collectorFunc) Describe(chan<- *prometheus.Desc)      {}
func (f collectorFunc) Collect(ch chan<- prometheus.Metric) { f(ch) }

func TestRequestMetricsAreNamedAndBounded(t *testing.T) {
	s := newServer(t, nil)
	for i := range 20 {
		do(t, s, "GET", fmt.Sprintf("/made/up/%d", i))
		do(t, s, "POST", "/-/healthy")
	}
	problems, err := testutil.GatherAndLint(s.cfg.Gatherer)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	const want = `# HELP millrace_web_requests_total HTTP requests answered, by path and status code.
# TYPE millrace_web_requests_total counter
millrace_web_requests_total{code="404",handler="other"} 20
millrace_web_requests_total{code="405",handler="other"} 20
`
	if err := testutil.GatherAndCompare(s.cfg.Gatherer, strings.NewReader(want), "millrace_web_requests_total"); err != nil {
		t.Error(err)
	}
}

func TestReadyListsItsReasonsUntilThereAreNone(t *testing.T) {
	var reasons []string
	s := newServer(t, func(c *Config) { c.Ready = func() []string { return reasons } })
	for _, tc := range []struct {
		reasons []string
		code    int
		body    string
	}{
		{[]string{"stream FRAMES: no leader", "discovery:\nfirst lists"}, 503, "stream FRAMES: no leader\ndiscovery: first lists\n"},
		{[]string{"stream FRAMES: no leader"}, 503, "stream FRAMES: no leader\n"},
		{nil, 200, "Millrace is ready.\n"},
	} {
		reasons = tc.reasons
		w := do(t, s, "GET", "/-/ready")
		if w.Code != tc.code || w.Body.String() != tc.body {
			t.Errorf("%q: %d %q, want %d %q", tc.reasons, w.Code, w.Body, tc.code, tc.body)
		}
		if w := do(t, s, "HEAD", "/-/ready"); w.Code != tc.code {
			t.Errorf("HEAD with %q: %d", tc.reasons, w.Code)
		}
	}
}

func TestReloadAnswersWithTheError(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Reload = func(context.Context) error { return errors.New("millrace.yml line 3: unknown key \"foo\"") }
	})
	for _, method := range []string{"POST", "PUT"} {
		w := do(t, s, method, "/-/reload")
		if want := "reloading the configuration: millrace.yml line 3: unknown key \"foo\"\n"; w.Code != 500 || w.Body.String() != want {
			t.Errorf("%s: %d %q", method, w.Code, w.Body)
		}
	}
}

func TestReloadIsRefusedToPagesOfOtherSites(t *testing.T) {
	var calls atomic.Int32
	s := newServer(t, func(c *Config) { c.Reload = func(context.Context) error { calls.Add(1); return nil } })
	r := httptest.NewRequest("POST", "/-/reload", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden || calls.Load() != 0 {
		t.Errorf("%d after %d calls", w.Code, calls.Load())
	}
}

func TestReloadDoesNotExistWithoutAFunction(t *testing.T) {
	if w := do(t, newServer(t, nil), "POST", "/-/reload"); w.Code != http.StatusNotFound {
		t.Errorf("%d", w.Code)
	}
}

func TestReloadsRunOneAtATimeAndOutliveTheirClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, calls, ended atomic.Int32
		release := make(chan struct{})
		s := newServer(t, func(c *Config) {
			c.Reload = func(ctx context.Context) error {
				calls.Add(1)
				if n := running.Add(1); n != 1 {
					t.Errorf("%d reloads at a time", n)
				}
				defer running.Add(-1)
				<-release
				if ctx.Err() != nil {
					t.Error("the reload's context ended with its client")
				}
				ended.Add(1)
				return nil
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		post := func() {
			s.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/-/reload", nil).WithContext(ctx))
		}
		var wg sync.WaitGroup
		wg.Go(post)
		synctest.Wait()
		wg.Go(post) // waits for the first, and goes away with its client
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(release)
		wg.Wait()
		if diff := cmp.Diff([]int32{1, 1}, []int32{calls.Load(), ended.Load()}); diff != "" {
			t.Errorf("reloads begun and ended (-want +got):\n%s", diff)
		}
	})
}

func TestAssetsAreCachedByTheirHashOnly(t *testing.T) {
	s := newServer(t, nil)
	if got := do(t, s, "GET", "/assets/page.css?v="+assetsHash()).Header().Get("Cache-Control"); !strings.Contains(got, "immutable") {
		t.Errorf("Cache-Control %q", got)
	}
	if got := do(t, s, "GET", "/assets/page.css?v=old").Header().Get("Cache-Control"); got != "" {
		t.Errorf("with an old hash: Cache-Control %q", got)
	}
}
