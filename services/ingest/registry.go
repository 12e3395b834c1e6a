package ingest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/stream"
)

// registry holds the sources, and the points that are known by their bytes.
type registry struct {
	partitions int
	maxSeries  int64

	series atomic.Int64
	places atomic.Int64 // that the known points take, see [entry.places]

	mu      sync.RWMutex
	sources map[sourceKey]*source

	shards [64]shard
}

// shard is a part of the points that are known.
type shard struct {
	mu    sync.RWMutex
	known map[key]*entry
}

// entry is what is known of a point: the series of its samples, in the order in which they are translated.
type entry struct {
	key    key
	size   int // of the bytes of its labels or attributes; 0 where they do not stand together
	series []*series
	about  about                 // what was said of the series with the point
	seen   atomic.Int64          // in seconds
	next   atomic.Pointer[entry] // the point that came after it the last time
}

// placesPerSeries is how many places the known points may take for each series of max_series. A sender's series is in one entry, which has two places if it is alone
// there, and it may be in a second for a while: when it is described anew, its resource gets another attribute, or two senders write its labels in different order.
const placesPerSeries = 4

// helpPlace is how much of a description has a place of its own, in bytes. Most are shorter, and shared by many points.
const helpPlace = 256

// places returns for how much an entry counts: a place of at most a few hundred bytes for itself, one for each of its series, and more for a long description. So it
// cannot be had by the points of many names that stand for the same thousands of series, or that have a long help each.
func (e *entry) places() int64 {
	return 1 + int64(max(len(e.series), 1)) + int64(e.about.size()/helpPlace)
}

// sourceKey says which series belong together.
type sourceKey struct {
	tenant, job, instance string
	lane                  uint8
	delta                 bool // their frames hold deltas, and go to the stream DELTAS
}

func newRegistry(partitions, maxSeries int) *registry {
	r := &registry{partitions: partitions, maxSeries: int64(maxSeries), sources: map[sourceKey]*source{}}
	for i := range r.shards {
		r.shards[i].known = map[key]*entry{}
	}
	return r
}

// lanes is over how many sources the series without an instance are spread.
const lanes = 16

// sourceOf returns the source of a series. It follows from the labels alone, whoever pushes them by whatever connection: so samples of one series are in one
// partition, in the order in which they were taken.
func (r *registry) sourceOf(tenant string, ls labels.Labels, family string, delta bool) *source {
	k := sourceKey{tenant: tenant, job: ls.Get(model.JobLabel), instance: ls.Get(model.InstanceLabel), delta: delta}
	if k.instance == "" {
		k.lane = uint8(xxhash.Sum64String(family) % lanes)
	}
	return r.source(k)
}

// lock returns the source that stands for s now, and locks it.
func (r *registry) lock(s *source) *source {
	for {
		s.mu.Lock()
		if !s.removed {
			return s
		}
		s.mu.Unlock()
		s = r.source(s.key)
	}
}

func (r *registry) source(k sourceKey) *source {
	r.mu.RLock()
	s := r.sources[k]
	r.mu.RUnlock()
	if s != nil {
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sources[k]; s != nil {
		return s
	}
	s = &source{key: k, id: newSourceID(), partition: k.partition(r.partitions), byHash: map[uint64]*series{}}
	r.sources[k] = s
	return s
}

// newSourceID returns the ID under which a source numbers its frames. It is random: frames of two sources with one ID would be dropped as repeated, so no sender may
// be able to choose its labels such that its source gets the ID of another's. Each process has IDs of its own thereby, and so has a source that was forgotten and comes again.
func newSourceID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}

// partition returns where the frames of a source go, which is the same in all processes, always. Senders can choose it, and gain nothing.
func (k *sourceKey) partition(partitions int) int {
	d := xxhash.New()
	for _, part := range []string{k.tenant, k.job, k.instance, strconv.Itoa(int(k.lane))} {
		_, _ = d.WriteString(part) // writing to a digest never fails
		_, _ = d.Write([]byte{0xff})
	}
	return stream.PartitionOf(d.Sum64(), partitions)
}

// after returns what is known of a point, or nil. Senders send the same points in the same order: before is the one that was found last, behind which this one stood the last time.
func (r *registry) after(before *entry, k key, now int64) *entry {
	if before == nil {
		return r.lookup(k, now)
	}
	if e := before.next.Load(); e != nil && e.key == k {
		e.touch(now)
		return e
	}
	e := r.lookup(k, now)
	if e != nil {
		before.next.Store(e)
	}
	return e
}

// touch notes that a point was pushed.
func (e *entry) touch(now int64) {
	if e.seen.Load() != now {
		e.seen.Store(now)
	}
}

// lookup returns what is known of a point, or nil.
func (r *registry) lookup(k key, now int64) *entry {
	sh := &r.shards[k.a%uint64(len(r.shards))]
	sh.mu.RLock()
	e := sh.known[k]
	sh.mu.RUnlock()
	if e != nil {
		e.touch(now)
	}
	return e
}

// remember keeps what is known of a point, unless there are too many.
func (r *registry) remember(k key, e *entry, now int64) {
	e.key = k
	e.seen.Store(now)
	sh := &r.shards[k.a%uint64(len(r.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	added := e.places()
	if old := sh.known[k]; old != nil { // another request has learned it at the same time
		added -= old.places()
	}
	if r.places.Add(added) > placesPerSeries*r.maxSeries && added > 0 {
		r.places.Add(-added)
		return
	}
	sh.known[k] = e
}

// reset forgets all points, so that they are translated anew.
func (r *registry) reset() {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for _, e := range sh.known {
			r.places.Add(-e.places())
			e.next.Store(nil)
		}
		clear(sh.known)
		sh.mu.Unlock()
	}
}

// keep forgets what was not pushed for a while, again and again until ctx ends.
func (r *registry) keep(ctx context.Context, idle time.Duration, each bool, metadata *families) error {
	tick := time.NewTicker(min(idle/4, time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.sweep(seconds(now.Add(-idle)), each)
			metadata.forget(seconds(now.Add(-idle)))
		}
	}
}

// sweep forgets what was not pushed since a time, in seconds; each is as in [source.forget].
func (r *registry) sweep(before int64, each bool) {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		for k, e := range sh.known {
			if e.seen.Load() < before {
				delete(sh.known, k)
				e.next.Store(nil) // what still refers to it is not to keep those behind it as well
				r.places.Add(-e.places())
			}
		}
		sh.mu.Unlock()
	}
	r.mu.RLock()
	list := make(map[sourceKey]*source, len(r.sources))
	for k, s := range r.sources {
		list[k] = s
	}
	r.mu.RUnlock()
	for k, s := range list {
		r.series.Add(-int64(s.forget(before, each)))
		r.mu.Lock()
		s.mu.Lock()
		if len(s.series) == 0 {
			s.removed = true
			delete(r.sources, k)
		}
		s.mu.Unlock()
		r.mu.Unlock()
	}
}

// counts returns how many sources there are.
func (r *registry) counts() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.sources)
}
