package remotewrite

import (
	"encoding/binary"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
)

// Field tags that both messages have in common. A TimeSeries' samples are its field 2, a Sample's value is its field 1
// and its timestamp field 2.
const (
	tagSamples   = 2<<3 | wireBytes
	tagValue     = 1<<3 | wireFixed64
	tagTimestamp = 2<<3 | wireVarint
)

// sampleRoom is at least what a sample and its series take besides the labels, counting that words are stored whole; it is more
// than a chunk, by which the labels of V1 are stored.
const sampleRoom = 112

// keepBytes bounds the memory that each part of a request keeps for the next one.
const keepBytes = 8 << 20

// Request builds one request of a protocol; Reset makes it ready for the next. It is not safe for concurrent use. Blocks
// that are added must be of the request's protocol.
type Request struct {
	protocol   Protocol
	floats     int
	histograms int
	exemplars  int

	// body holds the TimeSeries fields.
	body []byte
	// last is where the TimeSeries added last begins in body, and lastTime its sample's timestamp; last is negative
	// where none was added.
	last     int
	lastTime int64
	stamp    timestampField
	// histogram is what last was when the newest histogram was added, histogramBlock and histogramIndex its series; negative
	// where there is none. Only V1 needs it.
	histogram      int
	histogramBlock *Block
	histogramIndex uint32

	symbols symbolTable
	refs    refCache

	raw []byte
	// packed is room for a header and then the message in snappy's block format. While the request is built these are the runs, and what was
	// added between them, sealed bytes before compression; body is what follows.
	packed []byte
	sealed int
	past   past
}

// headerRoom is at least what the header of snappy's block format takes, the size of the message as a varint.
const headerRoom = binary.MaxVarintLen64

// timestampField is a Sample's timestamp field. Samples of a scrape have the same one, so it is kept.
type timestampField struct {
	time int64
	size int
	a, b uint64 // its bytes, little endian
}

func (f *timestampField) set(t int64) {
	var buf [16]byte
	f.time, f.size = t, 0
	if t != 0 {
		buf[0] = tagTimestamp
		f.size = 1 + binary.PutUvarint(buf[1:], uint64(t))
	}
	f.a, f.b = binary.LittleEndian.Uint64(buf[:8]), binary.LittleEndian.Uint64(buf[8:])
}

// NewRequest returns an empty request.
func NewRequest(p Protocol) *Request {
	r := &Request{protocol: p}
	r.Reset()
	return r
}

// Reset empties the request. What Raw and Body returned is not valid any more.
func (r *Request) Reset() {
	if len(r.body) == 0 && r.sealed > 0 && cap(r.body) > keepBytes>>7 {
		r.body = nil // runs have taken its place
	}
	r.floats, r.histograms, r.exemplars = 0, 0, 0
	r.last = -1
	r.histogram, r.histogramBlock = -1, nil
	r.body = reuse(r.body)
	r.raw, r.packed = reuse(r.raw), append(reuse(r.packed), make([]byte, headerRoom)...)
	r.sealed, r.past = 0, past{}
	if r.protocol == V2 {
		r.symbols.reset()
		r.refs.reset()
	}
}

func reuse(b []byte) []byte {
	if cap(b) > keepBytes {
		return nil // one huge request must not keep its memory for ever
	}
	return b[:0]
}

// Samples returns how many samples were added, histograms included.
func (r *Request) Samples() int { return r.floats + r.histograms }

// Histograms returns how many histograms were added.
func (r *Request) Histograms() int { return r.histograms }

// Exemplars returns how many exemplars were added.
func (r *Request) Exemplars() int { return r.exemplars }

// Size returns the bytes of the message so far, before compression.
func (r *Request) Size() int { return r.sealed + len(r.body) + len(r.symbols.fields) }

// Raw returns the message before compression. It is valid until the next Reset, Add or Raw.
func (r *Request) Raw() []byte {
	if r.sealed > 0 {
		raw, err := s2.Decode(r.raw[:cap(r.raw)], r.Body())
		if err != nil {
			panic(err) // it was made here
		}
		r.raw = raw
		return r.raw
	}
	if r.protocol == V1 {
		return r.body
	}
	// Receivers that decode in one pass need the symbols before the series.
	r.raw = append(append(r.raw[:0], r.symbols.fields...), r.body...)
	return r.raw
}

// Body returns the message in snappy's block format. It is valid until the next Reset, Add or Body.
//
// Of the encoders of that format s2's is the fastest: on bodies of 2,000 samples it takes about a third (V1) to two thirds (V2) of
// the CPU time of golang/snappy and packs them smaller (BenchmarkSnappy).
func (r *Request) Body() []byte {
	if r.sealed > 0 {
		r.seal()
		var header [headerRoom]byte
		n := binary.PutUvarint(header[:], uint64(r.sealed))
		copy(r.packed[headerRoom-n:], header[:n])
		return r.packed[headerRoom-n:]
	}
	room := snappyRoom(r.Raw())
	r.packed = append(r.packed[:headerRoom], *room...)
	scratch.Put(room)
	return r.packed[headerRoom:]
}

// snappyRoom returns a message in snappy's block format, in memory of scratch: the encoder wants room for a message that does not shrink, ten times what is needed.
func snappyRoom(message []byte) *[]byte {
	room, _ := scratch.Get().(*[]byte)
	if room == nil {
		room = new([]byte)
	}
	*room = s2.EncodeSnappy((*room)[:cap(*room)], message)
	return room
}

// scratch holds *[]byte for snappyRoom.
var scratch sync.Pool

// Add adds a float sample of series i as a TimeSeries of its own: its timestamp and start timestamp in milliseconds (0 is
// unknown; only V2 carries it) and its value, bit for bit. It does nothing where the block has dropped the series.
func (r *Request) Add(b *Block, i uint32, t, st int64, v float64) {
	if r.protocol == V2 {
		r.addV2(b, i, t, st, v)
		return
	}
	labelsSize := b.v1.size(i)
	if labelsSize == 0 {
		r.last = -1
		return
	}
	n := len(r.body)
	room := labelsSize + sampleRoom
	if cap(r.body)-n < room {
		r.body = slices.Grow(r.body, room)
	}
	p := r.body[n : n+room]
	if t != r.stamp.time {
		r.stamp.set(t)
	}
	value := math.Float64bits(v)
	valueSize := 9
	if value == 0 {
		valueSize = 0
	}
	sampleSize := valueSize + r.stamp.size

	p[0] = 1<<3 | wireBytes // WriteRequest.timeseries
	k := putSize(p[1:], labelsSize+2+sampleSize) + 1
	k = b.v1.put(p, k, i)
	q := (*[32]byte)(p[k:])
	q[0], q[1], q[2] = tagSamples, byte(sampleSize), tagValue
	binary.LittleEndian.PutUint64(q[3:], value)
	w := (*[16]byte)(q[2+valueSize:])
	binary.LittleEndian.PutUint64(w[:8], r.stamp.a)
	binary.LittleEndian.PutUint64(w[8:], r.stamp.b)

	r.last, r.lastTime = n, t
	r.body = r.body[:n+k+2+sampleSize]
	r.floats++
}

// putSize writes a varint and returns its length.
func putSize(p []byte, v int) int {
	switch {
	case v < 1<<7:
		p[0] = byte(v)
		return 1
	case v < 1<<14:
		_ = p[1]
		p[0], p[1] = byte(v)|0x80, byte(v>>7)
		return 2
	}
	return binary.PutUvarint(p, uint64(v))
}

// AddHistogram adds a native histogram as a TimeSeries of its own. It does nothing where the block has dropped the series.
func (r *Request) AddHistogram(b *Block, h *frame.Histogram) {
	r.last = -1
	if !b.Kept(h.Index) {
		return
	}
	// The two protocols' messages are the same on the wire, but for V2's start timestamp.
	var start int64
	if r.protocol == V2 {
		start = h.Start
	}
	var m writev2.Histogram
	if h.Int != nil {
		m = writev2.FromIntHistogram(start, h.Time, h.Int)
	} else {
		m = writev2.FromFloatHistogram(start, h.Time, h.Float)
	}
	// The generated code takes -0 for an absent sum.
	negativeZero := m.Sum == 0 && math.Signbit(m.Sum)
	size := m.Size()
	encoded := size
	if negativeZero {
		size += 9
	}

	n := len(r.body)
	if r.protocol == V2 {
		r.body = append(r.body, 5<<3|wireBytes, 0)
		r.appendLabels(b, h.Index)
		r.body = append(r.body, 3<<3|wireBytes)
	} else {
		r.beginV1(b, h.Index)
		r.body = append(r.body, 4<<3|wireBytes)
		r.histogram, r.histogramBlock, r.histogramIndex = n, b, h.Index
	}
	r.body = binary.AppendUvarint(r.body, uint64(size))
	at := len(r.body)
	r.body = slices.Grow(r.body, size)[:at+encoded]
	if _, err := m.MarshalToSizedBuffer(r.body[at:]); err != nil {
		panic(err) // the generated code returns none: the message holds numbers only
	}
	if negativeZero {
		r.body = append(r.body, 3<<3|wireFixed64)
		r.body = binary.LittleEndian.AppendUint64(r.body, math.Float64bits(m.Sum))
	}
	if r.protocol == V2 {
		r.appendMetadata(b, h.Index)
	}
	r.last, r.lastTime = n, h.Time
	r.setLength(1)
	r.histograms++
}

// beginV1 appends the field of a TimeSeries of V1 with a length of one byte, which is still 0, and the labels of series i.
func (r *Request) beginV1(b *Block, i uint32) {
	r.body = append(r.body, 1<<3|wireBytes, 0)
	at, size := len(r.body), b.v1.size(i)
	r.body = slices.Grow(r.body, size+chunk)[:at+size+chunk]
	r.body = r.body[:b.v1.put(r.body, at, i)]
}

// AddExemplar adds an exemplar to the series added last. One without a timestamp of its own gets the sample's. It does nothing
// where the last series was a dropped one.
//
// In V1, the exemplars of a histogram go into a TimeSeries of their own behind it: Prometheus takes the exemplars of a TimeSeries
// before its histograms, and drops those of a series that it has no sample of yet.
func (r *Request) AddExemplar(x *exemplar.Exemplar) {
	if r.last < 0 {
		return
	}
	if r.last == r.histogram {
		r.last = len(r.body)
		r.beginV1(r.histogramBlock, r.histogramIndex)
		r.setLength(1)
	}
	t := x.Ts
	if !x.HasTs {
		t = r.lastTime
	}
	_, old := binary.Uvarint(r.body[r.last+1:])
	tag := byte(3<<3 | wireBytes)
	if r.protocol == V2 {
		tag = 4<<3 | wireBytes
	}
	message := make([]byte, 0, 128)
	if r.protocol == V2 {
		refs := make([]byte, 0, 32)
		x.Labels.Range(func(l labels.Label) {
			refs = binary.AppendUvarint(refs, uint64(r.symbols.intern(hashSymbol(l.Name), l.Name)))
			refs = binary.AppendUvarint(refs, uint64(r.symbols.intern(hashSymbol(l.Value), l.Value)))
		})
		if len(refs) > 0 {
			message = append(message, 1<<3|wireBytes)
			message = binary.AppendUvarint(message, uint64(len(refs)))
			message = append(message, refs...)
		}
	} else {
		x.Labels.Range(func(l labels.Label) { message = appendLabel(message, l) })
	}
	if bits := math.Float64bits(x.Value); bits != 0 {
		message = append(message, 2<<3|wireFixed64)
		message = binary.LittleEndian.AppendUint64(message, bits)
	}
	if t != 0 {
		message = append(message, 3<<3|wireVarint)
		message = binary.AppendUvarint(message, uint64(t))
	}
	r.body = append(r.body, tag)
	r.body = binary.AppendUvarint(r.body, uint64(len(message)))
	r.body = append(r.body, message...)
	r.setLength(old)
	r.exemplars++
}

// setLength writes the length of the last TimeSeries, which so far has room for a length of old bytes.
func (r *Request) setLength(old int) {
	content := r.last + 1 + old
	size := len(r.body) - content
	want := uvarintSize(uint64(size))
	if want > old {
		r.body = slices.Grow(r.body, want-old)[:len(r.body)+want-old]
		copy(r.body[r.last+1+want:], r.body[content:content+size])
	}
	binary.PutUvarint(r.body[r.last+1:], uint64(size))
}
