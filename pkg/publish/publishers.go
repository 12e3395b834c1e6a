package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
)

// drainTime is how long stopping publishers try to publish what they hold.
const drainTime = 5 * time.Second

// Config configures [Publishers].
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Subject is where the batches of a partition go, such as [stream.Names.Frames].
	Subject func(partition int) string
	// Stream is the stream of these subjects, such as [stream.Frames].
	Stream string
	// Publisher numbers this process among several that publish to the same partitions, see [stream.NewPublisher]; 0 where it is the only one.
	Publisher uint64
	// MaxBatchBytes is the size of a batch before compression, in bytes, at which it does not wait any longer.
	MaxBatchBytes int
	// DictAge is how long the stream keeps dictionaries.
	DictAge time.Duration
	// AnnounceEvery is how often a dictionary that is in use is published again; default and most: half of DictAge.
	AnnounceEvery time.Duration
	// Name tells these publishers from others of the process: in the names of the actors, and as the label stream of the metrics.
	Name string
	// Logger and Registerer receive log lines and metrics. Publishers with different names may share a registry.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Publishers publish to all partitions of a stream. Make them with [New] and run them with [Publishers.Serve]; they have to outlive the services that offer to them.
type Publishers struct {
	cfg     Config
	system  *actor.System
	metrics *metrics
	list    []*publisher // by partition
	began   time.Time
	due     atomic.Int64 // when units that wait for a short time go, see deadlineOf; since began
}

// New returns publishers. system is where their actors' log and metrics go.
func New(cfg Config, system *actor.System) *Publishers {
	if half := cfg.DictAge / 2; cfg.AnnounceEvery <= 0 || cfg.AnnounceEvery > half {
		cfg.AnnounceEvery = half
	}
	p := &Publishers{cfg: cfg, system: system, metrics: newMetrics(cfg.Name, cfg.Registerer), began: time.Now()}
	for n := range cfg.Partitions {
		p.list = append(p.list, newPublisher(p, n))
	}
	cfg.Registerer.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "millrace", Subsystem: "publisher", Name: "waiting_partitions", Help: "Partitions whose publisher waits because the stream does not take its messages.",
		ConstLabels: prometheus.Labels{"stream": cfg.Name},
	}, func() float64 { return float64(len(p.Waiting())) }))
	return p
}

// Serve publishes until ctx ends, and then what is still held, if the stream takes it within 5 s. What is on its way then is waited for, so that a planned stop repeats
// nothing. After the end of ctx no unit is taken any more; when Serve returns, each that was has been told how it ended. Serve is called once; what is offered before is
// published when it runs.
func (p *Publishers) Serve(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(drainTime):
			cancel(errStopped)
		case <-work.Done():
		}
	})()
	actors := p.system.Detached("publishers " + p.cfg.Name)
	for _, a := range p.list {
		actors.Spawn(fmt.Sprintf("publisher %s/%d", p.cfg.Name, a.partition), actor.Func(func(ctx context.Context) error { return a.serve(ctx, work) }))
	}
	err := actors.Serve(ctx)
	var ending sync.WaitGroup
	for _, a := range p.list {
		ending.Go(func() { a.end(work) })
	}
	ending.Wait()
	return err
}

// errStopped is why units are dropped that are held for longer than drainTime after the end.
var errStopped = errors.New("the process stops and the stream has not taken it in time")

// Offer hands a unit to the publisher of a partition, which publishes the units in the order of the offers. It never blocks, and reports whether the unit was taken: not where its
// Budget has no room for it, more units wait than the mailbox takes, or the publishers have been stopped. Done is not called for a unit that was not taken.
func (p *Publishers) Offer(partition int, u *Unit) bool { return p.list[partition].offer(u) }

// shortLinger is the longest time to wait that counts as short: what waits no longer is pushed, and its sender waits too.
const shortLinger = 50 * time.Millisecond

// deadlineOf returns when a unit that is offered now goes at the latest. Units that wait for a short time go together, whatever their partitions: the first sets the time for all that
// come until then. A process that wakes up once for several messages costs less than one that wakes up for each.
func (p *Publishers) deadlineOf(linger time.Duration) time.Time {
	now := time.Since(p.began)
	mine := now + linger
	if linger > shortLinger {
		return p.began.Add(mine)
	}
	for {
		due := p.due.Load()
		if at := time.Duration(due); at > now && at <= mine {
			return p.began.Add(at)
		}
		if p.due.CompareAndSwap(due, int64(mine)) {
			return p.began.Add(mine)
		}
	}
}

// Flush makes the publisher of a partition publish all that it was offered before, without waiting for more, and waits for that until ctx ends.
func (p *Publishers) Flush(ctx context.Context, partition int) { p.list[partition].flush(ctx) }

// Waiting says on what the publishers wait; nothing means that all is well.
func (p *Publishers) Waiting() []string {
	var reasons []string
	for _, a := range p.list {
		if r := a.waiting.Load(); r != nil {
			reasons = append(reasons, fmt.Sprintf("partition %d waits for the stream: %s", a.partition, *r))
		}
	}
	return reasons
}

// WaitingOf says on what the publisher of a partition waits; "" means that all is well.
func (p *Publishers) WaitingOf(partition int) string {
	if r := p.list[partition].waiting.Load(); r != nil {
		return *r
	}
	return ""
}

type metrics struct {
	dictionaries, batches, batchBytes, retries prometheus.Counter
}

func newMetrics(name string, reg prometheus.Registerer) *metrics {
	counter := func(what, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "millrace", Subsystem: "publisher", Name: what, Help: help, ConstLabels: prometheus.Labels{"stream": name},
		})
		reg.MustRegister(c)
		return c
	}
	return &metrics{
		dictionaries: counter("dictionaries_total", "Dictionaries published, new ones and ones announced again."),
		batches:      counter("batches_total", "Batches that the stream has acknowledged."),
		batchBytes:   counter("batch_bytes_total", "Bytes of the batches that the stream has acknowledged."),
		retries:      counter("retries_total", "Failed tries to publish."),
	}
}
