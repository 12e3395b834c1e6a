package ingest

import (
	"encoding/binary"
	"math"
)

// point is a data point of any kind.
type point struct {
	raw         []byte
	start, time uint64 // in nanoseconds since 1970
	flags       uint64
	value       float64
	exemplars   int // how many there are

	count     uint64
	sum       float64
	hasSum    bool
	counts    []uint64
	bounds    []byte    // as packed
	quantiles []float64 // quantile, value, quantile, value …

	from, to int      // where the attributes stand, if they stand together
	apart    [][]byte // those that do not
	names    int      // how many attributes there are
}

// buckets returns how many buckets the point has besides the last.
func (p *point) buckets() int { return min(len(p.bounds)/8, len(p.counts)) }

// plain reports whether the values of the point are its samples', or sums of them.
func (p *point) plain(k kind, customBuckets bool) bool {
	return p.exemplars == 0 && k != kindExponential && (k != kindHistogram || !customBuckets)
}

// places are the numbers of fields that each kind of point has, but at different places.
var places = [kindSummary + 1]struct{ attributes, exemplars, flags int }{
	kindGauge: {7, 5, 8}, kindSum: {7, 5, 8}, kindHistogram: {9, 8, 10}, kindExponential: {1, 11, 10}, kindSummary: {7, -1, 8},
}

// read reads a data point.
func (p *point) read(k kind, msg []byte) error {
	*p = point{raw: msg, counts: p.counts[:0], quantiles: p.quantiles[:0], bounds: p.bounds[:0], apart: p.apart[:0]}
	at := places[k]
	f := walk(msg)
	for f.next() {
		switch {
		case f.num == at.attributes && f.is(f.num, wireBytes):
			p.attribute(&f)
		case f.num == 2 && f.is(2, wireFixed64):
			p.start = f.n
		case f.num == 3 && f.is(3, wireFixed64):
			p.time = f.n
		case f.num == at.flags && f.is(f.num, wireVarint):
			p.flags = f.n
		case f.num == at.exemplars && f.is(f.num, wireBytes):
			p.exemplars++
		case f.err != nil:
		case k == kindGauge || k == kindSum:
			p.readNumber(&f)
		case k == kindHistogram:
			p.readHistogram(&f)
		case k == kindSummary:
			p.readSummary(&f)
		}
	}
	return f.err
}

func (p *point) attribute(f *fields) {
	p.names++
	switch {
	case p.to == 0:
		p.from, p.to = f.start, f.end()
	case p.to == f.start:
		p.to = f.end()
	case len(p.apart) == maxApart:
		f.fail("attributes or labels stand in more than %d places", maxApart)
	default:
		p.apart = append(p.apart, f.msg[f.start:f.end()])
	}
}

// attributeBytes returns how many bytes the attributes have.
func (p *point) attributeBytes() int {
	n := p.to - p.from
	for _, b := range p.apart {
		n += len(b)
	}
	return n
}

func (p *point) readNumber(f *fields) {
	switch {
	case f.is(4, wireFixed64):
		p.value = f.float()
	case f.is(6, wireFixed64):
		p.value = float64(int64(f.n))
	}
}

func (p *point) readHistogram(f *fields) {
	switch {
	case f.is(4, wireFixed64):
		p.count = f.n
	case f.is(5, wireFixed64):
		p.sum, p.hasSum = f.float(), true
	case f.num == 6:
		p.counts = fixed64s(f, p.counts)
	case f.num == 7 && f.typ == wireFixed64:
		p.bounds = binary.LittleEndian.AppendUint64(p.bounds, f.n)
	case f.is(7, wireBytes):
		if len(f.bytes)%8 != 0 {
			f.fail("field 7: packed values in %d bytes", len(f.bytes))
		}
		p.bounds = append(p.bounds, f.bytes...)
	}
}

func (p *point) readSummary(f *fields) {
	switch {
	case f.is(4, wireFixed64):
		p.count = f.n
	case f.is(5, wireFixed64):
		p.sum = f.float()
	case f.is(6, wireBytes):
		var quantile, v float64
		q := walk(f.bytes)
		for q.next() {
			switch {
			case q.is(1, wireFixed64):
				quantile = q.float()
			case q.is(2, wireFixed64):
				v = q.float()
			}
		}
		if q.err != nil {
			f.fail("field 6: %w", q.err)
		}
		if len(p.quantiles) == 2*maxQuantiles {
			f.fail("more than %d quantiles", maxQuantiles)
			return
		}
		p.quantiles = append(p.quantiles, quantile, v)
	}
}

// identity returns the key of what tells which series the point has.
func (p *point) identity(h hasher) key {
	k := h.bytes(p.raw[p.from:p.to])
	for _, b := range p.apart {
		k = k.with(h.bytes(b))
	}
	if len(p.bounds) > 0 || len(p.counts) > 0 || p.hasSum {
		n := uint64(len(p.counts)) << 1
		if p.hasSum {
			n |= 1
		}
		k = k.with(h.bytes(p.bounds)).number(n)
	}
	for i := 0; i < len(p.quantiles); i += 2 {
		k = k.number(math.Float64bits(p.quantiles[i]))
	}
	return k
}
