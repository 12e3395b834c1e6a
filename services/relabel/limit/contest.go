package limit

import (
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// contest knows which series would become equal without the labels that are dropped. While two of them are in use, neither may go by what is left: it would
// pass for all of them, with the values of one.
type contest struct {
	free  time.Duration // how long after it was last seen a series is in use
	known map[uint64]rivals
}

// rivals are the two series that have been seen last of those that would have the same labels, by the hashes of their own ones.
type rivals struct {
	series [2]uint64
	seen   [2]time.Duration // since 1970
}

// maxContested is of how many label sets the rivals are known. Beyond it, what is not known counts as contested.
const maxContested = 1 << 16

func newContest(free time.Duration) contest { return contest{free, map[uint64]rivals{}} }

// note says that a series was in use at a time, which would have the labels final.
func (c *contest) note(final, own uint64, at time.Time) {
	r, ok := c.known[final]
	if !ok && len(c.known) >= maxContested {
		return
	}
	k := slices.Index(r.series[:], own)
	if k < 0 {
		if k = 0; r.seen[1] < r.seen[0] {
			k = 1
		}
		r.series[k], r.seen[k] = own, 0
	}
	r.seen[k] = max(r.seen[k], time.Duration(at.UnixNano()))
	c.known[final] = r
}

// contested reports whether there are two series for the labels final.
func (c *contest) contested(final uint64) bool {
	r, ok := c.known[final]
	if !ok {
		return len(c.known) >= maxContested
	}
	return min(r.seen[0], r.seen[1]) > c.before()
}

func (c *contest) before() time.Duration { return time.Duration(time.Now().Add(-c.free).UnixNano()) }

// sweep forgets what is not in use any more.
func (c *contest) sweep() {
	before := c.before()
	for final, r := range c.known {
		if max(r.seen[0], r.seen[1]) <= before {
			delete(c.known, final)
		}
	}
}

// rival notes a series that has no place with its own labels, and returns the hash of what it would go by; false where it has none of the labels that are dropped.
func (p *Partition) rival(ls labels.Labels, drop []string, at time.Time) (final uint64, ok bool) {
	if len(drop) == 0 {
		return 0, false
	}
	own, final := p.hash(ls), p.hash(without(ls, drop))
	if own == final {
		return 0, false
	}
	p.contest.note(final, own, at)
	return final, true
}

// disputed reports whether a series of a dictionary may not go without labels any more.
func (p *Partition) disputed(d *frame.Dictionary, h *held) (some bool) {
	if len(h.verdict.merged) == 0 {
		return false
	}
	for i := range d.Series {
		if h.verdict.merged.has(i) {
			final, ok := p.rival(d.Series[i].Labels, h.verdict.drop, time.Now())
			some = some || ok && p.contest.contested(final)
		}
	}
	return some
}

// holders returns the other dictionaries of which series go by labels that are contested, which are in order.
func (p *Partition) holders(of frame.DictID, contested []uint64) (list []frame.DictID) {
	contested = slices.DeleteFunc(contested, func(final uint64) bool { return p.owners[final] == 0 })
	if len(contested) == 0 {
		return nil
	}
	has := func(final uint64) bool { _, ok := slices.BinarySearch(contested, final); return ok }
	for id, h := range p.dicts {
		if id != of && len(h.verdict.merged) > 0 && slices.ContainsFunc(h.places, has) {
			list = append(list, id)
		}
	}
	return list
}
