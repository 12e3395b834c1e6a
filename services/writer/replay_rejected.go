package writer

import (
	"context"
	"fmt"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/rejected"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/stream"
)

// rejection adds what a message of REJECTED holds to requests. It is encoded anew: the endpoint may speak another protocol now, and the selection may leave a part.
func (p *partition) rejection(ctx context.Context, msg stream.Message) error {
	p.unsent.Add(1)
	r, err := stream.ReadRejection(msg.Data)
	if err != nil {
		p.ep.lost(1, fmt.Sprintf("message %d cannot be read: %v", msg.Seq, err), p.number)
		return p.ended(ctx, msg)
	}
	list, err := rejected.Decode(r)
	if err != nil {
		p.ep.lost(uint64(r.Samples), fmt.Sprintf("the request in message %d cannot be read: %v", msg.Seq, err), p.number)
		return p.ended(ctx, msg)
	}
	series := make([]frame.Series, len(list))
	for i := range list {
		series[i] = list[i].Series
	}
	block := remotewrite.NewBlock(p.ep.protocol, series)
	for i := range list {
		if err := p.resend(ctx, block, uint32(i), &list[i]); err != nil {
			return err
		}
	}
	return p.ended(ctx, msg)
}

// resend adds one time series that was rejected.
func (p *partition) resend(ctx context.Context, block *remotewrite.Block, i uint32, s *rejected.Series) error {
	x := p.part
	if s.Labels.IsEmpty() || !x.selection.Selects(s.Labels) {
		return nil
	}
	exemplars := s.Exemplars
	if !p.ep.cfg.SendExemplars {
		exemplars = nil
	}
	add := func(t int64, sample func(*remotewrite.Request)) error {
		if !x.selection.Holds(t) {
			return nil
		}
		if x.choice.met != nil {
			x.choice.meetSeries(s.Labels.Hash())
		}
		if p.current == nil {
			if err := p.begin(ctx); err != nil {
				return err
			}
		}
		sample(p.current.req)
		for k := range exemplars {
			p.current.req.AddExemplar(&exemplars[k])
		}
		exemplars = nil
		if p.current.req.Samples() >= p.ep.cfg.QueueConfig.MaxSamplesPerSend {
			return p.flush(ctx)
		}
		return nil
	}
	for _, v := range s.Samples {
		if err := add(v.Timestamp, func(r *remotewrite.Request) { r.Add(block, i, v.Timestamp, v.StartTimestamp, v.Value) }); err != nil {
			return err
		}
	}
	for _, h := range s.Histograms {
		h.Index = i
		switch {
		case !p.ep.cfg.SendNativeHistograms:
			continue
		case !p.ep.protocol.Carries(&h):
			p.ep.metrics.unsupported.Inc()
			continue
		}
		if err := add(h.Time, func(r *remotewrite.Request) { r.AddHistogram(block, &h) }); err != nil {
			return err
		}
	}
	return nil
}
