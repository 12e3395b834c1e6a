package scraper

import (
	"github.com/prometheus/prometheus/scrape"

	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/target"
)

// Active is a target that is being scraped.
type Active struct {
	*scrape.Target
	// Discovered is the target as discovery published it.
	Discovered *target.Target
}

// Targets returns the targets that are scraped now.
func (s *Service) Targets() []Active { return *s.active.Load() }

// Waiting says on what the service waits; nothing means that all is well.
func (s *Service) Waiting() []string { return s.cfg.Publishers.Waiting() }

// Stats are the numbers that tell most about the service.
type Stats struct {
	// Samples and DroppedScrapes count since the process started.
	Samples, DroppedScrapes float64
	// Series is how many the scraper knows now.
	Series int
}

// Stats returns the present numbers.
func (s *Service) Stats() Stats {
	_, series := s.sources.counts()
	return Stats{Samples: counter.Value(s.metrics.samples), DroppedScrapes: counter.Value(s.metrics.droppedScrapes), Series: series}
}
