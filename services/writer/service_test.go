package writer

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
)

func timesOf(points []point) (list []int64) {
	for _, x := range points {
		list = append(list, x.T)
	}
	return list
}

func TestANewConfigurationChangesOnlyWhatIsNew(t *testing.T) {
	r, a, b, c := newRig(t), newRecorder(t), newRecorder(t), newRecorder(t)
	same := a.endpoint("same")
	first := b.endpoint("changed")
	s := r.start([]Endpoint{same, first, c.endpoint("gone")})
	d := r.named("x", 1)
	second := b.endpoint("changed", func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 7 })
	third := b.endpoint("changed", func(e *Endpoint) { e.Rules.External = labels.FromStrings("v", "3") })
	r.announce(0, d, same, first, c.endpoint("gone"))
	r.send(0, r.floats(d, 1000, 1))
	for _, e := range []*recorder{a, b, c} {
		e.wait(1)
	}
	kept := s.endpoints[0]
	for i, cfg := range []Endpoint{second, third} {
		// The same endpoint, read from the file again, has other pointers.
		if err := s.ApplyConfig(t.Context(), []Endpoint{cfg, a.endpoint("same")}); err != nil {
			t.Fatal(err)
		}
		if s.endpoints[1] != kept {
			t.Error("an endpoint that has not changed was made anew")
		}
		r.relabelled(0, d, cfg, cfg.Rules)
		r.send(0, r.floats(d, int64(1001+i), 1))
		a.wait(2 + i)
		b.wait(2 + i)
	}
	for name, e := range map[string]*recorder{"same": a, "changed": b} {
		if d := cmp.Diff([]int64{1000, 1001, 1002}, timesOf(e.points())); d != "" {
			t.Errorf("%s: samples (-want +got):\n%s", name, d)
		}
		// Its counters go on as well.
		await.True(t, "the count of "+name, func() bool { return s.value(t, "millrace_writer_sent_samples_total", name) == 3 })
	}
	if got := b.points()[2].Series; got != `{__name__="x_0000", v="3"}` {
		t.Errorf("by the new rules, the series is %s", got)
	}
	if n := len(c.points()); n != 1 {
		t.Errorf("an endpoint that is gone has %d samples", n)
	}
	if v := s.value(t, "millrace_writer_sent_samples_total", "gone"); v != -1 {
		t.Errorf("an endpoint that is gone still has metrics: %v", v)
	}
	bad := a.endpoint("bad")
	bad.URL = nil
	if err := s.ApplyConfig(t.Context(), []Endpoint{bad}); err == nil || len(s.Status()) != 2 {
		t.Errorf("a configuration with an error: %v; %d endpoints run", err, len(s.Status()))
	}
}

func TestStatusDoesNotWaitForAnEndpointToStop(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	hang, asked := make(chan struct{}), make(chan struct{}, 10)
	e.answers(func(*request) (int, string, map[string]string) {
		asked <- struct{}{}
		<-hang
		return 200, "", nil
	})
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	<-asked
	applied := make(chan error, 1)
	go func() { applied <- s.ApplyConfig(t.Context(), nil) }()
	await.True(t, "the stop's beginning", func() bool { return !s.applying.TryLock() || unlock(s) })
	if n := len(s.Status()); n != 1 {
		t.Errorf("%d endpoints", n)
	}
	close(hang)
	if err := <-applied; err != nil {
		t.Error(err)
	}
	if n := len(s.Status()); n != 0 {
		t.Errorf("%d endpoints are left", n)
	}
}

// unlock gives back what TryLock has taken.
func unlock(s *service) bool {
	s.applying.Unlock()
	return false
}

func TestAStopFinishesTheRequestInFlight(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	hang, asked := make(chan struct{}), make(chan struct{}, 10)
	var stopped atomic.Bool
	e.answers(func(*request) (int, string, map[string]string) {
		asked <- struct{}{}
		<-hang
		return 200, "", nil
	})
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	<-asked
	done := make(chan struct{})
	go func() {
		s.stop()
		stopped.Store(true)
		close(done)
	}()
	time.Sleep(20 * time.Millisecond) // the stop may have begun; if not, the request ends as usual
	if stopped.Load() {
		t.Error("the service stopped with a request in flight")
	}
	close(hang)
	<-done
	e.answers(nil)
	r.start([]Endpoint{cfg})
	r.send(0, r.floats(d, 1001, 1))
	await.True(t, "the next sample", func() bool { return slices.Contains(timesOf(e.points()), 1001) })
	if d := cmp.Diff([]int64{1000, 1001}, timesOf(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

func TestWhatWasAcceptedWithoutBeingNotedComesAgain(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	e.wait(1)
	s.stop()
	noted := r.position("prod", 0)

	s = r.start([]Endpoint{cfg})
	for i := range 5 {
		r.send(0, r.floats(d, int64(1001+i), 1))
	}
	e.wait(6)
	s.stop()
	// As if the process had been killed before it stored the position.
	if _, err := r.positions().Put(t.Context(), positionKey("prod", 0), noted); err != nil {
		t.Fatal(err)
	}
	r.start([]Endpoint{cfg})
	r.send(0, r.floats(d, 1006, 1))
	await.True(t, "the newest sample", func() bool { return slices.Contains(timesOf(e.points()), 1006) })
	want := []int64{1000, 1001, 1002, 1003, 1004, 1005, 1001, 1002, 1003, 1004, 1005, 1006}
	if d := cmp.Diff(want, timesOf(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

func TestThePositionMovesOnlyAfterAcceptance(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	e.answers(func(*request) (int, string, map[string]string) { return 503, "", nil })
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	await.True(t, "a try", func() bool { return len(e.requests()) > 0 })
	s.stop()
	e.answers(nil)
	r.start([]Endpoint{cfg})
	if d := cmp.Diff([]int64{1000}, timesOf(e.wait(1))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

func TestAnEndpointBeginsAtTheEndOfTheStream(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	d := r.named("x", 1)
	cfg := e.endpoint("prod")
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	s := r.start([]Endpoint{cfg})
	r.send(0, r.floats(d, 1001, 1))
	if d := cmp.Diff([]int64{1001}, timesOf(e.wait(1))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if n := s.value(t, "millrace_writer_lost_samples_total", "prod"); n != 0 {
		t.Errorf("%v samples from before its time are counted as lost", n)
	}
}
