// Package relabel is the service that evaluates each endpoint's rules, once per dictionary. Its README says which subjects and metrics
// it has.
package relabel

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/relabel/limit"
)

// Config configures the service.
type Config struct {
	// Conn reaches the streams.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Fleet says which partitions this process owns.
	Fleet *fleet.Fleet
	// Limits are limits on series; the zero value has none. DictAge is how long the stream keeps dictionaries.
	Limits  limit.Limits
	DictAge time.Duration
	// Logger and Registerer receive the service's log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Endpoint is a remote_write endpoint as this service sees it.
type Endpoint struct {
	Name  string
	Rules rules.Rules
}

// Service relabels dictionaries. Make it with [New], give it endpoints with [Service.ApplyConfig], and run it with [Service.Serve].
type Service struct {
	cfg       Config
	system    *actor.System
	metrics   *metrics
	offenders *limit.Offenders // nil where there are no limits

	mu      sync.Mutex
	plan    *plan
	changed chan struct{}  // closed when plan is replaced
	owned   map[int]uint64 // epochs by partition
	running *running       // the plan that runs; nil while none does
}

// running is a plan with its actors.
type running struct {
	plan  *plan
	sys   *actor.System
	parts map[int]*partition
	refs  map[int]*actor.Ref
}

// plan is a set of endpoints, those with equal rules together.
type plan struct {
	groups []group
	hash   uint64 // of everything in it
}

type group struct {
	hash      string
	rules     rules.Rules
	endpoints []string
}

// New returns the service. system supervises its actors.
func New(cfg Config, system *actor.System) *Service {
	s := &Service{cfg: cfg, system: system, plan: &plan{}, changed: make(chan struct{}), owned: map[int]uint64{}}
	s.metrics = newMetrics(cfg.Registerer)
	if cfg.Limits.Enabled() {
		s.offenders = limit.NewOffenders(cfg.Registerer)
		s.countActive(cfg.Registerer)
	}
	return s
}

// ApplyConfig sets the endpoints. Where they differ from those before, all live dictionaries are evaluated again.
func (s *Service) ApplyConfig(endpoints []Endpoint) error {
	next, err := newPlan(endpoints)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if next.hash == s.plan.hash {
		return nil
	}
	s.plan = next
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

func newPlan(endpoints []Endpoint) (*plan, error) {
	p := &plan{}
	byHash := map[string]int{}
	all := sha256.New()
	for _, e := range endpoints {
		h, err := e.Rules.Hash()
		if err != nil {
			return nil, fmt.Errorf("endpoint %q: %w", e.Name, err)
		}
		fmt.Fprintf(all, "%q %s\n", e.Name, h)
		i, ok := byHash[h]
		if !ok {
			i = len(p.groups)
			byHash[h] = i
			p.groups = append(p.groups, group{hash: h, rules: e.Rules})
		}
		p.groups[i].endpoints = append(p.groups[i].endpoints, e.Name)
	}
	p.hash = binary.BigEndian.Uint64(all.Sum(nil))
	return p, nil
}

// Serve relabels the partitions that this process owns until ctx ends, and then gives them back.
func (s *Service) Serve(ctx context.Context) error {
	return s.cfg.Fleet.Hold(ctx, s.system, "relabel", s.cfg.Partitions, s, s.work)
}

// work runs plan after plan. A new plan gets new actors, which begin with the oldest dictionary.
func (s *Service) work(ctx context.Context) error {
	for ctx.Err() == nil {
		s.mu.Lock()
		changed := s.changed
		r := &running{plan: s.plan, sys: s.system.Detached("relabel"), parts: map[int]*partition{}, refs: map[int]*actor.Ref{}}
		s.running = r
		for p, epoch := range s.owned {
			s.own(p, epoch)
		}
		s.mu.Unlock()
		run, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- r.sys.Serve(run) }()
		select {
		case <-ctx.Done():
		case <-changed:
		case err := <-done:
			stop()
			return err
		}
		s.mu.Lock()
		s.running = nil
		s.mu.Unlock()
		stop()
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}

// own starts a partition. The service's lock is held.
func (s *Service) own(number int, epoch uint64) {
	r := s.running
	if r == nil {
		return
	}
	p := &partition{svc: s, plan: r.plan, number: number, epoch: epoch, log: s.cfg.Logger.With("partition", number), turn: make(chan struct{}, 1)}
	r.parts[number] = p
	if len(r.plan.groups) > 0 {
		r.refs[number] = r.sys.Spawn(fmt.Sprintf("relabel %d", number), p)
	}
}

// Take starts partitions.
func (s *Service) Take(partitions map[int]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, epoch := range partitions {
		s.owned[p] = epoch
		s.own(p, epoch)
	}
}

// Give stops partitions.
func (s *Service) Give(partitions []int, _ bool) {
	ctx, cancel := context.WithTimeout(context.Background(), giveTime)
	defer cancel()
	var refs []*actor.Ref
	s.mu.Lock()
	for _, p := range partitions {
		delete(s.owned, p)
		if s.running == nil {
			continue
		}
		if ref := s.running.refs[p]; ref != nil {
			refs = append(refs, ref)
		}
		delete(s.running.refs, p)
		delete(s.running.parts, p)
	}
	s.mu.Unlock()
	for _, ref := range refs {
		if err := ref.Stop(ctx); err != nil {
			s.cfg.Logger.Warn("A partition does not stop in time; its position tells it that another has it", "err", err)
		}
	}
}

// giveTime is how long partitions may take to stop before another process takes them over all the same.
const giveTime = 5 * time.Second

// Waiting says on what the service waits; nothing means that all is well.
func (s *Service) Waiting() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	var reasons []string
	for _, n := range slices.Sorted(maps.Keys(s.running.parts)) {
		if r := s.running.parts[n].waiting.Load(); r != nil {
			reasons = append(reasons, fmt.Sprintf("partition %d waits for %s", n, *r))
		}
	}
	return reasons
}

// Series returns how many series have been evaluated since the process started.
func (s *Service) Series() float64 { return counter.Value(s.metrics.series) }

type metrics struct {
	dictionaries, series, dropped, unreadable, failed, asked prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "relabel", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	return &metrics{
		dictionaries: counter("dictionaries_total", "Dictionaries evaluated, once for each set of rules."),
		series:       counter("series_total", "Series evaluated, once for each set of rules."),
		dropped:      counter("dropped_series_total", "Series that write_relabel_configs dropped, or made too large."),
		unreadable:   counter("unreadable_dictionaries_total", "Dictionaries that could not be read."),
		failed:       counter("failed_dictionaries_total", "Dictionaries of which an endpoint gets nothing, because what its rules make of them, or what limits decide on them, is too large."),
		asked:        counter("asked_total", "Dictionaries evaluated again because a writer asked for them."),
	}
}
