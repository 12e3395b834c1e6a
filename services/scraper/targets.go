package scraper

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// watcher is the actor that follows the stream of final targets, and starts and stops their scrape loops.
type watcher struct {
	svc       *Service
	loops     *actor.System   // in which the loops run
	stopping  context.Context // ends when the service stops
	handovers sync.WaitGroup  // of loops that end

	plan *plan // as the jobs have it
	jobs map[string]*job
}

// settle is how long the watcher waits for more changes before it passes on what it has.
const settle = 100 * time.Millisecond

// Serve reads the last message of every target, then every change.
func (w *watcher) Serve(ctx context.Context) error {
	conn := w.svc.cfg.Conn
	oc, err := conn.JS.OrderedConsumer(ctx, conn.Stream(stream.Targets), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{conn.AllTargets()}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	info, err := oc.Info(ctx)
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	it, err := oc.Messages()
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	ended := make(chan struct{})
	defer func() {
		close(ended)
		go it.Stop() // while the server is away, the client lets go only after some time
	}()
	messages := make(chan message)
	go pump(it, messages, ended)

	targets := map[uint64]*target.Target{}
	left, changed := info.NumPending, true // left counts the targets that were there before
	settled, armed := time.NewTimer(settle), true
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.svc.replanned:
			changed = true
		case m := <-messages:
			if m.err != nil {
				return fmt.Errorf("reading targets: %w", m.err)
			}
			w.take(targets, m.msg)
			left -= min(left, 1)
			changed = true
		case <-settled.C:
			armed = false
			if left > 0 {
				// Removals end by themselves, perhaps before they came here: the number may be too large.
				if left, err = w.unread(ctx, oc); err != nil {
					return err
				}
			}
			if left == 0 {
				w.apply(targets)
				changed = false
			}
		}
		// At the beginning, settled waits for silence. Later, no flood of changes holds it back.
		if changed && (left > 0 || !armed) {
			settled.Reset(settle)
			armed = true
		}
	}
}

type message struct {
	msg jetstream.Msg
	err error
}

// pump passes messages on until an error or the end of its reader. It waits without a limit, which is how the client notices that its consumer is gone.
func pump(it jetstream.MessagesContext, to chan<- message, ended <-chan struct{}) {
	for {
		msg, err := it.Next()
		select {
		case to <- message{msg, err}:
		case <-ended:
			return
		}
		if err != nil {
			return
		}
	}
}

// unread asks how many messages JetStream still has for the watcher.
func (w *watcher) unread(ctx context.Context, c jetstream.Consumer) (uint64, error) {
	info, err := c.Info(ctx)
	if ctx.Err() != nil {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading targets: %w", err)
	}
	return info.NumPending, nil
}

// take reads one message. A target that cannot be read is left as it was, and named in the log.
func (w *watcher) take(targets map[uint64]*target.Target, msg jetstream.Msg) {
	id, err := w.svc.cfg.Conn.TargetID(msg.Subject())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a message among the targets", "err", err)
		return
	}
	if len(msg.Data()) == 0 {
		delete(targets, id)
		return
	}
	t, err := target.Decode(msg.Data())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a target that cannot be read", "subject", msg.Subject(), "err", err)
		return
	}
	targets[id] = t
}

// apply makes the loops those of the targets, with the configuration as it is now.
func (w *watcher) apply(targets map[uint64]*target.Target) {
	next := w.svc.plan.Load()
	if next != w.plan {
		w.replan(next)
	}
	byJob := make(map[string]map[uint64]*target.Target, len(w.jobs))
	for name := range w.jobs {
		byJob[name] = map[uint64]*target.Target{}
	}
	for id, t := range targets {
		if list := byJob[t.Job]; list != nil { // or it is one of another configuration
			list[id] = t
		}
	}
	var active []Active
	for name, j := range w.jobs {
		j.sync(byJob[name])
		j.reopen(w.plan.failures)
		for _, l := range j.loops {
			active = append(active, Active{Target: l.target, Discovered: l.discovered})
		}
	}
	w.svc.active.Store(&active)
}

// replan gives the jobs their new configurations, stops those that are gone, and closes what only the old plan used.
func (w *watcher) replan(next *plan) {
	for name, j := range w.jobs {
		switch p := next.jobs[name]; p {
		case nil:
			j.stop()
			delete(w.jobs, name)
		case j.jobPlan:
		default:
			j.replan(p)
		}
	}
	for name, p := range next.jobs {
		if w.jobs[name] == nil {
			w.jobs[name] = &job{jobPlan: p, w: w, name: name, loops: map[uint64]*loop{}}
		}
	}
	w.svc.seed.Store(next.seed)
	for _, j := range w.jobs {
		j.reopen(next.failures)
	}
	if w.plan != nil {
		w.plan.close(next)
	}
	w.plan = next
}
