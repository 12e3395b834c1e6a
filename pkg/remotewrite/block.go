package remotewrite

import (
	"encoding/binary"
	"hash/maphash"
	"strings"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
)

// Block is the final series of one dictionary, encoded for one protocol. It is safe for concurrent use, and does not change but for the runs that it keeps. It
// holds a handful of slices with hardly a pointer in them, so the garbage collector has little to scan.
type Block struct {
	series  int
	dropped int

	v1    fragments // the label sets for V1
	slots []slot    // where samples of V1 have been, each of runLength series

	// For V2: the labels of series i are element rows[i].refs to before rows[i+1].refs of narrow, or of wide where 16 bits do not number the pairs. Each is
	// the index of a name and value in pairs.
	rows   []row
	narrow []uint16
	wide   []uint32
	pairs  []pair
	metas  []meta
	// Symbol i is text[starts[i]:starts[i+1]]. The empty string is a symbol like any other.
	text   string
	starts []uint32
	hashes []uint32
}

type row struct {
	refs uint32 // where the series' labels begin in Block.narrow or Block.wide
	meta uint32 // one more than the index in Block.metas; 0: nothing is known
}

// pair is a label: the symbols of its name and value. Series share most of their labels, so a request encodes each once.
type pair struct{ name, value uint32 }

type meta struct {
	kind       uint32 // writev2.Metadata_MetricType
	help, unit uint32 // symbols
}

// NewBlock encodes a dictionary's final series. A series with an empty label set is a dropped one. It keeps no memory of
// the series.
func NewBlock(p Protocol, series []frame.Series) *Block {
	b := &Block{series: len(series)}
	for i := range series {
		if series[i].Labels.IsEmpty() {
			b.dropped++
		}
	}
	if p == V2 {
		b.encodeV2(series)
	} else {
		b.v1 = newFragments(series)
		b.slots = make([]slot, (len(series)+runLength-1)/runLength)
	}
	return b
}

// Series returns how many series the dictionary has, dropped ones included.
func (b *Block) Series() int { return b.series }

// AllKept reports whether no series is dropped.
func (b *Block) AllKept() bool { return b.dropped == 0 }

// Kept reports whether series i is to be sent: its label set is not empty.
func (b *Block) Kept(i uint32) bool {
	if b.v1.sizes != nil {
		return b.v1.sizes[i] != 0
	}
	return b.rows[i].refs != b.rows[i+1].refs
}

// Bytes returns the memory that the block holds, with all of its runs.
func (b *Block) Bytes() int {
	return len(b.slots)*(int(unsafe.Sizeof(slot{})+unsafe.Sizeof(run{}))) + runBytes*len(b.v1.sizes) + int(unsafe.Sizeof(*b)) + b.v1.bytes() + size(b.rows) + size(b.narrow) + size(b.wide) + size(b.pairs) + size(b.metas) +
		len(b.text) + size(b.starts) + size(b.hashes)
}

// Labels returns the label set of series i, decoded again: for messages, not for the hot path.
func (b *Block) Labels(i uint32) labels.Labels {
	if b.v1.sizes != nil {
		return b.v1.labels(i)
	}
	builder := labels.NewScratchBuilder(16)
	for at := b.rows[i].refs; at < b.rows[i+1].refs; at++ {
		p := b.pairs[b.ref(at)]
		builder.Add(strings.Clone(b.symbol(p.name)), strings.Clone(b.symbol(p.value)))
	}
	return builder.Labels()
}

// ref returns the index in pairs of the label that is element at of the lists.
func (b *Block) ref(at uint32) uint32 {
	if b.wide != nil {
		return b.wide[at]
	}
	return uint32(b.narrow[at])
}

// appendLabel appends a label as a field 1 of a message, which it is in V1's TimeSeries and Exemplar.
func appendLabel(b []byte, l labels.Label) []byte {
	b = append(b, 1<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(labelSize(l)))
	b = appendString(b, 1, l.Name)
	return appendString(b, 2, l.Value)
}

func labelSize(l labels.Label) int { return fieldSize(len(l.Name)) + fieldSize(len(l.Value)) }

// symbolSeed makes the hashes of symbols, which never leave the process, unguessable to those who choose label values.
var symbolSeed = maphash.MakeSeed()

func hashSymbol(s string) uint32 { return uint32(maphash.String(symbolSeed, s)) }

// blockBuilder finds what series of a block have in common.
type blockBuilder struct {
	*Block
	text    strings.Builder
	symbols map[string]uint32
	metas   map[metadata.Metadata]uint32
}

func (b *Block) encodeV2(series []frame.Series) {
	w := blockBuilder{
		Block:   b,
		symbols: make(map[string]uint32, 2*len(series)),
		metas:   make(map[metadata.Metadata]uint32),
	}
	total := 0
	for i := range series {
		total += series[i].Labels.Len()
	}
	b.rows = make([]row, len(series)+1)
	refs := make([]uint32, 0, total)
	b.starts = append(b.starts, 0)
	var numbers labelNumbers
	for i := range series {
		b.rows[i] = row{refs: uint32(len(refs))}
		if series[i].Labels.IsEmpty() {
			continue
		}
		b.rows[i].meta = w.meta(&series[i].Metadata)
		refs = append(refs, numbers.of(series[i].Labels)...)
	}
	b.rows[len(series)].refs = uint32(len(refs))
	b.narrow, b.wide = narrowed(refs, len(numbers.labels))
	b.pairs = make([]pair, len(numbers.labels))
	for i, l := range numbers.labels {
		b.pairs[i] = pair{w.symbol(l.Name), w.symbol(l.Value)}
	}
	b.text = strings.Clone(w.text.String())
	b.metas, b.starts, b.hashes = clip(b.metas), clip(b.starts), clip(b.hashes)
}

// narrowed returns references to n things in 16 bits each where those number them, and otherwise as they are.
func narrowed(refs []uint32, n int) (narrow []uint16, wide []uint32) {
	if n > maxNarrow {
		return nil, refs
	}
	narrow = make([]uint16, len(refs))
	for i, ref := range refs {
		narrow[i] = uint16(ref)
	}
	return narrow, nil
}

// clip returns s in memory of just its size.
func clip[E any](s []E) []E { return append(make([]E, 0, len(s)), s...) }

func (b *Block) symbol(id uint32) string { return b.text[b.starts[id]:b.starts[id+1]] }

func (w *blockBuilder) symbol(s string) uint32 {
	id, ok := w.symbols[s]
	if !ok {
		id = uint32(len(w.hashes))
		w.symbols[s] = id
		w.text.WriteString(s)
		w.starts = append(w.starts, uint32(w.text.Len()))
		w.hashes = append(w.hashes, hashSymbol(s))
	}
	return id
}

func (w *blockBuilder) meta(m *metadata.Metadata) uint32 {
	kind := writev2.FromMetadataType(m.Type)
	if kind == writev2.Metadata_METRIC_TYPE_UNSPECIFIED && m.Help == "" && m.Unit == "" {
		return 0
	}
	id, ok := w.metas[*m]
	if !ok {
		w.Block.metas = append(w.Block.metas, meta{kind: uint32(kind), help: w.symbol(m.Help), unit: w.symbol(m.Unit)})
		id = uint32(len(w.Block.metas))
		w.metas[*m] = id
	}
	return id
}
