package replay

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const partitions = 2

func newManager(t *testing.T) *Manager {
	t.Helper()
	return &Manager{Conn: streamtest.New(t, partitions), Partitions: partitions, Endpoints: func() []string { return []string{"prod", "dev"} }}
}

func (m *Manager) publish(t *testing.T, subject string, n int) {
	t.Helper()
	for range n {
		if _, err := m.Conn.Publish(t.Context(), &nats.Msg{Subject: subject, Data: []byte("x")}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *Manager) start(t *testing.T, spec Spec, hold bool) Status {
	t.Helper()
	st, err := m.Start(t.Context(), spec, hold)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (m *Manager) record(t *testing.T, name string) *Record {
	t.Helper()
	kv, err := m.bucket(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := m.get(t.Context(), kv, name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAReplayIsBoundedByWhatTheStreamHolds(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 3)
	m.publish(t, m.Conn.Frames(1), 4)
	m.publish(t, m.Conn.Frames(0), 1)
	st := m.start(t, Spec{Name: "x", From: "-1h", Endpoint: "prod"}, false)
	if st.AllMessages != 8 || st.State != Running || !st.HeldSince.IsZero() || st.Fraction() != 0 {
		t.Errorf("told as %+v", st)
	}
	m.publish(t, m.Conn.Frames(1), 5) // later
	if r := m.record(t, "x"); r.Parts[0] != (Part{0, 8, 4}) || r.Parts[1] != (Part{3, 8, 4}) {
		t.Errorf("bounds %+v", r.Parts)
	}
	// Samples of long ago are stored now at most that much later.
	for from, want := range map[string]uint64{"-1h": 13, "-7h": 0} {
		st := m.start(t, Spec{Name: "to" + from, From: from, To: from, Endpoint: "prod"}, false)
		if st.AllMessages != want || (st.State == Done) != (want == 0) {
			t.Errorf("samples of %s: %+v, want %d messages", from, st, want)
		}
	}
}

func TestWhatTheStreamNoLongerHoldsIsSaid(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 5)
	s, err := m.Conn.JS.Stream(t.Context(), m.Conn.Stream(stream.Frames))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	first, err := m.Conn.Next(t.Context(), stream.Frames, m.Conn.Frames(0), 1)
	if err != nil {
		t.Fatal(err)
	}
	st := m.start(t, Spec{Name: "x", From: "-1h", Endpoint: "prod"}, true)
	if !st.HeldSince.Equal(first.Time) || st.AllMessages != 2 || st.State != Stopped {
		t.Errorf("told as %+v; the first message is of %s", st, first.Time)
	}
	if st := m.start(t, Spec{Name: "y", From: "now", Endpoint: "prod"}, true); !st.HeldSince.IsZero() {
		t.Errorf("what is asked for is all there, but told as %+v", st)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := m.start(t, Spec{Name: "z", From: "-1h", Endpoint: "prod"}, true); time.Since(st.HeldSince) > time.Minute || st.State != Done {
		t.Errorf("of an empty stream: %+v", st)
	}
}

func TestWhatWasRefusedAndIsGoneIsToldBeforehand(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Rejected("prod"), 3)
	spec := Spec{Name: "x", Endpoint: "prod", Rejected: true}
	if st := m.start(t, spec, true); !st.HeldSince.IsZero() || st.AllMessages != 3 {
		t.Errorf("all is there, but told as %+v", st)
	}
	s, err := m.Conn.JS.Stream(t.Context(), m.Conn.Stream(stream.Rejected))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(3)); err != nil {
		t.Fatal(err)
	}
	spec.Name = "y"
	if st := m.start(t, spec, true); st.HeldSince.IsZero() || st.AllMessages != 1 {
		t.Errorf("told as %+v", st)
	}
}

func TestAReplayIsHeldGoesOnAndIsRemoved(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 3)
	spec := Spec{Name: "x", From: "-1h", To: "now", Match: []string{"up"}, Endpoint: "prod", Rate: 10}
	state := func(st Status, want string) {
		t.Helper()
		if st.State != want || m.record(t, "x").Stopped != (want == Stopped) {
			t.Errorf("state %s, want %s", st.State, want)
		}
	}
	held := m.start(t, spec, true)
	state(held, Stopped)
	await.True(t, "another now", func() bool { return time.Since(held.Created) > time.Millisecond })
	on := m.start(t, spec, false)
	state(on, Running)
	if !on.FromTime.Equal(held.FromTime) || on.Rate != 10 {
		t.Errorf("it goes on with other times: %+v, %+v", held, on)
	}
	state(m.start(t, spec, true), Running) // holds only a new one
	if st, err := m.Stop(t.Context(), "x"); err != nil {
		t.Error(err)
	} else {
		state(st, Stopped)
	}
	named := m.start(t, Spec{Name: "x"}, false)
	state(named, Running)
	if named.Rate != 10 {
		t.Errorf("without a rate it goes on at %v", named.Rate)
	}
	if st := m.start(t, Spec{Name: "x", Rate: 20}, false); st.Rate != 20 || st.Match[0] != "up" {
		t.Errorf("with another rate: %+v", st)
	}
	spec.Rate = 0
	if st := m.start(t, spec, false); st.Rate != 0 {
		t.Errorf("in full and without a rate: %+v", st)
	}
	for _, change := range []func(*Spec){
		func(s *Spec) { s.From = "-2h" }, func(s *Spec) { s.Match = nil }, func(s *Spec) { s.Endpoint = "dev" }, func(s *Spec) { s.DryRun = true },
	} {
		other := spec
		change(&other)
		if _, err := m.Start(t.Context(), other, false); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "--from=-1h --to=now --match=up --endpoint=prod") {
			t.Errorf("another one of the same name: %v", err)
		}
	}
	for _, want := range []string{Stopped, Removed} {
		if st, err := m.Stop(t.Context(), "x"); err != nil || st.State != want {
			t.Errorf("%+v, %v; want %s", st, err, want)
		}
	}
	if _, err := m.Stop(t.Context(), "x"); !errors.Is(err, ErrUnknown) {
		t.Errorf("stopping what is not there: %v", err)
	}
	state(m.start(t, spec, false), Running)
}

func TestAReplayWhoseEndpointHasGoneSaysSo(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 1)
	if st := m.start(t, Spec{Name: "x", From: "-1h", Endpoint: "prod"}, false); st.Waiting != "" {
		t.Errorf("it waits for %s", st.Waiting)
	}
	m.Endpoints = func() []string { return []string{"dev"} }
	if st, err := m.Get(t.Context(), "x"); err != nil || st.State != Running || !strings.Contains(st.Waiting, `no endpoint "prod" any more`) {
		t.Errorf("told as %+v, %v", st, err)
	}
}

func TestNamesAreGivenWhereThereIsNone(t *testing.T) {
	m := newManager(t)
	a, b := m.start(t, Spec{From: "-1h", Endpoint: "prod"}, false), m.start(t, Spec{From: "-1h", Endpoint: "prod"}, false)
	if a.Name == "" || a.Name == b.Name {
		t.Errorf("names %q and %q", a.Name, b.Name)
	}
	list, err := m.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%d are listed, %v", len(list), err)
	}
}

func TestAnEndpointHasToBeKnown(t *testing.T) {
	m := newManager(t)
	_, err := m.Start(t.Context(), Spec{Name: "x", From: "-1h", Endpoint: "prud"}, false)
	var field *FieldError
	if !errors.As(err, &field) || field.Field != "endpoint" || !strings.Contains(field.Remedy, "prod, dev") {
		t.Errorf("%v", err)
	}
	if _, err := m.Get(t.Context(), "a.b"); !errors.As(err, &field) {
		t.Errorf("a name that cannot be one: %v", err)
	}
}

func TestOnlySoManyReplaysRunAtATime(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 1)
	spec := Spec{From: "-1h", Endpoint: "prod"}
	var last Status
	for range maxRunning {
		last = m.start(t, spec, false)
	}
	held := m.start(t, spec, true)
	for _, s := range []Spec{spec, {Name: held.Name}} {
		if _, err := m.Start(t.Context(), s, false); !errors.Is(err, ErrMany) {
			t.Errorf("one more: %v", err)
		}
	}
	if st := m.start(t, Spec{Name: last.Name, Rate: 5}, false); st.Rate != 5 {
		t.Errorf("one that runs cannot have another rate: %+v", st)
	}
	if _, err := m.Stop(t.Context(), last.Name); err != nil {
		t.Fatal(err)
	}
	m.start(t, Spec{Name: held.Name}, false)
}

func TestWhatEndedLongAgoIsRemoved(t *testing.T) {
	m := newManager(t)
	m.publish(t, m.Conn.Frames(0), 1)
	kv, err := m.bucket(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, stopped := range map[string]bool{"ended": true, "runs": false} {
		m.start(t, Spec{Name: name, From: "-1h", Endpoint: "prod"}, stopped)
		r := m.record(t, name)
		r.Created = r.Created.Add(-8 * 24 * time.Hour)
		b, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(t.Context(), name, b); err != nil {
			t.Fatal(err)
		}
	}
	m.start(t, Spec{Name: "new", From: "-1h", Endpoint: "prod"}, true)
	list, err := m.List(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != "new" || list[1].Name != "runs" {
		t.Errorf("%+v, %v", list, err)
	}
}
