package limit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPartitionsShareALimitExactly(t *testing.T) {
	const limit, each = 1000, 100
	h := newHouse(t, 4, Limits{Metric: Rule{MaxSeries: limit}})
	var kept atomic.Int64
	var all sync.WaitGroup
	for p := range h.parts {
		all.Go(func() {
			for i := range 5 {
				id, v := h.announce(p, "api", numbered("requests_total", fmt.Sprint(p), "user_id", i*each, each)...)
				h.mu.Lock()
				kept.Add(int64(h.kept(id, v)))
				h.mu.Unlock()
			}
		})
	}
	all.Wait()
	if n := kept.Load(); n != limit {
		t.Errorf("%d series have a place, the limit is %d", n, limit)
	}
	id, v := h.announce(1, "api", numbered("other", "1", "user_id", 0, 7)...)
	if n := h.kept(id, v); n != 7 {
		t.Errorf("%d of 7 series of another metric have a place", n)
	}
}

func TestTheNextOwnerDecidesTheSame(t *testing.T) {
	h := newHouse(t, 2, Limits{Metric: Rule{MaxSeries: 150}, Job: Rule{MaxSeries: 1000}})
	before := map[frame.DictID]Verdict{}
	for i := range 4 {
		id, v := h.announce(i%2, "api", numbered("x", fmt.Sprint(i%2), "user_id", 100*i, 60)...)
		before[id] = v
	}
	paused := h.parts[1]
	for _, p := range []int{1, 0, 1} {
		h.move(p)
		for id, want := range before {
			if got := h.again(id); !bytes.Equal(got.refused, want.refused) {
				t.Errorf("after partition %d has moved, another verdict on %s", p, id)
			}
		}
		if id, v := h.announce(1, "api", numbered("x", "1", "user_id", 1000+p, 60)...); h.kept(id, v) != 0 {
			t.Errorf("after partition %d has moved, %d series more than the limit have places", p, h.kept(id, v))
		}
	}
	// An owner from before, who does not know yet, decides nothing any more.
	d, _, err := frame.NewDictionary("api", []frame.Series{{Labels: labels.FromStrings("__name__", "late")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := paused.Judge(t.Context(), d, time.Now()); !errors.Is(err, ErrMoved) {
		t.Errorf("the owner from before: %v", err)
	}
}

func TestAnAccountantGrantsNothingBeforeItKnowsAll(t *testing.T) {
	a := NewAccountant(AccountantConfig{Partitions: 2, Limits: Limits{All: Rule{MaxSeries: 10}}, Epoch: 7, Lease: func(int) uint64 { return 3 }})
	wants := []want{{"x", 8}}
	for _, c := range []struct {
		name string
		ask  ask
		want status
		n    int
	}{
		{"of another accountant", ask{Epoch: 6, Lease: 3, Session: 1, Reset: true, Last: true}, unknown, 0},
		{"without an account", ask{Epoch: 7, Lease: 3, Session: 1, Want: wants}, unknown, 0},
		{"of an owner before", ask{Epoch: 7, Lease: 2, Session: 1, Reset: true, Last: true}, moved, 0},
		{"the first account", ask{Epoch: 7, Lease: 3, Session: 1, Reset: true, Last: true}, granted, 0},
		{"while one is missing", ask{Epoch: 7, Lease: 3, Session: 1, Want: wants}, incomplete, 0},
		{"half of the other account", ask{Epoch: 7, Partition: 1, Lease: 3, Session: 2, Reset: true, Have: []count{{All, "", 4}}}, granted, 0},
		{"while half is missing", ask{Epoch: 7, Lease: 3, Session: 1, Want: wants}, incomplete, 0},
		{"the rest of it", ask{Epoch: 7, Partition: 1, Lease: 3, Session: 2, Last: true}, granted, 0},
		{"what is left", ask{Epoch: 7, Lease: 3, Session: 1, Have: []count{{All, "", 0}}, Want: wants}, granted, 6},
		{"the same again, since the answer was lost", ask{Epoch: 7, Lease: 3, Session: 1, Have: []count{{All, "", 0}}, Want: wants}, granted, 6},
		{"more", ask{Epoch: 7, Lease: 3, Session: 1, Have: []count{{All, "", 6}}, Want: wants}, granted, 0},
		{"another session", ask{Epoch: 7, Lease: 3, Session: 9, Want: wants}, unknown, 0},
		{"a new owner's account", ask{Epoch: 7, Lease: 4, Session: 9, Reset: true, Last: true, Have: []count{{All, "", 2}}}, granted, 0},
		{"the owner before", ask{Epoch: 7, Lease: 3, Session: 1, Want: wants}, moved, 0},
		{"the new one", ask{Epoch: 7, Lease: 4, Session: 9, Have: []count{{All, "", 2}}, Want: wants}, granted, 4},
	} {
		r := a.handle(&c.ask)
		n := 0
		for _, g := range r.Grants {
			n += g.N
		}
		if r.Status != c.want || n != c.n {
			t.Errorf("%s: status %d with %d places, want %d with %d", c.name, r.Status, n, c.want, c.n)
		}
	}
}

func TestSeriesThatAreGoneFreeTheirPlaces(t *testing.T) {
	h := newHouse(t, 2, Limits{Metric: Rule{MaxSeries: 100}, FreeAfter: time.Second})
	old, _ := h.announce(0, "api", numbered("x", "0", "user_id", 0, 80)...)
	id, v := h.announce(1, "api", numbered("x", "1", "user_id", 0, 80)...)
	if n := h.kept(id, v); n != 20 {
		t.Fatalf("%d series have a place, want 20", n)
	}
	// The second is used all the while, the first is not.
	await.True(t, "its 80 series have a place", func() bool {
		for _, p := range h.parts {
			if err := p.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		v = h.again(id)
		return h.kept(id, v) == 80
	})
	if n := h.parts[0].Active(); n != 0 {
		t.Errorf("%d series of partition 0 still have a place", n)
	}
	// What was freed stays so for the next owner, though its verdict is still in the stream.
	h.move(0)
	if n := h.parts[0].Active(); n != 0 {
		t.Errorf("%d series have a place again", n)
	}
	if v := h.again(old); h.kept(old, v) != 20 {
		t.Errorf("%d series that have come back have a place, want 20", h.kept(old, v))
	}
}

func TestASeriesKeepsItsPlaceInAnotherDictionary(t *testing.T) {
	h := newHouse(t, 1, Limits{All: Rule{MaxSeries: 10}})
	list := numbered("x", "0", "user_id", 0, 12)
	h.announce(0, "api", list...)
	again := append(list[5:11:11], numbered("y", "0", "user_id", 0, 1)...)
	id, v := h.announce(0, "api", again...)
	if n := h.kept(id, v); n != 5 || h.parts[0].Active() != 10 {
		t.Errorf("%d series are kept, %d in all; want 5 of 10", n, h.parts[0].Active())
	}
}

func TestATargetOverItsLimitHarmsNoOther(t *testing.T) {
	h := newHouse(t, 1, Limits{Target: Rule{MaxSeries: 50}, All: Rule{MaxSeries: 90}})
	for _, c := range []struct {
		instance string
		n, want  int
	}{{"a", 60, 50}, {"a", 60, 50}, {"b", 30, 30}, {"c", 30, 10}} {
		id, v := h.announce(0, "api", numbered("x", c.instance, "user_id", 0, c.n)...)
		if n := h.kept(id, v); n != c.want {
			t.Errorf("target %s: %d series have a place, want %d", c.instance, n, c.want)
		}
	}
	id, v := h.announce(0, "api", numbered("x", "a", "user_id", 60, 10)...)
	if n := h.kept(id, v); n != 0 {
		t.Errorf("%d more series of target a have a place", n)
	}
}

func TestASeriesGoesWithoutALabelWhereNoOtherBecomesEqual(t *testing.T) {
	h := newHouse(t, 1, Limits{Metric: Rule{MaxSeries: 20, Action: DropLabel, Labels: []string{"user_id"}}})
	many, v := h.announce(0, "api", numbered("x", "0", "user_id", 0, 40)...)
	bare := `{__name__="x", instance="0", job="api"}`
	if n, bare := h.kept(many, v), h.count(many, v, bare); n != 19 || bare != 0 {
		t.Errorf("%d of 40 series are kept, %d without the label; want 19, and none that passes for 21", n, bare)
	}
	// One alone loses nothing but the label.
	one, v := h.announce(0, "api", numbered("x", "1", "user_id", 7, 1)...)
	bare = `{__name__="x", instance="1", job="api"}`
	if h.count(one, v, bare) != 1 {
		t.Errorf("the only series of a target is not kept without the label: %v", v)
	}
	// It does so for the next owner too, and in another dictionary.
	h.move(0)
	again, v := h.announce(0, "api", append(numbered("x", "1", "user_id", 7, 1), numbered("x", "0", "user_id", 90, 1)...)...)
	if h.count(again, v, bare) != 1 || h.kept(again, v) != 1 {
		t.Errorf("in another dictionary, it is not kept without the label: %v", v)
	}
	// Another one that would be equal ends that, in all dictionaries.
	other, v := h.announce(0, "api", numbered("x", "1", "user_id", 8, 1)...)
	for id, v := range map[frame.DictID]Verdict{one: h.latest[one], again: h.latest[again], other: v} {
		if h.kept(id, v) != 0 {
			t.Errorf("one of two series that would be equal is kept: %v", v)
		}
	}
	if n := h.parts[0].Active(); n != 19 {
		t.Errorf("%d series have a place, want 19", n)
	}
	// The next owner knows that there are two, whichever it hears of first.
	h.move(0)
	for _, id := range []frame.DictID{other, one, again} {
		if v := h.again(id); h.kept(id, v) != 0 {
			t.Errorf("after a move, one of two series that would be equal is kept: %v", v)
		}
	}
}

func TestASeriesIsNotKeptOutByOneThatGoesByItsLabels(t *testing.T) {
	h := newHouse(t, 1, Limits{Metric: Rule{MaxSeries: 100, Action: DropLabel, Labels: []string{"user_id"}}, All: Rule{MaxSeries: 200}})
	h.announce(0, "api", numbered("x", "0", "user_id", 0, 99)...)
	standIn, v := h.announce(0, "api", numbered("x", "1", "user_id", 7, 1)...)
	if h.kept(standIn, v) != 1 {
		t.Fatal("a series alone is not kept without the label")
	}
	h.parts[0].mu.Lock()
	h.parts[0].cfg.Limits.Metric.MaxSeries = 200 // so that there is room for one with its own labels
	h.parts[0].mu.Unlock()
	h.limits.Metric.MaxSeries = 200
	h.move(0)
	own, _ := h.announce(0, "api", labels.FromStrings("__name__", "x", "job", "api", "instance", "1"))
	if v := h.latest[own]; h.kept(own, v) != 1 {
		t.Error("a series is refused because another goes by its labels")
	}
	if v := h.latest[standIn]; h.count(standIn, v, `{__name__="x", instance="1", job="api"}`) != 0 {
		t.Error("two series have the same labels")
	}
}

// TestASeriesGoesWithoutALabelAgain when it is alone again.
func TestASeriesGoesWithoutALabelAgain(t *testing.T) {
	h := newHouse(t, 1, Limits{Metric: Rule{MaxSeries: 1, Action: DropLabel, Labels: []string{"user_id"}}, FreeAfter: time.Second})
	h.announce(0, "api", numbered("x", "0", "user_id", 0, 2)...)
	one, v := h.announce(0, "api", numbered("x", "0", "user_id", 0, 1)...)
	if h.kept(one, v) != 0 {
		t.Fatal("one of two series that would be equal is kept")
	}
	await.True(t, "it is kept", func() bool {
		if err := h.parts[0].Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		return h.kept(one, h.again(one)) > 0
	})
	if n := len(h.parts[0].contest.known); n != 1 {
		t.Errorf("%d label sets are remembered", n)
	}
}

func TestALimitThatWarnsLetsAllThrough(t *testing.T) {
	h := newHouse(t, 2, Limits{Job: Rule{MaxSeries: 10, Action: Warn}})
	for p := range 2 {
		if id, v := h.announce(p, "api", numbered("x", fmt.Sprint(p), "user_id", 0, 8)...); h.kept(id, v) != 8 {
			t.Errorf("%d of 8 series are kept", h.kept(id, v))
		}
	}
	if top := h.parts[1].offenders.top(); len(top) != 1 || top[0] != (stop{Job, "api", "x", 6, "user_id"}) {
		t.Errorf("offenders %+v", top)
	}
}

func TestOffendersAreNamed(t *testing.T) {
	h := newHouse(t, 1, Limits{Metric: Rule{MaxSeries: 10}})
	var list []labels.Labels
	for i := range 100 {
		list = append(list, labels.FromStrings("__name__", "requests_total", "job", "api", "instance", "0", "path", fmt.Sprint(i%5), "user_id", fmt.Sprint(i), "zone", "a"))
	}
	h.announce(0, "api", list...)
	want := stop{Metric, "requests_total", "requests_total", 90, "user_id"}
	if top := h.parts[0].offenders.top(); len(top) != 1 || top[0] != want {
		t.Errorf("offenders %+v", top)
	}
	line := h.log.String()
	for _, part := range []string{"level=WARN", "limit=metric", "name=requests_total", "max_series=10", "label=user_id", "series_beyond=90", "action=refuse"} {
		if !strings.Contains(line, part) {
			t.Errorf("the log lacks %s: %s", part, line)
		}
	}
	// The next owner knows them from the stream.
	h.move(0)
	if top := h.parts[0].offenders.top(); len(top) != 1 || top[0] != want {
		t.Errorf("offenders after a move %+v", top)
	}
}

func TestALabelIsNamedAsSoonAsItHasGrown(t *testing.T) {
	h := newHouse(t, 1, Limits{Metric: Rule{MaxSeries: 1}})
	for i, want := range []string{"", "", "user_id"} {
		h.announce(0, "api", numbered("x", "0", "user_id", i, 1)...)
		if top := h.parts[0].offenders.top(); i > 0 && (len(top) != 1 || top[0].Label != want || top[0].Series != i) {
			t.Errorf("after %d series, offenders are %+v", i+1, top)
		}
	}
}

// TestLimitsHoldWhateverHappens lets partitions move and dictionaries come and go at random.
func TestLimitsHoldWhateverHappens(t *testing.T) {
	limits := Limits{
		Target: Rule{MaxSeries: 60}, Job: Rule{MaxSeries: 150}, Metric: Rule{MaxSeries: 90, Action: DropLabel, Labels: []string{"user_id"}}, All: Rule{MaxSeries: 170},
		FreeAfter: time.Hour,
	}
	h := newHouse(t, 3, limits)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	verdicts := map[frame.DictID]Verdict{}
	for range 150 {
		switch p := rnd.IntN(3); rnd.IntN(6) {
		case 0:
			h.move(p)
		case 1:
			for id := range verdicts {
				verdicts[id] = h.again(id)
				h.update(verdicts)
				break
			}
		case 2: // one is gone
			for id := range verdicts {
				x := h.parts[h.judged[id].partition]
				x.mu.Lock()
				if err := x.journal.append(t.Context(), &record{Freed: id[:]}); err != nil {
					t.Fatal(err)
				}
				changed := x.take(id)
				err := x.report(t.Context(), changed)
				x.mu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
				delete(verdicts, id)
				break
			}
		default:
			job := fmt.Sprint("job", rnd.IntN(2))
			var list []labels.Labels
			seen := map[int]bool{}
			for range 1 + rnd.IntN(20) {
				if user := rnd.IntN(200); !seen[user] {
					seen[user] = true
					b := labels.NewBuilder(labels.FromStrings("__name__", fmt.Sprint("m", rnd.IntN(2)), "job", job, "instance", fmt.Sprint(p)))
					if user > 0 {
						b.Set("user_id", fmt.Sprint(user))
					}
					list = append(list, b.Labels())
				}
			}
			id, v := h.announce(p, job, list...)
			verdicts[id] = v
			h.update(verdicts)
		}
		h.holds(verdicts)
	}
}

// holds checks that live verdicts are within the limits, and that no two series have become one.
func (h *house) holds(verdicts map[frame.DictID]Verdict) {
	h.t.Helper()
	counts := map[key]int{}
	whose := map[string]string{}
	for id, v := range verdicts {
		d := h.judged[id]
		for i, s := range v.Apply(d.Series) {
			if s.Labels.IsEmpty() {
				continue
			}
			text, own := s.Labels.String(), d.Series[i].Labels.String()
			if other, ok := whose[text]; ok {
				if other != own {
					h.t.Fatalf("%s and %s have both become %s", other, own, text)
				}
				continue
			}
			whose[text] = own
			target, _ := target(s.Labels)
			for _, k := range []key{{Target, target}, {Job, d.Job}, {Metric, s.Labels.Get("__name__")}, {All, ""}} {
				if counts[k]++; counts[k] > h.limits.rule(k.kind).MaxSeries {
					h.t.Fatalf("%s %q has more than %d series", k.kind, k.name, h.limits.rule(k.kind).MaxSeries)
				}
			}
		}
	}
}

// TestLongNamesNeitherBlockNorBecomeOne has as many metrics in a dictionary as there can be, with names that together are larger than a message of NATS and differ far behind.
func TestLongNamesNeitherBlockNorBecomeOne(t *testing.T) {
	const limit = frame.MaxSeries - 100
	h := newHouse(t, 2, Limits{Metric: Rule{MaxSeries: 1}, All: Rule{MaxSeries: limit}})
	var list []labels.Labels
	for i := range frame.MaxSeries {
		list = append(list, labels.FromStrings("__name__", fmt.Sprint(strings.Repeat("é", 200), i), "job", "api", "instance", "0"))
	}
	id, v := h.announce(1, "api", list...)
	if n := h.kept(id, v); n != limit {
		t.Fatalf("%d series have a place, want %d", n, limit)
	}
	// The next owners, of this partition and of the accountant, are told all of it.
	h.move(1)
	h.move(0)
	if v := h.again(id); h.kept(id, v) != limit {
		t.Errorf("%d series have a place after a move, want %d", h.kept(id, v), limit)
	}
	if id, v := h.announce(0, "api", numbered("x", "1", "user_id", 0, 1)...); h.kept(id, v) != 0 {
		t.Error("a series beyond the limit has a place")
	}
	if id, v := h.announce(0, "api", list[0]); h.kept(id, v) != 0 {
		t.Error("a second series of a metric has a place")
	}
}

// TestALongInstanceIsWritten whose name is in more offences than a message of NATS holds.
func TestALongInstanceIsWritten(t *testing.T) {
	h := newHouse(t, 1, Limits{Target: Rule{MaxSeries: 1}})
	instance := strings.Repeat("é", 20_000)
	var list []labels.Labels
	for i := range 2 * maxStops {
		list = append(list, labels.FromStrings("__name__", fmt.Sprint("m", i), "job", "api", "instance", instance))
	}
	id, v := h.announce(0, "api", list...)
	h.move(0)
	if again := h.again(id); h.kept(id, v) != 1 || !bytes.Equal(v.refused, again.refused) {
		t.Errorf("%d series have a place, %d after a move; want 1", h.kept(id, v), h.kept(id, again))
	}
	top := h.parts[0].offenders.top()
	if len(top) != shown || len(top[0].Name) > maxName || !utf8.ValidString(top[0].Name) || !strings.HasPrefix(top[0].Name, "api/éé") {
		t.Errorf("offenders %+v", top)
	}
}

func TestARecordNamesFewerOffencesWhereItWouldBeTooLarge(t *testing.T) {
	h := newHouse(t, 1, Limits{Target: Rule{MaxSeries: 1}})
	j := &journal{conn: h.conn, subject: h.conn.Verdicts(0)}
	if _, err := j.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := frame.DictID{1}
	r := &record{Dict: id[:], Series: 3, Refused: []byte{7}}
	for range maxStops {
		r.Stops = append(r.Stops, stop{Kind: Target, Name: strings.Repeat("x", 60_000)})
	}
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	if err := j.append(ctx, r); err != nil {
		t.Fatal(err)
	}
	live, err := j.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w := live[id]; w == nil || len(w.Stops) != 8 || !marks(w.Refused).has(2) {
		t.Errorf("%d offences are left: %v", len(w.Stops), w.Refused)
	}
}

func TestWhatIsTooLargeForNATSIsNotTriedForEver(t *testing.T) {
	h := newHouse(t, 1, Limits{Job: Rule{MaxSeries: 1}})
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	p := h.parts[0]
	p.mu.Lock()
	defer p.mu.Unlock()
	huge := strings.Repeat("x", int(h.conn.NC.MaxPayload()))
	_, asked := p.request(ctx, &ask{Job: huge})
	for place, err := range map[string]error{h.conn.Limits(): asked, h.conn.Verdicts(0): p.journal.append(ctx, &record{Drop: []string{huge}})} {
		if !errors.Is(err, stream.ErrTooLarge) || !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "max_payload") {
			t.Errorf("%s: %v", place, err)
		}
	}
}

// TestAJournalWhoseMessagesHavePassedGoesOn whether it is known or not that the first try has stored nothing.
func TestAJournalWhoseMessagesHavePassedGoesOn(t *testing.T) {
	h := newHouse(t, 1, Limits{Target: Rule{MaxSeries: 1}})
	h.parts[0].stop()
	empty := func() {
		if err := h.conn.JS.DeleteStream(t.Context(), h.conn.Stream(stream.Verdicts)); err != nil {
			t.Error(err)
		}
	}
	ensure := func() {
		if err := h.conn.Ensure(t.Context(), stream.Layout{Partitions: 1, Replicas: 1, Verdicts: true}); err != nil {
			t.Error(err)
		}
	}
	for name, pass := range map[string]func(){"known": func() { empty(); ensure() }, "in doubt": empty} {
		t.Run(name, func(t *testing.T) {
			j := &journal{conn: h.conn, subject: h.conn.Verdicts(0), waiting: func(error) { ensure() }}
			if _, err := j.open(t.Context()); err != nil {
				t.Fatal(err)
			}
			pass()
			ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
			defer cancel()
			for range 2 {
				if err := j.append(ctx, &record{Freed: make([]byte, 16)}); err != nil {
					t.Fatal(err)
				}
			}
			// Another process is noticed as before.
			other := &journal{conn: h.conn, subject: j.subject, owner: 1}
			if _, err := other.open(ctx); err != nil {
				t.Fatal(err)
			}
			if err := j.append(ctx, &record{}); !errors.Is(err, ErrMoved) {
				t.Errorf("after another process has written: %v", err)
			}
		})
	}
}

func FuzzMessages(f *testing.F) {
	f.Add((&record{Owner: 1, Dict: make([]byte, 16), Series: 9, Refused: []byte{1, 1}, Drop: []string{"a"}, Stops: []stop{{Metric, "x", "x", 3, "l"}}}).encode())
	f.Add((&record{Freed: make([]byte, 32)}).encode())
	f.Add(encodeMessage(&ask{Epoch: 1, Have: []count{{Job, "a", 1}}, Want: []want{{"m", 2}}}))
	f.Add(encodeMessage(&reply{Grants: []grant{{N: 1, Over: []over{{All, 3}}}}, Missing: []int{1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil {
			if again, err := decodeRecord(r.encode()); err != nil || again.Series != r.Series || len(again.Stops) != len(r.Stops) {
				t.Errorf("%+v becomes %+v: %v", r, again, err)
			}
		}
		var q ask
		if decodeMessage(b, &q) == nil && q.Partition == 0 {
			NewAccountant(AccountantConfig{Partitions: 1, Limits: Limits{All: Rule{MaxSeries: 5}}, Epoch: q.Epoch, Lease: func(int) uint64 { return 0 }}).handle(&q)
		}
		_ = decodeMessage(b, &reply{})
	})
}
