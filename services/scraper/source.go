package scraper

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
	"unique"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/frame"
)

// source is what the scraper knows of one source: its series, numbered in the order of their first appearance, and the dictionaries that
// hold them. Whoever collects a scrape for it has the turn from the first sample to the commit, and holds the lock but for while it waits for more of
// the body. That is one scrape loop, and
// briefly a second one when a target comes back while the old loop still has staleness markers to write.
type source struct {
	id        uint64
	partition int
	job       string

	turn  sync.Mutex // taken before mu
	mu    sync.Mutex
	seq   uint64         // of the last frame
	views map[*view]bool // of the scrape loops that append to the source

	restored bool      // from what its last owner has left, or it is not worth trying any more
	changed  bool      // since the keeper was told: it has other series, or other live ones
	storedAt time.Time // when the keeper last stored it
	scraped  int64     // timestamp of the newest scrape that was taken, in milliseconds; series whose target gives timestamps may be ahead of it
	left     []byte    // its record when its loops began to leave for another process

	hasher  hasher
	series  []seriesState
	table   []uint32 // open-addressed hash of the label sets: number of the series + 1
	metrics []unique.Handle[metric]
	index   map[unique.Handle[metric]]uint32

	dicts    []dict
	sealed   int        // series[:sealed] stand in dicts, and nowhere else are their labels
	unsealed []unsealed // the labels of series[sealed:]
	former   []dict     // those before the last compaction, until the series that it has left stand in new ones

	explicit  map[uint32]uint64            // value bits of series whose last sample is a float with a timestamp of its own
	exemplars map[uint32]exemplar.Exemplar // the newest of each series

	looked int64 // when series that are gone were looked for, in milliseconds

	peak float64 // decaying maximum of the series in a scrape
}

type seriesState struct {
	key    key   // of its labels
	last   int64 // timestamp of the last committed sample
	metric uint32
	moved  uint32 // number + 1 of the entry that has taken this one's place
}

// metric is the name of a series, and the name and metadata of its family where they are known. Sources share what they have in common.
type metric struct {
	name, family string
	metadata.Metadata
}

// minTime is the last timestamp of a series that has no sample yet.
const minTime = math.MinInt64

func newSource(id uint64, partition int, job string, h hasher) *source {
	s := &source{id: id, partition: partition, job: job, hasher: h, views: map[*view]bool{}}
	s.clear()
	return s
}

// resolve returns the entry that stands for entry i now.
func (s *source) resolve(i uint32) uint32 {
	for s.series[i].moved != 0 {
		i = s.series[i].moved - 1
	}
	return i
}

// resolveSealed returns the newest entry that stands in a dictionary of those that have stood for entry i; where none does, one that does not. Within a scrape,
// the newest of all may not stand in one yet.
func (s *source) resolveSealed(i uint32) uint32 {
	for s.series[i].moved != 0 && int(s.series[i].moved) <= s.sealed {
		i = s.series[i].moved - 1
	}
	return i
}

// described returns the entry of a series with the metadata that comes with an append: i itself, or a new one where the metadata has changed.
// The old one stays unused until the next compaction.
func (s *source) described(i uint32, opts *storage.AOptions) uint32 {
	if opts.MetricFamilyName == "" {
		return i // not told
	}
	have := s.metricOf(i)
	want := describe(have.name, opts)
	if have == want {
		return i
	}
	n := s.add(s.series[i].key, s.labelsAt(i), s.numberOf(unique.Make(want)))
	s.series[n].last, s.series[i].moved = s.series[i].last, n+1
	if v, ok := s.explicit[i]; ok {
		s.explicit[n] = v
	}
	if x, ok := s.exemplars[i]; ok {
		s.exemplars[n] = x
	}
	return n
}

// metricOf returns the metric of entry i.
func (s *source) metricOf(i uint32) metric { return s.metrics[s.series[i].metric].Value() }

// numberOf returns the number of a metric.
func (s *source) numberOf(h unique.Handle[metric]) uint32 {
	i, ok := s.index[h]
	if !ok {
		i = uint32(len(s.metrics))
		s.metrics = append(s.metrics, h)
		s.index[h] = i
	}
	return i
}

// maxHelp is how much of a family's help is kept, in bytes. A dictionary that does not fit into a message would be worse.
const maxHelp = 32 << 10

// describe returns the metric of the given name with the metadata of an append, as far as it is kept. Its strings are the append's.
func describe(name string, opts *storage.AOptions) metric {
	if opts.MetricFamilyName == "" {
		return metric{name: name}
	}
	m := metric{name, opts.MetricFamilyName, opts.Metadata}
	if len(m.Help) > maxHelp {
		n := maxHelp
		for n > 0 && !utf8.RuneStart(m.Help[n]) {
			n--
		}
		m.Help = m.Help[:n]
	}
	if len(m.Unit) > maxHelp {
		m.Unit = ""
	}
	return m
}

// find looks a label set up. Of several entries with the same labels it finds the newest.
func (s *source) find(k key) (uint32, bool) {
	mask := uint32(len(s.table) - 1)
	for h := uint32(k.a) & mask; s.table[h] != 0; h = (h + 1) & mask {
		if i := s.table[h] - 1; s.series[i].key == k {
			return i, true
		}
	}
	return 0, false
}

// add appends an entry for the label set with the key k, whose labels are, or stand where, ls says.
func (s *source) add(k key, ls unsealed, metric uint32) uint32 {
	s.unsealed = append(s.unsealed, ls)
	return s.enter(k, metric)
}

// enter appends an entry, and leaves it to the caller to keep its labels.
func (s *source) enter(k key, metric uint32) uint32 {
	s.changed = true
	i := uint32(len(s.series))
	s.series = append(s.series, seriesState{key: k, metric: metric, last: minTime})
	if len(s.series)*3 > len(s.table)*2 {
		s.table = make([]uint32, 1<<bits.Len(uint(len(s.series)*2)))
		for k := range s.series {
			s.insert(uint32(k))
		}
		return i
	}
	s.insert(i)
	return i
}

// insert puts an entry into the table, in place of an older one with the same labels.
func (s *source) insert(i uint32) {
	k := s.series[i].key
	mask := uint32(len(s.table) - 1)
	h := uint32(k.a) & mask
	for s.table[h] != 0 && s.series[s.table[h]-1].key != k {
		h = (h + 1) & mask
	}
	s.table[h] = i + 1
}

// Compaction follows when most series, or most dictionaries, are there for series that are gone.
const (
	compactSeries = 1000
	compactDicts  = 16
	peakDecay     = 0.95
)

// compact drops the series that are neither in live nor were in the last scrape of a loop, where that is worth it, or where one has been gone for longer than idle. now and idle are in
// milliseconds; idle 0 is never. The views learn the new numbers.
func (s *source) compact(live *bitmap, now, idle int64) {
	kept := live.count(0, len(s.series))
	s.peak = max(float64(kept), s.peak*peakDecay)
	full := int(s.peak)/frame.MaxSeries + 1
	few := float64(len(s.series)) <= 2*s.peak+compactSeries && len(s.dicts) <= compactDicts+2*full
	if few && (kept == len(s.series) || !s.overdue(live, now, idle)) {
		return
	}
	if float64(kept) < s.peak/2 {
		return // a failed scrape says nothing about what is gone
	}
	keep := bitmap{slices.Clone(live.words)}
	for v := range s.views {
		v.exposed.each(func(i uint32) { keep.set(s.resolve(i)) })
	}
	s.changed = true
	old, metrics, dicts, explicit, exemplars := s.series, s.metrics, s.dicts, s.explicit, s.exemplars
	s.empty()
	kept = keep.count(0, len(old))
	s.series = make([]seriesState, 0, kept)
	s.former, s.unsealed = dicts, make([]unsealed, 0, kept)
	s.table = make([]uint32, 1<<bits.Len(uint(kept*2+32)))
	numbers := make([]uint32, len(old)) // the new ones
	for i := range old {
		if !keep.has(uint32(i)) {
			numbers[i] = unknown
			continue
		}
		n := uint32(len(s.series))
		numbers[i] = n
		st := old[i]
		st.metric, st.moved = s.numberOf(metrics[st.metric]), 0
		s.series = append(s.series, st)
		s.unsealed = append(s.unsealed, unsealed{from: uint32(i)})
		s.insert(n)
		if v, ok := explicit[uint32(i)]; ok {
			s.setExplicit(n, v)
		}
		if x, ok := exemplars[uint32(i)]; ok {
			s.setExemplar(n, x)
		}
	}
	for i := len(old) - 1; i >= 0; i-- {
		if old[i].moved != 0 {
			numbers[i] = numbers[old[i].moved-1] // a later one, which has its own already
		}
	}
	for v := range s.views {
		v.renumber(numbers)
	}
}

// looks is how often series that are gone are looked for in the time after which they are taken out.
const looks = 4

// overdue reports whether a series that is not in live has been gone for longer than idle. It looks now and then.
func (s *source) overdue(live *bitmap, now, idle int64) bool {
	if idle <= 0 || now-s.looked < idle/looks {
		return false
	}
	s.looked = now
	for i := range s.series {
		if !live.has(uint32(i)) && s.series[i].last < now-idle {
			return true
		}
	}
	return false
}

// clear forgets all series; the views too.
func (s *source) clear() {
	s.empty()
	for v := range s.views {
		v.forget()
	}
}

func (s *source) empty() {
	s.series, s.explicit, s.exemplars = nil, nil, nil
	s.dicts, s.sealed, s.unsealed, s.former = nil, 0, nil, nil
	s.table = make([]uint32, 64)
	s.metrics, s.index = nil, map[unique.Handle[metric]]uint32{}
}

// setLast notes a series' newest sample. A scrape loop gives a float with a timestamp of its own again and again.
func (s *source) setLast(i uint32, t int64, explicit bool, v float64) {
	s.series[i].last = t
	if explicit {
		s.setExplicit(i, math.Float64bits(v))
	} else if s.explicit != nil {
		delete(s.explicit, i)
	}
}

func (s *source) setExplicit(i uint32, bits uint64) {
	if s.explicit == nil {
		s.explicit = map[uint32]uint64{}
	}
	s.explicit[i] = bits
}

// setExemplar notes a series' exemplar where it is the newest.
func (s *source) setExemplar(i uint32, x exemplar.Exemplar) {
	if newest, have := s.exemplars[i]; have && exemplar.Compare(x, newest) <= 0 {
		return
	}
	if s.exemplars == nil {
		s.exemplars = map[uint32]exemplar.Exemplar{}
	}
	s.exemplars[i] = x
}

// bitmap is a set of series numbers.
type bitmap struct{ words []uint64 }

func (b *bitmap) has(i uint32) bool {
	return int(i>>6) < len(b.words) && b.words[i>>6]&(1<<(i&63)) != 0
}

func (b *bitmap) set(i uint32) {
	for int(i>>6) >= len(b.words) {
		b.words = append(b.words, 0)
	}
	b.words[i>>6] |= 1 << (i & 63)
}

// reserve makes room for n members.
func (b *bitmap) reserve(n int) {
	if words := (n + 63) >> 6; len(b.words) < words {
		b.words = append(b.words, make([]uint64, words-len(b.words))...)
	}
}

func (b *bitmap) clear(i uint32) {
	if int(i>>6) < len(b.words) {
		b.words[i>>6] &^= 1 << (i & 63)
	}
}

func (b *bitmap) reset() {
	clear(b.words)
	b.words = b.words[:0]
}

// each calls f with each member, ascending.
func (b *bitmap) each(f func(uint32)) {
	for k, w := range b.words {
		for ; w != 0; w &= w - 1 {
			f(uint32(k<<6 + bits.TrailingZeros64(w)))
		}
	}
}

// count returns how many of [from, to) are in the set.
func (b *bitmap) count(from, to int) int {
	n := 0
	for i := from; i < to; {
		if i&63 == 0 && to-i >= 64 {
			if i>>6 >= len(b.words) {
				return n
			}
			n += bits.OnesCount64(b.words[i>>6])
			i += 64
			continue
		}
		if b.has(uint32(i)) {
			n++
		}
		i++
	}
	return n
}
