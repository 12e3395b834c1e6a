// Package frame is the format of everything that Millrace keeps in its streams: dictionaries, which hold label sets once, and
// frames, which hold the samples of every scrape against them.
//
// A [Dictionary] is an immutable list of series, named by the hash of its content ([DictID]). A [Frame] holds one source's
// samples at one time as columns; each [Section] of it names the dictionary whose series the columns follow. A batch is one
// message: the frames of many sources, compressed together ([BatchWriter], [OpenBatch]). A [Relabelled] is what an endpoint gets for a
// dictionary.
//
// Every format starts with a version byte. An unknown version is refused with [ErrVersion]; bytes that do not follow the format with
// [ErrCorrupt]. Decoding never allocates more than a small multiple of the unpacked length, which the limits below bound.
package frame

import "errors"

// ErrVersion is returned for a message whose version byte this build does not know. The message itself may be
// fine: keep it and upgrade the reader.
var ErrVersion = errors.New("unknown format version")

// ErrCorrupt is returned for bytes that do not follow the format.
var ErrCorrupt = errors.New("corrupt data")

// Limits of the format. A writer stays below them, a reader refuses what is above them.
const (
	// MaxSeries is the largest number of series in a dictionary.
	MaxSeries = 8192
	// MaxDictBytes is the size in bytes of a dictionary's uncompressed series block at which a writer starts the next one.
	MaxDictBytes = 512 << 10
	// MaxLabelSetBytes is the largest label set of a series or an exemplar, in bytes of all names and values.
	MaxLabelSetBytes = 128 << 10
	// MaxBatchBytes is the largest batch before compression, in bytes ([BatchWriter.Size]). A frame has to fit into one.
	MaxBatchBytes = 16 << 20

	// maxBlockBytes bounds the unpacked series block of a dictionary or relabelled dictionary, in bytes.
	maxBlockBytes = 16 << 20
	// maxLabelBytes bounds all label sets of a dictionary or relabelled dictionary, in bytes of names and values. It is more than
	// a block's bytes since a block holds a string once.
	maxLabelBytes = 2 * maxBlockBytes
)
