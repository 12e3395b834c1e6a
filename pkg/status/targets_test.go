package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// fixed is a target that does not change.
type fixed struct{ t Target }

func (f fixed) Key() TargetKey    { return f.t.TargetKey }
func (f fixed) Health() string    { return f.t.Health }
func (f fixed) LastError() string { return f.t.LastError }
func (f fixed) Text() string      { return f.t.Labels.String() }
func (f fixed) Describe() Target  { return f.t }

// numbered makes targets of three pools, of which every fifth is down and every seventh not scraped yet.
func numbered(n int) []fixed {
	var list []fixed
	for i := range n {
		t := Target{
			TargetKey: TargetKey{Pool: fmt.Sprintf("pool-%d", i%3), URL: fmt.Sprintf("http://host-%d.example:9100/metrics", i/2), ID: uint64(i)},
			Labels:    labels.FromStrings("instance", fmt.Sprintf("host-%d", i/2), "job", "node", "zone", string(rune('a'+i%4))),
			Health:    "up",
		}
		if i%5 == 0 {
			t.Health, t.LastError = "down", "connection Refused by "+t.URL
		} else if i%7 == 0 {
			t.Health = "unknown"
		}
		list = append(list, fixed{t})
	}
	return list
}

// spread gives targets to holders.
func spread(targets []fixed, among int) []*TargetHolder {
	shares := make([][]fixed, among)
	for i, t := range targets {
		shares[i*i%among] = append(shares[i*i%among], t)
	}
	var list []*TargetHolder
	for i, share := range shares {
		list = append(list, &TargetHolder{Member: fmt.Sprintf("member-%d", i), List: NewTargetList(share)})
	}
	return list
}

// find merges what the holders answer, each through the message that it would send.
func find(t *testing.T, q TargetQuery, holders []*TargetHolder) *TargetPage {
	t.Helper()
	data, err := json.Marshal(targetQuestion{targetVersion, &q})
	if err != nil {
		t.Fatal(err)
	}
	var answers []*targetAnswer
	for _, h := range holders {
		b, err := answerTargets(data, h)
		if err != nil {
			t.Fatal(err)
		}
		a, err := decodeTargetAnswer(b)
		if err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	return mergeTargets(&q, answers)
}

// TestTargetsAreFoundPageByPage reads all pages to the end and back.
func TestTargetsAreFoundPageByPage(t *testing.T) {
	targets := numbered(1000)
	for _, tc := range []struct {
		name  string
		query TargetQuery
		want  func(Target) bool
	}{
		{"all", TargetQuery{}, func(Target) bool { return true }},
		{"a pool", TargetQuery{Pool: "pool-1"}, func(t Target) bool { return t.Pool == "pool-1" }},
		{"down", TargetQuery{Health: "down"}, func(t Target) bool { return t.Health == "down" }},
		{"not scraped yet", TargetQuery{Health: "unknown"}, func(t Target) bool { return t.Health == "unknown" }},
		{"by URL and label", TargetQuery{Search: `Host-3 ZONE="a"`}, func(t Target) bool { return strings.Contains(t.URL, "host-3") && t.Labels.Get("zone") == "a" }},
		{"by error", TargetQuery{Search: "refused 99"}, func(t Target) bool { return t.Health == "down" && strings.Contains(t.URL, "99") }},
		{"none", TargetQuery{Search: "nowhere"}, func(Target) bool { return false }},
	} {
		var want []TargetKey
		for _, f := range targets {
			if tc.want(f.t) {
				want = append(want, f.t.TargetKey)
			}
		}
		slices.SortFunc(want, TargetKey.Compare)
		for _, among := range []int{1, 2, 7} {
			holders := spread(targets, among)
			q := tc.query
			q.Limit = 90
			var got, back []TargetKey
			var last *TargetPage
			for pages := 0; ; pages++ {
				p := find(t, q, holders)
				if p.First != len(got)+1 || p.Matching != len(want) || len(p.Targets) > q.Limit || pages > 20 {
					t.Fatalf("%s among %d: page %d begins at %d and has %d of %d, want %d of %d", tc.name, among, pages, p.First, len(p.Targets), p.Matching, len(got)+1, len(want))
				}
				for _, x := range p.Targets {
					if x.Owner == "" {
						t.Fatalf("%s: nobody owns %+v", tc.name, x)
					}
					got = append(got, x.TargetKey)
				}
				if (p.Previous != "") != (pages > 0) || p.All.Total() != 1000 || p.All.Down != 200 || len(p.Pools) != 3 {
					t.Fatalf("%s among %d: page %d: previous %q, pools %v", tc.name, among, pages, p.Previous, p.Pools)
				}
				last = p
				if p.Next == "" {
					break
				}
				q.After = key(t, p.Next)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s among %d (-want +got):\n%s", tc.name, among, diff)
			}
			q.After = nil
			for last.Previous != "" {
				for i := range last.Targets {
					back = append(back, last.Targets[len(last.Targets)-1-i].TargetKey)
				}
				q.Before = key(t, last.Previous)
				last = find(t, q, holders)
				if want := len(got) - len(back) - len(last.Targets) + 1; last.First != want || last.Next == "" {
					t.Fatalf("%s among %d: back to the one from %d, want %d; next %q", tc.name, among, last.First, want, last.Next)
				}
			}
			for i := range last.Targets {
				back = append(back, last.Targets[len(last.Targets)-1-i].TargetKey)
			}
			slices.Reverse(back)
			if diff := cmp.Diff(want, back); diff != "" {
				t.Fatalf("%s among %d, backwards (-want +got):\n%s", tc.name, among, diff)
			}
		}
	}
}

func key(t *testing.T, s string) *TargetKey {
	t.Helper()
	k, err := ParseTargetKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestTargetAnswersStaySmall gives targets more labels than one message carries.
func TestTargetAnswersStaySmall(t *testing.T) {
	var targets []fixed
	for i := range 500 {
		x := Target{
			TargetKey: TargetKey{Pool: "p", URL: fmt.Sprintf("http://host-%03d/", i), ID: uint64(i)}, Labels: labels.FromStrings("instance", fmt.Sprint(i)),
			DiscoveredLabels: labels.FromStrings("__meta_annotation", strings.Repeat("<", 3000)), LastError: strings.Repeat("e", 10_000),
		}
		switch i {
		case 7:
			x.DiscoveredLabels = labels.FromStrings("__meta_annotation", strings.Repeat("x", 900_000))
		case 8:
			x.Labels = labels.FromStrings("instance", "8", "job", "j", "more", strings.Repeat("x", 900_000))
		}
		targets = append(targets, fixed{x})
	}
	h := &TargetHolder{Member: "a", List: NewTargetList(targets), Dropped: map[string]int{"gone": 3}}
	for i := range 5000 {
		h.Dropped[fmt.Sprintf("pool-%04d", i)] = 1
	}
	h.Dropped[strings.Repeat("long", 100_000)] = 1
	data, err := json.Marshal(targetQuestion{targetVersion, &TargetQuery{Limit: MaxTargets}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := answerTargets(data, h)
	if err != nil || len(b) > 1<<20 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	seen := 0
	q := TargetQuery{Limit: MaxTargets}
	for {
		p := find(t, q, []*TargetHolder{h})
		for _, x := range p.Targets {
			if out := x.ID == 7; x.DiscoveredLeftOut != out || out != x.DiscoveredLabels.IsEmpty() || x.Labels.Get("instance") != fmt.Sprint(x.ID) || len(x.LastError) > maxText+len("…") {
				t.Errorf("target %d: %d bytes of labels, %d before relabelling, error of %d", x.ID, x.Labels.ByteSize(), x.DiscoveredLabels.ByteSize(), len(x.LastError))
			}
		}
		seen += len(p.Targets)
		if p.All.Dropped != 5004 {
			t.Errorf("%d dropped", p.All.Dropped)
		}
		if p.Next == "" {
			break
		}
		q.After = key(t, p.Next)
	}
	if seen != 500 {
		t.Errorf("%d targets on all pages", seen)
	}
}

func TestTargetThatMovesIsListedOnce(t *testing.T) {
	old := numbered(1)[0].t
	now := old
	now.LastScrape, now.Health = time.Now(), "up"
	p := find(t, TargetQuery{Limit: 10}, []*TargetHolder{
		{Member: "a", List: NewTargetList([]fixed{{old}})}, {Member: "b", List: NewTargetList([]fixed{{now}})},
	})
	if len(p.Targets) != 1 || p.Targets[0].Owner != "b" || p.Next != "" {
		t.Errorf("%+v", p)
	}
}

func TestQuestionsForTargetsAreChecked(t *testing.T) {
	for _, q := range []TargetQuery{{Limit: -1}, {Limit: MaxTargets + 1}, {Health: "ill"}, {After: &TargetKey{}, Before: &TargetKey{}}} {
		if _, err := FindTargets(t.Context(), TargetSource{}, &q); !errors.Is(err, ErrQuery) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for _, s := range []string{"", "%", "AAAA", "bnVsbA"} {
		if k, err := ParseTargetKey(s); err == nil && *k != (TargetKey{}) || err != nil && !errors.Is(err, ErrQuery) {
			t.Errorf("%q: %v, %v", s, k, err)
		}
	}
	want := TargetKey{Pool: `a"<b`, URL: "http://ä/?x=y", ID: 1<<64 - 1}
	if got := key(t, want.String()); *got != want {
		t.Errorf("%+v becomes %+v", want, *got)
	}
}

// TestTargetsAreAskedForOverNATS has one process that answers, one that is silent, one of another version, and one that nobody knows.
func TestTargetsAreAskedForOverNATS(t *testing.T) {
	server := streamtest.Server(t, t.TempDir())
	connect := func() *stream.Conn { return streamtest.Connect(t, server, slog.New(slog.DiscardHandler)) }
	holders := spread(numbered(100), 3)
	var asked []*stream.Conn
	for _, h := range holders[:2] {
		conn := connect()
		stop, err := AnswerTargets(conn, func() *TargetHolder { return h }, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		asked = append(asked, conn)
	}
	other := connect()
	if _, err := other.NC.Subscribe(other.StatusTargets(), func(m *nats.Msg) { _ = m.Respond([]byte(`{"version":2,"member":"newer"}`)) }); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(asked, other) {
		if err := c.NC.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	self := &TargetHolder{Member: "me", List: NewTargetList(numbered(3)), Dropped: map[string]int{"pool-0": 4}}
	src := TargetSource{Conn: connect(), Holders: []string{"member-0"}, Self: self}
	p, err := FindTargets(t.Context(), src, &TargetQuery{Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(holders[0].List.entries) + 3; p.All.Total() != want || len(p.Targets) != 10 || p.All.Dropped != 4 || p.Next == "" {
		t.Errorf("%d targets, want %d; %d listed, %d dropped", p.All.Total(), want, len(p.Targets), p.All.Dropped)
	}
	src.Holders = []string{"member-0", "member-1", "silent-1", "newer"}
	if p, err = FindTargets(t.Context(), src, &TargetQuery{}); err != nil {
		t.Fatal(err)
	}
	problems := strings.Join(p.Problems, "\n")
	if len(p.Targets) != 0 || !strings.Contains(problems, "silent-1 does not answer") || !strings.Contains(problems, "newer has version 2") {
		t.Errorf("%d targets; problems:\n%s", len(p.Targets), problems)
	}
	src.Conn = nil
	if p, err = FindTargets(t.Context(), src, &TargetQuery{}); err != nil || p.All.Total() != 3 || len(p.Problems) != 1 || !strings.Contains(p.Problems[0], "NATS is not reached") {
		t.Errorf("without NATS: %+v, %v", p, err)
	}
}
