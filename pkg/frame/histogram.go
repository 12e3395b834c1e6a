package frame

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
)

const (
	histFloat = 1 << iota
	histCustom
	knownHistFlags = histCustom<<1 - 1
)

func appendHistogram(b []byte, frameTime int64, s *Histogram) []byte {
	b = binary.AppendUvarint(b, uint64(s.Index))
	b = binary.AppendVarint(b, s.Time-frameTime)
	b = appendStart(b, frameTime, s.Start)
	if h := s.Int; h != nil {
		b = appendHistHead(b, 0, h.CounterResetHint, h.Schema, h.CustomValues, h.ZeroThreshold, h.Sum)
		b = binary.AppendUvarint(b, h.Count)
		b = binary.AppendUvarint(b, h.ZeroCount)
		b = appendSpans(b, h.PositiveSpans)
		b = appendSpans(b, h.NegativeSpans)
		b = appendDeltas(b, h.PositiveBuckets)
		return appendDeltas(b, h.NegativeBuckets)
	}
	h := s.Float
	b = appendHistHead(b, histFloat, h.CounterResetHint, h.Schema, h.CustomValues, h.ZeroThreshold, h.Sum)
	b = appendFloat(b, h.Count)
	b = appendFloat(b, h.ZeroCount)
	b = appendSpans(b, h.PositiveSpans)
	b = appendSpans(b, h.NegativeSpans)
	b = appendFloats(b, h.PositiveBuckets)
	return appendFloats(b, h.NegativeBuckets)
}

func appendHistHead(b []byte, flags byte, hint histogram.CounterResetHint, schema int32, custom []float64, zero, sum float64) []byte {
	if len(custom) > 0 {
		flags |= histCustom
	}
	b = append(b, flags, byte(hint))
	b = binary.AppendVarint(b, int64(schema))
	b = appendFloat(b, zero)
	b = appendFloat(b, sum)
	if len(custom) > 0 {
		b = appendFloats(b, custom)
	}
	return b
}

func appendFloat(b []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
}

func appendFloats(b []byte, vs []float64) []byte {
	b = binary.AppendUvarint(b, uint64(len(vs)))
	for _, v := range vs {
		b = appendFloat(b, v)
	}
	return b
}

func appendSpans(b []byte, spans []histogram.Span) []byte {
	b = binary.AppendUvarint(b, uint64(len(spans)))
	for _, s := range spans {
		b = binary.AppendVarint(b, int64(s.Offset))
		b = binary.AppendUvarint(b, uint64(s.Length))
	}
	return b
}

func appendDeltas(b []byte, ds []int64) []byte {
	b = binary.AppendUvarint(b, uint64(len(ds)))
	for _, d := range ds {
		b = binary.AppendVarint(b, d)
	}
	return b
}

// histogram reads a histogram sample whose index is below series.
func (r *reader) histogram(frameTime int64, series int) Histogram {
	s := Histogram{Index: r.index(series)}
	s.Time = frameTime + r.varint()
	s.Start = r.start(frameTime)
	flags, hint := r.byte(), histogram.CounterResetHint(r.byte())
	if flags&^knownHistFlags != 0 {
		r.fail("histogram flags %#x", flags)
	}
	schema := r.varint()
	if schema < math.MinInt32 || schema > math.MaxInt32 {
		r.fail("histogram schema %d", schema)
	}
	zero, sum := r.float(), r.float()
	var custom []float64
	if flags&histCustom != 0 {
		custom = r.floats()
	}
	if flags&histFloat == 0 {
		s.Int = &histogram.Histogram{
			CounterResetHint: hint, Schema: int32(schema), ZeroThreshold: zero, Sum: sum, CustomValues: custom,
			Count: r.uvarint(), ZeroCount: r.uvarint(),
			PositiveSpans: r.spans(), NegativeSpans: r.spans(), PositiveBuckets: r.deltas(), NegativeBuckets: r.deltas(),
		}
		return s
	}
	s.Float = &histogram.FloatHistogram{
		CounterResetHint: hint, Schema: int32(schema), ZeroThreshold: zero, Sum: sum, CustomValues: custom,
		Count: r.float(), ZeroCount: r.float(),
		PositiveSpans: r.spans(), NegativeSpans: r.spans(), PositiveBuckets: r.floats(), NegativeBuckets: r.floats(),
	}
	return s
}

func (r *reader) floats() []float64 {
	n := r.count(8)
	if n == 0 {
		return nil
	}
	vs := make([]float64, n)
	for i := range vs {
		vs[i] = r.float()
	}
	return vs
}

func (r *reader) spans() []histogram.Span {
	n := r.count(2)
	if n == 0 {
		return nil
	}
	spans := make([]histogram.Span, n)
	for i := range spans {
		off, length := r.varint(), r.uvarint()
		if off < math.MinInt32 || off > math.MaxInt32 || length > math.MaxUint32 {
			r.fail("histogram span %d+%d", off, length)
			return nil
		}
		spans[i] = histogram.Span{Offset: int32(off), Length: uint32(length)}
	}
	return spans
}

func (r *reader) deltas() []int64 {
	n := r.count(1)
	if n == 0 {
		return nil
	}
	ds := make([]int64, n)
	for i := range ds {
		ds[i] = r.varint()
	}
	return ds
}

// reader reads primitive values from a byte slice. The first fault sticks in err; later reads return zero values.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
	}
	r.b = nil
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail("wants %d bytes, %d are left", n, len(r.b))
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("ends early")
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("number ends early or is too large")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail("number ends early or is too large")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) float() float64 {
	p := r.bytes(8)
	if p == nil {
		return 0
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(p))
}

// count reads the length of a list whose items take at least size bytes each, so that a lie cannot make it allocate.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail("list of %d items in %d bytes", n, len(r.b))
		return 0
	}
	return int(n)
}

// index reads the place of a series in a dictionary of the given length.
func (r *reader) index(series int) uint32 {
	i := r.uvarint()
	if i >= uint64(series) {
		r.fail("series %d of %d", i, series)
		return 0
	}
	return uint32(i)
}

func (r *reader) start(frameTime int64) int64 {
	u := r.uvarint()
	if u == 0 {
		return 0
	}
	if u <= zigzag(frameTime) {
		u--
	}
	return frameTime - unzigzag(u)
}

// string reads a length and that many bytes, which stay owned by the input.
func (r *reader) string() []byte { return r.bytes(r.count(1)) }
