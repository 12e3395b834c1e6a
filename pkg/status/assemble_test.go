package status

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).delayedAPIResponder"))
}

var update = flag.Bool("update", false, "write the golden files anew")

var (
	now     = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)
	minutes = func(n int) time.Time { return now.Add(-time.Duration(n) * time.Minute) }
)

// writerReport is what a writer says that has an endpoint in trouble.
func writerReport(id string, e Endpoint) *Report {
	return &Report{
		Member: Member{ID: id, Host: "b", Address: ":9474", Version: "1.0.0", ConfigHash: "c1", Started: minutes(30), State: Ready, Services: []Service{
			{Name: "writer", State: Ready, Restarts: 1, Figures: map[string]float64{"samplesPerSecond": 100}},
		}},
		Shares: map[string]int{"writer": 4}, Endpoints: []Endpoint{e},
	}
}

// aFleet is what is found of two writers, a scraper that does not answer, and a discovery that is no member yet, over a cluster of three nodes.
func aFleet() *found {
	f := &found{now: now, viewed: true, reports: map[string]*Report{}}
	for _, r := range []*Report{
		writerReport("b-1", Endpoint{
			Name: "prod", URL: "http://prod/api/v1/write", Protocol: "remote_write 2.0", State: Sending, LagSeconds: 2, OldestUnsent: now.Add(-2 * time.Second),
			PendingMessages: 3, PendingSamples: 300, BacklogMessages: 2, SamplesPerSecond: 100, SentSamples: 5000, RetriedSamples: 10, RejectedSamples: 1, LastError: "503 then", LastErrorTime: minutes(20),
		}),
		writerReport("b-2", Endpoint{
			Name: "prod", URL: "http://prod/api/v1/write", Protocol: "remote_write 2.0", State: Waiting, WaitingFor: []string{"503 now; next try in 2s"}, LagSeconds: 60,
			OldestUnsent: minutes(1), PendingMessages: 40, PendingSamples: 4000, BacklogMessages: 36, SentSamples: 200, RetriedSamples: 90, LostSamples: 7, LastError: "503 now", LastErrorTime: now.Add(-time.Second),
		}),
		{Member: Member{
			ID: "d-1", Host: "d", Address: ":9474", Version: "1.0.0", ConfigHash: "c2", Started: minutes(1), State: Starting, WaitingFor: []string{"the streams"},
			Services: []Service{{Name: "discovery", State: Starting}},
		}},
	} {
		f.reports[r.Member.ID] = r
	}
	incident := replay.Status{
		Spec: replay.Spec{Name: "incident", From: "-2h", To: "-1h", Match: []string{`{job="api"}`}, Endpoint: "prod", Rate: 1000}, State: replay.Running, Created: minutes(4),
		FromTime: minutes(124), ToTime: minutes(64), Samples: 900, Sent: 880, Refused: 20, Bytes: 2000, Messages: 9, AllMessages: 100, Waiting: "waiting: 503 now; next try in 2s",
	}
	counted := replay.Status{
		Spec: replay.Spec{Name: "counted", Endpoint: "prod", Rejected: true, DryRun: true}, State: replay.Done, Created: minutes(9), Samples: 12, Bytes: 100, Series: 3, Messages: 2, AllMessages: 2,
	}
	before := incident
	before.Messages, before.Waiting = 8, ""
	again := counted
	again.Created, again.State, again.Messages = minutes(99), replay.Stopped, 7 // it was removed since
	f.reports["b-1"].Replays = []replay.Status{before, counted}
	f.reports["b-2"].Replays = []replay.Status{again, incident}
	f.self = f.reports["b-1"]
	entry := func(id, service string, seen time.Time) fleet.Member {
		return fleet.Member{ID: id, Host: id[:1], Address: ":9474", Services: []string{service}, Version: "1.0.0", ConfigHash: "c1", Started: minutes(30), Seen: seen}
	}
	f.view = fleet.View{
		Members: []fleet.Member{entry("b-1", "writer", now), entry("b-2", "writer", now.Add(-time.Second)), entry("s-1", "scraper", now.Add(-4*time.Second))},
		Leases: map[string]map[int]fleet.Lease{
			"writer":  {0: {Owner: "b-1", Epoch: 7}, 1: {Owner: "b-2", Epoch: 9}, 2: {Owner: "b-1", Epoch: 8}, 3: {Owner: "gone", Epoch: 2}},
			"scraper": {0: {Owner: "s-1", Epoch: 3}, 1: {Owner: "s-1", Epoch: 4}},
		},
	}
	f.reports["b-1"].Shares["scraper"] = 3
	f.streams = []streamFound{
		{name: stream.Frames, state: stream.State{
			Stream: stream.Frames, Messages: 10, Bytes: 4096, Limit: 1 << 30, Age: time.Hour, Oldest: minutes(5), Partitions: 4, Replicas: 3, Clustered: true, Leader: "n1",
			Followers: []stream.Follower{{Name: "n2", Current: true}, {Name: "n3", Offline: true, Behind: 4}},
		}},
		{name: stream.Rejected, state: stream.State{Stream: stream.Rejected, Replicas: 3, Clustered: true, Followers: []stream.Follower{{Name: "n2", Current: true}, {Name: "n3", Current: true}}}},
		{name: stream.Leases, bucket: true, err: errors.New("no answer")},
	}
	f.errs = []error{errors.New("an answer that cannot be read: of s-2")}
	return f
}

func TestDocumentOfAFleet(t *testing.T) {
	d := aFleet().document()
	for i := range d.Shares { // 256 shards would make the file long
		if s := &d.Shares[i]; s.Service == "scraper" {
			if s.All != stream.Shards || len(s.Free) != stream.Shards-2 {
				t.Errorf("scraper: %d shares, %d of them free", s.All, len(s.Free))
			}
			s.Free = s.Free[:2]
		}
	}
	got, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/fleet.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("the document is not that of %s (-want +got):\n%s", file, d)
	}
}

// TestListsAreNeverNull has nothing be found but a process that does not reach NATS.
func TestListsAreNeverNull(t *testing.T) {
	self := &Report{Member: Member{ID: "a-1", State: Starting, Services: []Service{{Name: "writer", State: Starting}}}, Shares: map[string]int{"writer": 4}}
	d, err := Collect(t.Context(), Source{Self: self})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "null") || len(d.Members) != 1 || !d.Members[0].Asked || len(d.Shares) != 0 || len(d.Problems) != 0 {
		t.Errorf("document %s", b)
	}
}

func TestStreamsThatDoNotExistAreOneProblem(t *testing.T) {
	f := &found{now: now, reports: map[string]*Report{"a-1": {Member: Member{ID: "a-1"}}}}
	for _, name := range stream.StreamNames() {
		f.streams = append(f.streams, streamFound{name: name, err: jetstream.ErrStreamNotFound})
	}
	if p := f.document().Problems; len(p) != 1 || !strings.Contains(p[0], "TARGETS, DICTS") || !strings.Contains(p[0], "not found") {
		t.Errorf("problems %q", p)
	}
}

func TestReportsThatCannotBeRead(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"", "cannot be read"},
		{"[]", "cannot be read"},
		{`{"version": 1}`, "does not name its process"},
		{`{"version": 2, "member": {"id": "a-1"}}`, "a-1 has version 2, this build reads version 1"},
	} {
		if r, err := decodeReport([]byte(c.text)); !errors.Is(err, errReport) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, %v", c.text, r, err)
		}
	}
}

func TestLongTextsAreCutInReports(t *testing.T) {
	long := strings.Repeat("ä", maxText)
	r := writerReport("b-1", Endpoint{LastError: long, WaitingFor: []string{long}})
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeReport(b)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Endpoints[0]; len(e.LastError) > maxText+10 || len(e.WaitingFor[0]) > maxText+10 || r.Endpoints[0].LastError != long || r.Endpoints[0].WaitingFor[0] != long {
		t.Errorf("%d and %d bytes; or the report itself has changed", len(e.LastError), len(e.WaitingFor[0]))
	}
}

// TestReplaysDoNotMakeAReportTooLarge has more of them, and with more words, than NATS takes in a message.
func TestReplaysDoNotMakeAReportTooLarge(t *testing.T) {
	r := writerReport("b-1", Endpoint{})
	long := strings.Repeat(`"`, 1<<14)
	for i := range 200 {
		st := replay.Status{State: replay.Done, Created: now.Add(time.Duration(i) * time.Second), Waiting: long}
		st.Name, st.Match = fmt.Sprintf("r-%03d", i), slices.Repeat([]string{long}, 64)
		if i == 50 {
			st.State = replay.Running
		}
		r.Replays = append(r.Replays, st)
	}
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeReport(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 1<<19 || len(got.Replays) != maxReplays || got.Replays[0].Name != "r-050" || got.Replays[1].Name != "r-199" || len(r.Replays) != 200 || len(r.Replays[0].Match) != 64 || r.Replays[0].Match[0] != long {
		t.Errorf("%d bytes with %d replays, the first %s; or the report itself has changed", len(b), len(got.Replays), got.Replays[0].Name)
	}
}
