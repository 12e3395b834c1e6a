package ingest

import (
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
)

// source is a group of pushed series whose frames go through one partition, one after the other. Which series belong to it follows from their
// labels alone, see [registry.sourceOf].
type source struct {
	key       sourceKey
	id        uint64
	partition int

	mu        sync.Mutex
	removed   bool   // another stands for it now, see [registry.lock]
	seq       uint64 // of the last frame
	series    []*series
	byHash    map[uint64]*series
	dicts     []dictionary
	sealed    int  // series[:sealed] stand in dicts
	described bool // a series has other metadata than its dictionary
	metaGen   uint64
	changed   int64                         // when a known point changed metadata last, in seconds, see [source.retell]
	exemplars map[*series]exemplar.Exemplar // the newest of each series
}

// dictionary is one that is published, or about to be: series[start:start+n] of its source.
type dictionary struct {
	publish.Dict
	start, n int
}

// series is a pushed series. Its source's lock guards it.
type series struct {
	src    *source
	number uint32 // its place in src; gone where it is forgotten
	hist   bool   // the newest sample is a histogram
	labels labels.Labels
	family string
	meta   metadata.Metadata
	about  about   // what a sender said of it last along with its samples
	next   *series // with the same hash

	last int64  // timestamp of the newest sample, in milliseconds
	bits uint64 // of that sample, see [sample.bits]
	run  uint64 // the samples with which that one came, see [sameRun]; 0 where it came alone
	seen int64  // when it was pushed last, in seconds
}

// gone is the number of a series that is forgotten.
const gone = ^uint32(0)

// minTime is the timestamp of the newest sample of a series that has none.
const minTime = -1 << 63

// find returns the series with these labels, or nil.
func (s *source) find(hash uint64, ls labels.Labels) *series {
	for x := s.byHash[hash]; x != nil; x = x.next {
		if labels.Equal(x.labels, ls) {
			return x
		}
	}
	return nil
}

// add makes a new series.
func (s *source) add(hash uint64, ls labels.Labels, now int64) *series {
	x := &series{src: s, number: uint32(len(s.series)), labels: ls, next: s.byHash[hash], last: minTime, seen: now}
	s.byHash[hash] = x
	s.series = append(s.series, x)
	return x
}

// seal puts the series that stand in no dictionary yet into new ones.
func (s *source) seal() error {
	for s.sealed < len(s.series) {
		list := s.unsealed()
		d, msg, err := frame.NewDictionary(s.key.job, list)
		for len(list) > 1 && (err != nil || len(msg) > frame.MaxDictBytes) {
			list = list[:len(list)/2]
			d, msg, err = frame.NewDictionary(s.key.job, list)
		}
		if err != nil {
			return err
		}
		s.dicts = append(s.dicts, dictionary{publish.Dict{ID: d.ID, Msg: msg}, s.sealed, len(list)})
		s.sealed += len(list)
	}
	return nil
}

// unsealed returns the next series for a dictionary, about as many as it should have.
func (s *source) unsealed() []frame.Series {
	var list []frame.Series
	size, family := 0, ""
	for _, x := range s.series[s.sealed:] {
		size += x.labels.Len()*4 + labelBytes(x.labels)/4 // strings recur; the true size is not known before
		if x.family != family {
			size += len(x.meta.Help) + len(x.meta.Unit)
			family = x.family
		}
		if len(list) == frame.MaxSeries || len(list) > 0 && size > frame.MaxDictBytes {
			break
		}
		list = append(list, frame.Series{Labels: x.labels, Family: x.family, Metadata: x.meta})
	}
	return list
}

func labelBytes(ls labels.Labels) int {
	n := 0
	ls.Range(func(l labels.Label) { n += len(l.Name) + len(l.Value) })
	return n
}

// Dictionaries are made anew when there are more than this many small ones beside the full ones.
const compactDicts = 16

// tidy makes the dictionaries anew where there are too many, or some have become wrong.
func (s *source) tidy() {
	if s.described || len(s.dicts) > compactDicts+2*(len(s.series)/frame.MaxSeries+1) {
		s.described, s.dicts, s.sealed = false, nil, 0
	}
}

// forget drops the series that were not pushed since a time, in seconds, where they are many: a dictionary with some that are gone costs less than a new one. With each it drops
// them however few they are. It returns how many.
func (s *source) forget(before int64, each bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := 0
	for _, x := range s.series {
		if x.seen < before {
			idle++
		}
	}
	if idle == 0 || !each && idle*4 < len(s.series) {
		return 0
	}
	kept := make([]*series, 0, len(s.series)-idle)
	clear(s.byHash)
	for _, x := range s.series {
		if x.seen < before {
			x.number = gone
			delete(s.exemplars, x)
			continue
		}
		x.number = uint32(len(kept))
		hash := x.labels.Hash()
		x.next = s.byHash[hash]
		s.byHash[hash] = x
		kept = append(kept, x)
	}
	s.series, s.dicts, s.sealed = kept, nil, 0
	return idle
}

// failed makes the source take again what is pushed again: frames of it will not be published.
func (s *source) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.series {
		x.last, x.bits, x.hist, x.run = minTime, 0, false, 0
	}
	clear(s.exemplars)
}

func seconds(t time.Time) int64 { return t.Unix() }
