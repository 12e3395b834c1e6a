package frame

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
)

const (
	// keptSections is the number of sections whose slices a [Frame] keeps from one decode to the next. It bounds the memory of a
	// Frame that decodes ever different ones: 64 sections are half a million series.
	keptSections = 64
	// minSectionBytes is the fewest bytes that a section takes: its dictionary, flags and two lengths.
	minSectionBytes = len(DictID{}) + 3
)

// decode reads one frame into f, whose slices it reuses. After an error f has no sections.
func (f *Frame) decode(b []byte) error {
	r := reader{b: b}
	f.Source = 0
	if head := r.bytes(8); head != nil {
		f.Source = binary.LittleEndian.Uint64(head)
	}
	f.Epoch, f.Seq, f.Time = r.uvarint(), r.uvarint(), r.varint()
	f.resize(r.count(minSectionBytes))
	for i := range f.Sections {
		if f.Sections[i].decode(&r, f.Time); r.err != nil {
			break
		}
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after the last section", len(r.b))
	}
	if r.err != nil {
		f.resize(0)
	}
	return r.err
}

// resize makes f.Sections n empty ones, which keep their slices as far as keptSections allows.
func (f *Frame) resize(n int) {
	kept := f.Sections[:min(cap(f.Sections), keptSections)]
	for i := range kept {
		kept[i].reset()
	}
	if n <= cap(f.Sections) && cap(f.Sections) <= keptSections {
		f.Sections = f.Sections[:n]
		return
	}
	f.Sections = make([]Section, n)
	copy(f.Sections, kept)
}

// reset empties the section. It lets go of the last frame's histograms and exemplars, which may be large.
func (s *Section) reset() {
	clear(s.Histograms)
	clear(s.Exemplars)
	s.Histograms, s.Exemplars = s.Histograms[:0], s.Exemplars[:0]
	if cap(s.Histograms) > MaxSeries {
		s.Histograms = nil
	}
	if cap(s.Exemplars) > MaxSeries {
		s.Exemplars = nil
	}
	s.Values, s.Times, s.Starts = s.Values[:0], s.Times[:0], s.Starts[:0]
}

func (s *Section) decode(r *reader, frameTime int64) {
	copy(s.Dict[:], r.bytes(len(s.Dict)))
	flags := r.byte()
	if flags&^knownFlags != 0 {
		r.fail("section flags %#x", flags)
	}
	series := r.uvarint()
	if series > MaxSeries {
		r.fail("section of %d series, the most is %d", series, MaxSeries)
	}
	s.Series = int(series)
	n := s.Series
	if flags&flagAll != 0 {
		s.Present = nil
	} else {
		s.decodePresent(r, flags)
		n = len(s.Present)
	}
	ctrl := r.bytes(n)
	data := r.bytes(r.count(1))
	if r.err != nil {
		return
	}
	var err error
	if s.Values, err = readColumn(slices.Grow(s.Values, n), ctrl, data); err != nil {
		r.err = err
		return
	}
	if flags&flagTimes != 0 {
		s.Times = slices.Grow(s.Times, n)
		for i := 0; i < n && r.err == nil; i++ {
			s.Times = append(s.Times, frameTime+r.varint())
		}
	}
	if flags&flagStarts != 0 {
		s.Starts = slices.Grow(s.Starts, n)
		for i := 0; i < n && r.err == nil; i++ {
			s.Starts = append(s.Starts, r.start(frameTime))
		}
	}
	if flags&flagHistograms != 0 {
		for i := r.count(minHistogramBytes); i > 0 && r.err == nil; i-- {
			s.Histograms = append(s.Histograms, r.histogram(frameTime, s.Series))
		}
	}
	if flags&flagExemplars != 0 {
		for i := r.count(minExemplarBytes); i > 0 && r.err == nil; i-- {
			s.Exemplars = append(s.Exemplars, r.exemplar(frameTime, s.Series))
		}
	}
}

// The fewest bytes that a histogram and an exemplar take, which bounds what a list's length may claim.
const (
	minHistogramBytes = 28
	minExemplarBytes  = 12
)

func (s *Section) decodePresent(r *reader, flags byte) {
	n := uint64(r.count(1)) // each has a control byte at least
	if n > uint64(s.Series) {
		r.fail("%d series present of %d", n, s.Series)
		return
	}
	if s.Present = s.Present[:0]; s.Present == nil {
		s.Present = make([]uint32, 0, n)
	}
	if flags&flagSparse != 0 {
		next := uint64(0)
		for i := uint64(0); i < n && r.err == nil; i++ {
			gap := r.uvarint()
			if gap >= uint64(s.Series) || next+gap >= uint64(s.Series) {
				r.fail("present series beyond %d", s.Series)
				return
			}
			s.Present = append(s.Present, uint32(next+gap))
			next += gap + 1
		}
		return
	}
	bitmap := r.bytes((s.Series + 7) / 8)
	for i, c := range bitmap {
		for c != 0 {
			s.Present = append(s.Present, uint32(i*8+bits.TrailingZeros8(c)))
			c &= c - 1
		}
	}
	if uint64(len(s.Present)) != n {
		r.fail("%d series present, bitmap has %d", n, len(s.Present))
	} else if n > 0 && int(s.Present[n-1]) >= s.Series {
		r.fail("present series beyond %d", s.Series)
	}
}

func (r *reader) exemplar(frameTime int64, series int) Exemplar {
	x := Exemplar{Index: r.index(series)}
	value, hasTs := r.float(), r.byte()
	if hasTs > 1 {
		r.fail("exemplar flags %#x", hasTs)
	}
	x.Exemplar = exemplar.Exemplar{Value: value, HasTs: hasTs == 1, Ts: frameTime + r.varint()}
	x.Labels = r.labels()
	return x
}

// labels reads an exemplar's label set as it is, in whichever order.
func (r *reader) labels() labels.Labels {
	n := r.count(2)
	b := labels.NewScratchBuilder(min(n, 8))
	size := 0
	for i := 0; i < n && r.err == nil; i++ {
		name := string(r.string())
		value := string(r.string())
		if size += labelBytes(name, value); size > MaxLabelSetBytes {
			r.fail("label set of more than %d bytes", MaxLabelSetBytes)
		}
		b.Add(name, value)
	}
	return b.Labels()
}
