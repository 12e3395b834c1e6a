package scraper

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// watcher is the actor that follows the stream of final targets, as far as this process owns their shards, and starts and stops their scrape loops. It is the
// [fleet.Holder] of the shards.
type watcher struct {
	svc       *Service
	loops     *actor.System   // in which the loops run
	stopping  context.Context // ends when the service stops
	handovers sync.WaitGroup  // of loops that end
	orders    chan order

	plan    *plan // as the jobs have it
	jobs    map[string]*job
	shards  map[int]bool
	targets map[uint64]*target.Target // of these shards
	taken   []int                     // shards whose targets have not all been read yet

	mu      sync.Mutex
	endings map[*loop]*actor.Ref
}

func newWatcher(s *Service, loops *actor.System, stopping context.Context) *watcher {
	return &watcher{
		svc: s, loops: loops, stopping: stopping, orders: make(chan order), plan: nil, jobs: map[string]*job{}, shards: map[int]bool{},
		targets: map[uint64]*target.Target{}, endings: map[*loop]*actor.Ref{},
	}
}

// order is what the claim tells the watcher.
type order struct {
	take, give []int
	lost       bool
	done       chan struct{}
}

// Take makes the watcher follow the targets of more shards.
func (w *watcher) Take(shards map[int]uint64) {
	for shard, epoch := range shards {
		w.svc.epochs[shard].Store(epoch)
	}
	w.tell(order{take: slices.Collect(maps.Keys(shards))})
}

// Give ends the loops of shards, and publishes what they have brought.
func (w *watcher) Give(shards []int, lost bool) {
	if lost {
		w.disown(shards)
	}
	w.tell(order{give: shards, lost: lost})
	if !lost {
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		defer cancel()
		w.svc.keeper.flush(ctx, shards)
		var flushing sync.WaitGroup
		for p := range w.svc.cfg.Partitions {
			flushing.Go(func() { w.svc.cfg.Publishers.Flush(ctx, p) })
		}
		flushing.Wait()
		w.disown(shards)
	}
}

// flushTime is how long handing shards on waits for the stream to take what is still to be published.
const flushTime = 2 * time.Second

// disown makes sure that nothing more of the shards is published.
func (w *watcher) disown(shards []int) {
	for _, s := range shards {
		w.svc.epochs[s].Store(0)
	}
}

// tell gives the watcher an order and waits until it is carried out.
func (w *watcher) tell(o order) {
	o.done = make(chan struct{})
	w.orders <- o
	<-o.done
}

// settle is how long the watcher waits for more changes before it acts on what it has.
const settle = 100 * time.Millisecond

// Serve follows the targets of the shards that are owned. While the stream cannot be read, it goes on with the targets that it has, and carries out orders.
func (w *watcher) Serve(ctx context.Context) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		started := time.Now()
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil, time.Since(started) > maxPause:
			pause = firstPause / 2
		}
		if err == nil {
			continue
		}
		w.svc.cfg.Logger.Warn("Cannot follow the targets, trying again; scraping goes on with those that are known", "err", err, "next_try", pause)
		again := time.After(pause)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case o := <-w.orders:
				w.obey(o)
			case <-again:
				waiting = false
			}
		}
	}
}

// Pauses between tries to read the targets.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 10 * time.Second
)

// follow reads the last message of every target of the shards, then every change, until there are more shards to follow.
func (w *watcher) follow(ctx context.Context) error {
	messages, unread, stop, err := w.read(ctx)
	if err != nil {
		return err
	}
	defer stop()
	left, changed := unread.first, true // left counts the targets that were there before
	settled, armed := time.NewTimer(settle), true
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case o := <-w.orders:
			w.obey(o)
			if len(o.take) > 0 {
				return nil
			}
			changed = true
		case <-w.svc.replanned:
			changed = true
		case m := <-messages:
			if m.err != nil {
				return fmt.Errorf("reading targets: %w", m.err)
			}
			w.take(m.msg)
			left -= min(left, 1)
			changed = true
		case <-settled.C:
			armed = false
			if left > 0 {
				// Removals end by themselves, perhaps before they came here: the number may be too large.
				if left, err = unread.ask(ctx); err != nil {
					return err
				}
			}
			if left == 0 {
				w.apply()
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

// unread tells how many messages JetStream still has for the watcher.
type unread struct {
	first uint64
	c     jetstream.Consumer
}

func (u unread) ask(ctx context.Context) (uint64, error) {
	info, err := u.c.Info(ctx)
	if ctx.Err() != nil {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading targets: %w", err)
	}
	return info.NumPending, nil
}

// read begins to read the targets of the shards. Without shards there is nothing to read.
func (w *watcher) read(ctx context.Context) (messages chan message, u unread, stop func(), err error) {
	conn := w.svc.cfg.Conn
	messages = make(chan message)
	var filters []string
	for _, s := range slices.Sorted(maps.Keys(w.shards)) {
		filters = append(filters, conn.TargetShard(s))
	}
	if len(filters) == 0 {
		return messages, u, func() {}, nil
	}
	if len(filters) == stream.Shards {
		filters = []string{conn.AllTargets()}
	}
	oc, err := conn.Ordered(ctx, stream.Targets, jetstream.OrderedConsumerConfig{
		FilterSubjects: filters, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return nil, u, nil, fmt.Errorf("reading targets: %w", err)
	}
	info, err := oc.Info(ctx)
	if err != nil {
		return nil, u, nil, fmt.Errorf("reading targets: %w", err)
	}
	it, err := oc.Messages()
	if err != nil {
		return nil, u, nil, fmt.Errorf("reading targets: %w", err)
	}
	ended := make(chan struct{})
	go pump(it, messages, ended)
	return messages, unread{info.NumPending, oc}, func() {
		close(ended)
		go it.Stop() // while the server is away, the client lets go only after some time
	}, nil
}

// obey carries an order out.
func (w *watcher) obey(o order) {
	defer close(o.done)
	for _, s := range o.take {
		w.shards[s] = true
	}
	w.taken = append(w.taken, o.take...)
	if len(o.give) == 0 {
		return
	}
	given := map[int]bool{}
	for _, s := range o.give {
		delete(w.shards, s)
		given[s] = true
	}
	w.taken = slices.DeleteFunc(w.taken, func(s int) bool { return given[s] })
	maps.DeleteFunc(w.targets, func(_ uint64, t *target.Target) bool { return given[t.Shard()] })
	w.release(given)
	w.show()
}

type message struct {
	msg jetstream.Msg
	err error
}

// pump passes messages on until an error or the end of its reader. It waits without a limit, which is how the client notices that its consumer is gone.
func pump(it jetstream.MessagesContext, to chan<- message, ended <-chan struct{}) {
	for {
		msg, err := stream.Next(it)
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

// take reads one message. A target that cannot be read is left as it was, and named in the log.
func (w *watcher) take(msg jetstream.Msg) {
	id, err := w.svc.cfg.Conn.TargetID(msg.Subject())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a message among the targets", "err", err)
		return
	}
	if len(msg.Data()) == 0 {
		delete(w.targets, id)
		return
	}
	t, err := target.Decode(msg.Data())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a target that cannot be read", "subject", msg.Subject(), "err", err)
		return
	}
	if w.shards[t.Shard()] { // or it came behind the order to give its shard
		w.targets[id] = t
	}
}

// apply makes the loops those of the targets, with the configuration as it is now.
func (w *watcher) apply() {
	next := w.svc.plan.Load()
	if next != w.plan {
		w.replan(next)
	}
	byJob := make(map[string]map[uint64]*target.Target, len(w.jobs))
	for name := range w.jobs {
		byJob[name] = map[uint64]*target.Target{}
	}
	for id, t := range w.targets {
		if list := byJob[t.Job]; list != nil { // or it is one of another configuration
			list[id] = t
		}
	}
	for name, j := range w.jobs {
		j.sync(byJob[name])
	}
	w.show()
	if len(w.taken) > 0 {
		w.svc.keeper.lookForOrphans(w.taken)
		w.taken = nil
	}
}

// show tells others which targets there are.
func (w *watcher) show() {
	var active []Active
	for _, j := range w.jobs {
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
