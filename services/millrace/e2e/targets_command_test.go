package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/pkg/status"
)

// fleetTargets runs `millrace targets --json`.
func fleetTargets(t *testing.T, args ...string) *status.TargetPage {
	t.Helper()
	stdout, stderr, code := runMillrace(t, append([]string{"targets", "--json"}, args...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("targets ends with %d: %s", code, stderr)
	}
	var page status.TargetPage
	if err := json.Unmarshal([]byte(stdout), &page); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	return &page
}

// TestTargetsOfAFleetAreListed lists them from a process that scrapes none, and over NATS: those of two scrapers, of which one target is down and some are dropped.
func TestTargetsOfAFleetAreListed(t *testing.T) {
	c := newCrew(t, 1, 6, 10)
	more := fmt.Sprintf(`scrape_configs:
- job_name: failing
  static_configs: [{targets: ["127.0.0.1:%d", "127.0.0.1:1"]}]
  relabel_configs: [{source_labels: [__address__], regex: ".*:1", action: drop}]
`, freePort(t))
	c.config = strings.Replace(c.config, "scrape_configs:\n", more, 1)
	discovery := c.join("discovery")
	scrapers := []*proc{c.join("scraper"), c.join("scraper")}
	c.spread("scraper", 256, scrapers...)
	for _, at := range []string{"--nats.url=" + c.nats.URL, "--web.url=" + discovery.URL} {
		eventually(t, startTimeout, "all targets from "+at, func() error {
			p := fleetTargets(t, at)
			if p.All.Up != 6 || p.All.Down != 1 || p.All.Dropped != 1 || len(p.Targets) != 7 || len(p.Problems) > 0 {
				return fmt.Errorf("%+v, %d targets, problems %q", p.All, len(p.Targets), p.Problems)
			}
			return nil
		})
		if p := fleetTargets(t, at, "--health=down"); len(p.Targets) != 1 || p.Targets[0].Pool != "failing" || !strings.Contains(p.Targets[0].LastError, "connection refused") || p.Targets[0].Owner == "" {
			t.Errorf("those that are down, from %s: %+v", at, p.Targets)
		}
		if p := fleetTargets(t, at, "--job=load", "--limit=4"); len(p.Targets) != 4 || p.Matching != 6 || p.Targets[0].Pool != "load" {
			t.Errorf("some of a job, from %s: %d of %d", at, len(p.Targets), p.Matching)
		}
		if p := fleetTargets(t, at, `--search=job="load" 127.0.0.1`); len(p.Targets) != 6 {
			t.Errorf("what is searched, from %s: %+v", at, p.Targets)
		}
		stdout, stderr, code := runMillrace(t, "targets", at, "--dropped")
		for _, want := range []string{"7 targets: 6 up, 1 down, 0 unknown; 1 dropped by relabelling\n", "\nHEALTH ", "\ndown ", "connection refused", "\nJOB "} {
			if code != 0 || !strings.Contains(stdout, want) {
				t.Errorf("%q is not printed from %s, it ends with %d: %s%s", want, at, code, stdout, stderr)
			}
		}
	}
}
