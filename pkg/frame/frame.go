package frame

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
)

// DictID names a dictionary by its content: the first 16 bytes of the SHA-256 of its series block.
type DictID [16]byte

// String returns the ID as 32 hexadecimal digits, as it stands in subjects.
func (id DictID) String() string { return hex.EncodeToString(id[:]) }

// ParseDictID reads what [DictID.String] wrote.
func ParseDictID(s string) (DictID, error) {
	var id DictID
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("dictionary name %q: want %d hexadecimal digits", s, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("dictionary name %q: %w", s, err)
	}
	if id.String() != s {
		return id, fmt.Errorf("dictionary name %q: want lower case", s)
	}
	return id, nil
}

// Frame is one source's samples at one time. A scrape is one frame, or several with the same Time where it has many series.
type Frame struct {
	// Source is the hash that identifies the scrape target or sender.
	Source uint64
	// Epoch is the ownership epoch under which the frame was made. It grows with every change of owner.
	Epoch uint64
	// Seq counts the frames of the source within the epoch, from 1.
	Seq uint64
	// Time is the samples' timestamp in milliseconds since 1970, for those that have none of their own.
	Time int64
	// Sections hold the samples, in the order in which they are to be delivered.
	Sections []Section
}

// Samples returns how many float and histogram samples the frame holds.
func (f *Frame) Samples() int {
	n := 0
	for i := range f.Sections {
		n += len(f.Sections[i].Values) + len(f.Sections[i].Histograms)
	}
	return n
}

// Section is the part of a frame whose series stand in one dictionary. A series has at most one float sample in a section.
type Section struct {
	// Dict names the dictionary.
	Dict DictID
	// Series is the dictionary's number of series, at most [MaxSeries]. Every index below is less.
	Series int
	// Present lists, ascending, the series that have a float sample. Nil means all of them, or none where Values is empty;
	// decoding gives nil for all and an empty list for none.
	Present []uint32
	// Values holds the float samples in the order of Present.
	Values []float64
	// Times holds the timestamps of Values in milliseconds, or is empty where all have the frame's Time.
	Times []int64
	// Starts holds the start timestamps of Values in milliseconds, 0 for unknown, or is empty where none is known.
	Starts []int64
	// Histograms holds the native histogram samples, ascending by Index.
	Histograms []Histogram
	// Exemplars belong to samples of this section. Those with labels above [MaxLabelSetBytes], which no endpoint takes, are
	// left out when the frame is encoded.
	Exemplars []Exemplar
}

// At returns of the float sample at k which series it is of, and its timestamp and start timestamp, in the frame that has the section.
func (s *Section) At(f *Frame, k int) (series uint32, time, start int64) {
	series, time = uint32(k), f.Time
	if s.Present != nil {
		series = s.Present[k]
	}
	if len(s.Times) > 0 {
		time = s.Times[k]
	}
	if len(s.Starts) > 0 {
		start = s.Starts[k]
	}
	return series, time, start
}

// Histogram is a native histogram sample.
type Histogram struct {
	// Index is the series' place in the dictionary.
	Index uint32
	// Time and Start are in milliseconds; Start is 0 where unknown.
	Time, Start int64
	// Int or Float holds the sample; exactly one is set.
	Int   *histogram.Histogram
	Float *histogram.FloatHistogram
}

// Exemplar is an exemplar of the series at Index.
type Exemplar struct {
	Index uint32
	exemplar.Exemplar
}

const (
	flagAll        = 1 << iota // every series has a float sample
	flagSparse                 // present series as a list of gaps instead of a bitmap
	flagTimes                  // samples have timestamps of their own
	flagStarts                 // samples have start timestamps
	flagHistograms             // native histograms follow
	flagExemplars              // exemplars follow
	knownFlags     = flagExemplars<<1 - 1
)

// frameEncoder appends frames to a buffer. Its scratch space is reused.
type frameEncoder struct {
	ctrl, data []byte
}

// append appends the frame without a length prefix.
func (e *frameEncoder) append(b []byte, f *Frame) []byte {
	b = binary.LittleEndian.AppendUint64(b, f.Source)
	b = binary.AppendUvarint(b, f.Epoch)
	b = binary.AppendUvarint(b, f.Seq)
	b = binary.AppendVarint(b, f.Time)
	b = binary.AppendUvarint(b, uint64(len(f.Sections)))
	for i := range f.Sections {
		b = e.appendSection(b, f, &f.Sections[i])
	}
	return b
}

func (e *frameEncoder) appendSection(b []byte, f *Frame, s *Section) []byte {
	s.check()
	b = append(b, s.Dict[:]...)
	exemplars := fittingExemplars(s.Exemplars)
	flags := s.flags()
	if exemplars > 0 {
		flags |= flagExemplars
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(s.Series))
	if flags&flagAll == 0 {
		b = appendPresent(b, s, flags)
	}
	e.ctrl, e.data = appendColumn(e.ctrl[:0], e.data[:0], s.Values)
	b = append(b, e.ctrl...)
	b = binary.AppendUvarint(b, uint64(len(e.data)))
	b = append(b, e.data...)
	for _, t := range s.Times {
		b = binary.AppendVarint(b, t-f.Time)
	}
	for _, t := range s.Starts {
		b = appendStart(b, f.Time, t)
	}
	if flags&flagHistograms != 0 {
		b = binary.AppendUvarint(b, uint64(len(s.Histograms)))
		for i := range s.Histograms {
			b = appendHistogram(b, f.Time, &s.Histograms[i])
		}
	}
	if flags&flagExemplars != 0 {
		b = binary.AppendUvarint(b, uint64(exemplars))
		for i := range s.Exemplars {
			if x := &s.Exemplars[i]; fits(x.Labels) {
				b = appendExemplar(b, f.Time, x)
			}
		}
	}
	return b
}

// check panics where the section breaks a rule of [Section]. Bytes made of it would be refused by every reader, which is worse
// than a crash before they are published.
func (s *Section) check() {
	values := len(s.Present)
	if s.Present == nil && len(s.Values) > 0 {
		values = s.Series
	}
	if s.Series < 0 || s.Series > MaxSeries || len(s.Values) != values ||
		len(s.Times) > 0 && len(s.Times) != values || len(s.Starts) > 0 && len(s.Starts) != values {
		panic(fmt.Sprintf("frame: section of %d series, %d present, with %d values, %d timestamps, %d start timestamps",
			s.Series, values, len(s.Values), len(s.Times), len(s.Starts)))
	}
	for i := range s.Histograms {
		if h := &s.Histograms[i]; int(h.Index) >= s.Series || (h.Int == nil) == (h.Float == nil) {
			panic(fmt.Sprintf("frame: histogram %d, of series %d of %d, has to be either Int or Float", i, h.Index, s.Series))
		}
	}
	for i := range s.Exemplars {
		if x := &s.Exemplars[i]; int(x.Index) >= s.Series {
			panic(fmt.Sprintf("frame: exemplar %d is of series %d of %d", i, x.Index, s.Series))
		}
	}
}

// flags returns what the section has, without its exemplars.
func (s *Section) flags() (flags byte) {
	switch {
	case s.Present == nil && len(s.Values) == s.Series:
		flags |= flagAll
	case len(s.Present)*16 < s.Series:
		flags |= flagSparse
	}
	if len(s.Times) > 0 {
		flags |= flagTimes
	}
	if len(s.Starts) > 0 {
		flags |= flagStarts
	}
	if len(s.Histograms) > 0 {
		flags |= flagHistograms
	}
	return flags
}

// appendPresent writes the present series: their number, then the gaps between them or a bitmap.
func appendPresent(b []byte, s *Section, flags byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s.Present)))
	start := len(b)
	if flags&flagSparse == 0 {
		b = append(b, make([]byte, (s.Series+7)/8)...)
	}
	prev := -1
	for _, i := range s.Present {
		if int(i) <= prev || int(i) >= s.Series {
			panic(fmt.Sprintf("frame: present series %d after %d of %d", i, prev, s.Series))
		}
		if flags&flagSparse != 0 {
			b = binary.AppendUvarint(b, uint64(int(i)-prev-1))
		} else {
			b[start+int(i>>3)] |= 1 << (i & 7)
		}
		prev = int(i)
	}
	return b
}

// appendStart writes a start timestamp: 0 for unknown, else the zigzag distance before the frame's time. The distance
// that would mean a start of 0 does not occur; those below it move up by one to leave 0 free. So every timestamp has a number.
func appendStart(b []byte, frameTime, start int64) []byte {
	if start == 0 {
		return append(b, 0)
	}
	u := zigzag(frameTime - start)
	if u < zigzag(frameTime) {
		u++
	}
	return binary.AppendUvarint(b, u)
}

func fittingExemplars(xs []Exemplar) int {
	n := 0
	for i := range xs {
		if fits(xs[i].Labels) {
			n++
		}
	}
	return n
}

// fits reports whether a label set is one that readers take.
func fits(ls labels.Labels) bool {
	size := 0
	ls.Range(func(l labels.Label) { size += labelBytes(l.Name, l.Value) })
	return size <= MaxLabelSetBytes
}

// labelBytes is what a label counts towards [MaxLabelSetBytes]; an empty one is not free, so that the number of labels is bounded too.
func labelBytes(name, value string) int { return max(len(name)+len(value), 1) }

func appendExemplar(b []byte, frameTime int64, x *Exemplar) []byte {
	b = binary.AppendUvarint(b, uint64(x.Index))
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x.Value))
	ts := byte(0)
	if x.HasTs {
		ts = 1
	}
	b = append(b, ts)
	b = binary.AppendVarint(b, x.Ts-frameTime)
	return appendLabels(b, x.Labels)
}
