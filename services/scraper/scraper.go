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
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/logging"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// drainTime is how long a stopping service tries to publish what it holds.
const drainTime = 5 * time.Second

// Config configures the service.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Linger is how long a frame may wait for others of its partition.
	Linger time.Duration
	// MaxBatchBytes is the size of a batch before compression, in bytes, at which it does not wait any longer.
	MaxBatchBytes int
	// MaxPendingBytes bounds the frames held in memory while the stream does not take them.
	MaxPendingBytes int64
	// MaxBodyBytes is the body_size_limit of scrape configs that have none, in bytes after decompression.
	MaxBodyBytes int64
	// DictAge is how long the stream keeps dictionaries.
	DictAge time.Duration
	// StartTimestamps makes the scrape loops parse start timestamps, which replaces OpenMetrics' _created series.
	StartTimestamps bool
	// Logger and Registerer receive the service's log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service scrapes. Make it with [New], give it a configuration with [Service.ApplyConfig], and run it with [Service.Serve].
type Service struct {
	cfg        Config
	system     *actor.System
	metrics    *metrics
	publishers []*publisher
	sources    *sources
	sets       chan map[string][]*targetgroup.Group
	resend     chan struct{}

	epoch      atomic.Uint64
	generation atomic.Uint64
	pending    atomic.Int64 // bytes of frames that are not acknowledged
	discovered atomic.Pointer[map[uint64]*target.Target]

	mu      sync.Mutex // guards what follows
	config  *promconfig.Config
	manager *scrape.Manager // nil while Serve does not run
}

// New returns the service. system supervises its actors.
func New(cfg Config, system *actor.System) *Service {
	s := &Service{cfg: cfg, system: system, sets: make(chan map[string][]*targetgroup.Group), resend: make(chan struct{}, 1)}
	s.metrics = newMetrics(s, cfg.Registerer)
	s.sources = newSources(s)
	for p := range cfg.Partitions {
		s.publishers = append(s.publishers, newPublisher(s, p))
	}
	return s
}

// ApplyConfig sets the jobs to scrape; global is what they belong to. It may be called before Serve and at any time later. An
// error leaves the jobs as they were.
func (s *Service) ApplyConfig(global promconfig.GlobalConfig, jobs []*promconfig.ScrapeConfig) error {
	cfg, err := promconfig.Load("", s.cfg.Logger)
	if err != nil {
		return fmt.Errorf("making the scrape manager's configuration: %w", err)
	}
	cfg.GlobalConfig = global
	for _, j := range jobs {
		cfg.ScrapeConfigs = append(cfg.ScrapeConfigs, scrapeConfig(j, s.cfg.MaxBodyBytes))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.manager != nil {
		if err := s.manager.ApplyConfig(cfg); err != nil {
			return fmt.Errorf("applying scrape configs: %w", err)
		}
	}
	s.config = cfg
	s.again()
	return nil
}

// again makes the watcher send its targets once more, for the jobs of a new configuration.
func (s *Service) again() {
	select {
	case s.resend <- struct{}{}:
	default:
	}
}

// jobs returns the names of the configured jobs.
func (s *Service) jobs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	if s.config != nil {
		for _, c := range s.config.ScrapeConfigs {
			names = append(names, c.JobName)
		}
	}
	return names
}

// Serve scrapes until ctx ends, and then publishes what it holds: the scrape loops stop first, the publishers last.
func (s *Service) Serve(ctx context.Context) error {
	epoch, err := s.cfg.Conn.NextEpoch(ctx, "scraper")
	if err != nil {
		return err
	}
	s.epoch.Store(epoch)
	manager, err := s.startManager()
	if err != nil {
		return err
	}

	publishers := s.system.Detached("publishers")
	for _, p := range s.publishers {
		publishers.Spawn(fmt.Sprintf("publisher %d", p.partition), p)
	}
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	published := make(chan error, 1)
	go func() { published <- publishers.Serve(publishing) }()

	watching := s.system.Detached("scraper")
	watching.Spawn("targets", &watcher{svc: s})
	watching.Spawn("sources", s.sources)
	scraping := make(chan error, 1)
	go func() { scraping <- manager.Run(s.sets) }()

	err = watching.Serve(ctx)
	s.mu.Lock()
	s.manager = nil
	s.mu.Unlock()
	manager.Stop()
	<-scraping
	manager.UnregisterMetrics()
	stopPublishing()
	return errors.Join(err, <-published)
}

func (s *Service) startManager() (*scrape.Manager, error) {
	manager, err := scrape.NewManager(&scrape.Options{
		PassMetadataInContext: true, ParseST: s.cfg.StartTimestamps, EnableZstdScrape: true,
		DiscoveryReloadInterval: model.Duration(100 * time.Millisecond), DiscoveryReloadOnStartup: true,
	}, s.cfg.Logger, logging.NewJSONFileLogger, nil, &appendable{svc: s}, s.cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("making the scrape manager: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config != nil {
		if err := manager.ApplyConfig(s.config); err != nil {
			manager.UnregisterMetrics()
			return nil, fmt.Errorf("applying scrape configs: %w", err)
		}
	}
	s.manager = manager
	return manager, nil
}

func (s *Service) nextGeneration() uint64 { return s.generation.Add(1) & (1<<(64-refBits) - 1) }
