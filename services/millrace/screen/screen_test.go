package screen

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)

var services = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

// small is one machine whose endpoint is dead.
func small() *status.Document {
	d := &status.Document{Version: 1, Time: now, Members: []status.Member{member("box-0a1b2c3d", services...)}}
	d.Members[0].Asked = true
	for _, s := range []struct {
		name string
		all  int
	}{{"discovery", 1}, {"scraper", 256}, {"relabel", 4}, {"writer", 4}} {
		d.Shares = append(d.Shares, status.Shares{Service: s.name, All: s.all, Owners: []status.Owner{{Member: "box-0a1b2c3d", Shares: make([]int, s.all)}}})
	}
	for _, name := range []string{"TARGETS", "DICTS", "RELABELLED", "FRAMES", "DELTAS", "REJECTED"} {
		s := status.Stream{Name: name, State: status.OK, Replicas: 1}
		if name == "FRAMES" {
			s.Messages, s.Bytes, s.MaxBytes, s.MaxAgeSeconds, s.OldestAgeSeconds = 1234567, 3<<30, 10<<30, 86400, 86312
		}
		d.Streams = append(d.Streams, s)
	}
	d.Streams = append(d.Streams, status.Stream{Name: "leases", Bucket: true, State: status.OK, Replicas: 1})
	d.Endpoints = []status.Endpoint{endpoint("prod")}
	e := &d.Endpoints[0]
	dead := `Post "http://prod.example:9090/api/v1/write": dial tcp 192.0.2.1:9090: connect: connection refused`
	e.State, e.WaitingFor, e.LastError, e.LastErrorTime, e.LastErrorMember = status.Waiting, []string{dead + "; next try in 3.2s"}, dead, now.Add(-2*time.Second), "box-0a1b2c3d"
	e.LagSeconds, e.PendingMessages, e.PendingSamples, e.SamplesPerSecond = 3661, 400, 1_234_567, 0
	return d
}

func member(id string, services ...string) status.Member {
	m := status.Member{ID: id, Host: "box", Address: ":9474", Version: "1.2.3", Started: now.Add(-3 * time.Hour), LastSeen: now.Add(-1200 * time.Millisecond), State: status.Ready}
	for _, s := range services {
		m.Services = append(m.Services, status.Service{Name: s, State: status.Ready})
	}
	return m
}

func endpoint(name string) status.Endpoint {
	return status.Endpoint{
		Name: name, URL: "http://" + name + ".example:9090/api/v1/write", Protocol: "remote_write 2.0", State: status.Sending, SamplesPerSecond: 51_234, SentSamples: 987_654_321,
	}
}

// large is a fleet of many processes, some in trouble, over a cluster of three nodes.
func large() *status.Document {
	d := small()
	d.Members, d.Shares = nil, nil
	d.Problems = []string{"the stream FRAMES is not whole on all of its 3 nodes", "k8s-writer-007 does not answer; its last sign of life came 4 s ago"}
	owners := []status.Owner{}
	for i := range 40 {
		id := fmt.Sprintf("k8s-writer-%03d", i)
		d.Members = append(d.Members, member(id, "writer"))
		owners = append(owners, status.Owner{Member: id, Shares: []int{i}})
	}
	silent, waiting := &d.Members[7], &d.Members[30]
	silent.State, silent.Services[0].State = status.Silent, status.Silent
	waiting.State, waiting.WaitingFor, waiting.OtherConfig = status.Waiting, []string{"NATS to store its sign of life: context deadline exceeded", "another thing"}, true
	d.Shares = []status.Shares{{Service: "scraper", All: 256, Free: make([]int, 256)}, {Service: "writer", All: 41, Free: []int{40}, Owners: owners}}
	for i := range d.Streams {
		s := &d.Streams[i]
		s.Replicas, s.Leader, s.Followers = 3, "nats-1", []status.Follower{{Name: "nats-0", Current: true}, {Name: "nats-2", Current: true}}
		if s.Name == "FRAMES" {
			s.State, s.Followers[1] = status.Degraded, status.Follower{Name: "nats-2", Offline: true}
		}
	}
	d.Streams[1] = status.Stream{Name: "DICTS", State: status.Unknown, Error: "no answer"}
	for i := range 12 {
		d.Endpoints = append(d.Endpoints, endpoint(fmt.Sprintf("tenant-%02d", i)))
	}
	d.Endpoints[5].RejectedSamples, d.Endpoints[5].LastError, d.Endpoints[5].LastErrorTime, d.Endpoints[5].LastErrorMember = 12, "400 Bad Request: out of\nbounds", now.Add(-time.Hour), "k8s-writer-001"
	return d
}

// replaysOf returns one that goes on, one that waits, one that was stopped, and others that are over.
func replaysOf(over int) (list []replay.Status) {
	add := func(name, state string, messages uint64) *replay.Status {
		list = append(list, replay.Status{Spec: replay.Spec{Name: name, Endpoint: "prod"}, State: state, Messages: messages, AllMessages: 1000, Samples: 7000 * messages, Sent: 7000 * messages})
		st := &list[len(list)-1]
		st.FromTime, st.ToTime = now.Add(-2*time.Hour), now.Add(-time.Hour)
		return st
	}
	for i := range over {
		add(fmt.Sprintf("again-%02d", i), replay.Done, 1000)
	}
	add("incident", replay.Running, 457)
	st := add("other", replay.Running, 0)
	st.Endpoint, st.URL, st.Waiting = "", "http://other.example:9090/api/v1/write", "waiting: 503 Service Unavailable; next try in 1.2s"
	st = add("refused", replay.Stopped, 10)
	st.Rejected, st.DryRun, st.Sent, st.FromTime, st.ToTime = true, true, 0, time.Time{}, time.Time{}
	return list
}

func TestScreens(t *testing.T) {
	again, crowded, fresh := small(), large(), small()
	fresh.Endpoints = []status.Endpoint{endpoint("prod"), endpoint("other")}
	fresh.Endpoints[0].LagSeconds, fresh.Endpoints[0].PendingMessages, fresh.Endpoints[0].PendingSamples, fresh.Endpoints[0].BacklogMessages = 612, 4130, 29_700_000, 4123
	again.Replays, crowded.Replays = replaysOf(1), replaysOf(20)
	starting := &status.Document{Version: 1, Time: now, Members: []status.Member{{
		ID: "box-1", Asked: true, State: status.Starting, Started: now.Add(-time.Second), WaitingFor: []string{"NATS at nats://n1:4222"}, Services: []status.Service{{Name: "writer"}},
	}}}
	for _, c := range []struct {
		name string
		d    *status.Document
		size Size
	}{
		{"small", small(), Size{80, 24}},
		{"backlog", fresh, Size{80, 40}},
		{"large", large(), Size{80, 40}},
		{"large-file", large(), Size{}},
		{"replays", again, Size{80, 40}},
		{"large-replays", crowded, Size{80, 50}},
		{"large-replays-file", crowded, Size{}},
		{"starting", starting, Size{80, 24}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Text(c.d, c.size)
			fits(t, got, c.size)
			file := filepath.Join("testdata", c.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("it is not that of %s (-want +got):\n%s", file, d)
			}
		})
	}
}

// fits checks that a text leaves the last line of the screen to the prompt.
func fits(t *testing.T, text string, size Size) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if size.Height > 0 && len(lines) >= size.Height {
		t.Errorf("%d lines on a screen of %d", len(lines), size.Height)
	}
	for _, l := range lines {
		if n := utf8.RuneCountInString(l); size.Width > 0 && n > size.Width {
			t.Errorf("%d characters on a screen of %d: %s", n, size.Width, l)
		}
	}
}

// TestEveryWidthIsKept shows the documents on screens of all widths, also absurd ones.
func TestEveryWidthIsKept(t *testing.T) {
	crowded := large()
	crowded.Replays = replaysOf(3)
	for width := 1; width <= 200; width++ {
		for _, d := range []*status.Document{small(), large(), crowded, {}} {
			fits(t, Text(d, Size{Width: width, Height: 1000}), Size{Width: width})
		}
	}
}

// TestLowScreensShowTrouble leaves room for the least only.
func TestLowScreensShowTrouble(t *testing.T) {
	got := Text(large(), Size{80, 10})
	for _, want := range []string{"k8s-writer-007  silent", "prod", "more members", "more endpoints"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not on the screen:\n%s", want, got)
		}
	}
}

// TestTextsFromOutsideDoNotCommandTheTerminal has control characters in every text of a document.
func TestTextsFromOutsideDoNotCommandTheTerminal(t *testing.T) {
	whole := large()
	whole.Replays = replaysOf(1)
	b, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	b, err = json.Marshal(spoil(v))
	if err != nil {
		t.Fatal(err)
	}
	var d status.Document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	for _, size := range []Size{{}, {80, 24}} {
		for _, r := range Text(&d, size) {
			if r != '\n' && (r < ' ' || r == 0x7f || r == 0x9b) {
				t.Fatalf("there is a %q on the screen", r)
			}
		}
	}
}

// spoil adds control characters to every text that is no time.
func spoil(v any) any {
	switch v := v.(type) {
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil {
			return v
		}
		return "\x1b[2J" + v + "\r\n\x9b\x07\u202e"
	case []any:
		for i := range v {
			v[i] = spoil(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = spoil(v[k])
		}
	}
	return v
}
