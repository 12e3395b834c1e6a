package publish

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestUnitsAreToldInTheOrderOfTheOffers(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn, func(c *Config) { c.MaxBatchBytes = 2000 })
	r.linger = time.Hour
	barrier := &Unit{}
	r.offer(0, r.named("barrier", barrier))
	r.offer(0, r.named("small", r.unit(1, 10)))
	big := r.unit(2, 30_000)
	big.Done = func(err error) {
		if n := total(stored(t, conn, 0)); n != 30_010 {
			t.Errorf("the stream has %d samples when the unit is told", n)
		}
		r.told <- told{"big", err}
	}
	r.offer(0, big)
	r.run()
	if err := r.expect("barrier", "small", "big"); err != nil {
		t.Error(err)
	}
	if r.budget.Pending() != 0 {
		t.Errorf("%d bytes are pending", r.budget.Pending())
	}
}

func TestABarrierWaitsForWhatIsBeforeItAndHurriesNothing(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.linger = time.Hour
	r.run()
	r.offer(0, r.named("lone", &Unit{}))
	if err := r.expect("lone"); err != nil {
		t.Error(err)
	}
	r.offer(0, r.named("unit", r.unit(1, 10)), r.named("barrier", &Unit{}))
	await.True(t, "both with the publisher", func() bool { return r.list[0].mailbox.Len() == 0 })
	r.nothing()
	if n := len(batches(t, conn, 0)); n != 0 {
		t.Errorf("%d batches because of a barrier", n)
	}
	r.offer(1, r.named("of another partition", &Unit{}))
	r.expect("of another partition")
	r.Flush(t.Context(), 0)
	if err := r.expect("unit", "barrier"); err != nil {
		t.Error(err)
	}
	if n := len(batches(t, conn, 0)); n != 1 {
		t.Errorf("%d batches after a flush", n)
	}
}

func TestABudgetIsNeverExceeded(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	a, b, c := r.unit(1, 10), r.unit(2, 10), r.unit(3, 10)
	r.budget = NewBudget(int64(2*a.Bytes + 1))
	a.Budget, b.Budget, c.Budget = r.budget, r.budget, r.budget
	r.offer(0, a)
	r.offer(1, b) // of another partition, the same budget
	if r.Offer(0, c) {
		t.Error("a unit was taken for which there is no room")
	}
	if n := r.budget.Pending(); n != int64(2*a.Bytes) || r.budget.Limit() != n+1 {
		t.Errorf("%d bytes of %d are pending", n, r.budget.Limit())
	}
	r.offer(0, &Unit{Budget: r.budget}) // which takes nothing
	other := r.unit(4, 10)
	other.Budget = NewBudget(1 << 20) // of another service
	r.offer(0, other)
	r.run()
	await.True(t, "room", func() bool { return r.budget.Pending() == 0 && other.Budget.Pending() == 0 })
	r.offer(0, c)
	await.True(t, "the unit that was refused before", func() bool { return len(stored(t, conn, 0)) == 3 })
}

func TestABudgetIsSharedByMany(t *testing.T) {
	b := NewBudget(100)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if b.Take(30) {
					if n := b.Pending(); n > 90 || n < 30 {
						t.Errorf("%d bytes are pending", n)
					}
					b.Give(30)
				}
				if b.Take(101) {
					t.Error("more than the limit was taken")
				}
			}
		})
	}
	wg.Wait()
	if b.Pending() != 0 {
		t.Errorf("%d bytes are pending", b.Pending())
	}
}

func TestAFullMailboxRefuses(t *testing.T) {
	r := newRig(t, streamtest.New(t, 2))
	for range queueLength {
		r.offer(0, &Unit{})
	}
	if u := r.unit(1, 10); r.Offer(0, u) || r.budget.Pending() != 0 {
		t.Errorf("the unit was taken, or %d bytes of it", r.budget.Pending())
	}
}

func TestWhatNATSNeverTakesIsDropped(t *testing.T) {
	conn := streamtest.New(t, 2)
	large := noise(conn)
	one := func(data []byte, samples int) Frame { return Frame{Data: data, Time: 1, Samples: samples} }
	for what, u := range map[string]*Unit{
		"a dictionary":               {Dicts: []Dict{{ID: frame.DictID{1}, Msg: large}}, Frames: []Frame{one([]byte{1}, 3), one([]byte{1}, 4)}},
		"a batch":                    {Frames: []Frame{one(large, 7)}},
		"a frame above any a reader": {Frames: []Frame{one(make([]byte, maxFrame+1), 7)}},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, conn)
			before := len(stored(t, conn, 0))
			u.Bytes, u.Budget = 10, r.budget
			r.offer(0, r.named("before", r.unit(1, 10)), r.named("dropped", u), r.named("barrier", &Unit{}), r.named("next", r.unit(2, 5)), r.named("second barrier", &Unit{}))
			stop := r.run()
			if err := r.expect("before"); err != nil {
				t.Errorf("what is before was told %v", err)
			}
			err := r.expect("dropped")
			var d *DroppedError
			if !errors.Is(err, ErrDropped) || !errors.As(err, &d) || d.Samples != 7 || d.Reason == nil {
				t.Errorf("the unit was told %v", err)
			}
			if !errors.Is(err, stream.ErrTooLarge) {
				t.Errorf("the unit was told %v, want %v", err, stream.ErrTooLarge)
			}
			if err := r.expect("barrier"); !errors.Is(err, ErrDropped) {
				t.Errorf("a barrier that waited for it was told %v", err)
			}
			if err := r.expect("next"); err != nil {
				t.Errorf("what is behind was told %v", err)
			}
			r.expect("second barrier")
			r.offer(0, r.named("late barrier", &Unit{}))
			if err := r.expect("late barrier"); err != nil {
				t.Errorf("a barrier that came later was told %v", err)
			}
			stop()
			if !strings.Contains(r.log.String(), "Dropping ") || r.budget.Pending() != 0 {
				t.Errorf("%d bytes are pending\n%s", r.budget.Pending(), r.log)
			}
			if n := len(stored(t, conn, 0)); n != before+2 {
				t.Errorf("%d frames are in the stream, want %d", n, before+2)
			}
		})
	}
}

// TestABarrierIsOfferedWhileADroppedUnitIsTold offers barriers, with and without frames, from within Done of a unit that is dropped: what they wait for may be that unit.
func TestABarrierIsOfferedWhileADroppedUnitIsTold(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	dropped := &Unit{Frames: []Frame{{Data: make([]byte, maxFrame+1), Time: 1, Samples: 7}}}
	waits := r.named("with frames", r.unit(1, 10))
	waits.Waits = true
	barrier, late := r.named("barrier", &Unit{}), r.named("late", r.unit(2, 10))
	late.Waits = true
	dropped.Done = func(error) {
		if !r.Offer(0, waits) || !r.Offer(0, barrier) {
			t.Error("there is no room")
		}
	}
	r.offer(0, dropped)
	r.run()
	for _, name := range []string{"with frames", "barrier"} {
		if err := r.expect(name); !errors.Is(err, ErrDropped) {
			t.Errorf("%s: told %v", name, err)
		}
	}
	if n := total(stored(t, conn, 0)); n != 10 {
		t.Errorf("%d samples are in the stream, want those of the barrier", n)
	}
	r.offer(0, late)
	if err := r.expect("late"); err != nil {
		t.Errorf("what came later was told %v", err)
	}
}

// TestOnlyWhatIsLostOfAUnitIsCounted has a unit whose frames go with three batches, of which the stream gets two.
func TestOnlyWhatIsLostOfAUnitIsCounted(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn, func(c *Config) { c.MaxBatchBytes = 100 })
	u := r.unit(1, 100)
	u.Frames = append(u.Frames, Frame{Data: noise(conn), Time: 1, Samples: 7}, r.unit(2, 100).Frames[0])
	r.offer(0, r.named("unit", u))
	r.run()
	err := r.expect("unit")
	if d := (*DroppedError)(nil); !errors.As(err, &d) || d.Samples != 7 {
		t.Errorf("the unit was told %v", err)
	}
	if n := total(stored(t, conn, 0)); n != 200 {
		t.Errorf("%d samples are in the stream, want 200", n)
	}
}

func TestStoppingPublishesWhatIsHeld(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.linger = time.Hour
	stop := r.run()
	r.offer(0, r.named("first", r.unit(1, 10)))
	await.True(t, "the unit with the publisher", func() bool { return r.list[0].mailbox.Len() == 0 })
	r.offer(0, r.named("second", r.unit(2, 10)))
	stop()
	if err := r.expect("first", "second"); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]int64{1, 2}, times(stored(t, conn, 0))); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	if r.budget.Pending() != 0 {
		t.Errorf("%d bytes are pending", r.budget.Pending())
	}
	if r.Offer(0, r.unit(3, 10)) || r.budget.Pending() != 0 {
		t.Error("a unit was taken after the end")
	}
	r.Flush(t.Context(), 0) // does not wait for nobody
}

func TestStoppingWhileTheStreamIsAwayDropsWhatIsHeld(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.linger = time.Millisecond
	stop := r.run()
	r.offer(0, r.named("first", r.unit(1, 10)))
	r.expect("first")
	r.offer(1, r.named("so that the other knows how the stream goes on", &Unit{}))
	r.expect("so that the other knows how the stream goes on")
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Frames)); err != nil {
		t.Fatal(err)
	}
	r.offer(0, r.named("on its way", r.unit(2, 10)))
	await.True(t, "it waits", func() bool {
		return len(r.Waiting()) == 1 && strings.Contains(r.Waiting()[0], "partition 0 waits for the stream") && r.value("millrace_publisher_waiting_partitions") == 1
	})
	r.offer(0, r.named("in the mailbox", r.unit(3, 12)), r.named("barrier", &Unit{}))
	stop()
	for _, want := range []struct {
		name    string
		samples int
	}{{"on its way", 10}, {"in the mailbox", 12}, {"barrier", 0}} {
		err := r.expect(want.name)
		if d := (*DroppedError)(nil); !errors.Is(err, ErrDropped) || !errors.As(err, &d) || d.Samples != want.samples {
			t.Errorf("%q was told %v, want %d samples", want.name, err, want.samples)
		}
	}
	r.nothing()
	if r.budget.Pending() != 0 || !strings.Contains(r.log.String(), "they are lost") || !strings.Contains(r.log.String(), "samples=22") {
		t.Errorf("%d bytes are pending\n%s", r.budget.Pending(), r.log)
	}
	if n := r.value("millrace_publisher_retries_total"); n == 0 {
		t.Error("no retry is counted")
	}
}

func TestAPanicOfDoneIsNobodyElsesMatter(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	bad := r.unit(1, 10)
	bad.Done = func(error) { panic("out of luck") }
	r.offer(0, bad, r.named("next", r.unit(2, 10)))
	r.run()
	if err := r.expect("next"); err != nil || r.budget.Pending() != 0 {
		t.Errorf("error %v, %d bytes are pending", err, r.budget.Pending())
	}
	if !strings.Contains(r.log.String(), "out of luck") {
		t.Errorf("the log does not say it:\n%s", r.log)
	}
}

// TestAnActorGoesOnAfterAPanic has the subject panic once, in the midst of a publish.
func TestAnActorGoesOnAfterAPanic(t *testing.T) {
	conn := streamtest.New(t, 2)
	panicked := false
	r := newRig(t, conn, func(c *Config) {
		c.Publisher = stream.NewPublisher() // so that the subject is only for publishing
		c.Subject = func(partition int) string {
			if partition == 0 && !panicked {
				panicked = true
				panic("out of luck")
			}
			return conn.Frames(partition)
		}
	})
	r.offer(0, r.named("first", r.unit(1, 10)), r.named("second", r.unit(2, 10)))
	r.run()
	if err := r.expect("first", "second"); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff([]int64{1, 2}, times(stored(t, conn, 0))); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	if n := r.system.Restarts("publisher"); n != 1 || !strings.Contains(r.log.String(), `actor="publisher frames/0"`) {
		t.Errorf("%d restarts\n%s", n, r.log)
	}
}

// TestOffersOfManyAreAllToldOnce offers from several goroutines while the publishers stop.
func TestOffersOfManyAreAllToldOnce(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	template := r.unit(1, 10)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	type offered struct{ taken, told, bad int }
	var mu sync.Mutex
	var sum offered
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				u := *template
				u.Frames, u.Budget = append([]Frame(nil), template.Frames...), r.budget
				u.Done = func(err error) {
					mu.Lock()
					defer mu.Unlock()
					sum.told++
					if err != nil {
						sum.bad++
					}
				}
				if !r.Offer(n%2, &u) {
					return // stopped
				}
				mu.Lock()
				sum.taken++
				enough := sum.taken == 2000
				mu.Unlock()
				if enough {
					cancel()
				}
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if sum.taken != sum.told || sum.bad > 0 || r.budget.Pending() != 0 {
		t.Errorf("%+v, %d bytes are pending", sum, r.budget.Pending())
	}
	if n := total(stored(t, conn, 0)) + total(stored(t, conn, 1)); n != 10*sum.taken {
		t.Errorf("the stream has %d samples, want %d", n, 10*sum.taken)
	}
}

// BenchmarkOffer publishes small requests as fast as the stream takes them.
func BenchmarkOffer(b *testing.B) {
	r := newRig(b, streamtest.New(b, 2))
	r.run()
	template := r.unit(1, 100)
	r.budget = NewBudget(int64(1000 * template.Bytes))
	done := make(chan struct{}, 1)
	for b.Loop() {
		u := *template
		u.Frames, u.Budget = append([]Frame(nil), template.Frames...), r.budget
		u.Done = func(error) {
			select {
			case done <- struct{}{}:
			default:
			}
		}
		for !r.Offer(0, &u) {
			<-done
		}
	}
	r.Flush(b.Context(), 0)
	b.ReportMetric(float64(b.N)/r.value("millrace_publisher_batches_total"), "units/batch")
}
