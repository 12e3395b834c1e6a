package scraper

import (
	"sync"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// sources holds the sources that scrape loops append to.
type sources struct {
	partitions int

	mu   sync.Mutex
	byID map[uint64]*source
	seq  uint64 // the greatest number of a frame among the sources that are forgotten
}

func newSources(partitions int) *sources {
	return &sources{partitions: partitions, byID: map[uint64]*source{}}
}

// attach returns the source of a target with the given labels, and a new view of it. Targets with the same public labels expose the same
// series, so they share one.
func (s *sources) attach(ls labels.Labels) (*source, *view) {
	id := target.SourceID(ls.Range)
	s.mu.Lock()
	defer s.mu.Unlock()
	src, ok := s.byID[id]
	if !ok {
		src = newSource(id, stream.PartitionOf(id, s.partitions), ls.Get(model.JobLabel))
		// Writers drop a frame whose number they have passed, also where the source was away for a while.
		src.seq = s.seq
		s.byID[id] = src
	}
	v := newView()
	src.mu.Lock()
	defer src.mu.Unlock()
	src.views[v] = true
	return src, v
}

// detach gives a view back. A source without any is forgotten.
func (s *sources) detach(src *source, v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src.mu.Lock()
	defer src.mu.Unlock()
	delete(src.views, v)
	if len(src.views) == 0 && s.byID[src.id] == src {
		s.seq = max(s.seq, src.seq)
		delete(s.byID, src.id)
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
