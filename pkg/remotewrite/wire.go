package remotewrite

import (
	"encoding/binary"
	"math/bits"
)

// Protobuf's wire types, the lower three bits of a field's tag. All tags in use here take one byte.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
)

// uvarintSize returns the bytes that v takes as a varint.
func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// fieldSize returns the bytes that a field of n bytes takes with its tag and length.
func fieldSize(n int) int { return 1 + uvarintSize(uint64(n)) + n }

func appendString(b []byte, field byte, s string) []byte {
	b = append(b, field<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}
