package actor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/thejerf/suture/v4"
)

const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
	// An actor that has run this long without failing counts as healthy: its next failure begins with firstPause again.
	healthyAfter = time.Minute
	// stopTimeout is how long a stopping actor may take before it is given up and named in the log.
	stopTimeout = 30 * time.Second
)

// System supervises actors. Make it with [NewSystem], fill it with [System.Spawn] before or after it runs, and run it with [System.Serve].
type System struct {
	name    string
	sup     *suture.Supervisor
	log     *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	fatal error
}

type metrics struct {
	restarts *prometheus.CounterVec
	running  *prometheus.GaugeVec

	mu    sync.Mutex
	count map[string]uint64 // restarts by kind
}

func (m *metrics) restarted(kind string) {
	m.restarts.WithLabelValues(kind).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count[kind]++
}

// Restarts returns how often actors of the given kinds have been started again, in this system and all that share its metrics.
func (s *System) Restarts(kinds ...string) (n uint64) {
	s.metrics.mu.Lock()
	defer s.metrics.mu.Unlock()
	for _, k := range kinds {
		n += s.metrics.count[k]
	}
	return n
}

// NewSystem returns an empty system. Restarts are logged, and counted in millrace_actor_restarts_total by the kind of actor, which is the
// part of its name before the first space.
func NewSystem(name string, logger *slog.Logger, reg prometheus.Registerer) *System {
	m := &metrics{
		count: map[string]uint64{},
		restarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_actor_restarts_total", Help: "Times that an actor failed and was started again.",
		}, []string{"actor"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_actors", Help: "Actors that run now.",
		}, []string{"actor"}),
	}
	reg.MustRegister(m.restarts, m.running)
	return newSystem(name, logger, m)
}

func newSystem(name string, logger *slog.Logger, m *metrics) *System {
	s := &System{name: name, log: logger, metrics: m}
	s.sup = suture.New(name, suture.Spec{
		EventHook: s.event, Timeout: stopTimeout,
		// The pause between restarts is each actor's own, see supervised; the supervisor itself never pauses.
		FailureThreshold: 1e9,
	})
	return s
}

// Group returns a system inside this one, whose actors stop together with it.
func (s *System) Group(name string) *System {
	g := newSystem(name, s.log, s.metrics)
	s.Spawn(name, g)
	return g
}

// Detached returns a system that shares this one's log and metrics but is run by its caller, which decides when it stops: an actor uses it for
// actors that must outlive others.
func (s *System) Detached(name string) *System { return newSystem(name, s.log, s.metrics) }

// Serve runs the actors until ctx ends or one of them fails with [ErrFatal], whose error it returns then.
func (s *System) Serve(ctx context.Context) error {
	err := s.sup.Serve(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fatal != nil {
		return s.fatal
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Ref refers to a spawned actor.
type Ref struct {
	sys   *System
	token suture.ServiceToken
	actor *supervised
}

// Stop ends the actor's context and waits until Serve has returned or ctx ends. An actor whose system does not run yet never starts then.
func (r *Ref) Stop(ctx context.Context) error {
	r.actor.stopped.Store(true)
	if err := r.sys.sup.Remove(r.token); err != nil {
		return nil // the system does not run: there is no goroutine to wait for
	}
	select {
	case <-r.actor.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopping the actor %s of %s: %w", r.actor.name, r.sys.name, ctx.Err())
	}
}

// Spawn starts an actor under the given name: its kind, then what tells it from others of the kind ("writer prod/3").
func (s *System) Spawn(name string, a Actor) *Ref {
	w := &supervised{name: name, kind: kind(name), actor: a, sys: s, done: make(chan struct{})}
	s.metrics.restarts.WithLabelValues(w.kind) // a counter that begins at 0 lets queries see the first restart
	return &Ref{sys: s, token: s.sup.Add(w), actor: w}
}

func kind(name string) string {
	for i := range len(name) {
		if name[i] == ' ' {
			return name[:i]
		}
	}
	return name
}

func (s *System) event(e suture.Event) {
	if e, ok := e.(suture.EventStopTimeout); ok {
		s.log.Error("An actor did not stop in time", "actor", e.ServiceName, "after", stopTimeout)
	}
}

func (s *System) setFatal(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fatal == nil {
		s.fatal = err
	}
}

// supervised is what suture runs for an actor: it adds recovery from panics, the pause between restarts, and the words about both.
type supervised struct {
	name, kind string
	actor      Actor
	sys        *System
	pause      time.Duration
	stopped    atomic.Bool   // it is not to start (again)
	done       chan struct{} // closed when Serve has returned
}

func (w *supervised) String() string { return w.name }

// Serve runs the actor until it has finished, through all its failures.
func (w *supervised) Serve(ctx context.Context) error {
	defer close(w.done)
	w.sys.metrics.running.WithLabelValues(w.kind).Inc()
	defer w.sys.metrics.running.WithLabelValues(w.kind).Dec()
	for !w.stopped.Load() {
		start := time.Now()
		err := Try(func() error { return w.actor.Serve(ctx) })
		switch {
		case errors.Is(err, ErrFatal):
			w.sys.setFatal(err)
			w.sys.log.Error("Cannot go on", "actor", w.name, "err", err)
			return suture.ErrTerminateSupervisorTree
		case err == nil || ctx.Err() != nil:
			return suture.ErrDoNotRestart
		}
		if time.Since(start) > healthyAfter {
			w.pause = 0
		}
		w.pause = min(max(2*w.pause, firstPause), maxPause)
		w.sys.metrics.restarted(w.kind)
		w.sys.log.Error("An actor failed and starts again", "actor", w.name, "err", err, "pause", w.pause)
		select {
		case <-ctx.Done():
			return suture.ErrDoNotRestart
		case <-time.After(w.pause/2 + rand.N(w.pause/2)):
		}
	}
	return suture.ErrDoNotRestart
}

// Try runs f and returns what it returns, or its panic as an error. Whoever supervises an actor catches the panics of Serve; an actor uses
// Try for a goroutine of its own, so that a panic there makes it fail as well instead of ending the process.
func Try(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}
