package writer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
)

// section adds one section's samples to the current request, and hands full requests on.
func (p *partition) section(ctx context.Context, f *frame.Frame, s *frame.Section) error {
	block, err := p.join(ctx, s.Dict)
	if errors.Is(err, errNoDictionary) {
		p.ep.lost(uint64(len(s.Values)+len(s.Histograms)), "the stream's retention passed over their dictionary", p.number)
		return nil
	}
	if err != nil {
		return err
	}
	if block.Series() != s.Series {
		return fmt.Errorf("%w: section of %d series, dictionary %s has %d", frame.ErrCorrupt, s.Series, s.Dict, block.Series())
	}
	oldest := int64(0)
	if limit := time.Duration(p.ep.cfg.QueueConfig.SampleAgeLimit); limit > 0 {
		oldest = time.Now().Add(-limit).UnixMilli()
	}
	exs := s.Exemplars
	if !p.ep.cfg.SendExemplars {
		exs = nil
	}
	t, common := commonTime(f, s)
	common = common && t >= oldest
	for k := 0; k < len(s.Values); {
		n := 0
		if first := index(s, k); common && (len(exs) == 0 || remotewrite.RunOf(exs[0].Index) > remotewrite.RunOf(first)) {
			if n, err = p.run(ctx, f, s, k, block, t); err != nil {
				return err
			}
		}
		if n == 0 {
			if n, exs, err = p.samples(ctx, f, s, k, block, oldest, exs); err != nil {
				return err
			}
		}
		k += n
	}
	return p.histograms(ctx, f, s, block, oldest)
}

// index returns the series of value k of a section.
func index(s *frame.Section, k int) uint32 {
	if s.Present != nil {
		return s.Present[k]
	}
	return uint32(k)
}

// commonTime returns the timestamp that all float samples of a section have, if they have one.
func commonTime(f *frame.Frame, s *frame.Section) (t int64, common bool) {
	if len(s.Times) == 0 {
		return f.Time, true
	}
	for _, t := range s.Times[1:] {
		if t != s.Times[0] {
			return 0, false
		}
	}
	return s.Times[0], true
}

// run adds the float samples from value k on that are of one run of series, all at once. It returns how many there are, or 0 where they are to be added one by one.
func (p *partition) run(ctx context.Context, f *frame.Frame, s *frame.Section, k int, block *remotewrite.Block, t int64) (int, error) {
	most := p.ep.cfg.QueueConfig.MaxSamplesPerSend
	if most < remotewrite.MaxRun {
		return 0, nil
	}
	if p.current != nil && p.current.req.Samples() > most-remotewrite.MaxRun {
		if err := p.flush(ctx); err != nil {
			return 0, err
		}
	}
	if err := p.fill(ctx, f); err != nil {
		return 0, err
	}
	present := s.Present
	if present != nil {
		present = present[k:]
	}
	n := p.current.req.AddRun(block, present, uint32(k), t, s.Values[k:])
	return n, p.full(ctx)
}

// samples adds the float samples from value k on that are of one run of series, one by one. It returns how many there are, and the exemplars of those behind.
func (p *partition) samples(ctx context.Context, f *frame.Frame, s *frame.Section, k int, block *remotewrite.Block, oldest int64, exs []frame.Exemplar) (int, []frame.Exemplar, error) {
	begin, run := k, remotewrite.RunOf(index(s, k))
	for ; k < len(s.Values) && remotewrite.RunOf(index(s, k)) == run; k++ {
		i := index(s, k)
		var mine []frame.Exemplar
		if len(exs) > 0 {
			mine, exs = take(exs, i)
		}
		if !block.Kept(i) {
			continue
		}
		t, st := f.Time, int64(0)
		if len(s.Times) > 0 {
			t = s.Times[k]
		}
		if len(s.Starts) > 0 {
			st = s.Starts[k]
		}
		if t < oldest {
			p.ep.metrics.aged.Inc()
			continue
		}
		if err := p.fill(ctx, f); err != nil {
			return 0, nil, err
		}
		r := p.current.req
		r.Add(block, i, t, st, s.Values[k])
		for n := range mine {
			r.AddExemplar(&mine[n].Exemplar)
		}
		if err := p.full(ctx); err != nil {
			return 0, nil, err
		}
	}
	return k - begin, exs, nil
}

// fill makes sure that there is a request for samples of a frame.
func (p *partition) fill(ctx context.Context, f *frame.Frame) error {
	if p.current == nil {
		if err := p.begin(ctx); err != nil {
			return err
		}
	}
	if p.current.oldest == 0 {
		p.current.oldest = f.Time
	}
	return nil
}

// full hands the current request on where it has as many samples as it may.
func (p *partition) full(ctx context.Context) error {
	if p.current.req.Samples() < p.ep.cfg.QueueConfig.MaxSamplesPerSend {
		return nil
	}
	return p.flush(ctx)
}

// histograms adds a section's native histograms.
func (p *partition) histograms(ctx context.Context, f *frame.Frame, s *frame.Section, block *remotewrite.Block, oldest int64) error {
	if !p.ep.cfg.SendNativeHistograms {
		return nil
	}
	exs := s.Exemplars
	for k := range s.Histograms {
		h := &s.Histograms[k]
		var mine []frame.Exemplar
		mine, exs = take(exs, h.Index)
		if !block.Kept(h.Index) {
			continue
		}
		if !p.ep.protocol.Carries(h) {
			p.ep.metrics.unsupported.Inc()
			continue
		}
		if h.Time < oldest {
			p.ep.metrics.aged.Inc()
			continue
		}
		if err := p.fill(ctx, f); err != nil {
			return err
		}
		r := p.current.req
		r.AddHistogram(block, h)
		if p.ep.cfg.SendExemplars {
			for n := range mine {
				r.AddExemplar(&mine[n].Exemplar)
			}
		}
		if err := p.full(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take splits off the exemplars of series i from a list that ascends by series.
func take(list []frame.Exemplar, i uint32) (mine, rest []frame.Exemplar) {
	for len(list) > 0 && list[0].Index < i {
		list = list[1:]
	}
	n := 0
	for n < len(list) && list[n].Index == i {
		n++
	}
	return list[:n], list[n:]
}
