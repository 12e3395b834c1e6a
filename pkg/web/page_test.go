package web

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// hostile is a text that would run a script wherever it is not escaped.
const hostile = `"'><script>alert(1)</script><img src=x onerror=alert(1)>`

func hostileServer(t *testing.T) *Server {
	return newServer(t, func(c *Config) {
		c.Version = VersionInfo{Version: hostile}
		c.Ready = func() []string { return []string{hostile} }
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
			return []Target{{
				Labels:     labels.FromStrings("instance", hostile, hostile, "x"),
				ScrapePool: hostile, ScrapeURL: "javascript:alert(1)//" + hostile, LastError: hostile, Health: HealthBad,
			}}, nil, map[string]int{hostile: 1}, nil
		}
		c.Status = func(context.Context) Status {
			return Status{
				Started: time.Now(), ConfigHash: hostile, ConfigError: hostile,
				Services: []ServiceStatus{{
					Name: ServiceScraper, State: hostile, Detail: hostile, WaitingFor: []string{hostile},
					Figures: []Figure{{hostile, 1}},
				}},
				Members:   []MemberStatus{{ID: hostile, Host: hostile, Address: hostile, Version: hostile, ConfigHash: hostile, OtherConfig: true, Shares: []ShareStatus{{Service: hostile}}}},
				Streams:   []StreamStatus{{Name: hostile, LastError: hostile}},
				Endpoints: []EndpointStatus{{Name: hostile, URL: "http://h/" + hostile, Protocol: hostile, State: hostile, StateDetail: hostile, LastError: hostile}},
			}
		}
	})
}

func TestPageEscapesWhateverItShows(t *testing.T) {
	body := do(t, hostileServer(t), "GET", "/").Body.String()
	if n := strings.Count(body, "&lt;script&gt;alert(1)&lt;/script&gt;"); n < 18 {
		t.Errorf("the text is shown %d times only:\n%s", n, body)
	}
	for _, bad := range []string{"<script", "<img src=x", `"'>`, `class="state "'`, `href="javascript`} {
		if strings.Contains(body, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if !strings.Contains(body, "</html>") {
		t.Error("the page is cut off")
	}
}

func TestPageNeedsNothingFromOutside(t *testing.T) {
	w := do(t, newServer(t, nil), "GET", "/")
	body := w.Body.String()
	for _, bad := range []string{"<script", "<style", " style=", " onclick="} {
		if strings.Contains(body, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	links := regexp.MustCompile(`(?:href|src)="([^"]*)"`).FindAllStringSubmatch(body, -1)
	if len(links) < 5 {
		t.Fatalf("links: %v", links)
	}
	for _, link := range links {
		if strings.Contains(link[1], "//") || strings.HasPrefix(link[1], "/") {
			t.Errorf("the link %q is not relative to the page", link[1])
			continue
		}
		if w := do(t, newServer(t, nil), "GET", "/"+strings.TrimPrefix(link[1], "./")); w.Code != http.StatusOK {
			t.Errorf("the link %q answers %d", link[1], w.Code)
		}
	}
	const policy = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := w.Header().Get("Content-Security-Policy"); got != policy {
		t.Errorf("Content-Security-Policy %q", got)
	}
	err := fs.WalkDir(assets, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := assets.ReadFile(path)
		if strings.Contains(string(content), "@import") || strings.Contains(string(content), "url(") {
			t.Errorf("%s loads something else", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPageRefreshesUnlessHeldStill(t *testing.T) {
	const refresh = `<meta http-equiv="refresh" content="5">`
	s := newServer(t, nil)
	if body := do(t, s, "GET", "/").Body.String(); !strings.Contains(body, refresh) {
		t.Error("no refresh")
	}
	if body := do(t, s, "GET", "/?refresh=off").Body.String(); strings.Contains(body, `http-equiv="refresh"`) {
		t.Error("refresh although held still")
	}
}

func TestPageShowsEveryPart(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Version = VersionInfo{Version: "1.2.3"}
		c.Targets = sampleTargets
		c.Status = func(context.Context) Status {
			return Status{
				Started: time.Now().Add(-3*time.Hour - 4*time.Minute - 30*time.Second), ConfigHash: "f00d",
				Services: []ServiceStatus{
					{Name: ServiceScraper, State: StateRunning, Detail: "all shards", Restarts: 7, Figures: []Figure{{"samples/s", 51234}}},
					{Name: ServiceWriter, State: StateWaiting, WaitingFor: []string{"lease of partition 3"}},
				},
				Streams: []StreamStatus{{Name: "FRAMES", Messages: 1234567, Bytes: 3 << 30, MaxBytes: 10 << 30, MaxAgeSeconds: 86400, Oldest: time.Now().Add(-time.Hour)}},
				Endpoints: []EndpointStatus{{
					Name: "mimir", URL: "https://u:secret@mimir/push", Protocol: "remote_write 2.0", State: StateWaiting,
					StateDetail: "503 Service Unavailable, next try in 3 s", SentSamples: 98765432, RejectedSamples: 12, RetriedSamples: 34,
					LagSeconds: 187, LagMessages: 1840, OldestUnsent: time.Now().Add(-187 * time.Second), LastError: "ring unhealthy",
				}},
			}
		}
	})
	body := do(t, s, "GET", "/").Body.String()
	for _, want := range []string{
		"1.2.3", "3 h 4 min", "f00d", `<span class="state good">ready</span>`,
		"51.2 k", "1 / 3", "targets up", "1.23 M", "3 GiB / 10 GiB", "1 d", "not here",
		"all shards", "lease of partition 3",
		"https://u:xxxxx@mimir/push", "remote_write 2.0", "503 Service Unavailable, next try in 3 s", "98.8 M", `title="98,765,432"`, "3 min 7 s", "1,840", "ring unhealthy",
		"1 of 3 up, 1 not scraped yet, 12 dropped by relabelling", "http://127.0.0.1:9100/metrics", "server returned HTTP status 500",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(body, "10.0.0.7:9100") {
		t.Error("a target that was not scraped yet is listed as down")
	}
}

func TestPageListsALimitedNumberOfTargetsAndPools(t *testing.T) {
	long := strings.Repeat("ä", 100_000)
	s := newServer(t, func(c *Config) {
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
			targets := make([]Target, 0, 5000)
			for i := range 5000 {
				targets = append(targets, Target{
					ScrapePool: fmt.Sprintf("pool-%d", i%250), ScrapeURL: fmt.Sprintf("http://t%d/metrics", i),
					Health: HealthBad, LastError: long,
				})
			}
			return targets, nil, nil, nil
		}
	})
	body := do(t, s, "GET", "/").Body.String()
	if n := strings.Count(body, "/metrics</span>"); n != maxUnhealthy {
		t.Errorf("%d targets listed", n)
	}
	for _, want := range []string{"and 4,900 more that are down", "and 150 more scrape pools"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if len(body) > 1<<20 {
		t.Errorf("the page has %d bytes", len(body))
	}
}

func TestPageStandsWithoutTargets(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
			return nil, nil, nil, errors.New("shards unknown")
		}
		c.Status = func(context.Context) Status {
			return Status{Services: []ServiceStatus{{Name: "writer", State: StateFailed}}}
		}
	})
	w := do(t, s, "GET", "/")
	if body := w.Body.String(); w.Code != 200 || !strings.Contains(body, "shards unknown") || !strings.Contains(body, `<span class="state bad">failed</span>`) {
		t.Errorf("%d %s", w.Code, body)
	}
}

func TestHandlerIsSafeUnderConcurrency(t *testing.T) {
	s := hostileServer(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, path := range []string{"/", "/api/v1/status", "/api/v1/targets", "/metrics", "/-/ready"} {
				do(t, s, "GET", path)
			}
		})
	}
	wg.Wait()
}

func TestFlowTakesTheWorstEndpoint(t *testing.T) {
	for _, tc := range []struct {
		states []State
		want   State
	}{
		{nil, ""},
		{[]State{StateIdle}, StateIdle},
		{[]State{StateSending, StateIdle}, StateSending},
		{[]State{StateSending, StateWaiting, StateIdle}, StateWaiting},
		{[]State{StateFailed, StateWaiting}, StateFailed},
	} {
		var endpoints []EndpointStatus
		for _, s := range tc.states {
			endpoints = append(endpoints, EndpointStatus{State: s})
		}
		if got := endpointsBox(endpoints).State; got != tc.want {
			t.Errorf("%v: %q, want %q", tc.states, got, tc.want)
		}
	}
}

func TestFormats(t *testing.T) {
	for want, got := range map[string]string{
		"0": formatCount(0), "9,999": formatCount(9999), "10 k": formatCount(10000), "51.2 k": formatCount(51234),
		"1 M": formatCount(999_950), "123 G": formatCount(123e9), "1.5": formatCount(1.5), "12.3": formatCount(12.34), "0.33": formatCount(1. / 3),
		"-1,234": formatCount(-1234), "999 T": formatCount(999e12), "5.00e+18": formatCount(5e18),
		"18,446,744,073,709,551,615": formatExact(1<<64 - 1),
		"1023 B":                     formatBytes(1023), "1 KiB": formatBytes(1024), "3.5 MiB": formatBytes(3_670_016), "16 EiB": formatBytes(1<<64 - 1),
		"0 s": formatDuration(0), "< 1 ms": formatDuration(time.Microsecond), "999 ms": formatDuration(999 * time.Millisecond),
		"1 s": formatDuration(999_900 * time.Microsecond), "1.5 s": formatDuration(1500 * time.Millisecond), "59 s": formatDuration(59 * time.Second),
		"1 min": formatDuration(60 * time.Second), "3 h 4 min": formatDuration(3*time.Hour + 4*time.Minute + 5*time.Second),
		"2 d": formatDuration(48 * time.Hour), "11,574 d 1 h": formatSeconds(1e300),
		"äö…": shorten("äöü", 2), "äöü": shorten("äöü", 3),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
