// Package writer is the service that brings frames to remote_write endpoints. Its README says which subjects and metrics it has.
package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/fleet"
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
	// CacheBytes bounds the label sets held encoded for the wire, over all endpoints.
	CacheBytes int
	// ReadAhead is how many messages each partition of each endpoint fetches ahead; 0 for the mailbox's default.
	ReadAhead int
	// ReplaysOnly leaves the endpoints to another time: only replays are run.
	ReplaysOnly bool
	// Logger and Registerer receive the service's log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Service writes. Make it with [New], give it endpoints with [Service.ApplyConfig], and run it with [Service.Serve].
type Service struct {
	cfg     Config
	system  *actor.System
	metrics *metrics
	cache   *cache

	applying sync.Mutex    // held while endpoints and partitions start and stop
	actors   *actor.System // nil while Serve does not run
	owned    map[int]bool  // partitions
	known    []Endpoint    // of the configuration
	external labels.Labels
	replays  map[string]*replaying

	mu        sync.Mutex // held for moments, so that Status never waits for an endpoint to stop
	endpoints []*running
}

// running is an endpoint and the actors that serve it.
type running struct {
	*endpoint
	kind  string // "endpoint" or "replay"
	ref   *actor.Ref
	sys   *actor.System
	parts map[int]*actor.Ref // of the partitions that this process owns
}

// New returns the service. system supervises its actors.
func New(cfg Config, system *actor.System) *Service {
	s := &Service{cfg: cfg, system: system, cache: newCache(cfg.CacheBytes), owned: map[int]bool{}, replays: map[string]*replaying{}}
	s.metrics = newMetrics(s, cfg.Registerer)
	return s
}

// ErrNotStored is wrapped by an error of [Service.ApplyConfig] that may pass by itself: NATS does not store where an endpoint begins.
var ErrNotStored = errors.New("where it begins cannot be stored")

// ApplyConfig sets the endpoints. Those that have not changed go on; others stop, and begin again at the position that they had reached. An error
// leaves all as they were. It waits until ctx ends for endpoints to stop.
func (s *Service) ApplyConfig(ctx context.Context, endpoints []Endpoint) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	if s.cfg.ReplaysOnly {
		s.known = endpoints
		return nil
	}
	var next []*running
	kept := map[*running]bool{}
	for _, cfg := range endpoints {
		if old := s.find(cfg); old != nil {
			kept[old] = true
			next = append(next, old)
			continue
		}
		e, err := newEndpoint(s, cfg)
		if err != nil {
			return err
		}
		// From here on the endpoint gets everything, whether or not its actors run already.
		for _, p := range e.partitions {
			err := s.cfg.Conn.MakePosition(ctx, p.mailbox())
			if err != nil && !errors.Is(err, stream.ErrUnreadable) {
				err = fmt.Errorf("%w: %w", ErrNotStored, err)
			}
			if err != nil {
				return fmt.Errorf("endpoint %q: %w", cfg.Name, err)
			}
		}
		next = append(next, &running{endpoint: e, kind: "endpoint"})
	}
	var errs error
	for _, old := range s.endpoints {
		if !kept[old] {
			errs = errors.Join(errs, s.stop(ctx, old))
			if !slices.ContainsFunc(next, func(r *running) bool { return r.name == old.name }) {
				s.metrics.forget(old.name)
			}
		}
	}
	s.mu.Lock()
	s.endpoints = next
	s.mu.Unlock()
	if s.actors != nil {
		for _, r := range next {
			if !kept[r] {
				s.start(r)
			}
		}
	}
	s.known = endpoints
	s.refreshReplays(ctx)
	return errs
}

func (s *Service) find(cfg Endpoint) *running {
	for _, r := range s.endpoints {
		if r.name == cfg.Name && r.same(cfg) {
			return r
		}
	}
	return nil
}

func (s *Service) start(r *running) {
	r.sys, r.parts = s.system.Detached(r.kind+" "+r.name), map[int]*actor.Ref{}
	for p := range s.owned {
		r.own(p)
	}
	if r.sendsMetadata() {
		r.sys.Spawn("metadata "+r.name, &metadataSender{ep: r.endpoint})
	}
	r.ref = s.actors.Spawn(r.kind+" "+r.name, r.sys)
}

// own starts a partition.
func (r *running) own(partition int) {
	if partition >= len(r.partitions) {
		return // a replay of what was rejected is not cut into partitions
	}
	kind := "writer"
	if r.kind == "replay" {
		kind = r.kind
	}
	r.parts[partition] = r.sys.Spawn(fmt.Sprintf("%s %s/%d", kind, r.name, partition), r.partitions[partition])
}

// all returns what runs: endpoints and replays.
func (s *Service) all() []*running {
	list := slices.Clone(s.endpoints)
	for _, r := range s.replays {
		if r.running != nil {
			list = append(list, r.running)
		}
	}
	return list
}

// repace gives replays their part of the rate, which is that of the partitions.
func (s *Service) repace() {
	for _, r := range s.replays {
		r.pace()
	}
}

// Take starts partitions for all endpoints.
func (s *Service) Take(partitions map[int]uint64) {
	s.applying.Lock()
	defer s.applying.Unlock()
	for p := range partitions {
		s.owned[p] = true
		for _, r := range s.all() {
			if r.ref != nil {
				r.own(p)
			}
		}
	}
	s.repace()
}

// Give stops partitions for all endpoints. What is on its way is finished where the endpoint takes it, and the position stored, so that whoever comes next repeats nothing.
func (s *Service) Give(partitions []int, _ bool) {
	s.applying.Lock()
	defer s.applying.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), giveTime)
	defer cancel()
	var stopping sync.WaitGroup
	for _, p := range partitions {
		delete(s.owned, p)
		for _, r := range s.all() {
			ref := r.parts[p]
			if ref == nil {
				continue
			}
			delete(r.parts, p)
			stopping.Go(func() {
				if err := ref.Stop(ctx); err != nil {
					r.log.Warn("A partition does not stop in time; its position tells it that another has it", "partition", p, "err", err)
				}
			})
		}
	}
	stopping.Wait()
	s.repace()
}

// giveTime is how long a partition may take to stop before another process takes it over all the same.
const giveTime = stopTime + time.Second

func (s *Service) stop(ctx context.Context, r *running) error {
	defer r.client.CloseIdle()
	if r.ref == nil {
		return nil
	}
	if err := r.ref.Stop(ctx); err != nil {
		return fmt.Errorf("stopping endpoint %q: %w", r.name, err)
	}
	return nil
}

// Serve writes the partitions that this process owns until ctx ends, and then gives them back.
func (s *Service) Serve(ctx context.Context) error {
	s.applying.Lock()
	s.actors = s.system.Detached("writer")
	actors := s.actors
	for _, r := range s.endpoints {
		s.start(r)
	}
	actors.Spawn("replays", &replays{svc: s})
	s.applying.Unlock()
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	worked := make(chan error, 1)
	go func() { worked <- actors.Serve(working) }()

	claims := s.system.Detached("claims")
	claims.Spawn("claim writer", s.cfg.Fleet.Claim("writer", s.cfg.Partitions, s))
	err := claims.Serve(ctx)
	s.applying.Lock()
	s.actors = nil
	for _, r := range s.endpoints {
		r.ref, r.parts = nil, nil
	}
	clear(s.replays)
	s.applying.Unlock()
	stop()
	return errors.Join(err, <-worked)
}
