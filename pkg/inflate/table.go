package inflate

import "math/bits"

// Entries of the decoding tables. The lowest byte says how many bits of input the symbol takes; a literal's is its code alone, a length's or distance's is its code and its
// extra bits together.
const (
	literal  = 1 << 31 // the byte stands in bits 16 to 23
	special  = 1 << 15 // neither literal nor length nor distance:
	subtable = 1 << 14 // a table of subBits more bits begins at the index in bits 16 to 30
	ending   = 1 << 13 // the block ends
	// A special entry that is neither is no code at all.

	baseShift = 16 // of lengths and distances, 15 bits
	codeShift = 8  // of the bits that the code takes without the extra bits, 4 bits; of subBits in an entry that leads to a subtable
	codeMask  = 15
	takeMask  = 63
)

const (
	maxCode = 15 // bits of the longest code

	lengthBits, lengthEntries     = 11, 2342 // the most that 288 symbols need
	distanceBits, distanceEntries = 9, 594   // the most that 32 symbols need
	preBits, preEntries           = 7, 128
)

// lengths and distances are what the symbols stand for without their codes (RFC 1951, section 3.2.5): base and number of extra bits.
var lengths, distances, literals, bare = symbols()

func symbols() (lengths, distances [32]uint32, literals [288]uint32, bare [19]uint32) {
	base := uint32(3)
	for i := range 28 {
		extra := uint32(max(i/4-1, 0))
		lengths[i] = base<<baseShift | extra
		base += 1 << extra
	}
	lengths[28] = 258 << baseShift
	for i := 29; i < 32; i++ {
		lengths[i] = special
	}
	base = 1
	for i := range 30 {
		extra := uint32(max(i/2-1, 0))
		distances[i] = base<<baseShift | extra
		base += 1 << extra
	}
	distances[30], distances[31] = special, special
	for i := range 256 {
		literals[i] = literal | uint32(i)<<baseShift
	}
	literals[256] = special | ending
	copy(literals[257:], lengths[:31])
	for i := range bare {
		bare[i] = uint32(i) << baseShift
	}
	return lengths, distances, literals, bare
}

// build makes the table of a canonical Huffman code: sizes has the bits of each symbol's code, 0 for none, and meaning its entry without the code. It reports whether the code is complete, or has
// a single symbol of one bit, or none; libraries take those too.
func build(table []uint32, root uint, sizes []uint8, meaning []uint32) bool {
	var count, place [maxCode + 2]int
	for _, n := range sizes {
		count[n]++
	}
	longest := uint(maxCode)
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	for i := range table[:1<<root] {
		table[i] = special
	}
	if longest == 0 {
		return true
	}
	left := 1
	for n := uint(1); n <= longest; n++ {
		left = left<<1 - count[n]
		place[n+1] = place[n] + count[n]
		if left < 0 {
			return false
		}
	}
	if left > 0 && (longest != 1 || count[1] != 1) {
		return false
	}
	var sorted [288]uint16 // by the order of their codes
	for symbol, n := range sizes {
		if n != 0 {
			sorted[place[n]] = uint16(symbol)
			place[n]++
		}
	}
	free := 1 << root // where the next subtable begins
	code, used, n := 0, 0, uint(1)
	for ; n <= longest; n, code = n+1, code<<1 {
		for ; count[n] > 0; count[n]-- {
			symbol := sorted[used]
			used++
			reversed := uint(bits.Reverse16(uint16(code))) >> (16 - n)
			code++
			if n <= root {
				e := entry(meaning[symbol], n)
				for i := reversed; i < 1<<root; i += 1 << n {
					table[i] = e
				}
				continue
			}
			first := reversed & (1<<root - 1)
			if table[first]&subtable == 0 {
				width := subWidth(n, root, longest, &count)
				table[first] = special | subtable | uint32(free)<<baseShift | uint32(width)<<codeShift | uint32(root)
				for i := range 1 << width {
					table[free+i] = special
				}
				free += 1 << width
			}
			sub, width := uint(table[first]>>baseShift&0x7fff), uint(table[first]>>codeShift&codeMask)
			e := entry(meaning[symbol], n-root)
			for i := reversed >> root; i < 1<<width; i += 1 << (n - root) {
				table[sub+i] = e
			}
		}
	}
	return true
}

// subWidth returns how many bits the subtable takes that begins with a code of n bits, where count tells how many codes of each length are to come, that one included.
func subWidth(n, root, longest uint, count *[maxCode + 2]int) uint {
	left := 1 << (n - root)
	for n < longest {
		if left -= count[n]; left <= 0 {
			break
		}
		n++
		left <<= 1
	}
	return n - root
}

// entry is a symbol's entry where its code takes n bits.
func entry(meaning uint32, n uint) uint32 {
	if meaning&(literal|special) != 0 {
		return meaning | uint32(n)
	}
	return meaning&^takeMask | uint32(n)<<codeShift | (meaning&takeMask + uint32(n))
}
