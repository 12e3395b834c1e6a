package pusher

import (
	"encoding/binary"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/bench/numbered"
)

// push is one push of a sender.
type push struct {
	// n is its number, counted from 1.
	n uint64
	// at is the time of its samples, and since that from which its sums count, in milliseconds since 1970.
	at, since int64
}

// template is an encoded push with the places that differ between pushes and senders, as offsets.
type template struct {
	bytes []byte
	// names are where the digits of the sender's name are.
	names []int
	// times and starts are where times are.
	times, starts []int
	values        []place
	// millis says that times are varints of milliseconds (remote_write); otherwise they are nanoseconds (OTLP).
	millis bool
}

// place is where a value is.
type place struct {
	at   int
	code numbered.Code
	// integer says that it is a whole number; otherwise it is a double.
	integer bool
	// delta says that it is what was added since the push before.
	delta bool
}

// millisSize is the length of a varint of milliseconds since 1970, from 2004 to 2109.
const millisSize = 6

// append appends a push of a sender, of which these are the digits of its name and the seed of its values.
func (t *template) append(dst []byte, digits string, seed uint64, p push) []byte {
	start := len(dst)
	dst = append(dst, t.bytes...)
	b := dst[start:]
	for _, at := range t.names {
		copy(b[at:], digits)
	}
	if t.millis {
		var encoded [binary.MaxVarintLen64]byte
		binary.PutUvarint(encoded[:], uint64(p.at))
		for _, at := range t.times {
			copy(b[at:], encoded[:millisSize])
		}
	} else {
		for _, at := range t.times {
			binary.LittleEndian.PutUint64(b[at:], uint64(p.at)*1e6)
		}
		for _, at := range t.starts {
			binary.LittleEndian.PutUint64(b[at:], uint64(p.since)*1e6)
		}
	}
	for _, v := range t.values {
		code := v.code.WithSeed(seed)
		value := code.Value(p.n)
		if v.delta && p.n > 1 {
			value -= code.Value(p.n - 1)
		}
		bits := math.Float64bits(value)
		if v.integer {
			bits = uint64(value)
		}
		binary.LittleEndian.PutUint64(b[v.at:], bits)
	}
	return dst
}

// builder encodes a template as a protobuf message.
type builder struct {
	template
	// width is how many digits a sender's name has.
	width int
}

// text appends a field of bytes; digits in it become the sender's.
func (b *builder) text(field protowire.Number, s string) {
	marks := strings.Count(s, digits)
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.BytesType)
	b.bytes = protowire.AppendVarint(b.bytes, uint64(len(s)+marks*(b.width-len(digits))))
	for i, part := range strings.Split(s, digits) {
		if i > 0 {
			b.names = append(b.names, len(b.bytes))
			b.bytes = append(b.bytes, make([]byte, b.width)...)
		}
		b.bytes = append(b.bytes, part...)
	}
}

// raw appends a field of bytes as they are.
func (b *builder) raw(field protowire.Number, data []byte) {
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.BytesType)
	b.bytes = protowire.AppendBytes(b.bytes, data)
}

// varint appends a number.
func (b *builder) varint(field protowire.Number, v uint64) {
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.VarintType)
	b.bytes = protowire.AppendVarint(b.bytes, v)
}

// fixed appends a field of 64 bits and returns where they are.
func (b *builder) fixed(field protowire.Number) int {
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.Fixed64Type)
	b.bytes = append(b.bytes, make([]byte, 8)...)
	return len(b.bytes) - 8
}

// millisTime appends a time of remote_write.
func (b *builder) millisTime(field protowire.Number) {
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.VarintType)
	b.times = append(b.times, len(b.bytes))
	b.bytes = append(b.bytes, make([]byte, millisSize)...)
}

// message appends a field that is a message, which fill encodes.
func (b *builder) message(field protowire.Number, fill func(*builder)) {
	inner := builder{width: b.width}
	fill(&inner)
	b.bytes = protowire.AppendTag(b.bytes, field, protowire.BytesType)
	b.bytes = protowire.AppendVarint(b.bytes, uint64(len(inner.bytes)))
	b.join(&inner)
}

// join appends what another builder has encoded.
func (b *builder) join(inner *builder) {
	shift := len(b.bytes)
	b.bytes = append(b.bytes, inner.bytes...)
	for _, l := range []struct{ to, from *[]int }{{&b.names, &inner.names}, {&b.times, &inner.times}, {&b.starts, &inner.starts}} {
		for _, at := range *l.from {
			*l.to = append(*l.to, at+shift)
		}
	}
	for _, v := range inner.values {
		v.at += shift
		b.values = append(b.values, v)
	}
}
