package ingest

import (
	"hash/maphash"
	"math/bits"
)

// key names a point by the bytes that its sender wrote: those of its resource, scope, metric and attributes, or of its labels. It is two
// independent hashes with seeds of this process, so that nobody can make two points share one.
type key struct{ a, b uint64 }

// hasher makes keys. It is safe for concurrent use.
type hasher struct{ a, b maphash.Seed }

func newHasher() hasher { return hasher{maphash.MakeSeed(), maphash.MakeSeed()} }

func (h hasher) bytes(b []byte) key { return key{maphash.Bytes(h.a, b), maphash.Bytes(h.b, b)} }

func (h hasher) string(s string) key { return key{maphash.String(h.a, s), maphash.String(h.b, s)} }

// with returns the key of what k names, followed by what x names.
func (k key) with(x key) key {
	return key{mix(k.a, x.a, 0x9e3779b97f4a7c15), mix(k.b, x.b, 0xd6e8feb86659fd93)}
}

// number returns the key of what k names, followed by a number.
func (k key) number(n uint64) key {
	return key{mix(k.a, n^0xa0761d6478bd642f, 0xe7037ed1a0b428db), mix(k.b, n^0x8ebc6af09c88c6e3, 0x589965cc75374cc3)}
}

func mix(a, b, odd uint64) uint64 {
	hi, lo := bits.Mul64(a^odd, bits.RotateLeft64(b, 29)+odd)
	return hi ^ lo ^ bits.RotateLeft64(a, 17) ^ b
}
