package loadgen

import (
	"bytes"
	"embed"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

// testdata holds consecutive scrapes of a real node_exporter, 2 s apart.
//
//go:embed testdata/*.txt.gz
var testdata embed.FS

// recorded makes the bodies of recorded targets: a recorded scrape and the number of this one. The recorded part is
// compressed only once.
type recorded struct {
	scrapes  []recordedScrape
	encoders encoders
}

// recordedScrape is one recorded scrape in every encoding, each such that a tail can be appended.
type recordedScrape struct {
	plain []byte
	// deflated is plain as whole deflate blocks of which none is the last.
	deflated []byte
	checksum uint32
	// zstd is plain as a zstd frame.
	zstd    []byte
	samples int
}

func newRecorded() (*recorded, error) {
	entries, err := testdata.ReadDir("testdata")
	if err != nil {
		return nil, fmt.Errorf("listing recorded scrapes: %w", err)
	}
	r := new(recorded)
	for _, entry := range entries {
		scrape, err := r.load("testdata/" + entry.Name())
		if err != nil {
			return nil, fmt.Errorf("reading recorded scrape %s: %w", entry.Name(), err)
		}
		r.scrapes = append(r.scrapes, scrape)
	}
	return r, nil
}

func (r *recorded) load(name string) (recordedScrape, error) {
	var s recordedScrape
	compressed, err := testdata.ReadFile(name)
	if err != nil {
		return s, err
	}
	in, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return s, err
	}
	if s.plain, err = io.ReadAll(in); err != nil {
		return s, err
	}
	for line := range bytes.Lines(s.plain) {
		if line[0] != '#' && line[0] != '\n' {
			s.samples++
		}
	}
	var deflated bytes.Buffer
	w, err := flate.NewWriter(&deflated, flate.DefaultCompression)
	if err != nil {
		return s, err
	}
	if _, err := w.Write(s.plain); err != nil {
		return s, err
	}
	// Flush, not Close: the last block has to follow.
	if err := w.Flush(); err != nil {
		return s, err
	}
	s.deflated = deflated.Bytes()
	s.checksum = crc32.ChecksumIEEE(s.plain)
	s.zstd, err = r.encoders.append(nil, "zstd", s.plain)
	return s, err
}

// scrape returns the recorded scrape that is scrape n of a target. Targets start at different ones, so that they do not all
// have the same values at a time.
func (r *recorded) scrape(t *target, n uint64) *recordedScrape {
	return &r.scrapes[(uint64(t.index)*7+n-1)%uint64(len(r.scrapes))]
}

func (r *recorded) body(t *target, n uint64, _ http.Header, encoding string) (body, error) {
	s := r.scrape(t, n)
	tail := appendScrape(nil, n)
	b := body{contentType: textContentType, contentEncoding: encoding, samples: s.samples + 1, release: func() {}}
	switch b.contentEncoding {
	case "gzip":
		b.data = s.appendGzip(make([]byte, 0, len(s.deflated)+len(tail)+32), tail)
	case "zstd":
		// A zstd stream may consist of several frames (RFC 8878, section 3).
		var err error
		if b.data, err = r.encoders.append(append(make([]byte, 0, len(s.zstd)+256), s.zstd...), "zstd", tail); err != nil {
			return body{}, err
		}
	default:
		b.data = append(append(make([]byte, 0, len(s.plain)+len(tail)), s.plain...), tail...)
	}
	return b, nil
}

// appendGzip appends a gzip member (RFC 1952) of the scrape and a short tail, which goes into a stored block (RFC 1951,
// section 3.2.4).
func (s *recordedScrape) appendGzip(dst, tail []byte) []byte {
	const unknownOS = 255
	dst = append(dst, 0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, unknownOS)
	dst = append(dst, s.deflated...)
	const lastStored = 1
	dst = append(dst, lastStored)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(tail)))
	dst = binary.LittleEndian.AppendUint16(dst, ^uint16(len(tail)))
	dst = append(dst, tail...)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Update(s.checksum, crc32.IEEETable, tail))
	return binary.LittleEndian.AppendUint32(dst, uint32(len(s.plain)+len(tail)))
}
