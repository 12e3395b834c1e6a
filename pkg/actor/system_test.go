package actor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/logtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTestSystem() (*System, *logtest.Buffer, *prometheus.Registry) {
	log, reg := &logtest.Buffer{}, prometheus.NewPedanticRegistry()
	return NewSystem("test", slog.New(slog.NewTextHandler(log, nil)), reg), log, reg
}

// run runs the system; the result stops it and returns how it ended.
func run(t *testing.T, s *System) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}
}

func wait(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(time.Minute):
		t.Fatalf("%s: not so after a minute", what)
	}
}

// untilDone is an actor that says when it runs and runs until it is stopped.
func untilDone(started chan<- struct{}) Func {
	return func(ctx context.Context) error {
		if started != nil {
			started <- struct{}{}
		}
		<-ctx.Done()
		return nil
	}
}

func TestAFailedActorStartsAgainAndIsNamed(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error": func() error { return errors.New("out of luck") },
		"panic": func() error { panic("out of luck") },
	} {
		t.Run(name, func(t *testing.T) {
			s, log, reg := newTestSystem()
			again := make(chan struct{})
			calls := 0
			s.Spawn("miller west/3", Func(func(ctx context.Context) error {
				if calls++; calls == 1 {
					return fail()
				}
				close(again)
				<-ctx.Done()
				return nil
			}))
			stop := run(t, s)
			wait(t, "start after a failure", again)
			want := `# HELP millrace_actor_restarts_total Times that an actor failed and was started again.
# TYPE millrace_actor_restarts_total counter
millrace_actor_restarts_total{actor="miller"} 1
# HELP millrace_actors Actors that run now.
# TYPE millrace_actors gauge
millrace_actors{actor="miller"} 1
`
			if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
				t.Error(err)
			}
			if n := s.Restarts("miller", "other"); n != 1 {
				t.Errorf("Restarts says %d, want 1", n)
			}
			if err := stop(); err != nil {
				t.Errorf("the system ended with %v", err)
			}
			for _, part := range []string{`actor="miller west/3"`, "out of luck", "level=ERROR"} {
				if !strings.Contains(log.String(), part) {
					t.Errorf("the log does not have %q:\n%s", part, log)
				}
			}
			if name == "panic" && !strings.Contains(log.String(), "system_test.go") {
				t.Errorf("the log does not say where the panic was:\n%s", log)
			}
			if n := testutil.ToFloat64(s.metrics.running.WithLabelValues("miller")); n != 0 {
				t.Errorf("%v actors run after the end", n)
			}
		})
	}
}

func TestThePauseGrowsWhileFailuresFollowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newTestSystem()
		var starts []time.Time
		healthy := make(chan struct{})
		s.Spawn("miller", Func(func(ctx context.Context) error {
			starts = append(starts, time.Now())
			switch len(starts) {
			case 12: // runs well for a while and fails then
				time.Sleep(healthyAfter + time.Second)
			case 13:
				close(healthy)
				<-ctx.Done()
				return nil
			}
			return errors.New("out of luck")
		}))
		stop := run(t, s)
		<-healthy
		if err := stop(); err != nil {
			t.Error(err)
		}
		want := firstPause
		for i := 1; i < 12; i++ {
			if got := starts[i].Sub(starts[i-1]); got < want/2 || got >= want {
				t.Errorf("pause %d is %v, want at least %v and less than %v", i, got, want/2, want)
			}
			want = min(2*want, maxPause)
		}
		if want != maxPause {
			t.Fatalf("the last pause is %v: the test does not come to the longest one", want)
		}
		if got := starts[12].Sub(starts[11]) - healthyAfter - time.Second; got < firstPause/2 || got >= firstPause {
			t.Errorf("the pause after a healthy time is %v, want the first one, %v", got, firstPause)
		}
	})
}

func TestStoppingEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _ := newTestSystem()
		s.Spawn("miller", Func(func(context.Context) error { return errors.New("out of luck") }))
		stop := run(t, s)
		time.Sleep(time.Hour)
		synctest.Wait()
		before := time.Now()
		if err := stop(); err != nil || time.Since(before) > 0 {
			t.Errorf("stopping took %v and ended with %v", time.Since(before), err)
		}
	})
}

func TestAFatalErrorEndsTheWholeSystem(t *testing.T) {
	cause := fmt.Errorf("streams of another world: %w", ErrFatal)
	for name, spawn := range map[string]func(s *System, a Actor){
		"an actor's":            func(s *System, a Actor) { s.Spawn("bad", a) },
		"of a group":            func(s *System, a Actor) { s.Group("group").Spawn("bad", a) },
		"of a group in a group": func(s *System, a Actor) { s.Group("outer").Group("inner").Spawn("bad", a) },
	} {
		t.Run(name, func(t *testing.T) {
			s, log, _ := newTestSystem()
			started := make(chan struct{}, 1)
			stopped := make(chan struct{})
			s.Spawn("good", Func(func(ctx context.Context) error {
				defer close(stopped)
				return untilDone(started)(ctx)
			}))
			spawn(s, Func(func(context.Context) error {
				<-started
				return cause
			}))
			if err := s.Serve(t.Context()); !errors.Is(err, cause) {
				t.Errorf("the system ended with %v, want %v", err, cause)
			}
			wait(t, "end of the other actor", stopped)
			if !strings.Contains(log.String(), "actor=bad") {
				t.Errorf("the log does not name the actor:\n%s", log)
			}
		})
	}
}

func TestAnActorThatReturnsNilHasFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log, _ := newTestSystem()
		calls := 0
		ref := s.Spawn("miller", Func(func(context.Context) error {
			calls++
			return nil
		}))
		stop := run(t, s)
		time.Sleep(time.Hour)
		if err := ref.Stop(t.Context()); err != nil {
			t.Errorf("stopping an actor that has finished: %v", err)
		}
		if err := stop(); err != nil || calls != 1 || s.Restarts("miller") != 0 {
			t.Errorf("%d calls, %d restarts, ended with %v\n%s", calls, s.Restarts("miller"), err, log)
		}
	})
}

func TestStopWaitsForTheActorAlone(t *testing.T) {
	s, _, _ := newTestSystem()
	started := make(chan struct{}, 2)
	release, returned := make(chan struct{}), make(chan struct{})
	ref := s.Spawn("slow", Func(func(ctx context.Context) error {
		defer close(returned)
		started <- struct{}{}
		<-ctx.Done()
		<-release
		return nil
	}))
	other := make(chan struct{})
	s.Spawn("other", Func(func(ctx context.Context) error {
		defer close(other)
		return untilDone(started)(ctx)
	}))
	stop := run(t, s)
	wait(t, "start", started)
	wait(t, "start", started)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ref.Stop(ended); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "slow") {
		t.Errorf("Stop that may not wait returned %v", err)
	}
	close(release)
	if err := ref.Stop(t.Context()); err != nil {
		t.Errorf("Stop returned %v", err)
	}
	select {
	case <-returned:
	default:
		t.Error("Stop did not wait for Serve")
	}
	select {
	case <-other:
		t.Error("Stop ended another actor")
	default:
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := ref.Stop(t.Context()); err != nil {
		t.Errorf("Stop after the system's end returned %v", err)
	}
}

func TestAnActorStoppedBeforeItsSystemRunsNeverStarts(t *testing.T) {
	s, _, _ := newTestSystem()
	ref := s.Spawn("never", Func(func(context.Context) error {
		t.Error("it started")
		return nil
	}))
	if err := ref.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	started := make(chan struct{}, 1)
	s.Spawn("later", untilDone(started))
	stop := run(t, s)
	wait(t, "start", started)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestActorsJoinARunningSystem(t *testing.T) {
	s, _, _ := newTestSystem()
	started := make(chan struct{}, 1)
	s.Spawn("first", untilDone(started))
	stop := run(t, s)
	wait(t, "start of the first", started)
	s.Spawn("second", untilDone(started))
	wait(t, "start of the second", started)
	g := s.Group("group")
	g.Spawn("third", untilDone(started))
	wait(t, "start of the third", started)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestADetachedSystemOutlivesTheOthers(t *testing.T) {
	s, _, reg := newTestSystem()
	started := make(chan struct{}, 2)
	d := s.Detached("lasting")
	d.Spawn("lasting", untilDone(started))
	s.Spawn("passing", untilDone(started))
	stopDetached, stop := run(t, d), run(t, s)
	wait(t, "start", started)
	wait(t, "start", started)
	if err := stop(); err != nil {
		t.Error(err)
	}
	want := `# HELP millrace_actors Actors that run now.
# TYPE millrace_actors gauge
millrace_actors{actor="lasting"} 1
millrace_actors{actor="passing"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "millrace_actors"); err != nil {
		t.Error(err)
	}
	if err := stopDetached(); err != nil {
		t.Error(err)
	}
}

func TestTryMakesAPanicAnError(t *testing.T) {
	cause := errors.New("out of luck")
	if err := Try(func() error { return cause }); err != cause {
		t.Errorf("an error became %v", err)
	}
	if err := Try(func() error { panic(cause) }); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("a panic became %v", err)
	}
}

func TestMetricNamesAreClean(t *testing.T) {
	s, _, reg := newTestSystem()
	s.metrics.restarted("a")
	s.metrics.running.WithLabelValues("a").Set(1)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
