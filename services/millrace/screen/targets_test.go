package screen

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/status"
)

func TestTargetsAreListed(t *testing.T) {
	page := &status.TargetPage{
		All: status.Pool{Up: 1, Down: 1, Dropped: 3}, Pools: []status.Pool{{Name: "api", Up: 1, Down: 1, Dropped: 3}}, Matching: 5, Problems: []string{"b-2 does not answer: its targets are missing here"},
		Targets: []status.Target{
			{TargetKey: status.TargetKey{Pool: "api", URL: "http://a:80/metrics"}, Owner: "a-1", Health: "up", LastScrape: now.Add(-4 * time.Second), LastScrapeSeconds: 0.012},
			{TargetKey: status.TargetKey{Pool: "api", URL: "http://b:80/metrics"}, Owner: "a-1", Health: "down", LastScrape: now.Add(-2 * time.Second), LastScrapeSeconds: 10, LastError: "context deadline\x1b exceeded"},
		},
	}
	want := `2 targets: 1 up, 1 down, 0 unknown; 3 dropped by relabelling
! b-2 does not answer: its targets are missing here

JOB  UP  DOWN  UNKNOWN  DROPPED
api   1     1        0        3

HEALTH  JOB  TARGET               SCRAPED   TOOK  OWNER
up      api  http://a:80/metrics      4 s  12 ms  a-1
down    api  http://b:80/metrics      2 s   10 s  a-1
  error: context deadline� exceeded
and 3 more targets
`
	if diff := cmp.Diff(want, Targets(TargetsView{Page: page, Now: now, Dropped: true, Left: 3})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := Targets(TargetsView{Page: &status.TargetPage{}, Now: now}), "0 targets: 0 up, 0 down, 0 unknown; 0 dropped by relabelling\n\nNo targets that match.\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
