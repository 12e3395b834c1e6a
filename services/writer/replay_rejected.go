package writer

import (
	"context"
	"fmt"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
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
	list, err := decodeRejected(r)
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
func (p *partition) resend(ctx context.Context, block *remotewrite.Block, i uint32, s *rejectedSeries) error {
	x := p.part
	if s.Labels.IsEmpty() || !x.selection.Selects(s.Labels) {
		return nil
	}
	exemplars := s.exemplars
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
	for _, v := range s.samples {
		if err := add(v.Timestamp, func(r *remotewrite.Request) { r.Add(block, i, v.Timestamp, v.StartTimestamp, v.Value) }); err != nil {
			return err
		}
	}
	for _, h := range s.histograms {
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

// rejectedSeries is a time series of a request that was rejected.
type rejectedSeries struct {
	frame.Series
	samples    []writev2.Sample
	histograms []frame.Histogram
	exemplars  []exemplar.Exemplar
}

// decodeRejected returns the time series of a rejected request, in their order. Exemplars stand with the samples that they belong to.
func decodeRejected(r *stream.Rejection) ([]rejectedSeries, error) {
	n, err := snappy.DecodedLen(r.Body)
	if err != nil {
		return nil, err
	}
	if n > maxRejectedBytes {
		return nil, fmt.Errorf("%d bytes unpacked, the most is %d", n, maxRejectedBytes)
	}
	raw, err := snappy.Decode(nil, r.Body)
	if err != nil {
		return nil, err
	}
	if remotewrite.Protocol(r.Protocol) == remotewrite.V2 {
		return decodeRejectedV2(raw)
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(raw); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(16)
	var list []rejectedSeries
	for i := range req.Timeseries {
		ts := &req.Timeseries[i]
		s := rejectedSeries{Series: frame.Series{Labels: ts.ToLabels(&b, nil)}}
		for _, v := range ts.Samples {
			s.samples = append(s.samples, writev2.Sample{Timestamp: v.Timestamp, Value: v.Value})
		}
		for _, h := range ts.Histograms {
			to := frame.Histogram{Time: h.Timestamp}
			if h.IsFloatHistogram() {
				to.Float = h.ToFloatHistogram()
			} else {
				to.Int = h.ToIntHistogram()
			}
			s.histograms = append(s.histograms, to)
		}
		for _, e := range ts.Exemplars {
			s.exemplars = append(s.exemplars, e.ToExemplar(&b, nil))
		}
		// A histogram's exemplars come in a time series of their own behind it.
		if last := len(list) - 1; last >= 0 && len(s.samples)+len(s.histograms) == 0 && labels.Equal(list[last].Labels, s.Labels) {
			list[last].exemplars = append(list[last].exemplars, s.exemplars...)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

// maxRejectedBytes bounds a rejected request when it is unpacked.
const maxRejectedBytes = 64 << 20

func decodeRejectedV2(raw []byte) ([]rejectedSeries, error) {
	var req writev2.Request
	if err := req.Unmarshal(raw); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(16)
	list := make([]rejectedSeries, len(req.Timeseries))
	for i := range req.Timeseries {
		ts, s := &req.Timeseries[i], &list[i]
		var err error
		if s.Labels, err = ts.ToLabels(&b, req.Symbols); err != nil {
			return nil, err
		}
		if s.Metadata, err = ts.ToMetadata(req.Symbols); err != nil {
			return nil, err
		}
		s.Family = s.Labels.Get(model.MetricNameLabel)
		s.samples = ts.Samples
		for _, h := range ts.Histograms {
			to := frame.Histogram{Time: h.Timestamp, Start: h.StartTimestamp}
			if h.IsFloatHistogram() {
				to.Float = h.ToFloatHistogram()
			} else {
				to.Int = h.ToIntHistogram()
			}
			s.histograms = append(s.histograms, to)
		}
		for _, e := range ts.Exemplars {
			x, err := e.ToExemplar(&b, req.Symbols)
			if err != nil {
				return nil, err
			}
			s.exemplars = append(s.exemplars, x)
		}
	}
	return list, nil
}
