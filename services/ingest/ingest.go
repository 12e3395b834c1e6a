package ingest

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"

	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/services/ingest/door"
)

// Config configures the service.
type Config struct {
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Frames publishes what is pushed. It runs for longer than the service.
	Frames *publish.Publishers
	// Deltas publishes what has delta temporality, for the actors that make it cumulative. Nil: such points are refused.
	Deltas *publish.Publishers
	// Linger is how long a frame may wait for others of its partition.
	Linger time.Duration
	// MaxPendingBytes bounds the frames held in memory while the stream does not take them.
	MaxPendingBytes int64
	// MaxSeries is how many series are known at a time; points of others are refused beyond it.
	MaxSeries int
	// SeriesIdle is how long after its last push a series is forgotten.
	SeriesIdle time.Duration
	// ForgetEach makes dictionaries anew as soon as they have a series that is forgotten, and not only where these are many.
	ForgetEach bool
	// OutOfOrderWindow is by how much a sample may be older than the newest of its series.
	OutOfOrderWindow time.Duration
	// AckTimeout is how long a request waits for the stream.
	AckTimeout time.Duration
	// TenantLabel is the label that carries the tenant of a push; "" for none.
	TenantLabel string
	// Registerer receives the service's metrics. What it refuses its doors log.
	Registerer prometheus.Registerer
}

// Service turns pushes into frames. Make it with [New], give it a configuration with [Service.ApplyConfig], and run it with [Service.Serve]. It takes what doors bring: it is a
// [door.Taker].
type Service struct {
	cfg         Config
	hash        hasher
	registry    *registry
	metadata    *families
	budget      *publish.Budget
	metrics     *metrics
	translation atomic.Pointer[translation]
	open        atomic.Bool
	translating chan struct{} // holds one of as many as may be translated at a time
}

var _ door.Taker = (*Service)(nil)

// New returns the service.
func New(cfg Config) *Service {
	s := &Service{
		cfg: cfg, hash: newHasher(), registry: newRegistry(cfg.Partitions, cfg.MaxSeries), metadata: newFamilies(),
		budget: publish.NewBudget(cfg.MaxPendingBytes), translating: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	s.metrics = newMetrics(s, cfg.Registerer)
	s.ApplyConfig(promconfig.DefaultOTLPConfig)
	return s
}

// ApplyConfig sets how OTLP is translated. It may be called at any time; requests that are under way are translated as before.
func (s *Service) ApplyConfig(cfg promconfig.OTLPConfig) {
	generation := uint64(1)
	if t := s.translation.Load(); t != nil {
		generation = t.generation + 1
	}
	s.translation.Store(newTranslation(cfg, s.cfg.Deltas != nil, generation))
	s.registry.reset()
}

// Serve takes pushes until ctx ends.
func (s *Service) Serve(ctx context.Context) error {
	s.open.Store(true)
	err := s.registry.keep(ctx, s.cfg.SeriesIdle, s.cfg.ForgetEach, s.metadata)
	s.open.Store(false)
	return err
}

// errClosed is what a sender hears before the service runs, and when it has ended.
var errClosed = &door.Refusal{Kind: door.Unavailable, RetryAfter: time.Second, Message: "the service is starting or stopping; try again"}

// Take brings a push into the stream. It returns when JetStream has acknowledged all that is not refused: what it returns without an error is safe.
func (s *Service) Take(ctx context.Context, p *door.Push) (door.Outcome, error) {
	if !s.open.Load() {
		return door.Outcome{}, errClosed
	}
	r := s.begin(p)
	r.cancelled = ctx.Err
	out, err := r.take(ctx, p)
	r.release()
	return out, err
}

// take reads the push and waits for the stream.
func (r *request) take(ctx context.Context, p *door.Push) (door.Outcome, error) {
	var err error
	switch p.Format {
	case door.OTLP:
		err = r.readOTLP(p.Body)
	case door.RemoteWriteV1:
		err = r.readV1(p.Body)
	case door.RemoteWriteV2:
		err = r.readV2(p.Body)
	default:
		err = fmt.Errorf("push of the unknown format %d", p.Format)
	}
	if err == nil {
		err = r.failed
	}
	if err != nil {
		return door.Outcome{}, err
	}
	return r.finish(ctx)
}

func (s *Service) publishers(delta bool) *publish.Publishers {
	if delta {
		return s.cfg.Deltas
	}
	return s.cfg.Frames
}

// Waiting says on what the service waits; nothing while all is well.
func (s *Service) Waiting() []string {
	waiting := s.cfg.Frames.Waiting()
	if s.cfg.Deltas != nil {
		waiting = append(waiting, s.cfg.Deltas.Waiting()...)
	}
	return waiting
}

// Stats are figures for people.
type Stats struct {
	// Samples and Refused count since the process started.
	Samples, Refused float64
	// Series and Sources are known now.
	Series, Sources int
}

// Stats returns the present figures.
func (s *Service) Stats() Stats {
	st := Stats{Samples: counter.Value(s.metrics.samples), Series: int(s.registry.series.Load()), Sources: s.registry.counts()}
	for _, why := range refusals {
		st.Refused += counter.Value(s.metrics.refusals.WithLabelValues(string(why)))
	}
	return st
}
