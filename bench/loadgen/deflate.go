package loadgen

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// A general compressor would cost several times as much as all else that makes a body. But the lines of a body are known
// beforehand, all but the values. So each line is compressed once, against the line before it, into tokens; and a body's
// compression is to write out tokens and the values' digits, with the fixed Huffman codes of RFC 1951, section 3.2.6.

// token is a literal byte (length 0), or a copy of length bytes from offset at of the line before.
type token struct {
	at      uint32
	length  uint16
	literal byte
}

const (
	// minMatch is the shortest copy that saves something; maxMatch is the longest that deflate has.
	minMatch = 4
	maxMatch = 258
)

// tokenize compresses line against the line before it.
func tokenize(line, before []byte) []token {
	positions := make(map[uint32]int, len(before))
	for i := len(before) - minMatch; i >= 0; i-- {
		positions[binary.LittleEndian.Uint32(before[i:])] = i
	}
	var tokens []token
	for i := 0; i < len(line); {
		if at, length := longest(line[i:], before, positions, i); length > 0 {
			tokens = append(tokens, token{at: uint32(at), length: uint16(length)})
			i += length
			continue
		}
		tokens = append(tokens, token{literal: line[i]})
		i++
	}
	return tokens
}

// longest finds where before has the beginning of rest: at the same place as in the line, or where positions says.
func longest(rest, before []byte, positions map[uint32]int, same int) (at, length int) {
	try := func(from int) {
		n := 0
		for n < min(len(rest), maxMatch) && from+n < len(before) && rest[n] == before[from+n] {
			n++
		}
		if n >= minMatch && n > length {
			at, length = from, n
		}
	}
	if same < len(before) {
		try(same)
	}
	if len(rest) >= minMatch {
		if from, ok := positions[binary.LittleEndian.Uint32(rest)]; ok {
			try(from)
		}
	}
	return at, length
}

// code is bits to write, the first to go out lowest.
type code struct {
	bits uint32
	size uint8
}

// literalCodes and lengthCodes are the codes of the 256 literals, and of lengths with their extra bits.
var literalCodes, lengthCodes = fixedCodes()

func fixedCodes() (literals [256]code, lengths [maxMatch + 1]code) {
	symbol := func(s int) code {
		reversed := func(v, size int) code { return code{bits.Reverse32(uint32(v)) >> (32 - size), uint8(size)} }
		switch {
		case s < 144:
			return reversed(0x30+s, 8)
		case s < 256:
			return reversed(0x190+s-144, 9)
		case s < 280:
			return reversed(s-256, 7)
		default:
			return reversed(0xc0+s-280, 8)
		}
	}
	for i := range literals {
		literals[i] = symbol(i)
	}
	for length, s := 3, 257; s < 285; s++ {
		extra := max((s-261)/4, 0)
		for value := range 1 << extra {
			if length < maxMatch {
				c := symbol(s)
				lengths[length] = code{c.bits | uint32(value)<<c.size, c.size + uint8(extra)}
				length++
			}
		}
	}
	lengths[maxMatch] = symbol(285)
	return literals, lengths
}

// deflater writes one gzip member that consists of one block with fixed codes.
type deflater struct {
	dst  []byte
	acc  uint64
	size uint8
}

func (d *deflater) begin(dst []byte) {
	const unknownOS = 255
	d.dst = append(dst, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, unknownOS)
	const lastFixedBlock = 3
	d.acc, d.size = lastFixedBlock, 3
}

// write writes at most 32 bits.
func (d *deflater) write(c code) {
	d.acc |= uint64(c.bits) << d.size
	if d.size += c.size; d.size >= 32 {
		d.dst = binary.LittleEndian.AppendUint32(d.dst, uint32(d.acc))
		d.acc >>= 32
		d.size -= 32
	}
}

func (d *deflater) literals(text []byte) {
	for _, b := range text {
		d.write(literalCodes[b])
	}
}

// line writes a line whose first byte is back bytes behind that of the line before it in the body.
func (d *deflater) line(tokens []token, back int) {
	written := 0
	for _, t := range tokens {
		if t.length == 0 {
			d.write(literalCodes[t.literal])
			written++
			continue
		}
		d.write(lengthCodes[t.length])
		d.write(distanceCode(back + written - int(t.at)))
		written += int(t.length)
	}
}

// distanceCode is the code of a distance of 1 to 32768 with its extra bits.
func distanceCode(distance int) code {
	v := uint32(distance - 1)
	symbol, extra := v, 0
	if v >= 4 {
		extra = bits.Len32(v) - 2
		symbol = uint32(2*extra) + v>>extra
		v &= 1<<extra - 1
	} else {
		v = 0
	}
	return code{uint32(bits.Reverse8(uint8(symbol))>>3) | v<<5, uint8(5 + extra)}
}

// end writes the end of the member, which holds plain.
func (d *deflater) end(plain []byte) []byte {
	d.write(code{0, 7})
	for ; d.size > 0; d.size -= min(d.size, 8) {
		d.dst = append(d.dst, byte(d.acc))
		d.acc >>= 8
	}
	d.dst = binary.LittleEndian.AppendUint32(d.dst, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(d.dst, uint32(len(plain)))
}
