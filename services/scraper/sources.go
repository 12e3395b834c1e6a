package scraper

import (
	"sync"
	"time"
	"unsafe"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// sources holds the sources that scrape loops append to.
type sources struct {
	partitions int
	hasher     hasher

	mu   sync.Mutex
	byID map[uint64]*source
	seq  uint64 // the greatest number of a frame among the sources that are forgotten
}

func newSources(partitions int) *sources {
	return &sources{partitions: partitions, hasher: newHasher(), byID: map[uint64]*source{}}
}

// attach returns the source of a target with the given labels, and a new view of it. Targets with the same public labels expose the same
// series, so they share one.
func (s *sources) attach(ls labels.Labels) (*source, *view) {
	return s.attachID(target.SourceID(ls.Range), ls.Get(model.JobLabel))
}

// attachID is attach for a source by its ID.
func (s *sources) attachID(id uint64, job string) (*source, *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src, ok := s.byID[id]
	if !ok {
		src = newSource(id, stream.PartitionOf(id, s.partitions), job, s.hasher)
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

// has reports whether a source is in use.
func (s *sources) has(src *source) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[src.id] == src
}

// hasID is has for a source by its ID.
func (s *sources) hasID(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id] != nil
}

// olderThan returns the sources that were stored longer ago than d; the bucket forgets what is not stored again.
func (s *sources) olderThan(d time.Duration) (old []*source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.byID {
		src.mu.Lock()
		if !src.storedAt.IsZero() && time.Since(src.storedAt) > d {
			old = append(old, src)
		}
		src.mu.Unlock()
	}
	return old
}

// counts returns the number of sources and of the series that they hold.
func (s *sources) counts() (sources, series int) {
	u := s.usage()
	return u.sources, u.series
}

// usage is what sources hold.
type usage struct {
	sources, series int
	seriesBytes     int // of what the sources and the scrape loops know of series, but for texts of lines that come and go
	dictionaryBytes int // of dictionaries, as they are published
}

func (s *sources) usage() (u usage) {
	s.mu.Lock()
	list := make([]*source, 0, len(s.byID))
	for _, src := range s.byID {
		list = append(list, src)
	}
	s.mu.Unlock()
	u.sources = len(list)
	for _, src := range list {
		src.addUsage(&u)
	}
	return u
}

// addUsage adds what the source holds.
func (s *source) addUsage(u *usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u.series += len(s.series)
	u.seriesBytes += bytesOf(s.series) + bytesOf(s.table) + bytesOf(s.metrics) + bytesOf(s.unsealed)
	for v := range s.views {
		u.seriesBytes += bytesOf(v.series) + bytesOf(v.exposed.words) + bytesOf(v.current.words)
	}
	for _, dicts := range [][]dict{s.dicts, s.former} {
		u.dictionaryBytes += bytesOf(dicts)
		for i := range dicts {
			u.dictionaryBytes += cap(dicts[i].msg)
		}
	}
}

// bytesOf returns the size of the memory behind a slice.
func bytesOf[T any](list []T) int {
	var one T
	return cap(list) * int(unsafe.Sizeof(one))
}
