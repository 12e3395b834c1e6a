package scraper

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/pkg/publish"
)

// published is told how a scrape has ended that the publishers have taken. What is dropped then has been logged.
func (s *Service) published(err error) {
	if err == nil {
		return
	}
	samples := 0
	if d := (*publish.DroppedError)(nil); errors.As(err, &d) {
		samples = d.Samples
	}
	s.dropped(float64(samples))
}

// dropped counts a scrape that the stream does not get, or not all of it.
func (s *Service) dropped(samples float64) {
	s.metrics.droppedScrapes.Inc()
	s.metrics.droppedSamples.Add(samples)
}

// refusals counts scrapes that were dropped because memory for waiting ones was full, for the log.
type refusals struct {
	scrapes  atomic.Int64 // since they were logged last
	loggedAt atomic.Int64 // in nanoseconds
}

// refusalsEvery is how often refusals are logged at most.
const refusalsEvery = 5 * time.Second

func (r *refusals) add() { r.scrapes.Add(1) }

// take returns how many are to be logged now.
func (r *refusals) take() int64 {
	if r.scrapes.Load() == 0 {
		return 0
	}
	last, now := r.loggedAt.Load(), time.Now().UnixNano()
	if now-last < int64(refusalsEvery) || !r.loggedAt.CompareAndSwap(last, now) {
		return 0
	}
	return r.scrapes.Swap(0)
}

// reportRefusals logs what was refused, once in a while. Each scrape looks, so that the last ones are said too.
func (s *Service) reportRefusals() {
	if n := s.full.take(); n > 0 {
		s.cfg.Logger.Error("Dropped whole scrapes because the stream does not take them and memory for waiting ones is full", "scrapes", n,
			"limit_bytes", s.budget.Limit(), "remedy", "mend the stream, or raise millrace.scraper.max_pending_bytes")
	}
}
