package web

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestProcessPageShowsEveryPart(t *testing.T) {
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
	body := do(t, s, "GET", "/process").Body.String()
	for _, want := range []string{
		"1.2.3", "3 h 4 min", "f00d", `<span class="state good">ready</span>`,
		"0 / 2", "1.23 M", "3 GiB / 10 GiB", "1 d",
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

func TestProcessPageListsALimitedNumberOfTargetsAndPools(t *testing.T) {
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
	body := do(t, s, "GET", "/process").Body.String()
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

func TestProcessPageStandsWithoutTargets(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
			return nil, nil, nil, errors.New("shards unknown")
		}
		c.Status = func(context.Context) Status {
			return Status{Services: []ServiceStatus{{Name: "writer", State: StateFailed}}}
		}
	})
	w := do(t, s, "GET", "/process")
	if body := w.Body.String(); w.Code != 200 || !strings.Contains(body, "shards unknown") || !strings.Contains(body, `<span class="state bad">failed</span>`) {
		t.Errorf("%d %s", w.Code, body)
	}
}
