package remotewrite

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// runLength is how many neighbouring series of a dictionary are packed together: those whose numbers are the same but for the lowest bits.
const runLength = 128

// RunOf returns the number of the run to which series i of a dictionary belongs.
func RunOf(i uint32) uint32 { return i / runLength }

// MaxRun is the most samples that [Request.AddRun] adds.
const MaxRun = runLength

// maxRunBytes is the size of a run's message above which it is not packed: offsets within it have 16 bits.
const maxRunBytes = 1<<16 - 1

// runBytes is about what the packed series take, for [Block.Bytes], each.
const runBytes = 40

// mask says which of the series of a run have a sample.
type mask [runLength / 64]uint64

func (m *mask) set(i uint32) { m[i/64] |= 1 << (i % 64) }

// run is the TimeSeries of neighbouring series of a dictionary for V1, compressed ahead of their samples. In snappy's block format a message is a
// list of elements: literal bytes, and copies of bytes that stand a distance before. Elements that copy nothing but what they have made themselves mean the same wherever they stand. So those of a
// run are made once, but for the values and the timestamp, which all have in common, and a request strings runs together: a sample costs a copy of its
// compressed labels and an element for its value, instead of a copy of its labels that is compressed each time.
type run struct {
	mask mask // the series that have a sample
	// packed are the elements without those of the values; nil where the run is too large.
	packed []byte
	size   int // of the message that they stand for, with the values, in bytes
	// gaps are where the values belong.
	gaps []gap
	// times are the places in packed of bytes of the timestamp, and above timePlace the number of the byte.
	times []uint32
}

// gap is where the 8 bytes of a value belong, which is in run.packed between two elements. Where these are copies from before and from behind another value of the run, they may be made
// longer, by what both values have in common.
type gap struct {
	packed, message uint16 // the place in run.packed, and in the message
	before, behind  neighbour
}

// neighbour is a copy beside a gap.
type neighbour struct {
	size  uint8 // of the element, in bytes; 0 where it is no such copy
	room  uint8 // by how many bytes it may be longer
	other uint8 // the gap that lies in the same way beside what is copied
}

const (
	timePlace = 16 // bits
	// timeSize is the bytes that the timestamp takes as a varint from the year 1971 to 2109.
	timeSize            = 6
	firstTime, lastTime = 1 << (7 * (timeSize - 1)), 1<<(7*timeSize) - 1
)

// slot is where a block keeps the run of a range of its series: for those that had a sample the last time that it was made.
type slot struct {
	run atomic.Pointer[run]
	// seen is the mask of the last samples that the run did not fit, whose two words are only a hint together.
	seen [runLength / 64]atomic.Uint64
}

// AddRun adds float samples of one run of series at once, those that stand first in a section of a frame (see [frame.Section]): present lists their
// series, or is nil where they are the series from on, one after the other. All have the timestamp t in milliseconds. It returns how many samples of the section it has
// dealt with, at most MaxRun, which is all that the run has; those of dropped series are passed over. It returns 0 where it has added none, and they are to be added one by one by [Request.Add]: always
// in V2, and where other series of the run have samples than the last times.
func (r *Request) AddRun(b *Block, present []uint32, from uint32, t int64, values []float64) int {
	if b.slots == nil || t < firstTime || t > lastTime {
		return 0
	}
	if present != nil {
		from = present[0]
	}
	var room [runLength]float64
	m, n, kept := b.gather(present, from, values, room[:0])
	s := &b.slots[RunOf(from)]
	x := s.run.Load()
	if x == nil || x.mask != m {
		if !s.again(m) {
			return 0
		}
		x = b.pack(RunOf(from)*runLength, m)
		s.run.Store(x)
	}
	if x.packed == nil {
		return 0
	}
	r.seal()
	r.put(x, t, kept)
	r.sealed += x.size
	r.floats += len(kept)
	return n
}

// past is what the runs of a request know of its values so far, for those that come: many are the same as one before, and of those that are no fractions
// half of the bytes or more are zeros, which come first.
type past struct {
	values [1 << pastBits]struct {
		bits  uint64
		place int // in the message, counting from one; 0 is none
	}
	zeros, place int // how many zeros a value begins with, at least 4, and its place; 0 where there is none
}

const (
	pastBits = 8
	// near is the distance to which a copy takes 2 bytes, and far the one to which it takes 3.
	near, far = 1<<11 - 1, 1<<16 - 1
)

// put appends a run's elements, with a timestamp and values.
func (r *Request) put(x *run, t int64, values []float64) {
	at := len(r.packed)
	r.packed = slices.Grow(r.packed, len(x.packed)+9*len(values)+8) // the last value may be written with 8 bytes more than it takes
	p := r.packed[:cap(r.packed)]
	var stamp [binary.MaxVarintLen64]byte
	binary.PutUvarint(stamp[:], uint64(t))
	times, from := x.times, 0
	segment := func(to int) {
		copy(p[at:], x.packed[from:to])
		for len(times) > 0 && int(times[0]&(1<<timePlace-1)) < to {
			p[at+int(times[0]&(1<<timePlace-1))-from] = stamp[times[0]>>timePlace]
			times = times[1:]
		}
		at, from = at+to-from, to
	}
	longer := 0 // by how many bytes the first element of the next segment is
	for k := range x.gaps {
		g, begin := &x.gaps[k], at
		segment(int(g.packed))
		p[begin] += byte(longer << 2)
		v := math.Float64bits(values[k])
		low, high := 0, 0
		if g.before.size > 0 {
			low = min(bits.TrailingZeros64(v^math.Float64bits(values[g.before.other]))/8, int(g.before.room))
			p[at-int(g.before.size)] += byte(low << 2)
		}
		if g.behind.size > 0 {
			high = min(bits.LeadingZeros64(v^math.Float64bits(values[g.behind.other]))/8, int(g.behind.room), 8-low)
		}
		longer = high
		at += r.past.put(p[at:], r.sealed+int(g.message), v, low, high)
	}
	begin := at
	segment(len(x.packed))
	p[begin] += byte(longer << 2)
	r.packed = p[:at]
}

// put writes the elements of a value that stands at a place of the message, but for its low and high bytes, and returns their size.
func (h *past) put(p []byte, place int, v uint64, low, high int) int {
	same := &h.values[v*0x9e3779b97f4a7c15>>(64-pastBits)]
	distance, known := place+1-same.place, same.bits == v && same.place > 0
	same.bits, same.place = v, place+1
	rest := 8 - low - high
	switch {
	case rest == 0:
		return 0
	case known && distance <= near && rest >= 4:
		p[0], p[1] = byte(distance>>8)<<5|byte(rest-4)<<2|1, byte(distance)
		return 2
	case known && distance <= far && rest >= 3:
		p[0], p[1], p[2] = byte(rest-1)<<2|2, byte(distance), byte(distance>>8)
		return 3
	}
	n := 0
	if zeros := min(bits.TrailingZeros64(v)/8, 8-high); low == 0 && zeros >= 4 {
		if distance := place - h.place; zeros <= h.zeros && distance <= near {
			p[0], p[1] = byte(distance>>8)<<5|byte(zeros-4)<<2|1, byte(distance)
			n, low, rest = 2, zeros, rest-zeros
			if rest == 0 {
				return n
			}
		}
		if n == 0 || place-h.place > near/2 {
			h.zeros, h.place = zeros, place
		}
	}
	p[n] = byte(rest-1) << 2
	binary.LittleEndian.PutUint64(p[n+1:], v>>(8*low))
	return n + 1 + rest
}

// gather returns which series of a run have a sample that is to be sent, how many samples of the section the run has, and the values that are to be sent, in room where they do not stand together.
func (b *Block) gather(present []uint32, from uint32, values, room []float64) (m mask, n int, kept []float64) {
	first := RunOf(from) * runLength
	n = min(len(values), int(first+runLength-from))
	if present == nil && b.AllKept() {
		for i := range uint32(n) {
			m.set(from - first + i)
		}
		return m, n, values[:n]
	}
	for k, v := range values[:n] {
		i := from + uint32(k)
		if present != nil {
			i = present[k]
		}
		if RunOf(i) != RunOf(from) {
			n = k
			break
		}
		if b.Kept(i) {
			m.set(i - first)
			room = append(room, v)
		}
	}
	return m, n, room
}

// again reports whether a mask was seen the last time as well, and notes it.
func (s *slot) again(m mask) bool {
	again := true
	for i, word := range m {
		again = s.seen[i].Swap(word) == word && again
	}
	return again
}

// seal compresses what was added sample by sample since the last run.
func (r *Request) seal() {
	r.last, r.histogram, r.histogramBlock = -1, -1, nil
	if len(r.body) == 0 {
		return
	}
	room := snappyRoom(r.body)
	_, header := binary.Uvarint(*room)
	r.packed = append(r.packed, (*room)[header:]...)
	scratch.Put(room)
	r.sealed += len(r.body)
	r.body = r.body[:0]
}

// symbol is a byte of a run's message: its value, or one of a timestamp's bytes, or a byte of a value, which is like no other.
type symbol uint16

const (
	timeSymbol  symbol = 256
	valueSymbol symbol = timeSymbol + timeSize
)

// packer compresses runs.
type packer struct {
	message []symbol
	labels  []byte
	table   [1 << packBits]uint16 // the last place of four symbols, by their hash, counting from one
	last    []uint16              // by place, the place before that had the same hash, likewise
	literal int                   // where the symbols begin that are not yet in an element
	newest  element               // the newest element
	*run
}

// element is a copy in run.packed.
type element struct {
	at       int // negative: it is no copy
	distance int
}

const packBits = 13

var packers = sync.Pool{New: func() any { return new(packer) }}

// pack makes the run of the series that the mask names, counting from first.
func (b *Block) pack(first uint32, m mask) *run {
	p := packers.Get().(*packer)
	defer packers.Put(p)
	p.run = &run{mask: m}
	p.message = p.message[:0]
	for i := range uint32(runLength) {
		if m[i/64]>>(i%64)&1 != 0 && !p.add(b, first+i) {
			return p.run
		}
	}
	p.compress()
	x := p.run
	x.size, x.packed, x.gaps, x.times = len(p.message), clip(x.packed), clip(x.gaps), clip(x.times)
	p.run = nil
	return x
}

// add appends the TimeSeries of a series to the message. It reports false where that gets too large.
func (p *packer) add(b *Block, i uint32) bool {
	const sampleSize = 9 + 1 + timeSize
	labelsSize := b.v1.size(i)
	if len(p.message)+labelsSize+sampleRoom > maxRunBytes {
		return false
	}
	if room := labelsSize + sampleRoom; cap(p.labels) < room {
		p.labels = make([]byte, room)
	}
	l := p.labels[:cap(p.labels)]
	l[0] = 1<<3 | wireBytes // WriteRequest.timeseries
	k := putSize(l[1:], labelsSize+2+sampleSize) + 1
	k = b.v1.put(l, k, i)
	l[k], l[k+1], l[k+2] = tagSamples, sampleSize, tagValue
	for _, c := range l[:k+3] {
		p.message = append(p.message, symbol(c))
	}
	for range 8 {
		p.message = append(p.message, valueSymbol)
	}
	p.message = append(p.message, tagTimestamp)
	for n := range symbol(timeSize) {
		p.message = append(p.message, timeSymbol+n)
	}
	return true
}

// tries is how many places are looked at for the longest copy.
const tries = 4

// compress makes the elements of the message: at each place the longest copy, unless the one that begins behind it is longer.
func (p *packer) compress() {
	clear(p.table[:])
	p.last = slices.Grow(p.last[:0], len(p.message))[:len(p.message)]
	p.literal, p.newest.at = 0, -1
	from, n := p.longest(0)
	for at := 0; at < len(p.message); {
		if p.message[at] == valueSymbol {
			p.literals(at)
			p.gaps = append(p.gaps, gap{packed: uint16(len(p.packed)), message: uint16(at)})
			p.before()
			at += 8
			p.literal, p.newest.at = at, -1
			from, n = p.longest(at)
			continue
		}
		nextFrom, next := p.longest(at + 1)
		if n == 0 || next > n {
			at, from, n = at+1, nextFrom, next
			continue
		}
		p.literals(at)
		begin := len(p.packed)
		p.copy(at-from, n)
		p.behind(begin, from)
		p.literal = at + n
		for at += 2; at < p.literal; at++ {
			p.enter(at)
		}
		from, n = p.longest(at)
	}
	p.literals(len(p.message))
}

// enter notes what stands at a place, and returns the place before that had the same hash, counting from one.
func (p *packer) enter(at int) (before uint16) {
	if at+4 > len(p.message) {
		return 0
	}
	m := p.message[at:]
	if m[0] == valueSymbol || m[1] == valueSymbol || m[2] == valueSymbol || m[3] == valueSymbol {
		return 0
	}
	key := uint64(m[0]) | uint64(m[1])<<16 | uint64(m[2])<<32 | uint64(m[3])<<48
	slot := &p.table[key*0x9e3779b97f4a7c15>>(64-packBits)]
	before = *slot
	p.last[at], *slot = before, uint16(at+1)
	return before
}

// longest enters a place and returns the longest before it that is the same as what stands there, and its length; 0 is none that is worth a copy.
func (p *packer) longest(at int) (from, length int) {
	next := p.enter(at)
	if next == 0 {
		return 0, 0
	}
	m := p.message[at:]
	for range tries {
		other := p.message[next-1:]
		if length == 0 || length < len(m) && m[length] == other[length] {
			n := 0
			for n < len(m) && m[n] == other[n] && m[n] != valueSymbol {
				n++
			}
			if n > length {
				from, length = int(next)-1, n
			}
		}
		if next = p.last[next-1]; next == 0 {
			break
		}
	}
	if length < 4 {
		return 0, 0
	}
	return from, length
}

// literals makes an element of the symbols that are not in one yet, to before end.
func (p *packer) literals(end int) {
	part := p.message[p.literal:end]
	if len(part) == 0 {
		return
	}
	switch n := len(part) - 1; {
	case n < 60:
		p.packed = append(p.packed, byte(n)<<2)
	case n < 1<<8:
		p.packed = append(p.packed, 60<<2, byte(n))
	default:
		p.packed = append(p.packed, 61<<2, byte(n), byte(n>>8))
	}
	p.newest.at = -1
	for _, s := range part {
		if s >= timeSymbol {
			p.times = append(p.times, uint32(s-timeSymbol)<<timePlace|uint32(len(p.packed)))
			s = 0
		}
		p.packed = append(p.packed, byte(s))
	}
}

// copy makes elements of a copy, as few as there can be, and alike, so that both ends have room.
func (p *packer) copy(distance, n int) {
	for parts := (n + 63) / 64; parts > 0; parts-- {
		part := n / parts
		n -= part
		p.newest = element{len(p.packed), distance}
		if part >= 4 && part <= 11 && distance <= near {
			p.packed = append(p.packed, byte(distance>>8)<<5|byte(part-4)<<2|1, byte(distance))
		} else {
			p.packed = append(p.packed, byte(part-1)<<2|2, byte(distance), byte(distance>>8))
		}
	}
}

// before tells the newest gap of the copy before it, if there is one.
func (p *packer) before() {
	if p.newest.at < 0 {
		return
	}
	k := len(p.gaps) - 1
	g := &p.gaps[k]
	other, ok := p.gapAt(int(g.message) - p.newest.distance)
	if !ok {
		return
	}
	g.before = neighbour{size: uint8(len(p.packed) - p.newest.at), room: room(p.packed[p.newest.at]), other: other}
	if k > 0 && int(p.gaps[k-1].packed) == p.newest.at && p.gaps[k-1].behind.size > 0 {
		// One element between two gaps.
		g.before.room /= 2
		p.gaps[k-1].behind.room -= g.before.room
	}
}

// behind tells the newest gap of the copy from a place that was made at begin, if that is just behind the gap.
func (p *packer) behind(begin, from int) {
	if len(p.gaps) == 0 {
		return
	}
	g := &p.gaps[len(p.gaps)-1]
	if int(g.packed) != begin {
		return
	}
	if other, ok := p.gapAt(from - 8); ok {
		g.behind = neighbour{size: 1, room: room(p.packed[begin]), other: other}
	}
}

// gapAt returns the gap at a place of the message.
func (p *packer) gapAt(place int) (uint8, bool) {
	k, ok := slices.BinarySearchFunc(p.gaps, place, func(g gap, place int) int { return int(g.message) - place })
	return uint8(k), ok
}

// room returns by how many bytes a copy may be longer.
func room(tag byte) uint8 {
	if tag&3 == 1 {
		return 7 - tag>>2&7
	}
	return 63 - tag>>2
}
