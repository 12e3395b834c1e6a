package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Wire types of protobuf (https://protobuf.dev/programming-guides/encoding/).
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

var errTruncated = errors.New("the message ends early")

// fields walks the fields of a protobuf message.
type fields struct {
	rest []byte
	err  error

	// The field at hand: its number and type, where its tag begins in the message, and its value.
	num   int
	typ   int
	start int
	bytes []byte // of a wireBytes field
	n     uint64 // of the others

	msg []byte
}

func walk(msg []byte) fields { return fields{rest: msg, msg: msg} }

// next goes to the next field. At the end, or at bytes that are no field, it returns false; err tells which.
func (f *fields) next() bool {
	if len(f.rest) == 0 || f.err != nil {
		return false
	}
	f.start = len(f.msg) - len(f.rest)
	tag, ok := f.varint()
	if !ok {
		return false
	}
	f.num, f.typ = int(tag>>3), int(tag&7)
	if f.num == 0 || tag>>3 > 1<<29-1 {
		return f.fail("field number %d", tag>>3)
	}
	switch f.typ {
	case wireVarint:
		f.n, ok = f.varint()
		return ok
	case wireFixed64:
		if len(f.rest) < 8 {
			return f.fail("%w", errTruncated)
		}
		f.n = binary.LittleEndian.Uint64(f.rest)
		f.rest = f.rest[8:]
	case wireFixed32:
		if len(f.rest) < 4 {
			return f.fail("%w", errTruncated)
		}
		f.n = uint64(binary.LittleEndian.Uint32(f.rest))
		f.rest = f.rest[4:]
	case wireBytes:
		size, ok := f.varint()
		if !ok {
			return false
		}
		if size > uint64(len(f.rest)) {
			return f.fail("field %d: %w", f.num, errTruncated)
		}
		f.bytes, f.rest = f.rest[:size:size], f.rest[size:]
	default:
		return f.fail("field %d has the wire type %d", f.num, f.typ)
	}
	return true
}

// end returns where the field at hand ends in the message.
func (f *fields) end() int { return len(f.msg) - len(f.rest) }

func (f *fields) varint() (uint64, bool) {
	if len(f.rest) > 0 && f.rest[0] < 0x80 {
		v := uint64(f.rest[0])
		f.rest = f.rest[1:]
		return v, true
	}
	v, n := binary.Uvarint(f.rest)
	if n <= 0 {
		return 0, f.fail("%w", errTruncated)
	}
	f.rest = f.rest[n:]
	return v, true
}

func (f *fields) fail(format string, args ...any) bool {
	f.err = fmt.Errorf(format, args...)
	f.rest = nil
	return false
}

func (f *fields) float() float64 { return math.Float64frombits(f.n) }

// is reports whether the field at hand has this number, and notes an error where it has another type than that.
func (f *fields) is(num, typ int) bool {
	if f.num != num {
		return false
	}
	if f.typ != typ {
		return f.fail("field %d has the wire type %d instead of %d", num, f.typ, typ)
	}
	return true
}

// fixed64s reads a repeated field of 64-bit values: packed, or one of them.
func fixed64s(f *fields, list []uint64) []uint64 {
	switch f.typ {
	case wireFixed64:
		return append(list, f.n)
	case wireBytes:
		if len(f.bytes)%8 != 0 {
			f.fail("field %d: packed values in %d bytes", f.num, len(f.bytes))
			return list
		}
		for b := f.bytes; len(b) > 0; b = b[8:] {
			list = append(list, binary.LittleEndian.Uint64(b))
		}
		return list
	}
	f.fail("field %d has the wire type %d", f.num, f.typ)
	return list
}

// appendBytesField appends a field of bytes, or a message.
func appendBytesField(dst []byte, num int, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(num)<<3|wireBytes)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}
