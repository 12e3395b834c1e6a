package receiver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"sync"

	"github.com/prometheus/prometheus/model/value"
)

// batch is a decoded request. Slices point into the body; a batch is reused, see batches.
type batch struct {
	v2         bool
	series     []seriesEntry
	samples    []sampleEntry
	histograms []histogramEntry
	exemplars  int
	metadata   int

	// symbols and symbolHashes belong to remote_write 2.0.
	symbols      [][]byte
	symbolHashes []uint64
	messages     [][]byte
	states       []*series
}

// seriesEntry is one TimeSeries: its samples and histograms are those of the batch up to these ends, from the ends of the
// entry before.
type seriesEntry struct {
	// hash identifies the label set as it is encoded.
	hash uint64
	// labels are the encoded labels (1.0) or the packed references (2.0).
	labels                    []byte
	samplesEnd, histogramsEnd int
}

type sampleEntry struct {
	timestamp int64
	bits      uint64
}

func (s sampleEntry) stale() bool { return s.bits == value.StaleNaN }

type histogramEntry struct {
	timestamp int64
	// hash is that of the whole encoded histogram.
	hash  uint64
	count float64
	stale bool
}

type label struct{ name, value string }

var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) release() {
	clear(b.series)
	clear(b.symbols)
	clear(b.messages)
	clear(b.states)
	batches.Put(b)
}

// decode reads a WriteRequest (1.0) or Request (2.0). The batch refers to body. It is to be released.
func decode(body []byte, v2 bool, seed maphash.Seed) (*batch, error) {
	b := batches.Get().(*batch)
	b.v2 = v2
	b.series, b.samples, b.histograms = b.series[:0], b.samples[:0], b.histograms[:0]
	b.symbols, b.symbolHashes, b.messages, b.states = b.symbols[:0], b.symbolHashes[:0], b.messages[:0], b.states[:0]
	b.exemplars, b.metadata = 0, 0
	err := b.decode(body, seed)
	if err != nil {
		b.release()
		return nil, err
	}
	return b, nil
}

func (b *batch) decode(body []byte, seed maphash.Seed) error {
	if b.v2 {
		return b.decodeV2(body, seed)
	}
	for s := scan(body); ; {
		if !s.next() {
			return s.err
		}
		switch s.number {
		case 1:
			if s.want(wireBytes) {
				if err := b.addV1(s.bytes, seed); err != nil {
					return fmt.Errorf("time series %d: %w", len(b.series)+1, err)
				}
			}
		case 3:
			if s.want(wireBytes) {
				b.metadata++
			}
		}
	}
}

func (b *batch) addV1(message []byte, seed maphash.Seed) error {
	// Encoders put the labels first; this skips over them quickly, if they are short, and the loop does the rest.
	end := 0
	for end+1 < len(message) && message[end] == 1<<3|wireBytes && message[end+1] < 0x80 && end+2+int(message[end+1]) <= len(message) {
		end += 2 + int(message[end+1])
	}
	var labels []byte
	if end > 0 {
		labels = message[:end]
	}
	contiguous := true
	s := scan(message[end:])
	for before := s.data; s.next(); before = s.data {
		switch s.number {
		case 1:
			if !s.want(wireBytes) {
				break
			}
			// The labels usually stand together; then their bytes need not be copied.
			field := before[:len(before)-len(s.data)]
			switch {
			case labels == nil:
				labels = field
			case contiguous && cap(labels)-len(labels) >= len(field) && &labels[:len(labels)+1][len(labels)] == &field[0]:
				labels = labels[:len(labels)+len(field)]
			default:
				if contiguous {
					labels, contiguous = append([]byte(nil), labels...), false
				}
				labels = append(labels, field...)
			}
		case 2:
			if s.want(wireBytes) {
				b.addSample(&s)
			}
		case 3:
			if s.want(wireBytes) {
				b.exemplars++
				s.err = walk(s.bytes)
			}
		case 4:
			if s.want(wireBytes) {
				b.addHistogram(&s, seed)
			}
		}
	}
	if s.err != nil {
		return s.err
	}
	b.series = append(b.series, seriesEntry{
		hash: maphash.Bytes(seed, labels), labels: labels, samplesEnd: len(b.samples), histogramsEnd: len(b.histograms),
	})
	return nil
}

func (b *batch) decodeV2(body []byte, seed maphash.Seed) error {
	s := scan(body)
	for s.next() {
		switch s.number {
		case 4:
			if s.want(wireBytes) {
				b.symbols = append(b.symbols, s.bytes)
				b.symbolHashes = append(b.symbolHashes, maphash.Bytes(seed, s.bytes))
			}
		case 5:
			if s.want(wireBytes) {
				b.messages = append(b.messages, s.bytes)
			}
		}
	}
	if s.err != nil {
		return s.err
	}
	if len(b.messages) > 0 && (len(b.symbols) == 0 || len(b.symbols[0]) != 0) {
		return errors.New("the first symbol is not the empty string")
	}
	for i, message := range b.messages {
		if err := b.addV2(message, seed); err != nil {
			return fmt.Errorf("time series %d: %w", i+1, err)
		}
	}
	return nil
}

func (b *batch) addV2(message []byte, seed maphash.Seed) error {
	var refs []byte
	s := scan(message)
	for s.next() {
		switch s.number {
		case 1:
			switch {
			case s.wire == wireVarint:
				refs = binary.AppendUvarint(refs[:len(refs):len(refs)], s.value)
			case !s.want(wireBytes):
			case refs == nil:
				refs = s.bytes
			default:
				refs = append(refs[:len(refs):len(refs)], s.bytes...)
			}
		case 2:
			if s.want(wireBytes) {
				b.addSample(&s)
			}
		case 3:
			if s.want(wireBytes) {
				b.addHistogram(&s, seed)
			}
		case 4:
			if s.want(wireBytes) {
				b.exemplars++
				s.err = walk(s.bytes)
			}
		case 5:
			if s.want(wireBytes) && len(s.bytes) > 0 {
				b.metadata++
				s.err = walk(s.bytes)
			}
		}
	}
	if s.err != nil {
		return s.err
	}
	hash, err := b.hashRefs(refs)
	if err != nil {
		return err
	}
	b.series = append(b.series, seriesEntry{
		hash: hash, labels: refs, samplesEnd: len(b.samples), histogramsEnd: len(b.histograms),
	})
	return nil
}

// hashRefs hashes a label set by its symbols' hashes, so that it does not depend on the symbols' order in the request.
func (b *batch) hashRefs(refs []byte) (uint64, error) {
	hash, count := uint64(0x51ed270b), 0
	for len(refs) > 0 {
		ref, size := uint64(refs[0]), 1
		if ref >= 0x80 {
			if ref, size = binary.Uvarint(refs); size <= 0 {
				return 0, errTruncated
			}
		}
		refs = refs[size:]
		if ref >= uint64(len(b.symbols)) {
			return 0, fmt.Errorf("label reference %d, but there are %d symbols", ref, len(b.symbols))
		}
		hash = (hash ^ b.symbolHashes[ref]) * 0x9e3779b97f4a7c15
		hash ^= hash >> 29
		count++
	}
	if count%2 != 0 {
		return 0, errors.New("odd number of label references")
	}
	return hash, nil
}

func (b *batch) addSample(s *scanner) {
	var entry sampleEntry
	// Nearly every sample is a value and a timestamp.
	if len(s.bytes) > 10 && s.bytes[0] == 1<<3|wireFixed64 && s.bytes[9] == 2<<3|wireVarint {
		if timestamp, size := binary.Uvarint(s.bytes[10:]); size == len(s.bytes)-10 {
			b.samples = append(b.samples, sampleEntry{int64(timestamp), binary.LittleEndian.Uint64(s.bytes[1:])})
			return
		}
	}
	m := scan(s.bytes)
	for m.next() {
		switch m.number {
		case 1:
			if m.want(wireFixed64) {
				entry.bits = m.value
			}
		case 2:
			if m.want(wireVarint) {
				entry.timestamp = int64(m.value)
			}
		}
	}
	b.samples = append(b.samples, entry)
	s.err = m.err
}

func (b *batch) addHistogram(s *scanner, seed maphash.Seed) {
	entry := histogramEntry{hash: maphash.Bytes(seed, s.bytes)}
	m := scan(s.bytes)
	for m.next() {
		switch m.number {
		case 1:
			if m.want(wireVarint) {
				entry.count = float64(m.value)
			}
		case 2:
			if m.want(wireFixed64) {
				entry.count = math.Float64frombits(m.value)
			}
		case 3:
			if m.want(wireFixed64) {
				entry.stale = m.value == value.StaleNaN
			}
		case 15:
			if m.want(wireVarint) {
				entry.timestamp = int64(m.value)
			}
		}
	}
	b.histograms = append(b.histograms, entry)
	s.err = m.err
}

// walk checks that data is made of fields.
func walk(data []byte) error {
	s := scan(data)
	for s.next() {
	}
	return s.err
}

// labelsOf decodes and checks the labels of an entry.
func (b *batch) labelsOf(entry seriesEntry) ([]label, error) {
	var labels []label
	if b.v2 {
		for refs := entry.labels; len(refs) > 0; {
			name, size := binary.Uvarint(refs)
			refs = refs[size:]
			value, size := binary.Uvarint(refs)
			refs = refs[size:]
			labels = append(labels, label{string(b.symbols[name]), string(b.symbols[value])})
		}
		return labels, checkLabels(labels)
	}
	s := scan(entry.labels)
	for s.next() {
		var l label
		m := scan(s.bytes)
		for m.next() {
			if (m.number == 1 || m.number == 2) && m.want(wireBytes) {
				if m.number == 1 {
					l.name = string(m.bytes)
				} else {
					l.value = string(m.bytes)
				}
			}
		}
		if m.err != nil {
			return nil, m.err
		}
		labels = append(labels, l)
	}
	if s.err != nil {
		return nil, s.err
	}
	return labels, checkLabels(labels)
}
