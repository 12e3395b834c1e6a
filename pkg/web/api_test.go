package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/status"
)

func indent(t *testing.T, body []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, body, "", "  "); err != nil {
		t.Fatalf("answer is not JSON: %v\n%s", err, body)
	}
	return out.String()
}

func TestTargetsAnswersInPrometheusFormat(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.ListenAddresses = []string{"127.0.0.1:9474"}
		c.ExternalURL = mustURL(t, "https://millrace.example.org")
		c.Targets = sampleTargets
	})
	w := do(t, s, http.MethodGet, "/api/v1/targets")
	want, err := os.ReadFile("testdata/targets_any.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), indent(t, w.Body.Bytes())); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
}

func TestTargetsAreChosenByStateAndPool(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Targets = sampleTargets })
	for _, tc := range []struct {
		query           string
		active, dropped int
		counts          bool
	}{
		{"", 3, 1, true},
		{"?state=any", 3, 1, true},
		{"?state=ANY", 3, 1, true},
		{"?state=active", 3, 0, false},
		{"?state=dropped", 0, 1, true},
		{"?state=nonsense", 0, 0, false},
		{"?scrapePool=millrace", 1, 0, true},
		{"?scrapePool=node&state=active", 2, 0, false},
		{"?scrapePool=missing", 0, 0, true},
	} {
		t.Run(tc.query, func(t *testing.T) {
			var got struct {
				Data struct {
					ActiveTargets, DroppedTargets []any
					DroppedTargetCounts           map[string]int
				}
			}
			body := do(t, s, http.MethodGet, "/api/v1/targets"+tc.query).Body.Bytes()
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatal(err)
			}
			if got.Data.ActiveTargets == nil || got.Data.DroppedTargets == nil {
				t.Errorf("lists must not be null: %s", body)
			}
			if len(got.Data.ActiveTargets) != tc.active || len(got.Data.DroppedTargets) != tc.dropped {
				t.Errorf("%d active, %d dropped; want %d, %d", len(got.Data.ActiveTargets), len(got.Data.DroppedTargets), tc.active, tc.dropped)
			}
			if (got.Data.DroppedTargetCounts != nil) != tc.counts {
				t.Errorf("counts %v, want any: %v", got.Data.DroppedTargetCounts, tc.counts)
			}
		})
	}
}

func TestProcessWithoutTargetsAnswersEmptyLists(t *testing.T) {
	got := do(t, newServer(t, nil), http.MethodGet, "/api/v1/targets").Body.String()
	const want = `{"status":"success","data":{"activeTargets":[],"droppedTargets":[],"droppedTargetCounts":{}}}`
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestFailingTargetsAnswerAnErrorOfTheAPI(t *testing.T) {
	for name, tc := range map[string]struct {
		targets   func(ctx context.Context) error
		code      int
		errorType string
	}{
		"failure":    {func(context.Context) error { return errors.New("no such shard") }, http.StatusInternalServerError, "internal"},
		"time limit": {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, http.StatusServiceUnavailable, "timeout"},
		"own limit":  {func(context.Context) error { return fmt.Errorf("asking: %w", context.DeadlineExceeded) }, http.StatusServiceUnavailable, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(c *Config) {
				c.ProviderTimeout = time.Millisecond
				c.Targets = func(ctx context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
					return nil, nil, nil, tc.targets(ctx)
				}
			})
			w := do(t, s, http.MethodGet, "/api/v1/targets")
			var got apiResponse
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if w.Code != tc.code || got.Status != "error" || got.ErrorType != tc.errorType || !strings.Contains(got.Error, "listing targets: ") {
				t.Errorf("%d %+v", w.Code, got)
			}
		})
	}
}

func TestGlobalURL(t *testing.T) {
	for _, tc := range []struct{ external, in, want string }{
		{"https://m.example.org/", "http://localhost:9474/metrics?a=b", "https://m.example.org/metrics?a=b"},
		{"https://m.example.org:8443/", "http://127.0.0.1:9100/metrics", "http://m.example.org:9100/metrics"},
		{"https://m.example.org/", "http://[::1]/metrics", "http://m.example.org/metrics"},
		{"http://[2001:db8::1]:9474/", "http://localhost/metrics", "http://[2001:db8::1]/metrics"},
		{"http://[2001:db8::1]:9474/", "http://localhost:80/metrics", "http://[2001:db8::1]:80/metrics"},
		{"https://m.example.org/", "http://other:9474/metrics", "http://other:9474/metrics"},
		{"https://m.example.org/", "http://%zz", "http://%zz"},
	} {
		g := globalURLs{ownPort: "9474", external: mustURL(t, tc.external)}
		if got := g.of(tc.in); got != tc.want {
			t.Errorf("of(%q) from %s = %q, want %q", tc.in, tc.external, got, tc.want)
		}
	}
}

func TestConfigAndBuildInfoAnswerInPrometheusFormat(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.ConfigYAML = func() string { return "global:\n  scrape_interval: 15s\n" }
		c.Version = VersionInfo{Version: "1.2.3", Revision: "abc", Branch: "main", BuildUser: "u", BuildDate: "d", GoVersion: "go1.26"}
	})
	for path, want := range map[string]string{
		"/api/v1/status/config":    `{"status":"success","data":{"yaml":"global:\n  scrape_interval: 15s\n"}}`,
		"/api/v1/status/buildinfo": `{"status":"success","data":{"version":"1.2.3","revision":"abc","branch":"main","buildUser":"u","buildDate":"d","goVersion":"go1.26"}}`,
		"/api/v1/status":           `{"status":"success","data":{"configHash":"","services":[],"members":[],"streams":[],"endpoints":[]}}`,
	} {
		if got := do(t, s, http.MethodGet, path).Body.String(); got != want {
			t.Errorf("%s\n got %s\nwant %s", path, got, want)
		}
	}
}

func TestStatusIsPresentable(t *testing.T) {
	const raw = "https://user:hunter2@e.example.org/write?token=abc&bare"
	status := Status{
		Services: []ServiceStatus{{Name: "scraper", State: StateRunning, Figures: []Figure{{"samples/s", math.NaN()}, {"targets", 3}}}},
		Endpoints: []EndpointStatus{{
			Name: "e", URL: raw, LagSeconds: math.Inf(1),
			LastError: `Post "` + raw + `": EOF`, StateDetail: "cannot reach " + raw,
		}},
	}
	s := newServer(t, func(c *Config) { c.Status = func(context.Context) Status { return status } })
	for _, path := range []string{"/api/v1/status", "/process"} {
		w := do(t, s, http.MethodGet, path)
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d %s", path, w.Code, w.Body)
		}
		for _, secret := range []string{"hunter2", "abc", "bare"} {
			if strings.Contains(w.Body.String(), secret) {
				t.Errorf("%s shows %q", path, secret)
			}
		}
	}
	got := status.presentable()
	const redacted = "https://user:xxxxx@e.example.org/write?token=xxxxx&xxxxx"
	want := EndpointStatus{Name: "e", URL: redacted, LastError: `Post "` + redacted + `": EOF`, StateDetail: "cannot reach " + redacted}
	if diff := cmp.Diff(want, got.Endpoints[0]); diff != "" {
		t.Errorf("endpoint (-want +got):\n%s", diff)
	}
	if got.Services[0].Figures[0].Value != 0 || !math.IsNaN(status.Services[0].Figures[0].Value) {
		t.Error("figures: the copy must be finite and the original untouched")
	}
	if got := RedactURL("http://a b:\x00"); got != "xxxxx" {
		t.Errorf("a URL that cannot be parsed is shown: %q", got)
	}
}

func TestStatusOfTheFleet(t *testing.T) {
	failure := error(nil)
	s := newServer(t, func(c *Config) {
		c.Fleet = func(context.Context) (*status.Document, error) {
			return &status.Document{Version: 1, Members: []status.Member{{ID: "a-1"}}}, failure
		}
	})
	if w := do(t, s, "GET", "/api/v1/status/fleet"); w.Code != 200 || !strings.Contains(w.Body.String(), `{"status":"success","data":{"version":1,`) || !strings.Contains(w.Body.String(), `"id":"a-1"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	failure = context.DeadlineExceeded
	if w := do(t, s, "GET", "/api/v1/status/fleet"); w.Code != 503 || !strings.Contains(w.Body.String(), `"errorType":"timeout"`) {
		t.Errorf("out of time: %d %s", w.Code, w.Body)
	}
	if w := do(t, newServer(t, nil), "GET", "/api/v1/status/fleet"); w.Code != 404 {
		t.Errorf("without a fleet: %d", w.Code)
	}
}
