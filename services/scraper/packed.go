package scraper

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"
	"weak"

	"github.com/klauspost/compress/zstd"
)

// packFrom is the interval from which on templates are kept packed. Unpacking costs about as much as reading the values does, and saves the memory of a template
// for the rest of the interval.
const packFrom = time.Minute

// packed is a template as zstd has packed it. It is immutable, and shared by the targets with long intervals whose expositions are alike.
type packed struct {
	packedName
	raw  int    // bytes before packing
	data []byte // first the lines, then the groups, then the text
}

// packedName tells packed templates apart. All but the format follows from the text.
type packedName struct {
	key
	format              format
	lines, groups, text int
}

// pack returns a packed template with the content of a draft: one that is in use already, or a new one.
func (ts *templates) pack(f format, d *draft) *packed {
	name := packedName{key{maphash.Bytes(ts.seed, d.text), maphash.Bytes(ts.further, d.text)}, f, len(d.lines), len(d.groups), len(d.text)}
	ts.mu.Lock()
	p := ts.byName[name].Value()
	ts.mu.Unlock()
	if p != nil {
		return p
	}
	raw := d.appendTo(make([]byte, 0, 6*len(d.lines)+8*len(d.groups)+len(d.text)))
	z := packers.Get().(*zstd.Encoder)
	defer packers.Put(z)
	p = &packed{name, len(raw), slices.Clone(z.EncodeAll(raw, nil))}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if other := ts.byName[name].Value(); other != nil {
		return other // it was made meanwhile
	}
	ts.byName[name] = weak.Make(p)
	ts.bytes.Add(int64(cap(p.data)))
	runtime.AddCleanup(p, ts.forgetPacked, forgotten[packedName]{name, int64(cap(p.data))})
	return p
}

// forgetPacked drops a packed template that nobody uses any more, unless another has taken its place.
func (ts *templates) forgetPacked(p forgotten[packedName]) { forget(ts, ts.byName, p) }

// appendTo appends what a packed template holds.
func (d *draft) appendTo(raw []byte) []byte {
	start := uint32(0)
	for i := range d.lines {
		line := &d.lines[i]
		raw = binary.AppendUvarint(raw, uint64(line.met-start))
		raw = binary.AppendUvarint(raw, uint64(line.metEnd-line.met))
		raw = binary.AppendUvarint(raw, uint64(line.end-line.metEnd))
		raw = append(raw, byte(line.metricType)<<2|bit(line.typed)<<1|bit(line.described))
		raw = binary.AppendUvarint(raw, uint64(line.family))
		start = line.end
	}
	for _, g := range d.groups {
		raw = binary.LittleEndian.AppendUint64(raw, g)
	}
	return append(raw, d.text...)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// unpacker unpacks templates into memory that it uses again and again.
type unpacker struct {
	raw []byte
	t   template
}

// unpack returns the template, which lasts until the next one is unpacked.
func (u *unpacker) unpack(p *packed) *template {
	if cap(u.raw) < p.raw {
		u.raw = make([]byte, 0, p.raw)
	}
	z := unpackers.Get().(*zstd.Decoder)
	defer unpackers.Put(z)
	raw, err := z.DecodeAll(p.data, u.raw[:0])
	if err != nil || len(raw) != p.raw {
		panic(fmt.Sprintf("unpacking a template of %d bytes gave %d, %v", p.raw, len(raw), err)) // it is what pack has made
	}
	u.raw = raw
	t := &u.t
	t.format, t.lines, t.groups = p.format, slices.Grow(t.lines[:0], p.lines)[:p.lines], slices.Grow(t.groups[:0], p.groups)[:p.groups]
	next := func() uint32 {
		if b := raw[0]; b < 0x80 { // nearly always
			raw = raw[1:]
			return uint32(b)
		}
		v, n := binary.Uvarint(raw)
		raw = raw[n:]
		return uint32(v)
	}
	end := uint32(0)
	for i := range t.lines {
		line := &t.lines[i]
		line.met = end + next()
		line.metEnd = line.met + next()
		end = line.metEnd + next()
		line.end = end
		flags := raw[0]
		raw = raw[1:]
		line.metricType, line.typed, line.described = metricType(flags>>2), flags&2 != 0, flags&1 != 0
		line.family = uint16(next())
	}
	for i := range t.groups {
		t.groups[i] = binary.LittleEndian.Uint64(raw)
		raw = raw[8:]
	}
	t.text = unsafe.String(unsafe.SliceData(raw), len(raw))
	return t
}

// packWindow is how far a packed template refers back, in bytes. What targets expose repeats itself after fewer.
const packWindow = 256 << 10

var (
	packers = sync.Pool{New: func() any {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
			zstd.WithWindowSize(packWindow), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return z
	}}
	unpackers = sync.Pool{New: func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return z
	}}
)
