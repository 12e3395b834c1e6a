package ingest

import (
	"cmp"
	"slices"

	"github.com/prometheus/prometheus/model/exemplar"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
)

// A frame is closed at about this many bytes, so that a batch stays far below what a message may hold.
const maxFrameBytes = 256 << 10

// builder makes frames. Its memory is used again.
type builder struct {
	enc     frame.Encoder
	fr      frame.Frame
	size    int // about what the sections of fr take, in bytes
	present []uint32
	values  []float64
	times   []int64
	starts  []int64
	buf     []byte
}

// frames makes the frames of a source's samples, which stand in the order of their series' numbers and then of time. The caller holds the source's lock.
func (b *builder) frames(s *source, list []sample, u *publish.Unit) {
	if inRounds(list) {
		// A section has at most one float of a series.
		slices.SortStableFunc(list, func(x, y sample) int {
			return cmp.Or(cmp.Compare(x.round, y.round), cmp.Compare(x.ser.number, y.ser.number))
		})
	}
	b.present, b.values, b.times, b.starts = b.present[:0], b.values[:0], b.times[:0], b.starts[:0]
	announced := make([]bool, len(s.dicts))
	d := 0
	for len(list) > 0 {
		number := int(list[0].ser.number)
		if d >= len(s.dicts) || number < s.dicts[d].start { // the next round begins
			d = 0
		}
		for number >= s.dicts[d].start+s.dicts[d].n {
			d++
		}
		dict := &s.dicts[d]
		n := 1
		size := 0
		for n < len(list) && size < maxFrameBytes && list[n].round == list[0].round && int(list[n].ser.number) < dict.start+dict.n {
			size += sampleBytes(&list[n])
			n++
		}
		if !announced[d] {
			announced[d] = true
			u.Dicts = append(u.Dicts, dict.Dict)
		}
		b.section(s, dict, list[:n], u)
		list = list[n:]
	}
	b.close(s, u)
}

// inRounds reports whether a series has several samples.
func inRounds(list []sample) bool {
	for i := range list {
		if list[i].round > 0 {
			return true
		}
	}
	return false
}

// section adds the samples of one dictionary's series, at most one for each.
func (b *builder) section(s *source, d *dictionary, list []sample, u *publish.Unit) {
	if len(b.fr.Sections) == 0 {
		b.fr.Source, b.fr.Epoch, b.fr.Time = s.id, 1, list[0].t
	}
	sec := frame.Section{Dict: d.ID, Series: d.n, Present: b.present[len(b.present):]}
	p, v := len(b.present), len(b.values)
	timed, started := false, false
	for i := range list {
		x := &list[i]
		index := x.ser.number - uint32(d.start)
		for _, e := range x.exs {
			sec.Exemplars = append(sec.Exemplars, frame.Exemplar{Index: index, Exemplar: e})
		}
		b.size += sampleBytes(x)
		if x.hist != nil {
			h := *x.hist
			h.Index, h.Time, h.Start = index, x.t, x.st
			sec.Histograms = append(sec.Histograms, h)
			continue
		}
		b.present = append(b.present, index)
		b.values = append(b.values, x.v)
		b.times = append(b.times, x.t)
		b.starts = append(b.starts, x.st)
		timed = timed || x.t != b.fr.Time
		started = started || x.st != 0
	}
	slices.SortStableFunc(sec.Exemplars, func(x, y frame.Exemplar) int {
		return cmp.Or(cmp.Compare(x.Index, y.Index), exemplar.Compare(x.Exemplar, y.Exemplar))
	})
	sec.Values = b.values[v:]
	if sec.Present = b.present[p:]; len(sec.Values) == d.n {
		sec.Present = nil
	} else if sec.Present == nil {
		sec.Present = []uint32{}
	}
	if timed {
		sec.Times = b.times[v:]
	}
	if started {
		sec.Starts = b.starts[v:]
	}
	b.fr.Sections = append(b.fr.Sections, sec)
	if b.size += 40; b.size >= maxFrameBytes {
		b.close(s, u)
	}
}

// sampleBytes returns about what a sample takes in a frame, rather more than less.
func sampleBytes(x *sample) int {
	n := 16
	for _, e := range x.exs {
		n += 32 + labelBytes(e.Labels)
	}
	if x.hist == nil {
		return n
	}
	if h := x.hist.Int; h != nil {
		return n + 64 + 6*(len(h.PositiveSpans)+len(h.NegativeSpans)) + 4*(len(h.PositiveBuckets)+len(h.NegativeBuckets)) + 9*len(h.CustomValues)
	}
	h := x.hist.Float
	return n + 64 + 6*(len(h.PositiveSpans)+len(h.NegativeSpans)) + 9*(len(h.PositiveBuckets)+len(h.NegativeBuckets)+len(h.CustomValues))
}

// close encodes the sections gathered so far as one frame.
func (b *builder) close(s *source, u *publish.Unit) {
	if len(b.fr.Sections) == 0 {
		return
	}
	s.seq++
	b.fr.Seq = s.seq
	n := b.fr.Samples()
	b.buf = b.enc.Encode(b.buf[:0], &b.fr)
	u.Frames = append(u.Frames, publish.Frame{Data: slices.Clone(b.buf), Time: b.fr.Time, Samples: n})
	u.Samples += n
	u.Bytes += len(b.buf)
	clear(b.fr.Sections)
	b.fr.Sections = b.fr.Sections[:0]
	b.size = 0
}

func (b *builder) release() {
	if cap(b.values) > 1<<16 {
		b.present, b.values, b.times, b.starts = nil, nil, nil, nil
	}
	if cap(b.buf) > 2*maxFrameBytes {
		b.buf = nil
	}
}
