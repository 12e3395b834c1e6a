package ingest

import (
	"context"
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
	process    uint64 // part of the frames' source, so that the numbers of its frames are this process's own
	maxSeries  int64

	series  atomic.Int64
	entries atomic.Int64

	mu      sync.RWMutex
	sources map[sourceKey]*source
	seq     uint64 // the greatest number of a frame among the sources that are forgotten

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
	seen   atomic.Int64          // in seconds
	next   atomic.Pointer[entry] // the point that came after it the last time
}

// sourceKey says which series belong together.
type sourceKey struct {
	tenant, job, instance string
	lane                  uint8
	delta                 bool // their frames hold deltas, and go to the stream DELTAS
}

func newRegistry(partitions int, process uint64, maxSeries int) *registry {
	r := &registry{partitions: partitions, process: process, maxSeries: int64(maxSeries), sources: map[sourceKey]*source{}}
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
	d := xxhash.New()
	for _, part := range []string{k.tenant, k.job, k.instance, strconv.Itoa(int(k.lane))} {
		_, _ = d.WriteString(part) // writing to a digest never fails
		_, _ = d.Write([]byte{0xff})
	}
	place := d.Sum64()
	_, _ = d.WriteString(strconv.FormatUint(r.process, 16) + strconv.FormatBool(k.delta))
	s = &source{
		key: k, id: d.Sum64(), partition: stream.PartitionOf(place, r.partitions), byHash: map[uint64]*series{}, seq: r.seq,
	}
	r.sources[k] = s
	return s
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
	if r.entries.Load() >= 2*r.maxSeries {
		return
	}
	sh := &r.shards[k.a%uint64(len(r.shards))]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.known[k]; !ok {
		r.entries.Add(1)
	}
	sh.known[k] = e
}

// reset forgets all points, so that they are translated anew.
func (r *registry) reset() {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		r.entries.Add(-int64(len(sh.known)))
		for _, e := range sh.known {
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
				r.entries.Add(-1)
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
			r.seq = max(r.seq, s.seq)
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
