package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	batchVersion = 1
	codecZstd    = 1
)

// Encoder turns frames into bytes. It is not safe for concurrent use.
type Encoder struct {
	enc frameEncoder
}

// Encode appends f to dst and returns it. The result goes to [BatchWriter.Add] as it is. Encode panics where f breaks a rule of
// [Section], such as a different number of values than of present series.
func (e *Encoder) Encode(dst []byte, f *Frame) []byte { return e.enc.append(dst, f) }

// Header is what a batch tells before it is unpacked.
type Header struct {
	// Frames and Samples count what the batch holds.
	Frames, Samples int
	// First counts the samples that were published to the partition before this batch. The next batch's First is
	// this First plus Samples; where it is more, batches between have gone from the stream.
	First uint64
	// MinTime and MaxTime are the least and greatest Time of the frames, in milliseconds.
	MinTime, MaxTime int64
}

// BatchWriter gathers encoded frames into one message. The zero value is ready to use; it is not safe for concurrent use.
type BatchWriter struct {
	raw    []byte
	sealed []byte
	header Header
}

// Add appends an encoded frame of the given time and number of samples. It copies the bytes. The caller seals before Size passes
// [MaxBatchBytes]: readers refuse what is above.
func (w *BatchWriter) Add(encoded []byte, time int64, samples int) {
	if w.header.Frames == 0 {
		w.header.MinTime, w.header.MaxTime = time, time
	}
	w.header.MinTime, w.header.MaxTime = min(w.header.MinTime, time), max(w.header.MaxTime, time)
	w.header.Frames++
	w.header.Samples += samples
	w.raw = binary.AppendUvarint(w.raw, uint64(len(encoded)))
	w.raw = append(w.raw, encoded...)
}

// Size returns the bytes gathered so far, before compression.
func (w *BatchWriter) Size() int { return len(w.raw) }

// Header returns the header of what was gathered so far; First is not known yet.
func (w *BatchWriter) Header() Header { return w.header }

// Seal returns the batch as a message and empties the writer. first is [Header.First]. The message is the caller's until the next Seal.
func (w *BatchWriter) Seal(first uint64) []byte {
	w.header.First = first
	b := slices.Grow(w.sealed[:0], sealedRoom+len(w.raw)) // what does not compress needs more than half of it
	b = append(b, batchVersion, codecZstd)
	b = binary.AppendUvarint(b, uint64(w.header.Frames))
	b = binary.AppendUvarint(b, uint64(w.header.Samples))
	b = binary.AppendUvarint(b, w.header.First)
	b = binary.AppendVarint(b, w.header.MinTime)
	b = binary.AppendUvarint(b, uint64(w.header.MaxTime-w.header.MinTime))
	b = binary.AppendUvarint(b, uint64(len(w.raw)))
	b = compress(b, w.raw)
	if w.sealed = b; cap(w.raw)+cap(b) > 4<<20 {
		w.raw, w.sealed = nil, nil // one huge scrape must not keep its memory for ever
	}
	w.raw, w.header = w.raw[:0], Header{}
	return b
}

// sealedRoom is what a message has beside its frames at most, in bytes.
const sealedRoom = 128

// Batch is an opened batch.
type Batch struct {
	Header
	raw  []byte // what Next has not decoded yet
	left int    // frames that Next has not met yet
	buf  []byte // all of it
}

// ReadHeader reads a message's header without unpacking the frames.
func ReadHeader(msg []byte) (Header, error) {
	h, _, _, err := readHeader(msg)
	return h, err
}

func readHeader(msg []byte) (h Header, packed []byte, size int, err error) {
	r := reader{b: msg}
	if v := r.byte(); r.err == nil && v != batchVersion {
		return h, nil, 0, fmt.Errorf("batch of version %d, this build reads version %d: %w", v, batchVersion, ErrVersion)
	}
	if c := r.byte(); r.err == nil && c != codecZstd {
		return h, nil, 0, fmt.Errorf("batch of codec %d, this build reads codec %d: %w", c, codecZstd, ErrVersion)
	}
	frames, samples := r.uvarint(), r.uvarint()
	h.First, h.MinTime = r.uvarint(), r.varint()
	h.MaxTime = h.MinTime + int64(r.uvarint())
	raw := r.uvarint()
	if frames > raw || samples > 8*MaxBatchBytes || raw > MaxBatchBytes {
		r.fail("batch of %d frames, %d samples, %d bytes", frames, samples, raw)
	}
	h.Frames, h.Samples = int(frames), int(samples)
	return h, r.b, int(raw), r.err
}

// OpenBatch unpacks a message. buf, which may be nil, is reused for the unpacked bytes; the batch owns it
// until the caller opens the next one with it (see [Batch.Buffer]).
func OpenBatch(msg, buf []byte) (Batch, error) {
	h, packed, size, err := readHeader(msg)
	if err != nil {
		return Batch{}, err
	}
	raw, err := decompress(buf[:0], packed, size, MaxBatchBytes)
	if err != nil {
		return Batch{}, fmt.Errorf("unpacking a batch: %w", err)
	}
	return Batch{Header: h, raw: raw, left: h.Frames, buf: raw}, nil
}

// Next decodes the next frame into f, whose slices it reuses, and reports whether there was one. What it decodes does not refer to the
// batch's memory. After an error, a further call goes on with the frame behind the faulty one, if it can be found.
func (b *Batch) Next(f *Frame) (bool, error) {
	if len(b.raw) == 0 || b.left == 0 {
		bytes, left := len(b.raw), b.left
		b.raw, b.left = nil, 0
		if bytes > 0 || left > 0 {
			return false, fmt.Errorf("%w: batch of %d frames ends with %d missing and %d bytes left over", ErrCorrupt, b.Frames, left, bytes)
		}
		return false, nil
	}
	r := reader{b: b.raw}
	enc := r.string()
	b.raw = r.b
	b.left--
	if r.err != nil {
		b.left = 0
		return false, fmt.Errorf("finding a frame: %w", r.err)
	}
	if err := f.decode(enc); err != nil {
		return false, fmt.Errorf("decoding a frame: %w", err)
	}
	return true, nil
}

// Each decodes all frames into f, one after the other, and calls visit with the number of each, counted from 0. Frames that are corrupt are left out, and the last error that says so is returned
// as damage. samples are those of the other frames. It ends with the first error of visit.
func (b *Batch) Each(f *Frame, visit func(n int) error) (samples int, damage, err error) {
	for n := 0; ; n++ {
		ok, err := b.Next(f)
		if errors.Is(err, ErrCorrupt) {
			damage = err
			continue
		}
		if err != nil || !ok {
			return samples, damage, err
		}
		samples += f.Samples()
		if err := visit(n); err != nil {
			return samples, damage, err
		}
	}
}

// Each decodes all frames of a message into f, one after the other, and calls visit with each. Frames, and a message, that are corrupt are left out: the writer says so. buf is reused as in [OpenBatch], and
// what is returned of it is for the next call. It ends with the first error of visit.
func Each(msg, buf []byte, f *Frame, visit func(*Frame) error) ([]byte, error) {
	batch, err := OpenBatch(msg, buf)
	if errors.Is(err, ErrCorrupt) {
		return buf, nil
	}
	if err != nil {
		return buf, err
	}
	_, _, err = batch.Each(f, func(int) error { return visit(f) })
	return batch.Buffer(), err
}

// Buffer returns the batch's memory for the next [OpenBatch]. The batch is not to be used afterwards; frames decoded from it may be.
func (b *Batch) Buffer() []byte { return b.buf[:0] }

var (
	encoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(true), zstd.WithSingleSegment(true), // a single segment always notes its size
			zstd.WithWindowSize(512<<10), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(max(maxBlockBytes, MaxBatchBytes)), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	}}
)

// compress appends raw, packed by zstd, to dst.
func compress(dst, raw []byte) []byte {
	e := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(e)
	return e.EncodeAll(raw, dst)
}

// decompress appends what packed holds to dst, which has to be empty. The result must have the announced size, which must not be above
// limit. What packed itself says of its size is compared first: a bomb is refused before it is unpacked.
func decompress(dst, packed []byte, size, limit int) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%w: %d bytes unpacked, the most is %d", ErrCorrupt, size, limit)
	}
	if size == 0 && len(packed) == 0 {
		return dst, nil
	}
	var head zstd.Header
	if err := head.Decode(packed); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !head.HasFCS || head.FrameContentSize != uint64(size) {
		return nil, fmt.Errorf("%w: %d bytes packed (noted: %t), %d announced", ErrCorrupt, head.FrameContentSize, head.HasFCS, size)
	}
	d := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(d)
	out, err := d.DecodeAll(packed, dst)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(out) != size {
		return nil, fmt.Errorf("%w: %d bytes unpacked, %d announced", ErrCorrupt, len(out), size)
	}
	return out, nil
}
