package scraper

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/scrape"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// A source that nobody has appended to for idleTime, and that no active target stands for, is forgotten. Old scrape loops
// write their staleness markers two intervals after a target is gone.
const idleTime = 15 * time.Minute

// sources finds the source of a scrape loop's target. As an actor it forgets those that are gone.
type sources struct {
	svc *Service

	mu       sync.Mutex
	byID     map[uint64]*source
	byTarget map[*scrape.Target]*source
	seq      uint64 // the greatest number of a frame among the sources that are forgotten
}

func newSources(svc *Service) *sources {
	return &sources{svc: svc, byID: map[uint64]*source{}, byTarget: map[*scrape.Target]*source{}}
}

// of returns the source of a target. Targets with the same public labels expose the same series, so they share one.
func (s *sources) of(t *scrape.Target) *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src, ok := s.byTarget[t]; ok {
		src.touch()
		return src
	}
	id := target.SourceID(t.LabelsRange)
	src, ok := s.byID[id]
	if !ok {
		src = newSource(id, stream.PartitionOf(id, s.svc.cfg.Partitions), t.GetValue(model.JobLabel), s.svc.nextGeneration())
		// Writers drop a frame whose number they have passed, also where the source was away for a while.
		src.seq = s.seq
		s.byID[id] = src
	}
	src.touch()
	s.byTarget[t] = src
	return src
}

// touch notes that a scrape of the source begins.
func (s *source) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = time.Now()
}

// Serve forgets sources once a minute until ctx ends.
func (s *sources) Serve(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.forget()
		}
	}
}

func (s *sources) forget() {
	s.svc.mu.Lock()
	manager := s.svc.manager
	s.svc.mu.Unlock()
	if manager == nil {
		return
	}
	active := map[*scrape.Target]bool{}
	for _, list := range manager.TargetsActive() {
		for _, t := range list {
			active[t] = true
		}
	}
	s.drop(func(t *scrape.Target) bool { return active[t] }, idleTime)
}

// drop forgets the sources that no active target stands for and that nobody has used for longer than the given time.
func (s *sources) drop(active func(*scrape.Target) bool, unused time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := map[*source]bool{}
	for t, src := range s.byTarget {
		src.mu.Lock()
		idle := time.Since(src.used) > unused
		src.mu.Unlock()
		if !active(t) && idle {
			delete(s.byTarget, t)
			continue
		}
		used[src] = true
	}
	for id, src := range s.byID {
		if !used[src] {
			src.mu.Lock()
			s.seq = max(s.seq, src.seq)
			src.mu.Unlock()
			delete(s.byID, id)
		}
	}
}

// counts returns the number of sources and of the series that they hold.
func (s *sources) counts() (sources, series int) {
	s.mu.Lock()
	list := make([]*source, 0, len(s.byID))
	for _, src := range s.byID {
		list = append(list, src)
	}
	s.mu.Unlock()
	for _, src := range list {
		src.mu.Lock()
		series += len(src.series)
		src.mu.Unlock()
	}
	return len(list), series
}
