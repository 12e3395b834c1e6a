package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	window = 32 << 10  // bytes that distances reach back
	full   = 128 << 10 // bytes of output that are made before they are handed out
	input  = 16 << 10
	pad    = 16 // zero bytes behind the input's end, so that the last codes can be decoded like all others
)

// ErrCorrupt is wrapped by errors about bytes that are no gzip.
var ErrCorrupt = errors.New("corrupt input")

// The texts begin as those of Go's libraries do, which people know from Prometheus.
var (
	errHeader   = fmt.Errorf("gzip: invalid header: %w", ErrCorrupt)
	errChecksum = fmt.Errorf("gzip: invalid checksum: %w", ErrCorrupt)
)

func corrupt(what string) error { return fmt.Errorf("flate: %w: %s", ErrCorrupt, what) }

// Reader unpacks gzip: one member, or several one after the other. It takes about 160 KiB of memory, which Reset uses again. Make it with [NewReader].
type Reader struct {
	src io.Reader
	err error // what Read returns when all is handed out

	in       [input + pad]byte
	pos, end int  // of the input at hand, the padding included
	eof      bool // it is padded
	held     uint64
	bits     uint // of held that count

	out                  [full + margin]byte
	given, filled, known int    // output: handed out, made, and in the checksum
	begin                int    // where the member's begins
	sum, size            uint32 // of the member's output

	few [10]byte // of a header or trailer

	state     func(*Reader) error // what comes next in the input
	last      bool                // the block at hand is the member's last
	stored    int                 // bytes left of a stored block
	lengths   [lengthEntries]uint32
	distances [distanceEntries]uint32
}

// NewReader returns a reader without input; [Reader.Reset] gives it some.
func NewReader() *Reader { return &Reader{err: io.EOF} }

// Reset makes the reader unpack src from its beginning on. With nil, it lets go of the source before.
func (z *Reader) Reset(src io.Reader) {
	z.src, z.err = src, nil
	z.pos, z.end, z.eof, z.held, z.bits = 0, 0, false, 0, 0
	z.given, z.filled, z.known = 0, 0, 0
	z.state = (*Reader).header
	if src == nil {
		z.err = io.EOF
	}
}

// Read hands out unpacked bytes. Its errors wrap [ErrCorrupt] where the input is no gzip, are [io.ErrUnexpectedEOF] where it ends early, or are the source's; what was unpacked before comes first. The checksum
// of a member is known to be right when the byte behind its end, or io.EOF, is handed out.
func (z *Reader) Read(p []byte) (int, error) {
	for z.given == z.filled && z.err == nil && len(p) > 0 {
		if z.filled >= full {
			copy(z.out[:window], z.out[z.filled-window:z.filled])
			z.begin = max(z.begin-(z.filled-window), 0)
			z.given, z.filled, z.known = window, window, window
		}
		for z.filled < full && z.err == nil {
			z.err = z.state(z)
		}
		z.check()
	}
	n := copy(p, z.out[z.given:z.filled])
	z.given += n
	if z.given < z.filled {
		return n, nil
	}
	return n, z.err
}

// check adds what is made to the member's checksum.
func (z *Reader) check() {
	z.sum = crc32.Update(z.sum, crc32.IEEETable, z.out[z.known:z.filled])
	z.size += uint32(z.filled - z.known)
	z.known = z.filled
}

// more gets more input where less than eight bytes are at hand. It is padded at its end.
func (z *Reader) more() error {
	for tries := 0; z.end-z.pos < 8 && !z.eof; tries++ {
		back := min(z.pos, 8) // bits that are held may be given back
		z.end = copy(z.in[:], z.in[z.pos-back:z.end])
		z.pos = back
		n, err := z.src.Read(z.in[z.end:input])
		z.end += n
		switch {
		case n == 0 && err == nil && tries == 100:
			return io.ErrNoProgress
		case err == io.EOF:
			clear(z.in[z.end : z.end+pad])
			z.end += pad
			z.eof = true
		case err != nil:
			return err
		}
	}
	return z.inside()
}

// inside returns an error where more bits were taken than the input has.
func (z *Reader) inside() error {
	if z.eof && z.pos-int(z.bits>>3) > z.end-pad {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// need makes up to 32 bits of input at hand.
func (z *Reader) need(n uint) error {
	for z.bits < n {
		if z.pos == z.end {
			if err := z.more(); err != nil {
				return err
			}
			if z.pos == z.end {
				return io.ErrUnexpectedEOF
			}
		}
		z.held &= 1<<z.bits - 1 // bits beyond may be there already
		z.held |= uint64(z.in[z.pos]) << z.bits
		z.pos++
		z.bits += 8
	}
	return nil
}

// take takes up to 32 bits.
func (z *Reader) take(n uint) (uint32, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint32(z.held & (1<<n - 1))
	z.held >>= n
	z.bits -= n
	return v, z.inside()
}

// align goes to the next whole byte of the input.
func (z *Reader) align() {
	z.pos -= int(z.bits >> 3)
	z.held, z.bits = 0, 0
}

// atEnd reports whether the input, which is at a whole byte, has ended.
func (z *Reader) atEnd() (bool, error) {
	err := z.more()
	return err == nil && z.eof && z.pos == z.end-pad, err
}

// header reads a member's header.
func (z *Reader) header() error {
	z.sum, z.size, z.begin, z.last = 0, 0, z.filled, false
	fixed := z.few[:]
	if err := z.bytes(fixed); err != nil {
		return err
	}
	if fixed[0] != 0x1f || fixed[1] != 0x8b || fixed[2] != 8 {
		return errHeader
	}
	flags := fixed[3]
	sum := crc32.ChecksumIEEE(fixed)
	if flags&4 != 0 { // extra field
		size := z.few[:2]
		if err := z.bytes(size); err != nil {
			return err
		}
		sum = crc32.Update(sum, crc32.IEEETable, size)
		for n := int(binary.LittleEndian.Uint16(size)); n > 0; n-- {
			if err := z.bytes(size[:1]); err != nil {
				return err
			}
			sum = crc32.Update(sum, crc32.IEEETable, size[:1])
		}
	}
	for flag := byte(8); flag <= 16; flag <<= 1 { // name, comment
		for more := flags&flag != 0; more; more = z.few[0] != 0 {
			if err := z.bytes(z.few[:1]); err != nil {
				return err
			}
			sum = crc32.Update(sum, crc32.IEEETable, z.few[:1])
		}
	}
	if flags&2 != 0 {
		want := z.few[:2]
		if err := z.bytes(want); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(want) != uint16(sum) {
			return errHeader
		}
	}
	z.state = (*Reader).block
	return nil
}

// bytes reads whole bytes.
func (z *Reader) bytes(to []byte) error {
	for i := range to {
		b, err := z.take(8)
		if err != nil {
			return err
		}
		to[i] = byte(b)
	}
	return nil
}

// trailer checks a member that has ended, and finds out whether another follows.
func (z *Reader) trailer() error {
	z.align()
	want := z.few[:8]
	if err := z.bytes(want); err != nil {
		return err
	}
	z.check()
	if binary.LittleEndian.Uint32(want) != z.sum || binary.LittleEndian.Uint32(want[4:]) != z.size {
		return errChecksum
	}
	end, err := z.atEnd()
	if err != nil {
		return err
	}
	if end {
		return io.EOF
	}
	z.state = (*Reader).header
	return nil
}

// block reads a block's header.
func (z *Reader) block() error {
	if z.last {
		z.state = (*Reader).trailer
		return nil
	}
	head, err := z.take(3)
	if err != nil {
		return err
	}
	z.last = head&1 != 0
	switch head >> 1 {
	case 0:
		z.align()
		size := z.few[:4]
		if err := z.bytes(size); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(size)
		if n != ^binary.LittleEndian.Uint16(size[2:]) {
			return corrupt("a stored block's size is wrong")
		}
		z.stored = int(n)
		z.align()
		z.state = (*Reader).copied
	case 1:
		z.fixed()
		z.state = (*Reader).coded
	case 2:
		if err := z.dynamic(); err != nil {
			return err
		}
		z.state = (*Reader).coded
	default:
		return corrupt("a block of no known type")
	}
	return nil
}

// copied reads a stored block.
func (z *Reader) copied() error {
	if z.stored == 0 {
		z.state = (*Reader).block
		return nil
	}
	if err := z.more(); err != nil {
		return err
	}
	have := z.end - z.pos
	if z.eof {
		have -= pad
	}
	if have <= 0 {
		return io.ErrUnexpectedEOF
	}
	n := copy(z.out[z.filled:full], z.in[z.pos:z.pos+min(have, z.stored)])
	z.pos += n
	z.filled += n
	z.stored -= n
	return nil
}

// coded decodes a block of codes.
func (z *Reader) coded() error {
	if err := z.more(); err != nil {
		return err
	}
	if z.eof && z.pos+8 > z.end {
		return io.ErrUnexpectedEOF
	}
	ended, err := z.codes()
	if outside := z.inside(); outside != nil {
		return outside // it decoded padding
	}
	if err == nil && ended {
		z.state = (*Reader).block
	}
	return err
}

// fixed makes the tables of the fixed codes (RFC 1951, section 3.2.6).
func (z *Reader) fixed() {
	var sizes [288]uint8
	for i := range sizes {
		switch {
		case i < 144:
			sizes[i] = 8
		case i < 256:
			sizes[i] = 9
		case i < 280:
			sizes[i] = 7
		default:
			sizes[i] = 8
		}
	}
	build(z.lengths[:], lengthBits, sizes[:], literals[:])
	for i := range 32 {
		sizes[i] = 5
	}
	build(z.distances[:], distanceBits, sizes[:32], distances[:])
}

// order is the order in which the sizes of the codes for sizes are written.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block and makes their tables (RFC 1951, section 3.2.7).
func (z *Reader) dynamic() error {
	head, err := z.take(14)
	if err != nil {
		return err
	}
	nl, nd, np := int(head&31)+257, int(head>>5&31)+1, int(head>>10)+4
	if nl > 286 || nd > 30 {
		return corrupt("a block with more codes than there are")
	}
	var pre [19]uint8
	for _, symbol := range order[:np] {
		n, err := z.take(3)
		if err != nil {
			return err
		}
		pre[symbol] = uint8(n)
	}
	var table [preEntries]uint32
	if !build(table[:], preBits, pre[:], bare[:]) {
		return corrupt("codes for sizes that are none")
	}
	var sizes [286 + 30 + 138]uint8
	for i := 0; i < nl+nd; {
		symbol, err := z.preSymbol(&table)
		if err != nil {
			return err
		}
		repeat, size := 1, uint8(symbol)
		if symbol >= 16 {
			extra := [3]struct {
				bits uint
				base int
			}{{2, 3}, {3, 3}, {7, 11}}[symbol-16]
			n, err := z.take(extra.bits)
			if err != nil {
				return err
			}
			repeat, size = extra.base+int(n), 0
			if symbol == 16 {
				if i == 0 {
					return corrupt("a size that repeats nothing")
				}
				size = sizes[i-1]
			}
		}
		for ; repeat > 0; repeat-- {
			sizes[i] = size
			i++
		}
		if i > nl+nd {
			return corrupt("more sizes than codes")
		}
	}
	if !build(z.lengths[:], lengthBits, sizes[:nl], literals[:]) || !build(z.distances[:], distanceBits, sizes[nl:nl+nd], distances[:]) {
		return corrupt("codes that are none")
	}
	return nil
}

// preSymbol reads a symbol of the code for sizes.
func (z *Reader) preSymbol(table *[preEntries]uint32) (uint32, error) {
	if err := z.need(preBits); err != nil {
		return 0, err
	}
	e := table[z.held&(1<<preBits-1)]
	if e&special != 0 {
		return 0, corrupt("a size that stands for nothing")
	}
	z.held >>= e & takeMask
	z.bits -= uint(e & takeMask)
	return e >> baseShift, z.inside()
}
