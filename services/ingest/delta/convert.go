package delta

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/frame"
)

// accumulate replaces the values of a frame, which came in a message stored at the time at, by the sums, and takes out what is dropped: points, and sections
// that have none left.
func (p *partition) accumulate(ctx context.Context, f *frame.Frame, at int64) error {
	kept := 0
	for i := range f.Sections {
		s := &f.Sections[i]
		n := len(s.Values) + len(s.Histograms)
		d, err := p.dictionary(ctx, s, at)
		switch {
		case errors.Is(err, errNoDictionary):
			p.drop(noDictionary, n)
			continue
		case errors.Is(err, frame.ErrCorrupt):
			p.drop(unreadable, n)
			continue
		case err != nil:
			return err
		}
		floats := p.floats(ctx, d, f, s, at)
		histograms := p.histograms(ctx, d, s, at)
		if floats+histograms > 0 && len(s.Exemplars) > 0 {
			p.exemplars(s)
		}
		p.svc.metrics.points.Add(float64(n - floats - histograms))
		if len(s.Values)+len(s.Histograms) > 0 {
			// Sections change places, so that each keeps the memory of its own for the next frame.
			f.Sections[kept], f.Sections[i] = f.Sections[i], f.Sections[kept]
			kept++
		}
	}
	f.Sections = f.Sections[:kept]
	return nil
}

// floats makes the float samples of a section cumulative and returns how many were dropped.
func (p *partition) floats(ctx context.Context, d *dictionary, f *frame.Frame, s *frame.Section, at int64) (dropped int) {
	n := 0
	for k, v := range s.Values {
		i, t, start := s.At(f, k)
		if !value.IsStaleNaN(v) {
			x, fresh := p.sums.of(d, i, at)
			why := limit
			if x != nil {
				why = x.admit(fresh, t, start)
			}
			if why != "" {
				p.drop(why, 1)
				if x == nil {
					p.svc.sayLimit(ctx, p, s.Dict, i)
				}
				if s.Present == nil {
					s.Present = allPresent(len(s.Values)) // of which some will be missing
				}
				continue
			}
			x.float(fresh, v, t, start, at)
			v, start = x.value, x.start
		}
		s.Values[n] = v
		if s.Present != nil {
			s.Present[n] = i
		}
		if len(s.Times) > 0 {
			s.Times[n] = t
		}
		if len(s.Starts) > 0 {
			s.Starts[n] = start
		}
		n++
	}
	dropped = len(s.Values) - n
	s.Values = s.Values[:n]
	if s.Present != nil {
		s.Present = s.Present[:n]
	}
	s.Times, s.Starts = s.Times[:min(n, len(s.Times))], s.Starts[:min(n, len(s.Starts))]
	return dropped
}

// allPresent returns the numbers of n series.
func allPresent(n int) []uint32 {
	all := make([]uint32, n)
	for i := range all {
		all[i] = uint32(i)
	}
	return all
}

// histograms makes the native histograms of a section cumulative and returns how many were dropped.
func (p *partition) histograms(ctx context.Context, d *dictionary, s *frame.Section, at int64) (dropped int) {
	n := 0
	for k := range s.Histograms {
		h := &s.Histograms[k]
		if !isStale(h) {
			if why := p.histogram(ctx, d, s, h, at); why != "" {
				p.drop(why, 1)
				continue
			}
		}
		s.Histograms[n] = *h
		n++
	}
	dropped = len(s.Histograms) - n
	clear(s.Histograms[n:])
	s.Histograms = s.Histograms[:n]
	return dropped
}

// histogram makes one histogram sample cumulative, or says why it is dropped.
func (p *partition) histogram(ctx context.Context, d *dictionary, s *frame.Section, h *frame.Histogram, at int64) reason {
	fh, err := floatOf(h)
	if err != nil {
		p.log.Debug("A histogram is not valid", "err", err)
		return invalid
	}
	x, fresh := p.sums.of(d, h.Index, at)
	if x == nil {
		p.svc.sayLimit(ctx, p, s.Dict, h.Index)
		return limit
	}
	if why := x.admit(fresh, h.Time, h.Start); why != "" {
		return why
	}
	if err := x.histogram(fresh, fh, h.Int != nil, h.Time, h.Start, at); err != nil {
		p.log.Debug("A histogram cannot be added", "err", err)
		return invalid
	}
	x.result(h)
	return ""
}

// isStale reports whether a histogram sample is a staleness marker.
func isStale(h *frame.Histogram) bool {
	if h.Int != nil {
		return value.IsStaleNaN(h.Int.Sum)
	}
	return value.IsStaleNaN(h.Float.Sum)
}

// exemplars takes out the exemplars of series that have no sample left in the section.
func (p *partition) exemplars(s *frame.Section) {
	s.Exemplars = slices.DeleteFunc(s.Exemplars, func(x frame.Exemplar) bool {
		if len(s.Values) > 0 {
			if s.Present == nil {
				return false
			}
			if _, ok := slices.BinarySearch(s.Present, x.Index); ok {
				return false
			}
		}
		_, ok := slices.BinarySearchFunc(s.Histograms, x.Index, func(h frame.Histogram, i uint32) int { return cmp.Compare(h.Index, i) })
		return !ok
	})
}

// drop counts points that are not made cumulative.
func (p *partition) drop(why reason, n int) {
	p.svc.metrics.dropped[why].Add(float64(n))
}
