package web

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newServer makes a server of a configuration that the test may change.
func newServer(t *testing.T, change func(*Config)) *Server {
	t.Helper()
	reg := prometheus.NewRegistry()
	cfg := Config{ListenAddresses: []string{"127.0.0.1:0"}, Gatherer: reg, Registerer: reg}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return s
}

// serveOnce gets a path from the handler.
func serveOnce(s *Server, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w
}

// do sends a request to the handler.
func do(t *testing.T, s *Server, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

// serve runs the server until the test ends, or until stop is called, which returns what Serve returned.
func serve(t *testing.T, s *Server) (stop func() error) {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatalf("Listen: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
	})
	return stop
}

// newClient makes a client whose idle connections end with the test.
func newClient(t *testing.T, transport *http.Transport) *http.Client {
	t.Helper()
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func get(t *testing.T, client *http.Client, target string) (int, string) {
	t.Helper()
	resp, err := client.Get(target)
	if err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading %s: %v", target, err)
	}
	return resp.StatusCode, string(body)
}

func mustURL(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// sampleTargets are two scrape pools, given in an order that is not that of their names.
func sampleTargets(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
	return []Target{
			{
				DiscoveredLabels: labels.FromStrings("__address__", "127.0.0.1:9100", "job", "node"),
				Labels:           labels.FromStrings("instance", "127.0.0.1:9100", "job", "node"),
				ScrapePool:       "node", ScrapeURL: "http://127.0.0.1:9100/metrics",
				LastError:  "server returned HTTP status 500 Internal Server Error",
				LastScrape: time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC), LastScrapeDuration: 2 * time.Second,
				Health: HealthBad, ScrapeInterval: "1m", ScrapeTimeout: "10s",
			},
			{ScrapePool: "node", ScrapeURL: "http://10.0.0.7:9100/metrics", ScrapeInterval: "1m", ScrapeTimeout: "10s"},
			{
				DiscoveredLabels: labels.FromStrings("__address__", "localhost:9474", "__metrics_path__", "/metrics", "__scheme__", "http", "job", "millrace"),
				Labels:           labels.FromStrings("instance", "localhost:9474", "job", "millrace"),
				ScrapePool:       "millrace", ScrapeURL: "http://localhost:9474/metrics",
				LastScrape: time.Date(2026, 3, 4, 5, 6, 7, 8009000, time.UTC), LastScrapeDuration: 12500 * time.Microsecond,
				Health: HealthGood, ScrapeInterval: "15s", ScrapeTimeout: "10s",
			},
		},
		[]DroppedTarget{{DiscoveredLabels: labels.FromStrings("__address__", "10.0.0.8:9100"), ScrapePool: "node"}},
		map[string]int{"node": 12, "millrace": 0}, nil
}
