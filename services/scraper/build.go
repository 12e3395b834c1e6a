package scraper

import (
	"cmp"
	"slices"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
)

// A frame is closed at about this many bytes, and a section at this many native histograms or bytes of them, so that a batch stays far below
// what a message may hold.
const (
	maxFrameBytes      = 256 << 10
	maxFrameHistograms = 256
)

// build makes the scrape's frames. The caller holds the source's lock.
func (a *appender) build(epoch uint64) *publish.Unit {
	s := a.src
	u := &publish.Unit{Job: s.job, Linger: a.svc.cfg.Linger, Budget: a.svc.budget, Done: a.svc.done}
	slices.SortStableFunc(a.hists, func(x, y frame.Histogram) int { return cmp.Compare(x.Index, y.Index) })
	slices.SortStableFunc(a.exs, func(x, y frame.Exemplar) int { return cmp.Compare(x.Index, y.Index) })
	slices.SortStableFunc(a.extra, func(x, y extraSample) int { return cmp.Compare(x.i, y.i) })
	hists, exs, extra := a.hists, a.exs, a.extra
	a.fr = frame.Frame{Source: s.id, Epoch: epoch, Time: a.last, Sections: a.fr.Sections[:0]}
	a.vbuf, a.tbuf, a.sbuf = a.vbuf[:0], a.tbuf[:0], a.sbuf[:0]
	for _, d := range s.dicts {
		end := uint32(d.start + d.n)
		h := hists[:prefix(hists, func(x *frame.Histogram) bool { return x.Index < end })]
		x := exs[:prefix(exs, func(x *frame.Exemplar) bool { return x.Index < end })]
		e := extra[:prefix(extra, func(x *extraSample) bool { return x.i < end })]
		hists, exs, extra = hists[len(h):], exs[len(x):], extra[len(e):]
		if c := a.floats.count(d.start, d.start+d.n); c > 0 || len(h) > 0 || len(e) > 0 {
			u.Dicts = append(u.Dicts, publish.Dict{ID: d.id, Msg: d.msg})
			a.addSections(u, &d, c, h, x)
			a.addExtra(u, &d, e)
		}
	}
	a.closeFrame(u)
	return u
}

// prefix returns how many leading items satisfy ok.
func prefix[T any](list []T, ok func(*T) bool) int {
	n := 0
	for n < len(list) && ok(&list[n]) {
		n++
	}
	return n
}

// addSections adds what the scrape has for the series of one dictionary, of which c have float samples.
func (a *appender) addSections(u *publish.Unit, d *dict, c int, hists []frame.Histogram, exs []frame.Exemplar) {
	hists, exs = slices.Clone(hists), slices.Clone(exs)
	for i := range hists {
		hists[i].Index -= uint32(d.start)
	}
	for i := range exs {
		exs[i].Index -= uint32(d.start)
	}
	n := fitting(hists)
	rest := hists[n:]
	later := exemplarsOf(rest, exs)
	if len(later) > 0 {
		exs = slices.DeleteFunc(exs, func(x frame.Exemplar) bool { return hasHistogram(rest, x.Index) })
	}
	sec := frame.Section{Dict: d.id, Series: d.n, Exemplars: exs, Histograms: hists[:n]}
	a.fillFloats(&sec, d, c)
	a.addSection(u, sec)
	for hists = rest; len(hists) > 0; hists = hists[n:] {
		n = fitting(hists)
		a.addSection(u, frame.Section{Dict: d.id, Series: d.n, Present: []uint32{}, Histograms: hists[:n], Exemplars: exemplarsOf(hists[:n], later)})
	}
}

// fitting returns how many leading histograms one section takes.
func fitting(hists []frame.Histogram) int {
	n := 0
	for size := 0; n < min(len(hists), maxFrameHistograms) && size < maxFrameBytes; n++ {
		size += histogramBytes(&hists[n])
	}
	return n
}

// exemplarsOf returns the exemplars of the series that have one of the histograms. Both lists ascend by series.
func exemplarsOf(hists []frame.Histogram, exs []frame.Exemplar) []frame.Exemplar {
	if len(hists) == 0 {
		return nil
	}
	var list []frame.Exemplar
	for _, x := range exs {
		if hasHistogram(hists, x.Index) {
			list = append(list, x)
		}
	}
	return list
}

func hasHistogram(hists []frame.Histogram, i uint32) bool {
	_, ok := slices.BinarySearchFunc(hists, i, func(h frame.Histogram, i uint32) int { return cmp.Compare(h.Index, i) })
	return ok
}

// fillFloats gives the section the float samples: slices of the appender's own columns where the whole dictionary is present.
func (a *appender) fillFloats(sec *frame.Section, d *dict, c int) {
	from, to := d.start, d.start+d.n
	if c == d.n {
		sec.Values = a.vals[from:to]
		sec.Times = a.times[from:to]
		if len(a.starts) >= to {
			sec.Starts = a.starts[from:to]
		} else if len(a.starts) > from {
			sec.Starts = append(slices.Clone(a.starts[from:]), make([]int64, to-len(a.starts))...)
		}
	} else {
		sec.Present = make([]uint32, 0, c)
		v, t, s := len(a.vbuf), len(a.tbuf), len(a.sbuf)
		for i := from; i < to && i < len(a.vals); i++ {
			if !a.floats.has(uint32(i)) {
				continue
			}
			sec.Present = append(sec.Present, uint32(i-from))
			a.vbuf = append(a.vbuf, a.vals[i])
			a.tbuf = append(a.tbuf, a.times[i])
			if len(a.starts) > 0 {
				start := int64(0)
				if i < len(a.starts) {
					start = a.starts[i]
				}
				a.sbuf = append(a.sbuf, start)
			}
		}
		sec.Values, sec.Times, sec.Starts = a.vbuf[v:], a.tbuf[t:], a.sbuf[s:]
	}
	if !slices.ContainsFunc(sec.Times, func(t int64) bool { return t != a.last }) {
		sec.Times = nil
	}
	if !slices.ContainsFunc(sec.Starts, func(t int64) bool { return t != 0 }) {
		sec.Starts = nil
	}
}

// addExtra adds the second and further samples of series, in rounds of one sample a series. The caller gives them by series.
func (a *appender) addExtra(u *publish.Unit, d *dict, extra []extraSample) {
	slices.SortStableFunc(extra, func(x, y extraSample) int { return cmp.Or(cmp.Compare(x.round, y.round), cmp.Compare(x.i, y.i)) })
	for len(extra) > 0 {
		round := extra[:prefix(extra, func(x *extraSample) bool { return x.round == extra[0].round })]
		extra = extra[len(round):]
		sec := frame.Section{Dict: d.id, Series: d.n, Present: []uint32{}}
		for _, x := range round {
			i := x.i - uint32(d.start)
			if x.hist != nil {
				h := *x.hist
				h.Index = i
				sec.Histograms = append(sec.Histograms, h)
				continue
			}
			sec.Present = append(sec.Present, i)
			sec.Values = append(sec.Values, x.v)
			sec.Times = append(sec.Times, x.t)
			sec.Starts = append(sec.Starts, x.st)
		}
		a.addSection(u, sec)
	}
}

func (a *appender) addSection(u *publish.Unit, sec frame.Section) {
	a.fr.Sections = append(a.fr.Sections, sec)
	if a.size += sectionBytes(&sec); a.size >= maxFrameBytes {
		a.closeFrame(u)
	}
}

// sectionBytes returns about what a section takes in a frame, rather more than less.
func sectionBytes(s *frame.Section) int {
	n := 32 + len(s.Present) + 9*len(s.Values) + 6*len(s.Times) + 6*len(s.Starts)
	for i := range s.Histograms {
		n += histogramBytes(&s.Histograms[i])
	}
	for i := range s.Exemplars {
		n += 32 + labelBytes(s.Exemplars[i].Labels)
	}
	return n
}

func histogramBytes(h *frame.Histogram) int {
	if x := h.Int; x != nil {
		return 64 + 6*(len(x.PositiveSpans)+len(x.NegativeSpans)) + 4*(len(x.PositiveBuckets)+len(x.NegativeBuckets)) + 9*len(x.CustomValues)
	}
	x := h.Float
	return 64 + 6*(len(x.PositiveSpans)+len(x.NegativeSpans)) + 9*(len(x.PositiveBuckets)+len(x.NegativeBuckets)+len(x.CustomValues))
}

// closeFrame encodes the sections gathered so far as one frame.
func (a *appender) closeFrame(u *publish.Unit) {
	if len(a.fr.Sections) == 0 {
		return
	}
	a.src.seq++
	a.fr.Seq = a.src.seq
	n := a.fr.Samples()
	a.ebuf = a.enc.Encode(a.ebuf[:0], &a.fr)
	u.Frames = append(u.Frames, publish.Frame{Data: slices.Clone(a.ebuf), Time: a.fr.Time, Samples: n})
	u.Samples += n
	u.Bytes += len(a.ebuf)
	clear(a.fr.Sections)
	a.fr.Sections = a.fr.Sections[:0]
	a.vbuf, a.tbuf, a.sbuf = a.vbuf[:0], a.tbuf[:0], a.sbuf[:0] // only those sections had them
	a.size = 0
}
