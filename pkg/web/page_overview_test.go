package web

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/status"
)

// sampleFleet is a fleet of two processes with something the matter.
func sampleFleet() *status.Document {
	now := time.Now()
	return &status.Document{
		Version: 1, Time: now, Reached: true, Problems: []string{"nobody owns 3 of the 256 shares of scraper"},
		Members: []status.Member{
			{
				ID: "host-a-1", Host: "host-a", Address: ":9474", Asked: true, Version: "1.2.3", ConfigHash: "f00d", Started: now.Add(-time.Hour), LastSeen: now, State: status.Ready,
				Services: []status.Service{
					{Name: "discovery", State: status.Ready, Figures: map[string]float64{"targets": 1200, "droppedTargets": 7}},
					{Name: "scraper", State: status.Ready, Figures: map[string]float64{"samplesPerSecond": 51234, "series": 400_000}},
				},
			},
			{
				ID: "host-b-2", Host: "host-b", Address: ":9474", Version: "1.2.3", ConfigHash: "f00d", Started: now.Add(-time.Minute), LastSeen: now, State: status.Waiting, WaitingFor: []string{"writer: the endpoint"},
				Services: []status.Service{
					{Name: "scraper", State: status.Ready, Figures: map[string]float64{"samplesPerSecond": 766, "series": 1000}},
					{Name: "relabel", State: status.Ready, Figures: map[string]float64{"evaluatedSeries": 401_000}},
					{Name: "writer", State: status.Waiting, WaitingFor: []string{"the endpoint"}, Restarts: 2, Figures: map[string]float64{"samplesPerSecond": 40_000}},
				},
			},
		},
		Shares: []status.Shares{
			{Service: "discovery", All: 1, Free: []int{}, Owners: []status.Owner{{Member: "host-a-1", Shares: []int{0}, NewestEpoch: 4}}},
			{Service: "scraper", All: 256, Free: []int{1, 2, 3}, Owners: []status.Owner{{Member: "host-a-1", Shares: make([]int, 128)}, {Member: "host-b-2", Shares: make([]int, 125)}}},
			{Service: "writer", All: 4, Free: []int{}, Owners: []status.Owner{{Member: "host-b-2", Shares: []int{0, 1, 2, 3}}}},
		},
		Streams: []status.Stream{
			{Name: "TARGETS", State: status.OK, Messages: 1200, Bytes: 400_000},
			{Name: "DICTS", State: status.OK, Messages: 120, Bytes: 5 << 20, MaxBytes: 2 << 30},
			{Name: "FRAMES", State: status.OK, Messages: 1_234_567, Bytes: 3 << 30, MaxBytes: 10 << 30, MaxAgeSeconds: 86400, Oldest: now.Add(-time.Hour), OldestAgeSeconds: 3600, Replicas: 1},
			{Name: "members", Bucket: true, State: status.OK, Messages: 2},
		},
		Endpoints: []status.Endpoint{
			{Name: "mimir", URL: "https://mimir/push", Protocol: "remote_write 2.0", State: status.Sending, LagSeconds: 1.2, PendingMessages: 3, PendingSamples: 20_000, SamplesPerSecond: 40_000, SentSamples: 98_765_432},
			{
				Name: "dead", URL: "http://dead/", Protocol: "remote_write 1.0", State: status.Waiting, WaitingFor: []string{"503 Service Unavailable"}, LagSeconds: 187, PendingMessages: 1840,
				PendingSamples: 9_000_000, RejectedSamples: 12, LostSamples: 5, LastError: "ring unhealthy", LastErrorTime: now.Add(-3 * time.Second), LastErrorMember: "host-b-2",
			},
		},
	}
}

func TestOverviewShowsTheWholeFleet(t *testing.T) {
	body := do(t, fleetServer(t), "GET", "/").Body.String()
	for _, want := range []string{
		"52 k samples/s come in, 40 k go out to 2 endpoints. The longest lag is 3 min 7 s.", "5 problems – Overview",
		"nobody owns 3 of the 256 shares of scraper", "host-b-2 waits: writer: the endpoint", "the endpoint dead does not take samples now: 503 Service Unavailable",
		"the endpoint dead has refused 12 samples for good", "3 of 250 targets are down",
		"<dt>targets</dt><dd>1,200</dd>", "<dt>dropped by relabelling</dt><dd>7</dd>", "<dt>targets up</dt><dd>247 / 250</dd>", "<dt>processes</dt><dd>2</dd>", "<dt>series</dt><dd>401 k</dd>",
		"nobody owns 3 of its 256 shares", "<dt>batches of samples</dt><dd>1.23 M</dd>", "3 GiB of 10 GiB", "<dt>series evaluated</dt><dd>401 k</dd>",
		"<dt>pending</dt><dd>20 k</dd>", "<dt>lost</dt><dd>5</dd>", "2 processes", "40 k samples/s, 4 of 4 shares", "2 restarts", "this one",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, not := range []string{"senders", "NATS is not reached", "nothing needs a look"} {
		if strings.Contains(body, not) {
			t.Errorf("the page has %q", not)
		}
	}
}

// TestOverviewWithoutNATS shows what a process knows that reaches nobody.
func TestOverviewWithoutNATS(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Fleet = func(context.Context) (*status.Document, error) {
			d := sampleFleet()
			d.Reached = false
			d.Members, d.Shares, d.Problems = d.Members[1:], nil, []string{"it is not known how FRAMES stand: timeout"}
			for i := range d.Streams {
				d.Streams[i] = status.Stream{Name: d.Streams[i].Name, State: status.Unknown, Error: "timeout"}
			}
			return d, nil
		}
		c.FleetTargets = func(context.Context, *status.TargetQuery) (*status.TargetPage, error) { return nil, errors.New("no") }
	})
	body := do(t, s, "GET", "/").Body.String()
	for _, want := range []string{"NATS is not reached from here", "it is not known how FRAMES stand", "no process does this", "host-b-2"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// TestOverviewStaysSmall has more of everything than is listed.
func TestOverviewStaysSmall(t *testing.T) {
	d := sampleFleet()
	for i := range 500 {
		m, e := d.Members[1], d.Endpoints[0]
		m.ID, e.Name = fmt.Sprintf("host-%d", i), fmt.Sprintf("endpoint-%d", i)
		d.Members, d.Endpoints = append(d.Members, m), append(d.Endpoints, e)
	}
	o := overviewOf(d, nil)
	if len(o.Members) != maxMembers || o.MoreMembers != 302 || len(o.Problems) != maxProblems || o.MoreProblems == 0 || len(o.Way.Endpoints) != maxEndpointBoxes || o.Way.MoreEndpoints != 494 {
		t.Errorf("%d members and %d more, %d problems, %d endpoints and %d more", len(o.Members), o.MoreMembers, len(o.Problems), len(o.Way.Endpoints), o.Way.MoreEndpoints)
	}
	if !slices.ContainsFunc(o.Way.Endpoints, func(e endpointBox) bool { return e.Name == "dead" }) {
		t.Error("the endpoint that is worst off is not shown")
	}
}

func TestStationsAreAsWellAsTheirWorstProcess(t *testing.T) {
	for _, tc := range []struct {
		states []string
		want   string
	}{
		{nil, ""},
		{[]string{status.Ready}, status.Ready},
		{[]string{status.Ready, status.Starting}, status.Starting},
		{[]string{status.Waiting, status.Ready}, status.Waiting},
		{[]string{status.Waiting, status.Silent, status.Ready}, status.Silent},
	} {
		d := &status.Document{}
		for _, s := range tc.states {
			d.Members = append(d.Members, status.Member{Services: []status.Service{{Name: "writer", State: s}}})
		}
		if got := serviceStation(d, "writer", "").State; got != tc.want {
			t.Errorf("%v: %q, want %q", tc.states, got, tc.want)
		}
	}
}
