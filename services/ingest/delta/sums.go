package delta

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// key names a series by its labels: two independent hashes with seeds of this process, so that nobody can make two series share one.
type key struct{ a, b uint64 }

// hasher makes keys.
type hasher struct{ a, b maphash.Seed }

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

// key returns the key of a label set. buf is scratch space.
func (h hasher) key(ls labels.Labels, buf []byte) (key, []byte) {
	buf = ls.Bytes(buf)
	return key{maphash.Bytes(h.a, buf), maphash.Bytes(h.b, buf)}, buf
}

// budget bounds the series of all partitions of a process.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take reports whether there is room for one more, and takes it.
func (b *budget) take() bool {
	if b.used.Add(1) <= b.limit {
		return true
	}
	b.used.Add(-1)
	return false
}

// sum is what a series has come to. Times are milliseconds since 1970.
type sum struct {
	key         key
	value       float64
	hist        *histogram.FloatHistogram // nil for floats
	whole       bool                      // hist has come of integer histograms alone
	held        bool                      // it stands in sums
	start, last int64                     // of the sum, and of its last point
	seen        int64                     // when the message of the last point was stored
}

// sums are the series of one partition. They belong to its actor.
type sums struct {
	maxStale int64 // milliseconds
	budget   *budget
	byKey    map[key]*sum
	swept    int64
}

func newSums(maxStale int64, b *budget) *sums {
	return &sums{maxStale: maxStale, budget: b, byKey: map[key]*sum{}}
}

// release gives back the room of all series.
func (s *sums) release() {
	s.budget.used.Add(-int64(len(s.byKey)))
	for _, x := range s.byKey {
		x.held = false
	}
	clear(s.byKey)
}

// of returns the sum of series i of a dictionary; fresh means that it is to begin now, because there was none or it has expired. Where there is no room for
// one more, x is nil.
func (s *sums) of(d *dictionary, i uint32, at int64) (x *sum, fresh bool) {
	x = d.sums[i]
	if x == nil || !x.held {
		k := d.keys[i]
		if x = s.byKey[k]; x == nil {
			if !s.budget.take() {
				return nil, false
			}
			x, fresh = &sum{key: k, held: true}, true
			s.byKey[k] = x
		}
		d.sums[i] = x
	}
	return x, fresh || at-x.seen > s.maxStale
}

// admit tells why a point is not added: "" where it is.
func (x *sum) admit(fresh bool, t, start int64) reason {
	switch {
	case fresh:
		return ""
	case start < x.start:
		return olderStart
	case t <= x.last:
		return outOfOrder
	}
	return ""
}

// float adds a float.
func (x *sum) float(fresh bool, v float64, t, start, at int64) {
	if fresh || x.hist != nil {
		x.value, x.hist, x.start = v, nil, start
	} else {
		x.value += v
	}
	x.last, x.seen = t, at
}

// histogram adds a histogram, whose memory becomes the sum's.
func (x *sum) histogram(fresh bool, h *histogram.FloatHistogram, whole bool, t, start, at int64) error {
	h.CounterResetHint = histogram.UnknownCounterReset
	if fresh || x.hist == nil || !addable(x.hist, h) {
		x.value, x.hist, x.whole, x.start = 0, h, whole, start
	} else {
		if err := add(x.hist, h); err != nil {
			return err
		}
		x.whole = x.whole && whole
	}
	x.last, x.seen = t, at
	return nil
}

// result puts the sum into a histogram sample. The memory is the sample's own.
func (x *sum) result(h *frame.Histogram) {
	h.Int, h.Float, h.Start = nil, nil, x.start
	if x.whole {
		if h.Int = integer(x.hist); h.Int != nil {
			return
		}
		x.whole = false
	}
	h.Float = x.hist.Copy()
}

// sweep frees the series that have expired by the time at.
func (s *sums) sweep(at int64) {
	freed := int64(0)
	for k, x := range s.byKey {
		if at-x.seen > s.maxStale {
			x.held = false
			delete(s.byKey, k)
			freed++
		}
	}
	s.budget.used.Add(-freed)
	s.swept = at
}
