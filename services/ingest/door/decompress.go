package door

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/pkg/inflate"
)

// coding is how a body is compressed.
type coding int

const (
	identity coding = iota
	gzipped
	zstandard
	snappyBlock
)

// contentCoding knows the values of OTLP's Content-Encoding and grpc-encoding.
func contentCoding(name string) (coding, bool) {
	switch name {
	case "", "identity":
		return identity, true
	case "gzip":
		return gzipped, true
	case "zstd":
		return zstandard, true
	}
	return 0, false
}

func (c coding) String() string {
	return [...]string{identity: "identity", gzipped: "gzip", zstandard: "zstd", snappyBlock: "snappy"}[c]
}

// maxWindow is the largest window of zstd, which the decoder holds besides the output: what RFC 8878 asks decoders to
// support at least.
const maxWindow = 8 << 20

// decompressor holds the states that decompressing needs, for one body at a time.
type decompressor struct {
	src  bytes.Reader
	gzip *inflate.Reader
	zstd *zstd.Decoder
}

// decompressors are a door's, a fixed number: decompressing is work for a processor, so that more would not be faster,
// and their memory is bounded by it. Bodies are read whole before, so that none is held by a slow sender.
type decompressors chan *decompressor

func newDecompressors() decompressors {
	d := make(decompressors, 2*runtime.GOMAXPROCS(0))
	for range cap(d) {
		d <- new(decompressor)
	}
	return d
}

// errCorrupt wraps what a decoder says about bytes that it cannot decode.
var errCorrupt = errors.New("corrupt")

// decompress appends what the packed bytes hold to out, at most limit bytes of it.
func (d decompressors) decompress(ctx context.Context, how coding, packed []byte, out *buffer, limit int64) error {
	if how == snappyBlock {
		return unsnap(packed, out, limit)
	}
	var one *decompressor
	select {
	case one = <-d:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() {
		one.src.Reset(nil) // the next one shall not find what belongs to a pool by then
		d <- one
	}()
	one.src.Reset(packed)
	var r io.Reader
	var hint int64
	var err error
	if how == gzipped {
		r = one.openGzip()
		hint = gzipHint(packed)
	} else {
		r, err = one.openZstd()
		hint = zstdHint(packed)
	}
	if err == nil {
		err = out.fill(ctx, r, limit, hint)
	}
	switch {
	case err == nil, errors.Is(err, errTooLarge), errors.Is(err, errFull), ctx.Err() != nil:
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("the zstd window is larger than %s: %w", readable(maxWindow), errCorrupt)
	}
	return fmt.Errorf("%w %s data: %w", errCorrupt, how, err)
}

func (d *decompressor) openGzip() io.Reader {
	if d.gzip == nil {
		d.gzip = inflate.NewReader()
	}
	d.gzip.Reset(&d.src)
	return d.gzip
}

func (d *decompressor) openZstd() (io.Reader, error) {
	if d.zstd == nil {
		var err error
		// One at a time means: in the caller's goroutine.
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
	}
	return d.zstd, d.zstd.Reset(&d.src)
}

// gzipHint is the size that a gzip stream says it has at its end, kept to what deflate can make of its bytes.
func gzipHint(packed []byte) int64 {
	if len(packed) < 18 {
		return 0
	}
	return min(int64(binary.LittleEndian.Uint32(packed[len(packed)-4:])), int64(len(packed))*1032)
}

func zstdHint(packed []byte) int64 {
	var h zstd.Header
	if h.Decode(packed) != nil || !h.HasFCS {
		return int64(len(packed)) * 4
	}
	return int64(min(h.FrameContentSize, 1<<31))
}

// unsnap decodes snappy's block format, which says at its beginning how long the result is. Memory is only taken where
// the bytes that follow can make that much: the densest element makes 64 bytes of 3.
func unsnap(packed []byte, out *buffer, limit int64) error {
	n, err := snappy.DecodedLen(packed)
	switch {
	case errors.Is(err, snappy.ErrTooLarge), err == nil && int64(n) > limit:
		return errTooLarge
	case err != nil:
		return fmt.Errorf("%w snappy data: %w", errCorrupt, err)
	case int64(n) > int64(len(packed))*64/3:
		return fmt.Errorf("%w snappy data: %d bytes cannot hold the %d bytes that they announce", errCorrupt, len(packed), n)
	}
	if err := out.grow(n); err != nil {
		return err
	}
	// Decode makes a buffer of its own where the room is too small, which it never is.
	decoded, err := snappy.Decode(out.b[:cap(out.b)], packed)
	if err != nil {
		return fmt.Errorf("%w snappy data: %w", errCorrupt, err)
	}
	out.b = out.b[:len(decoded)]
	return nil
}
