package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/pkg/status"
)

// statusOf runs `millrace status --json`.
func statusOf(t *testing.T, args ...string) *status.Document {
	t.Helper()
	stdout, stderr, code := runMillrace(t, append([]string{"status", "--json"}, args...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("status ends with %d: %s", code, stderr)
	}
	var d status.Document
	if err := json.Unmarshal([]byte(stdout), &d); err != nil || d.Version != status.DocumentVersion {
		t.Fatalf("%v: %s", err, stdout)
	}
	return &d
}

// TestStatusShowsADeadEndpoint looks at one machine with an endpoint that nobody listens at, and one that takes everything.
func TestStatusShowsADeadEndpoint(t *testing.T) {
	r, live := newRigOf(t, loadgen.Config{Targets: 2, Series: 10}), newEndpoint(t)
	dead := fmt.Sprintf("http://miller:grain@127.0.0.1:%d/api/v1/write", freePort(t))
	p := startMillrace(t, r.config("", remoteWrite("dead", dead), remoteWrite("live", live.URL)))
	var d *status.Document
	eventually(t, startTimeout, "the dead endpoint's lag and error, and the other's samples", func() error {
		d = statusOf(t, "--web.url="+p.URL)
		if len(d.Endpoints) != 2 {
			return fmt.Errorf("endpoints %+v", d.Endpoints)
		}
		e, l := d.Endpoints[0], d.Endpoints[1]
		if e.Name != "dead" || e.State != status.Waiting || e.LagSeconds == 0 || e.PendingSamples == 0 || e.PendingMessages == 0 || !strings.Contains(e.LastError, "connection refused") ||
			e.LastErrorTime.IsZero() || len(e.WaitingFor) != 1 || !strings.Contains(e.WaitingFor[0], "next try in") || e.SentSamples != 0 || e.RetriedSamples == 0 {
			return fmt.Errorf("the dead one: %+v", e)
		}
		if l.Name != "live" || l.SentSamples == 0 || l.SamplesPerSecond == 0 || l.LastError != "" {
			return fmt.Errorf("the other: %+v", l)
		}
		return nil
	})
	if len(d.Members) != 1 || !d.Members[0].Asked || d.Members[0].State != status.Ready || len(d.Members[0].Services) != 5 || d.Members[0].LastSeen.IsZero() || len(d.Problems) != 0 {
		t.Errorf("members %+v, problems %q", d.Members, d.Problems)
	}
	if figures := d.Members[0].Services[1].Figures; d.Members[0].Services[1].Name != "scraper" || figures["series"] == 0 {
		t.Errorf("figures of the scraper: %v", figures)
	}
	for _, s := range d.Shares {
		if len(s.Free) != 0 || len(s.Owners) != 1 || len(s.Owners[0].Shares) != s.All || s.Owners[0].Member != d.Members[0].ID {
			t.Errorf("shares %+v", s)
		}
	}
	if len(d.Shares) != 4 {
		t.Errorf("shares of %d services", len(d.Shares))
	}
	for _, s := range d.Streams {
		if s.State != status.OK || s.Name == "FRAMES" && (s.Messages == 0 || s.MaxBytes == 0 || s.MaxAgeSeconds == 0 || s.Oldest.IsZero()) {
			t.Errorf("stream %+v", s)
		}
	}
	stdout, stderr, code := runMillrace(t, "status", "--web.url="+p.URL)
	for _, want := range []string{d.Members[0].ID + " *", "FRAMES", "dead", "waiting", "connection refused"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not shown", want)
		}
	}
	if code != 0 || strings.Contains(stdout, "grain") {
		t.Errorf("it ends with %d, or shows the password: %s%s", code, stdout, stderr)
	}
}

// TestStatusOfAFleetFromAnyPlace asks each process of a fleet, and NATS.
func TestStatusOfAFleetFromAnyPlace(t *testing.T) {
	c := newCrew(t, 3, 4, 10)
	procs := []*proc{c.join("discovery"), c.join("writer"), c.join("writer"), c.join("relabel"), c.join("scraper")}
	places := []string{"--nats.url=" + c.nats.URL}
	for _, p := range procs {
		places = append(places, "--web.url="+p.URL)
	}
	whole := func(d *status.Document) error {
		var services []string
		for _, m := range d.Members {
			if m.State != status.Ready || m.LastSeen.IsZero() || len(m.Services) != 1 {
				return fmt.Errorf("member %+v", m)
			}
			services = append(services, m.Services[0].Name)
		}
		slices.Sort(services)
		if !slices.Equal(services, []string{"discovery", "relabel", "scraper", "writer", "writer"}) {
			return fmt.Errorf("members of %q", services)
		}
		owners := map[string]int{}
		for _, s := range d.Shares {
			if len(s.Free) > 0 {
				return fmt.Errorf("free shares: %+v", s)
			}
			owners[s.Service] = len(s.Owners)
		}
		if owners["writer"] != 2 || owners["scraper"] != 1 || owners["relabel"] != 1 || owners["discovery"] != 1 {
			return fmt.Errorf("owners %v", owners)
		}
		for _, s := range d.Streams {
			if s.State != status.OK || s.Replicas != 3 || s.Leader == "" || len(s.Followers) != 2 {
				return fmt.Errorf("stream %+v", s)
			}
		}
		if len(d.Endpoints) != 1 || d.Endpoints[0].Name != "main" || d.Endpoints[0].SentSamples == 0 || len(d.Problems) > 0 {
			return fmt.Errorf("endpoints %+v, problems %q", d.Endpoints, d.Problems)
		}
		return nil
	}
	for _, place := range places {
		eventually(t, 2*startTimeout, "the whole fleet from "+place, func() error { return whole(statusOf(t, place)) })
	}
	self := statusOf(t, places[3]).Members
	if i := slices.IndexFunc(self, func(m status.Member) bool { return m.Asked }); i < 0 || "http://"+self[i].Address != procs[2].URL {
		t.Errorf("the process that was asked is not said to be: %+v", self)
	}
	procs[1].Kill9()
	eventually(t, 2*startTimeout, "a writer less", func() error {
		if d := statusOf(t, places[3]); len(d.Members) != 4 || len(d.Problems) > 0 {
			return fmt.Errorf("%d members, problems %q", len(d.Members), d.Problems)
		}
		return nil
	})
	c.nats.nodes[0].kill()
	eventually(t, 2*startTimeout, "a node less", func() error {
		d := statusOf(t, places[3])
		if !slices.ContainsFunc(d.Streams, func(s status.Stream) bool { return s.State == status.Degraded }) || len(d.Problems) == 0 {
			return fmt.Errorf("problems %q", d.Problems)
		}
		return nil
	})
}
