package remotewrite

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"
)

// fragmentBuilder finds which labels are worth being a fragment together. It begins with a fragment for each label and
// joins those that often stand side by side.
type fragmentBuilder struct {
	refs  []uint32 // the parts of all series
	rows  []uint32 // series i's are refs[rows[i]:rows[i+1]]
	parts []part
}

// part is a label, or two parts that stand side by side.
type part struct {
	size        uint32 // bytes
	label       uint32 // where left and right are 0
	left, right uint32 // one more than the index in parts
}

const (
	// maxJoins bounds the rounds; a fragment has at most 2^maxJoins labels. More rounds find next to nothing more.
	maxJoins = 3
	// refWorth is how many bytes of blob an element of a list is worth: it takes two, and about as much time as copying some
	// more.
	refWorth = 8
	// fragmentCost is what a fragment takes besides its bytes.
	fragmentCost = 4
)

// neighbours are two parts that stand side by side.
type neighbours struct{ left, right uint32 }

// joint is what becomes of neighbours.
type joint struct {
	neighbours
	count int
	saved int    // bytes that a part of their own saves
	part  uint32 // that part, 0 where there is none yet: part 0 is a label
}

// joints is a set of neighbours.
type joints struct {
	list  []joint
	index map[neighbours]uint32
	last  []uint32 // by left part: the joint found last, which series after series is the same
}

func (j *joints) find(left, right uint32) *joint {
	if at := j.last[left]; int(at) < len(j.list) && j.list[at].neighbours == (neighbours{left, right}) {
		return &j.list[at]
	}
	n := neighbours{left, right}
	at, ok := j.index[n]
	if !ok {
		at = uint32(len(j.list))
		j.index[n] = at
		j.list = append(j.list, joint{neighbours: n})
	}
	j.last[left] = at
	return &j.list[at]
}

// join replaces neighbours by parts of their own where that is worth it. It reports whether it found any. Where neighbours
// overlap, those go first that save most; the others may find together in a later round.
func (b *fragmentBuilder) join() bool {
	found := joints{index: make(map[neighbours]uint32, len(b.parts)), last: make([]uint32, len(b.parts))}
	for i, from := range b.rows[:len(b.rows)-1] {
		row := b.refs[from:b.rows[i+1]]
		for k := 1; k < len(row); k++ {
			found.find(row[k-1], row[k]).count++
		}
	}
	best := make([]int, len(b.parts)) // the most that a part's neighbourhoods save
	for k := range found.list {
		j := &found.list[k]
		size := int(b.parts[j.left].size) + int(b.parts[j.right].size)
		if size > chunk {
			continue
		}
		j.saved = j.count*refWorth - size - fragmentCost
		best[j.left], best[j.right] = max(best[j.left], j.saved), max(best[j.right], j.saved)
	}
	before := len(b.parts)
	kept := b.refs[:0] // never ahead of what is read
	for i, from := range b.rows[:len(b.rows)-1] {
		row := b.refs[from:b.rows[i+1]]
		b.rows[i] = uint32(len(kept))
		for k := 0; k < len(row); k++ {
			ref := row[k]
			if k+1 < len(row) {
				j := found.find(ref, row[k+1])
				if j.saved > 0 && j.saved == best[j.left] && j.saved == best[j.right] {
					ref = b.joined(j)
					k++
				}
			}
			kept = append(kept, ref)
		}
	}
	b.refs, b.rows[len(b.rows)-1] = kept, uint32(len(kept))
	return len(b.parts) > before
}

// joined returns the part that neighbours become.
func (b *fragmentBuilder) joined(j *joint) uint32 {
	if j.part == 0 {
		j.part = uint32(len(b.parts))
		b.parts = append(b.parts, part{
			size: b.parts[j.left].size + b.parts[j.right].size, left: j.left + 1, right: j.right + 1,
		})
	}
	return j.part
}

// write gives f the parts that are in use, numbered and laid out in the order in which the series use them.
func (b *fragmentBuilder) write(f *fragments, of []labels.Label) {
	numbers := make([]uint32, len(b.parts)) // one more than the fragment; 0: not in use
	var used []uint32
	total := chunk
	for i, ref := range b.refs {
		if numbers[ref] == 0 {
			used = append(used, ref)
			numbers[ref] = uint32(len(used))
			total += int(b.parts[ref].size)
		}
		b.refs[i] = numbers[ref] - 1
	}
	f.rows = b.rows
	f.narrow, f.wide = narrowed(b.refs, len(used))
	f.wide = slices.Clip(slices.Clone(f.wide))
	f.blob = make([]byte, 0, total)
	f.starts = make([]uint32, 1, len(used)+1)
	for _, ref := range used {
		f.blob = b.append(f.blob, ref, of)
		f.starts = append(f.starts, uint32(len(f.blob)))
	}
	f.blob = f.blob[:total]
}

// append appends the Label fields of a part.
func (b *fragmentBuilder) append(blob []byte, ref uint32, of []labels.Label) []byte {
	p := b.parts[ref]
	if p.left == 0 {
		return appendLabel(blob, of[p.label])
	}
	return b.append(b.append(blob, p.left-1, of), p.right-1, of)
}
