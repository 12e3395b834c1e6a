// Package scraper is the service that scrapes targets and turns what they expose into frames. Its README says which subjects and
// metrics it has.
package scraper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/stream"
)

// Publishers take what was scraped; [publish.Publishers] are such. What its methods do is said there.
type Publishers interface {
	Offer(partition int, u *publish.Unit) bool
	Flush(ctx context.Context, partition int)
	Waiting() []string
}

// Config configures the service.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Publishers publish the frames. They have to run before the service does, and until it has ended.
	Publishers Publishers
	// Fleet says which shards this process owns.
	Fleet *fleet.Fleet
	// Linger is how long a frame may wait for others of its partition.
	Linger time.Duration
	// MaxPendingBytes bounds the frames held in memory while the stream does not take them.
	MaxPendingBytes int64
	// MaxBodyBytes is the body_size_limit of scrape configs that have none, in bytes after decompression.
	MaxBodyBytes int64
	// DictAge is how long the stream keeps dictionaries.
	DictAge time.Duration
	// SeriesIdle is how long after their last sample series are taken out of dictionaries, unless many are gone sooner; 0 for then only.
	SeriesIdle time.Duration
	// StartTimestamps makes the scrape loops parse start timestamps, which replaces OpenMetrics' _created series.
	StartTimestamps bool
	// LoopbackIdentity makes the scrape loops ask targets on a loopback address or a Unix socket for bodies that are not compressed.
	LoopbackIdentity bool
	// Logger and Registerer receive the service's log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service scrapes. Make it with [New], give it a configuration with [Service.ApplyConfig], and run it with [Service.Serve].
type Service struct {
	cfg           Config
	system        *actor.System
	metrics       *metrics
	scrapeMetrics *scrapeMetrics
	sources       *sources
	keeper        *keeper
	templates     *templates
	collectors    sync.Pool
	piece         int           // how much of a body is in memory at a time, in bytes
	packFrom      time.Duration // the interval from which on templates are kept packed
	replanned     chan struct{} // wakes the watcher for a new plan

	budget *publish.Budget // of frames that are not acknowledged
	full   refusals
	done   func(error) // of all units

	plan   atomic.Pointer[plan]
	active atomic.Pointer[[]Active]
	epochs [stream.Shards]atomic.Uint64 // of the shards that this process owns; 0 for others
	seed   atomic.Uint64                // of the beats

	mu sync.Mutex // held while a plan is made
}

// New returns the service. system supervises its actors.
func New(cfg Config, system *actor.System) *Service {
	s := &Service{
		cfg: cfg, system: system, sources: newSources(cfg.Partitions), templates: newTemplates(), replanned: make(chan struct{}, 1),
		scrapeMetrics: newScrapeMetrics(cfg.Registerer), budget: publish.NewBudget(cfg.MaxPendingBytes), piece: piece, packFrom: packFrom,
	}
	s.done = s.published
	s.metrics = newMetrics(s, cfg.Registerer)
	s.keeper = newKeeper(s)
	s.plan.Store(&plan{})
	s.active.Store(&[]Active{})
	return s
}

// ApplyConfig sets the jobs to scrape; global is what they belong to. It may be called before Serve and at any time later. An
// error leaves the jobs as they were.
func (s *Service) ApplyConfig(global promconfig.GlobalConfig, jobs []*promconfig.ScrapeConfig) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := newPlan(s.plan.Load(), global, jobs, s.cfg.MaxBodyBytes)
	if err != nil {
		return fmt.Errorf("applying scrape configs: %w", err)
	}
	s.plan.Store(p)
	select {
	case s.replanned <- struct{}{}:
	default:
	}
	return nil
}

// Serve scrapes the targets of the shards that this process owns until ctx ends. Then it gives the shards back, which ends their scrape loops and publishes what they
// have brought.
func (s *Service) Serve(ctx context.Context) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	loops := s.system.Detached("targets")
	w := newWatcher(s, loops, ctx)
	looping, stopLoops := context.WithCancel(working)
	defer stopLoops()
	loops.Spawn("targets", w)
	loops.Spawn("keeper", s.keeper)
	looped := make(chan error, 1)
	go func() { looped <- loops.Serve(looping) }()

	claims := s.system.Detached("claims")
	claims.Spawn("claim scraper", s.cfg.Fleet.Claim("scraper", stream.Shards, w))
	err := claims.Serve(ctx)
	stopLoops()
	err = errors.Join(err, <-looped)
	w.handovers.Wait()
	s.active.Store(&[]Active{})
	return err
}

// epochOf returns the epoch under which this process owns a source; 0 where it does not.
func (s *Service) epochOf(source uint64) uint64 { return s.epochs[stream.ShardOf(source)].Load() }

// collector returns a collector for one scrape, which release takes back.
func (s *Service) collector() *collector {
	if c, ok := s.collectors.Get().(*collector); ok {
		return c
	}
	c := &collector{a: &appender{svc: s}, metrics: s.scrapeMetrics, shared: s.templates, builder: labels.NewScratchBuilder(8), final: labels.NewBuilder(labels.EmptyLabels())}
	c.reset(&exposition{})
	return c
}

// release takes a collector back. One whose scrape has panicked still holds its source, and what it knows of it may be wrong.
func (s *Service) release(c *collector) {
	if c.a.src != nil {
		c.view.forget()
		c.a.rollback()
		return
	}
	s.collectors.Put(c)
}
