package remotewrite

import (
	"encoding/binary"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// fragments holds label sets as V1 sends them. The series of a dictionary share most of their labels, and often the same
// ones stand side by side, such as instance and job. So a series is a list of fragments, each a run of Label fields that
// stands once in blob, and Request.Add strings them together.
type fragments struct {
	// Fragment f is blob[starts[f]:starts[f+1]]. At least chunk bytes follow the beginning of each, so that a short one can
	// be copied without a look at its length.
	blob   []byte
	starts []uint32
	// The list of series i is element rows[i] to before rows[i+1] of narrow, or of wide where 16 bits do not number the fragments.
	rows   []uint32
	narrow []uint16
	wide   []uint32
	// sizes has the bytes of each series' labels, so that its length can be written before them; 0 is a dropped series, and
	// hugeLabels means that they have to be added up.
	sizes []uint16
}

const (
	// chunk is how much is copied of a fragment in any case: more than most labels take.
	chunk = 64
	// hugeLabels stands for all sizes that 16 bits do not hold.
	hugeLabels = 1<<16 - 1
	// maxNarrow is how many fragments 16 bits number.
	maxNarrow = 1 << 16
)

// size returns the bytes of series i's labels.
func (f *fragments) size(i uint32) int {
	size := int(f.sizes[i])
	if size == hugeLabels {
		size = f.addUp(i)
	}
	return size
}

func (f *fragments) addUp(i uint32) (size int) {
	for at := f.rows[i]; at < f.rows[i+1]; at++ {
		size += len(f.fragment(at))
	}
	return size
}

// fragment returns the fragment that is element at of the lists.
func (f *fragments) fragment(at uint32) []byte {
	var ref uint32
	if f.wide != nil {
		ref = f.wide[at]
	} else {
		ref = uint32(f.narrow[at])
	}
	return f.blob[f.starts[ref]:f.starts[ref+1]]
}

// put writes the labels of series i to p[k:] and returns their end. It writes up to chunk bytes more.
func (f *fragments) put(p []byte, k int, i uint32) int {
	from, to := f.rows[i], f.rows[i+1]
	if f.wide != nil {
		return putFragments(p, k, f.wide[from:to], f.starts, f.blob)
	}
	return putFragments(p, k, f.narrow[from:to], f.starts, f.blob)
}

func putFragments[R uint16 | uint32](p []byte, k int, refs []R, starts []uint32, blob []byte) int {
	for _, ref := range refs {
		start, end := starts[ref], starts[uint(ref)+1]
		n := int(end - start)
		if n <= chunk {
			// Copies of a constant 16 bytes are two instructions each; a call of memmove costs more than all four.
			src, dst := (*[chunk]byte)(blob[start:]), (*[chunk]byte)(p[k:])
			copy(dst[:16], src[:16])
			copy(dst[16:32], src[16:32])
			copy(dst[32:48], src[32:48])
			copy(dst[48:], src[48:])
		} else {
			copy(p[k:], blob[start:end])
		}
		k += n
	}
	return k
}

// labels decodes the label set of series i.
func (f *fragments) labels(i uint32) labels.Labels {
	builder := labels.NewScratchBuilder(16)
	for at := f.rows[i]; at < f.rows[i+1]; at++ {
		for b := f.fragment(at); len(b) > 0; {
			var label, name, value []byte
			label, b = field(b)
			name, label = field(label)
			value, _ = field(label)
			builder.Add(string(name), string(value))
		}
	}
	return builder.Labels()
}

// field splits off the first field, which has a tag of one byte and a length.
func field(b []byte) (content, rest []byte) {
	size, n := binary.Uvarint(b[1:])
	b = b[1+n:]
	return b[:size], b[size:]
}

// bytes returns the memory that the slices hold.
func (f *fragments) bytes() int {
	return cap(f.blob) + size(f.starts) + size(f.rows) + size(f.narrow) + size(f.wide) + size(f.sizes)
}

func size[E any](s []E) int {
	var e E
	return cap(s) * int(unsafe.Sizeof(e))
}

// newFragments encodes the label sets of a dictionary. The package frame bounds a dictionary's labels to much less than 32
// bits count.
func newFragments(series []frame.Series) fragments {
	b := fragmentBuilder{rows: make([]uint32, len(series)+1)}
	f := fragments{sizes: make([]uint16, len(series))}
	var numbers labelNumbers
	for i := range series {
		b.refs = append(b.refs, numbers.of(series[i].Labels)...)
		b.rows[i+1] = uint32(len(b.refs))
	}
	b.parts = make([]part, len(numbers.labels))
	for i, l := range numbers.labels {
		b.parts[i] = part{label: uint32(i), size: uint32(fieldSize(labelSize(l)))}
	}
	for i := range f.sizes {
		size := 0
		for _, ref := range b.refs[b.rows[i]:b.rows[i+1]] {
			size += int(b.parts[ref].size)
		}
		f.sizes[i] = uint16(min(size, hugeLabels))
	}
	for range maxJoins {
		if !b.join() {
			break
		}
	}
	b.write(&f, numbers.labels)
	return f
}
