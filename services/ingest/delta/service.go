package delta

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// Config configures the service.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Fleet says which partitions this process owns.
	Fleet *fleet.Fleet
	// Publisher names this service among those that publish frames; none of the others may have the same. 0: a new one.
	Publisher uint64
	// MaxStale is how long after its last point a series begins anew. Default 5m.
	MaxStale time.Duration
	// MaxStreams is how many series are accumulated at a time; points of others are dropped. Default 1,000,000.
	MaxStreams int
	// DictAge is how long the stream keeps a dictionary, so that those of deltas which have waited for long can be stored again. 0: they are not.
	DictAge time.Duration
	// Logger and Registerer receive the service's log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service makes points of delta temporality cumulative. Make it with [New] and run it with [Service.Serve].
type Service struct {
	cfg        Config
	system     *actor.System
	metrics    *metrics
	hash       hasher
	budget     *budget
	margin     time.Duration   // clockMargin
	sweepEvery int64           // milliseconds
	published  []atomic.Uint64 // samples by partition, of this publisher
	said       atomic.Int64    // when the log was told of the limit, in seconds since 1970

	mu     sync.Mutex
	actors *actor.System // that runs; nil while none does
	owned  map[int]*owned
}

// owned is a partition that this process owns.
type owned struct {
	*partition
	ref *actor.Ref
}

// clockMargin is how far the clocks of this process and of NATS servers may be apart.
const clockMargin = time.Minute

// New returns the service. system supervises its actors.
func New(cfg Config, system *actor.System) *Service {
	if cfg.Publisher == 0 {
		cfg.Publisher = stream.NewPublisher()
	}
	if cfg.MaxStale == 0 {
		cfg.MaxStale = 5 * time.Minute
	}
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 1_000_000
	}
	s := &Service{
		margin: clockMargin, cfg: cfg, system: system, hash: newHasher(), budget: &budget{limit: int64(cfg.MaxStreams)}, sweepEvery: min(cfg.MaxStale/4, time.Minute).Milliseconds(),
		published: make([]atomic.Uint64, cfg.Partitions), owned: map[int]*owned{},
	}
	s.metrics = newMetrics(s, cfg.Registerer)
	return s
}

// Serve works on the partitions that this process owns until ctx ends, and then gives them back.
func (s *Service) Serve(ctx context.Context) error {
	actors := s.system.Detached("delta")
	s.mu.Lock()
	s.actors = actors
	s.mu.Unlock()
	err := s.cfg.Fleet.Hold(ctx, s.system, "ingest", s.cfg.Partitions, s, actors.Serve)
	s.mu.Lock()
	s.actors = nil
	s.mu.Unlock()
	return err
}

// Take starts partitions.
func (s *Service) Take(partitions map[int]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.actors == nil {
		return
	}
	for n := range partitions {
		p := &partition{svc: s, number: n, log: s.cfg.Logger.With("partition", n)}
		s.owned[n] = &owned{p, s.actors.Spawn(fmt.Sprintf("delta %d", n), p)}
	}
}

// giveTime is how long partitions may take to stop before another process takes them over all the same.
const giveTime = 5 * time.Second

// Give stops partitions.
func (s *Service) Give(partitions []int, _ bool) {
	ctx, cancel := context.WithTimeout(context.Background(), giveTime)
	defer cancel()
	var refs []*actor.Ref
	s.mu.Lock()
	for _, n := range partitions {
		if o := s.owned[n]; o != nil {
			refs = append(refs, o.ref)
		}
		delete(s.owned, n)
	}
	s.mu.Unlock()
	var stopping sync.WaitGroup
	for _, ref := range refs {
		stopping.Go(func() {
			if err := ref.Stop(ctx); err != nil {
				s.cfg.Logger.Warn("A partition does not stop in time; what it still publishes is what its next owner does", "err", err)
			}
		})
	}
	stopping.Wait()
}

// Waiting says on what the service waits; nothing means that all is well.
func (s *Service) Waiting() []string {
	var reasons []string
	for _, p := range s.Status().Partitions {
		if p.Waiting != "" {
			reasons = append(reasons, fmt.Sprintf("deltas of partition %d: %s", p.Number, p.Waiting))
		}
	}
	return reasons
}

// Status is what the service does now.
type Status struct {
	// Partitions are those that this process owns.
	Partitions []PartitionStatus
	// Streams is how many series are accumulated, MaxStreams how many may be.
	Streams, MaxStreams int
	// Behind is how many messages of DELTAS are not cumulative yet.
	Behind uint64
}

// PartitionStatus is what the actor of a partition does now.
type PartitionStatus struct {
	Number, Streams int
	Behind          uint64
	// Waiting says on what it waits; empty while all is well.
	Waiting string
}

// Status returns what the service does now.
func (s *Service) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Streams: int(s.budget.used.Load()), MaxStreams: s.cfg.MaxStreams}
	for _, n := range slices.Sorted(maps.Keys(s.owned)) {
		p := s.owned[n]
		ps := PartitionStatus{Number: n, Streams: int(p.series.Load()), Behind: p.behind.Load()}
		if r := p.waiting.Load(); r != nil {
			ps.Waiting = *r
		}
		st.Behind += ps.Behind
		st.Partitions = append(st.Partitions, ps)
	}
	return st
}

// sayEvery is how often the log is told of series that find no room, in seconds.
const sayEvery = 60

// sayLimit tells the log of a series that found no room, by its metric, unless it was told lately.
func (s *Service) sayLimit(ctx context.Context, p *partition, dict frame.DictID, i uint32) {
	now, said := time.Now().Unix(), s.said.Load()
	if now-said < sayEvery || !s.said.CompareAndSwap(said, now) {
		return
	}
	metric := "unknown"
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if msg, err := s.cfg.Conn.Last(ctx, stream.Dicts, s.cfg.Conn.Dict(p.number, dict)); err == nil {
		if d, err := frame.ReadDictionary(msg.Data, dict); err == nil && int(i) < len(d.Series) {
			metric = d.Series[i].Labels.Get(model.MetricNameLabel)
		}
	}
	p.log.Error("Dropping points of new series: as many series of delta temporality are accumulated as may be", "metric", metric, "max_streams", s.cfg.MaxStreams,
		"remedy", "raise millrace.ingest.delta.max_streams, send fewer series, or have the sender use cumulative temporality")
}
