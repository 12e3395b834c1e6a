package remotewrite

import (
	"encoding/binary"
	"math"
	"slices"
)

// addV2 adds a float sample. The TimeSeries is written with lengths of one byte, which nearly always do, and moved
// otherwise.
func (r *Request) addV2(b *Block, i uint32, t, st int64, v float64) {
	row, end := b.rows[i], b.rows[i+1].refs
	if row.refs == end {
		r.last = -1
		return
	}
	if b != r.refs.block {
		r.refs.use(b)
	}
	n := len(r.body)
	room := 8*int(end-row.refs) + sampleRoom
	if cap(r.body)-n < room {
		r.body = slices.Grow(r.body, room)
	}
	p := r.body[n : n+room]
	k := 4 + r.putLabels(p[4:], b, row.refs, end)
	labelsSize := k - 4

	if t != r.stamp.time {
		r.stamp.set(t)
	}
	value := math.Float64bits(v)
	valueSize := 9
	if value == 0 {
		valueSize = 0
	}
	q := (*[32]byte)(p[k:])
	q[0], q[2] = tagSamples, tagValue
	binary.LittleEndian.PutUint64(q[3:], value)
	w := (*[16]byte)(q[2+valueSize:])
	binary.LittleEndian.PutUint64(w[:8], r.stamp.a)
	binary.LittleEndian.PutUint64(w[8:], r.stamp.b)
	sampleSize := valueSize + r.stamp.size
	if st != 0 {
		p[k+2+sampleSize] = 3<<3 | wireVarint
		sampleSize += 1 + binary.PutUvarint(p[k+3+sampleSize:], uint64(st))
	}
	p[k+1] = byte(sampleSize)
	k += 2 + sampleSize
	if row.meta != 0 {
		e := &r.refs.metas[row.meta-1]
		if e.gen != r.refs.gen {
			r.resolveMeta(b, row.meta-1)
		}
		*(*[metaSize]byte)(p[k:]) = e.bytes
		k += int(e.size)
	}

	p[0], p[2] = 5<<3|wireBytes, 1<<3|wireBytes // Request.timeseries, TimeSeries.labels_refs
	if k-2 < 1<<7 {
		p[1], p[3] = byte(k-2), byte(labelsSize)
	} else {
		k = widen(p, k, labelsSize)
	}
	r.last, r.lastTime = n, t
	r.body = r.body[:n+k]
	r.floats++
}

// putLabels writes the references of the labels of a series, which are an element of the block's lists and those behind it to before end, to p, and returns how
// many bytes they take. It writes up to 7 bytes more. The block is in use.
func (r *Request) putLabels(p []byte, b *Block, from, end uint32) int {
	if b.wide != nil {
		return putPairs(r, p, b, b.wide[from:end])
	}
	return putPairs(r, p, b, b.narrow[from:end])
}

func putPairs[R uint16 | uint32](r *Request, p []byte, b *Block, refs []R) int {
	gen, pairs := r.refs.gen, r.refs.pairs
	k := 0
	for _, ref := range refs {
		e := &pairs[ref]
		if e.gen != gen {
			r.resolvePair(b, uint32(ref))
		}
		binary.LittleEndian.PutUint64(p[k:], e.word)
		k += int(e.size)
	}
	return k
}

// widen makes room for the two lengths of a TimeSeries that addV2 has written to p[:k], of which one at least
// takes more than a byte. It returns the TimeSeries' new end.
func widen(p []byte, k, labelsSize int) int {
	inner := 1 + uvarintSize(uint64(labelsSize)) + k - 4
	head := 2 + uvarintSize(uint64(inner)) + uvarintSize(uint64(labelsSize))
	copy(p[head:], p[4:k])
	at := 1 + binary.PutUvarint(p[1:], uint64(inner))
	p[at] = 1<<3 | wireBytes
	binary.PutUvarint(p[at+1:], uint64(labelsSize))
	return head + k - 4
}

// appendLabels appends the labels_refs field of series i.
func (r *Request) appendLabels(b *Block, i uint32) {
	r.refs.use(b)
	from, end := b.rows[i].refs, b.rows[i+1].refs
	buf := make([]byte, 8*(end-from))
	buf = buf[:r.putLabels(buf, b, from, end)]
	r.body = append(r.body, 1<<3|wireBytes)
	r.body = binary.AppendUvarint(r.body, uint64(len(buf)))
	r.body = append(r.body, buf...)
}

// appendMetadata appends the metadata field of series i where there is something to tell. Its labels were appended before.
func (r *Request) appendMetadata(b *Block, i uint32) {
	m := b.rows[i].meta
	if m == 0 {
		return
	}
	e := &r.refs.metas[m-1]
	if e.gen != r.refs.gen {
		r.resolveMeta(b, m-1)
	}
	r.body = append(r.body, e.bytes[:e.size]...)
}

// resolvePair encodes a label's two references for this request.
func (r *Request) resolvePair(b *Block, id uint32) {
	p := b.pairs[id]
	var buf [2 * binary.MaxVarintLen32]byte
	n := binary.PutUvarint(buf[:], uint64(r.symbol(b, p.name)))
	n += binary.PutUvarint(buf[n:], uint64(r.symbol(b, p.value)))
	// A reference of more than four bytes needs 2^28 symbols, which no message of less than protobuf's 2 GiB holds.
	r.refs.pairs[id] = pairRef{word: binary.LittleEndian.Uint64(buf[:]), size: uint32(n), gen: r.refs.gen}
}

// resolveMeta encodes a TimeSeries' metadata field for this request.
func (r *Request) resolveMeta(b *Block, id uint32) {
	m := b.metas[id]
	e := &r.refs.metas[id]
	help, unit := r.symbol(b, m.help), r.symbol(b, m.unit)
	buf := append(e.bytes[:0], 5<<3|wireBytes, 0)
	if m.kind != 0 {
		buf = append(buf, 1<<3|wireVarint, byte(m.kind))
	}
	if help != 0 {
		buf = binary.AppendUvarint(append(buf, 3<<3|wireVarint), uint64(help))
	}
	if unit != 0 {
		buf = binary.AppendUvarint(append(buf, 4<<3|wireVarint), uint64(unit))
	}
	buf[1] = byte(len(buf) - 2)
	e.size, e.gen = uint32(len(buf)), r.refs.gen
}

// symbol returns this request's reference for a block's symbol.
func (r *Request) symbol(b *Block, id uint32) uint32 {
	e := &r.refs.symbols[id]
	if e.gen != r.refs.gen {
		*e = symbolRef{ref: r.symbols.intern(b.hashes[id], b.symbol(id)), gen: r.refs.gen}
	}
	return e.ref
}
