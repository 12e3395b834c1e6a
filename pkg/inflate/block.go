package inflate

import "encoding/binary"

// margin is how much room there is behind the part of the output that is to be filled: what one round of decoding may write.
const margin = 3 + 258 + 8

// codes decodes symbols of the current block until that has ended, the output is full, or less than eight bytes of input are at hand. The race detector, which would make it twenty times
// slower, has nothing to see here: all memory is the reader's own.
//
//go:norace
func (z *Reader) codes() (ended bool, err error) {
	in, out := z.in[:z.end], z.out[:]
	ip, op := z.pos, z.filled
	held, n := z.held, z.bits
	begin := z.begin
	ll, ds := &z.lengths, &z.distances
loop:
	for ip+8 <= len(in) && op < full {
		held |= binary.LittleEndian.Uint64(in[ip:]) << (n & takeMask)
		ip += int(63-n) >> 3
		n |= 56
		e := ll[held&(1<<lengthBits-1)]
		if e&literal != 0 {
			held >>= e & takeMask
			n -= uint(e & takeMask)
			out[op] = byte(e >> baseShift)
			op++
			e = ll[held&(1<<lengthBits-1)]
			if e&literal != 0 {
				held >>= e & takeMask
				n -= uint(e & takeMask)
				out[op] = byte(e >> baseShift)
				op++
				e = ll[held&(1<<lengthBits-1)]
				if e&literal != 0 {
					held >>= e & takeMask
					n -= uint(e & takeMask)
					out[op] = byte(e >> baseShift)
					op++
					continue
				}
			}
			if ip+8 > len(in) {
				continue // the entry is looked up again
			}
			held |= binary.LittleEndian.Uint64(in[ip:]) << (n & takeMask)
			ip += int(63-n) >> 3
			n |= 56
		}
		if e&special != 0 {
			if e&subtable != 0 {
				held >>= lengthBits
				n -= lengthBits
				e = ll[uint64(e>>baseShift&0x7fff)+held&(1<<(e>>codeShift&codeMask)-1)]
				if e&literal != 0 {
					held >>= e & takeMask
					n -= uint(e & takeMask)
					out[op] = byte(e >> baseShift)
					op++
					continue
				}
			}
			if e&special != 0 {
				held >>= e & takeMask
				n -= uint(e & takeMask)
				if e&ending == 0 {
					err = corrupt("a code that stands for nothing")
				}
				ended = true
				break loop
			}
		}
		length := int(e>>baseShift&0x1ff) + int(held&(1<<(e&takeMask)-1)>>(e>>codeShift&codeMask))
		held >>= e & takeMask
		n -= uint(e & takeMask)
		e = ds[held&(1<<distanceBits-1)]
		if e&special != 0 {
			if e&subtable != 0 {
				held >>= distanceBits
				n -= distanceBits
				e = ds[uint64(e>>baseShift&0x7fff)+held&(1<<(e>>codeShift&codeMask)-1)]
			}
			if e&special != 0 {
				err = corrupt("a distance that stands for nothing")
				break loop
			}
		}
		distance := int(e>>baseShift&0x7fff) + int(held&(1<<(e&takeMask)-1)>>(e>>codeShift&codeMask))
		held >>= e & takeMask
		n -= uint(e & takeMask)
		if distance > op-begin {
			err = corrupt("a distance to before the beginning")
			break loop
		}
		from, to := out[op-distance:], out[op:op+length+8]
		op += length
		switch {
		case distance >= 8:
			for {
				binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
				if length <= 8 {
					break
				}
				length -= 8
				from, to = from[8:], to[8:]
			}
		case distance == 1:
			same := uint64(from[0]) * 0x0101010101010101
			for {
				binary.LittleEndian.PutUint64(to, same)
				if length <= 8 {
					break
				}
				length -= 8
				to = to[8:]
			}
		default:
			for i := range length {
				to[i] = from[i]
			}
		}
	}
	z.pos, z.filled, z.held, z.bits = ip, op, held, n
	return ended, err
}
