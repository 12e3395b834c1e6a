package writer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
)

// soon is the age from which on tests do not wait for a message.
const soon = time.Second

func freshFirst(e *Endpoint) { e.FreshFirst = &FreshFirst{After: soon, Share: 0.5} }

func small(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 10 }

// scrapes publishes n messages of a dictionary, a millisecond of sample time apart.
func (r *rig) scrapes(d *dict, from int64, n int) {
	for i := range int64(n) {
		r.send(0, r.floats(d, from+i, float64(i)))
	}
}

// holding answers 503 where one of the samples is of these times.
func holding(from, to int64) func(*request) (int, string, map[string]string) {
	return func(r *request) (int, string, map[string]string) {
		for _, x := range r.points {
			if x.T >= from && x.T < to {
				return 503, "not yet", nil
			}
		}
		return 200, "", nil
	}
}

func (e *recorder) has(at int64) bool { return slices.Contains(timesOf(e.points()), at) }

// times returns the times that arrived, each once, in the order of their first arrival.
func (e *recorder) times() (list []int64) {
	for _, t := range timesOf(e.points()) {
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list
}

func between(list []int64, from, to int64) []int64 {
	return slices.DeleteFunc(slices.Clone(list), func(t int64) bool { return t < from || t >= to })
}

func count(from int64, n int) (list []int64) {
	for i := range int64(n) {
		list = append(list, from+i)
	}
	return list
}

// allSent waits until the endpoint lags by nothing.
func (s *service) allSent(t *testing.T) {
	t.Helper()
	await.True(t, "nothing left to send", func() bool { st := s.Status()[0]; return st.Messages == 0 && st.Backlog == 0 && st.Oldest.IsZero() })
}

// noneLost fails where samples of the endpoint are counted as lost.
func (s *service) noneLost(t *testing.T) {
	t.Helper()
	if n := s.value(t, "millrace_writer_lost_samples_total", "prod"); n != 0 {
		t.Errorf("%v samples are counted as lost:\n%s", n, s.log)
	}
}

// outage lets an endpoint fail while n messages come, of which it takes none but those that were under way.
func (r *rig) outage(e *recorder, d *dict, from int64, n int) {
	r.t.Helper()
	e.answers(func(*request) (int, string, map[string]string) { return 503, "down", nil })
	asked := len(e.requests())
	r.scrapes(d, from, n)
	await.True(r.t, "a request", func() bool { return len(e.requests()) > asked })
	passed(r.t, soon+soon/5) // the messages are old then
}

// passed waits until a time has passed.
func passed(t *testing.T, d time.Duration) {
	t.Helper()
	began := time.Now()
	await.True(t, fmt.Sprint(d, " have passed"), func() bool { return time.Since(began) > d })
}

// startFresh starts a service whose only endpoint gets new samples first.
func startFresh(t *testing.T) (*rig, *recorder, Endpoint, *service, *dict) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", freshFirst, small)
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 10)
	r.announce(0, d, cfg)
	return r, e, cfg, s, d
}

func TestNewSamplesDoNotWaitForABacklog(t *testing.T) {
	r, e, _, s, d := startFresh(t)
	r.outage(e, d, 1000, 60)
	// What was read when it failed goes out as it is, the rest of the backlog is held up.
	e.answers(holding(1010, 1060))
	await.True(t, "a jump", func() bool { return s.Status()[0].Backlog > 0 })
	r.scrapes(d, 2000, 20)
	await.True(t, "new samples", func() bool { return e.has(2019) })
	st := s.Status()[0]
	if st.Backlog < 50 || st.Messages < st.Backlog || st.Oldest.UnixMilli() < 1000 || st.Oldest.UnixMilli() > 1010 || st.Lag == 0 {
		t.Errorf("with a backlog of 50 messages and more: %+v", st)
	}
	if n := s.value(t, "millrace_writer_backlog_messages", "prod"); n < 50 || n > 60 { // what was read when it failed may be on its way
		t.Errorf("backlog_messages is %v", n)
	}
	await.True(t, "a word of the backlog", func() bool { return strings.HasPrefix(s.Status()[0].Waiting, "backlog waiting: ") })
	e.answers(nil)
	s.allSent(t)
	all := e.times()
	if d := cmp.Diff(count(1000, 60), between(all, 1000, 1060)); d != "" {
		t.Errorf("backlog (-want +got):\n%s", d)
	}
	if d := cmp.Diff(count(2000, 20), between(all, 2000, 2020)); d != "" {
		t.Errorf("new samples (-want +got):\n%s", d)
	}
	if n := len(e.points()); n != 800 {
		t.Errorf("%d samples arrived", n)
	}
	s.noneLost(t)
	for _, words := range []string{"new samples go out at once", "A backlog is sent"} {
		if !strings.Contains(s.log.String(), words) {
			t.Errorf("the log does not say %q", words)
		}
	}
}

func TestStrictOrderStaysStrict(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", small)
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 10)
	r.announce(0, d, cfg)
	r.outage(e, d, 1000, 60)
	r.scrapes(d, 2000, 20)
	e.answers(nil)
	s.allSent(t)
	inOrder(t, e.points())
	if n := len(e.points()); n != 800 {
		t.Errorf("%d samples arrived", n)
	}
}

// kill stops the service and puts back the position as it was stored before, as if the process had been killed.
func (r *rig) kill(s *service, stored []byte) {
	r.t.Helper()
	s.stop()
	if _, err := r.positions().Put(r.t.Context(), positionKey("prod", 0), stored); err != nil {
		r.t.Fatal(err)
	}
}

func TestABacklogOutlivesKillsAndStops(t *testing.T) {
	r, e, cfg, s, d := startFresh(t)
	before := r.position("prod", 0)
	r.outage(e, d, 1000, 60)
	e.answers(holding(1010, 1060))
	await.True(t, "a jump", func() bool { return s.Status()[0].Backlog > 0 })
	// Killed before the jump is stored, everything is read again.
	r.kill(s, before)
	s = r.start([]Endpoint{cfg})
	await.True(t, "another jump", func() bool { return s.Status()[0].Backlog > 0 })
	r.scrapes(d, 2000, 5)
	await.True(t, "new samples", func() bool { return e.has(2004) })
	var middle []byte
	await.True(t, "the jump is stored", func() bool {
		middle = r.position("prod", 0)
		return len(middle) >= len(before)+20
	})
	e.answers(holding(1030, 1060))
	await.True(t, "half of the backlog", func() bool { return e.has(1029) })
	// Killed with the backlog's progress as it was stored some time before.
	r.kill(s, middle)
	s = r.start([]Endpoint{cfg})
	r.scrapes(d, 2005, 5)
	await.True(t, "new samples", func() bool { return e.has(2009) })
	// A planned stop repeats nothing.
	e.answers(holding(1045, 1060))
	await.True(t, "more of the backlog", func() bool { return e.has(1044) })
	s.stop()
	arrived := len(e.points())
	s = r.start([]Endpoint{cfg})
	await.True(t, "a word of the backlog", func() bool {
		return strings.Contains(s.log.String(), "Older samples were passed over for newer ones; they are sent beside new samples")
	})
	e.answers(nil)
	r.scrapes(d, 2010, 1)
	await.True(t, "new samples", func() bool { return e.has(2010) })
	s.allSent(t)
	// Where a request is full with one message, the message is noted with the next request.
	if n := len(e.points()) - arrived; n < 10*(15+1) || n > 10*(15+1+2) {
		t.Errorf("%d samples arrived after a planned stop", n)
	}
	all := e.times()
	if d := cmp.Diff(count(1000, 60), between(all, 1000, 1060)); d != "" {
		t.Errorf("backlog (-want +got):\n%s", d)
	}
	if d := cmp.Diff(count(2000, 11), between(all, 2000, 2011)); d != "" {
		t.Errorf("new samples (-want +got):\n%s", d)
	}
	s.noneLost(t)
}

func TestABacklogIsSentFirstWhenTheOptionIsSwitchedOff(t *testing.T) {
	r, e, _, s, d := startFresh(t)
	r.outage(e, d, 1000, 60)
	e.answers(holding(1010, 1060))
	await.True(t, "a jump", func() bool { return s.Status()[0].Backlog > 0 })
	r.scrapes(d, 2000, 5)
	await.True(t, "new samples", func() bool { return e.has(2004) })
	if err := s.ApplyConfig(t.Context(), []Endpoint{e.endpoint("prod", small)}); err != nil {
		t.Fatal(err)
	}
	await.True(t, "a word about it", func() bool {
		return strings.Contains(s.log.String(), "they are sent before new samples, because order is strict now")
	})
	r.scrapes(d, 2005, 5)
	e.answers(nil)
	s.allSent(t)
	await.True(t, "the newest", func() bool { return e.has(2009) })
	all := e.times()
	if d := cmp.Diff(count(1000, 60), between(all, 1000, 1060)); d != "" {
		t.Errorf("backlog (-want +got):\n%s", d)
	}
	if slices.Index(all, 2005) < slices.Index(all, 1059) {
		t.Errorf("new samples went first: %v", all)
	}
	r.outage(e, d, 3000, 30)
	r.scrapes(d, 4000, 5)
	e.answers(nil)
	s.allSent(t)
	inOrder(t, slices.DeleteFunc(e.points(), func(x point) bool { return x.T < 2005 }))
	s.noneLost(t)
}

func TestAnEndpointThatFailsAgainGetsAnotherGap(t *testing.T) {
	r, e, _, s, d := startFresh(t)
	for n := range int64(3) {
		r.outage(e, d, 10_000*(n+1), 40)
		e.answers(func(req *request) (int, string, map[string]string) {
			for i := range n + 1 {
				if status, text, _ := holding(10_000*(i+1)+10, 10_000*(i+1)+40)(req); status != 200 {
					return status, text, nil
				}
			}
			return 200, "", nil
		})
		fresh := 10_000*(n+1) + 5000
		await.True(t, "a jump", func() bool { return strings.Count(s.log.String(), "new samples go out at once") == int(n)+1 })
		r.scrapes(d, fresh, 5)
		await.True(t, fmt.Sprint("new samples after outage ", n+1), func() bool { return e.has(fresh + 4) })
	}
	if n := s.Status()[0].Backlog; n < 90 {
		t.Errorf("%d messages behind", n)
	}
	e.answers(nil)
	s.allSent(t)
	all := e.times()
	var want []int64
	for n := range int64(3) {
		want = append(want, count(10_000*(n+1), 40)...)
		if d := cmp.Diff(count(10_000*(n+1)+5000, 5), between(all, 10_000*(n+1)+5000, 10_000*(n+1)+6000)); d != "" {
			t.Errorf("new samples (-want +got):\n%s", d)
		}
	}
	old := slices.DeleteFunc(slices.Clone(all), func(t int64) bool { return t%10_000 >= 5000 })
	slices.Sort(old)
	if d := cmp.Diff(want, old); d != "" {
		t.Errorf("backlog (-want +got):\n%s", d)
	}
	if n := len(e.points()); n != 10*3*45 {
		t.Errorf("%d samples arrived", n)
	}
	s.noneLost(t)
}

func TestABacklogThatCannotBeReadHoldsNoNewSamplesUp(t *testing.T) {
	r, e, _, s, d := startFresh(t)
	e.answers(func(*request) (int, string, map[string]string) { return 503, "down", nil })
	r.scrapes(d, 1000, 10)
	r.publish(r.conn.Frames(0), []byte{99, 1, 2, 3}) // of a newer version: it waits for an upgrade
	r.scrapes(d, 1010, 10)
	await.True(t, "a request", func() bool { return len(e.requests()) > 0 })
	passed(t, soon+soon/5)
	e.answers(nil)
	await.True(t, "a word about it", func() bool { return strings.Contains(s.log.String(), "Cannot send the backlog, trying again") })
	r.scrapes(d, 2000, 10)
	await.True(t, "new samples", func() bool { return e.has(2009) })
	if st := s.Status()[0]; st.Backlog < 10 || !strings.Contains(st.Waiting, "version 99") {
		t.Errorf("with a backlog that cannot be read: %+v", st)
	}
	if e.has(1010) {
		t.Error("it has passed over the message")
	}
}

func TestGapsAreBounded(t *testing.T) {
	b := &backlog{change: make(chan struct{}, 1), mb: &stream.Mailbox{}}
	for i := range uint64(maxGaps) {
		if b.full() {
			t.Fatalf("full with %d gaps", i)
		}
		b.add(&gap{After: 10*i + 1, End: 10*i + 5, Messages: 4}, time.Now())
	}
	if !b.full() || b.messages() != 4*maxGaps {
		t.Errorf("%d messages in %d gaps", b.messages(), len(b.note.Gaps))
	}
	last := b.note.Gaps[maxGaps-1].End
	b.add(&gap{After: last, End: last + 7, Messages: 7}, time.Now())
	if len(b.note.Gaps) != maxGaps || b.note.Gaps[maxGaps-1].End != last+7 || b.messages() != 4*maxGaps+7 {
		t.Errorf("a gap behind the last one: %d gaps, %d messages", len(b.note.Gaps), b.messages())
	}
}

func TestWhatRetentionTakesFromABacklogIsCounted(t *testing.T) {
	for name, tc := range map[string]struct {
		purge   int // messages from the oldest on, without the dictionary
		restart bool
	}{
		"its beginning": {40, false}, "its beginning, restarted": {40, true}, "all of it": {61, false}, "all of it, restarted": {61, true},
		"all and what came since": {66, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", freshFirst, small)
			readAhead := func(c *Config) { c.ReadAhead = 1 }
			s := r.start([]Endpoint{cfg}, readAhead)
			d := r.named("x", 10)
			r.announce(0, d, cfg)
			r.scrapes(d, 500, 1) // so that the marks are known
			e.wait(10)
			r.outage(e, d, 1000, 60)
			e.answers(holding(1010, 1060))
			await.True(t, "a jump", func() bool { return s.Status()[0].Backlog > 0 })
			if tc.purge <= 61 {
				r.scrapes(d, 2000, 5)
				await.True(t, "new samples", func() bool { return e.has(2004) })
			}
			lost := 0.0
			if tc.restart {
				lost = s.value(t, "millrace_writer_lost_samples_total", "prod")
				s.stop()
			}
			if tc.purge > 61 {
				r.scrapes(d, 2000, 5)
			}
			st, err := r.conn.JS.Stream(t.Context(), r.conn.Stream(stream.Frames))
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Purge(t.Context(), jetstream.WithPurgeSequence(uint64(tc.purge)+1)); err != nil {
				t.Fatal(err)
			}
			if tc.restart {
				s = r.start([]Endpoint{cfg}, readAhead)
			}
			e.answers(nil)
			r.scrapes(d, 3000, 1)
			await.True(t, "the newest", func() bool { return e.has(3000) })
			s.allSent(t)
			want := 10 * (1 + 60 + 5 + 1 - len(e.times()))
			// What arrived just before a stop and was not noted counts as lost when it is read again and is gone.
			await.True(t, fmt.Sprint("a count of ", want), func() bool {
				n := int(lost + s.value(t, "millrace_writer_lost_samples_total", "prod"))
				return n == want || tc.restart && n == want+10
			})
			if want < 200 {
				t.Errorf("only %d samples are lost", want)
			}
		})
	}
}
