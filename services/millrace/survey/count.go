package survey

import (
	"hash/maphash"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// count is a survey on its way. The series of a partition are held with their labels until all of its dictionaries are read, because only then it is known which of
// them have not ended; afterwards there are sums, and the hashes of what is in them. What there is no memory for is left out.
type count struct {
	time, since time.Time
	metric      string // whose series are counted; empty: those of all
	seed        maphash.Seed
	buf         []byte

	entries map[uint64]*entry // of the partition, by the hash of the labels
	counted map[uint64]struct{}

	all                    tally
	metrics, jobs, targets map[group]*tally
	labels                 map[uint32]*values
	unknown                int

	ids   map[string]uint32 // of names, so that what recurs is held once
	names []string          // by ID

	// How much more may be held: of the partition's marks and of its entries, of hashes, and of sums and names.
	forMarks, forEntries, forCounted, forSums room
	partial                                   bool // something was left out
}

// entry is a series.
type entry struct {
	job, metric, instance, seriesJob uint32
	isNew, refused                   bool
	last                             mark
	pairs                            []pair
}

// pair is a label with the hash of its value.
type pair struct {
	name  uint32
	value uint64
}

// group is what series are counted by.
type group struct{ name, instance uint32 }

// tally counts series.
type tally struct{ series, fresh, refused int }

func (t *tally) add(e *entry) {
	t.series++
	if e.isNew {
		t.fresh++
	}
	if e.refused {
		t.refused++
	}
}

// values are those of a label, by their hash: whether a series has the value that is not new.
type values struct {
	series int
	old    map[uint64]bool
}

// room is how many bytes may still be taken.
type room int

// take takes some, if there are so many.
func (r *room) take(bytes int) bool {
	if room(bytes) > *r {
		return false
	}
	*r -= room(bytes)
	return true
}

// What things take with their places in maps, in bytes, as measured on 64-bit machines.
const (
	dictBytes    = 96 // and markBytes for each series
	markBytes    = 8
	entryBytes   = 96 // and pairBytes for each label
	pairBytes    = 16
	countedBytes = 16
	valueBytes   = 24
	sumBytes     = 96
	nameBytes    = 96 // and the name's own
)

func newCount(at, since time.Time, maxBytes int) *count {
	return &count{
		time: at, since: since, seed: maphash.MakeSeed(), entries: map[uint64]*entry{}, counted: map[uint64]struct{}{},
		metrics: map[group]*tally{}, jobs: map[group]*tally{}, targets: map[group]*tally{}, labels: map[uint32]*values{},
		ids: map[string]uint32{"": 0}, names: []string{""},
		forMarks: room(maxBytes / 8), forEntries: room(maxBytes * 3 / 8), forCounted: room(maxBytes / 4), forSums: room(maxBytes / 4),
	}
}

// has takes from a room, or notes that something is left out.
func (c *count) has(r *room, bytes int) bool {
	ok := r.take(bytes)
	c.partial = c.partial || !ok
	return ok
}

func (c *count) hash(ls labels.Labels) uint64 {
	c.buf = ls.Bytes(c.buf)
	return maphash.Bytes(c.seed, c.buf)
}

// name returns the ID of a name; there is none where there is no room.
func (c *count) name(s string) (uint32, bool) {
	if id, ok := c.ids[s]; ok {
		return id, true
	}
	if !c.has(&c.forSums, nameBytes+len(s)) {
		return 0, false
	}
	s = strings.Clone(s) // which else holds the whole label set
	id := uint32(len(c.names))
	c.ids[s], c.names = id, append(c.names, s)
	return id, true
}

// add counts a series of a dictionary, which may be in others too. Its newest sample tells whether it is refused, or gone.
func (c *count) add(job string, ls labels.Labels, at mark, refused, isNew bool) {
	if c.metric != "" && ls.Get(model.MetricNameLabel) != c.metric {
		return
	}
	h := c.hash(ls)
	if e := c.entries[h]; e != nil {
		if at.seq() > e.last.seq() || at.seq() == e.last.seq() && e.last.gone() {
			e.refused, e.last = refused, at
		}
		e.isNew = e.isNew && isNew
		return
	}
	e := &entry{isNew: isNew, refused: refused, last: at}
	for _, f := range []struct {
		id   *uint32
		name string
	}{{&e.job, job}, {&e.metric, ls.Get(model.MetricNameLabel)}, {&e.instance, ls.Get(model.InstanceLabel)}, {&e.seriesJob, ls.Get(model.JobLabel)}} {
		id, ok := c.name(f.name)
		if !ok {
			return
		}
		*f.id = id
	}
	n := ls.Len()
	if !c.has(&c.forEntries, entryBytes+n*pairBytes) {
		return
	}
	e.pairs = make([]pair, 0, n)
	ls.Range(func(l labels.Label) {
		if l.Name == model.MetricNameLabel {
			return
		}
		if id, ok := c.name(l.Name); ok {
			e.pairs = append(e.pairs, pair{id, maphash.String(c.seed, l.Value)})
		}
	})
	c.entries[h] = e
}

// addUp counts the series of a partition, of which all is known now, and lets go of them. One that other partitions have too counts where it came first.
func (c *count) addUp() {
	for h, e := range c.entries {
		if e.last.gone() {
			continue
		}
		if _, again := c.counted[h]; again || !c.has(&c.forCounted, countedBytes) {
			continue
		}
		c.counted[h] = struct{}{}
		c.all.add(e)
		c.sum(c.metrics, group{name: e.metric}, e)
		c.sum(c.jobs, group{name: e.job}, e)
		if e.instance != 0 {
			c.sum(c.targets, group{e.seriesJob, e.instance}, e)
		}
		for _, p := range e.pairs {
			c.value(p, e.isNew)
		}
	}
	clear(c.entries)
}

func (c *count) sum(groups map[group]*tally, g group, e *entry) {
	t := groups[g]
	if t == nil {
		if !c.has(&c.forSums, sumBytes) {
			return
		}
		t = &tally{}
		groups[g] = t
	}
	t.add(e)
}

func (c *count) value(p pair, isNew bool) {
	v := c.labels[p.name]
	if v == nil {
		if !c.has(&c.forSums, sumBytes) {
			return
		}
		v = &values{old: map[uint64]bool{}}
		c.labels[p.name] = v
	}
	v.series++
	old, known := v.old[p.value]
	if known || c.has(&c.forSums, valueBytes) {
		v.old[p.value] = old || !isNew
	}
}
