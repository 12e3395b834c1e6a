package writer

import (
	"context"
	"errors"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/replay"
)

// cut leaves of a section what the replay is to send: samples of the times and series asked for. It is nil where that is nothing.
func (x *part) cut(ctx context.Context, p *partition, f *frame.Frame, s *frame.Section) (*frame.Section, error) {
	held := x.held(f, s)
	if held == 0 {
		return nil, nil // without a look for the dictionary
	}
	block, err := p.join(ctx, s.Dict)
	if errors.Is(err, errNoDictionary) {
		p.ep.lost(uint64(held), "the stream's retention passed over their dictionary", p.number)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if block.Series() != s.Series {
		return s, nil // which is refused where it is sent
	}
	c := x.choice.of(s.Dict, block)
	if held == len(s.Values)+len(s.Histograms) && c.all {
		x.choice.meet(c, block, s)
		return s, nil
	}
	if c.none {
		return nil, nil
	}
	out := &x.scratch
	out.Dict, out.Series, out.Exemplars = s.Dict, s.Series, s.Exemplars
	out.Present, out.Values, out.Times, out.Starts = append(out.Present[:0], 0)[:0], out.Values[:0], out.Times[:0], out.Starts[:0]
	for k, v := range s.Values {
		i, t, start := s.At(f, k)
		if !c.has(i) || !x.selection.Holds(t) {
			continue
		}
		out.Present, out.Values = append(out.Present, i), append(out.Values, v)
		if len(s.Times) > 0 {
			out.Times = append(out.Times, t)
		}
		if len(s.Starts) > 0 {
			out.Starts = append(out.Starts, start)
		}
	}
	out.Histograms = out.Histograms[:0]
	for _, h := range s.Histograms {
		if c.has(h.Index) && x.selection.Holds(h.Time) {
			out.Histograms = append(out.Histograms, h)
		}
	}
	x.choice.meet(c, block, out)
	return out, nil
}

// held counts the samples of a section that are of the times asked for.
func (x *part) held(f *frame.Frame, s *frame.Section) (n int) {
	switch {
	case len(s.Times) > 0:
		for _, t := range s.Times {
			if x.selection.Holds(t) {
				n++
			}
		}
	case x.selection.Holds(f.Time):
		n = len(s.Values)
	}
	for i := range s.Histograms {
		if x.selection.Holds(s.Histograms[i].Time) {
			n++
		}
	}
	return n
}

// chooser knows which series of dictionaries a replay sends. It evaluates the selectors once for each dictionary.
type chooser struct {
	selection *replay.Selection
	chosen    map[frame.DictID]*chosen
	met       map[uint64]struct{} // hashes of the series that a dry run has met; nil where it is none
	many      bool                // more than met holds
}

// chosen are the series of a dictionary that are sent.
type chosen struct {
	all, none bool
	series    []uint64 // a bit each, where neither
	met       []uint64 // likewise: those in chooser.met
}

// Bounds of what a chooser remembers.
const (
	maxChosen = 1 << 12
	maxMet    = 1 << 21
)

func newChooser(x *part) chooser {
	c := chooser{selection: &x.selection, chosen: map[frame.DictID]*chosen{}}
	if x.rec.Spec.DryRun {
		c.met = map[uint64]struct{}{}
	}
	return c
}

// of returns the series of a dictionary that are sent.
func (c *chooser) of(id frame.DictID, block *remotewrite.Block) *chosen {
	if d, ok := c.chosen[id]; ok {
		return d
	}
	if len(c.chosen) >= maxChosen {
		clear(c.chosen)
	}
	d := &chosen{}
	c.chosen[id] = d
	if block.AllKept() && len(c.selection.Match) == 0 {
		d.all = true
		return d
	}
	n := 0
	d.series = make([]uint64, (block.Series()+63)/64)
	for i := range uint32(block.Series()) {
		if block.Kept(i) && (len(c.selection.Match) == 0 || c.selection.Selects(block.Labels(i))) {
			d.series[i/64] |= 1 << (i % 64)
			n++
		}
	}
	if d.all, d.none = n == block.Series(), n == 0; d.all || d.none {
		d.series = nil
	}
	return d
}

func (d *chosen) has(i uint32) bool { return d.all || !d.none && d.series[i/64]&(1<<(i%64)) != 0 }

// meet notes the series of a section that a dry run would send.
func (c *chooser) meet(d *chosen, block *remotewrite.Block, s *frame.Section) {
	if c.met == nil {
		return
	}
	if d.met == nil {
		d.met = make([]uint64, (block.Series()+63)/64)
	}
	for k := range s.Values {
		i := uint32(k)
		if s.Present != nil {
			i = s.Present[k]
		}
		c.meetOne(d, block, i)
	}
	for i := range s.Histograms {
		c.meetOne(d, block, s.Histograms[i].Index)
	}
}

func (c *chooser) meetOne(d *chosen, block *remotewrite.Block, i uint32) {
	if d.met[i/64]&(1<<(i%64)) != 0 {
		return
	}
	d.met[i/64] |= 1 << (i % 64)
	c.meetSeries(block.Labels(i).Hash())
}

func (c *chooser) meetSeries(hash uint64) {
	switch _, known := c.met[hash]; {
	case known:
	case len(c.met) < maxMet:
		c.met[hash] = struct{}{}
	default:
		c.many = true
	}
}

// series returns how many series a dry run has met.
func (c *chooser) series() (n uint64, atLeast bool) { return uint64(len(c.met)), c.many }
