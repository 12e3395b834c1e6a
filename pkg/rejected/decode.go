package rejected

import (
	"fmt"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/stream"
)

// Series is a time series of a request that was rejected, with its samples.
type Series struct {
	frame.Series
	Samples    []writev2.Sample
	Histograms []frame.Histogram
	Exemplars  []exemplar.Exemplar
}

// Decode returns the time series of a rejected request, in their order. Exemplars stand with the samples that they belong to.
func Decode(r *stream.Rejection) ([]Series, error) {
	n, err := snappy.DecodedLen(r.Body)
	if err != nil {
		return nil, err
	}
	if n > maxBytes {
		return nil, fmt.Errorf("%d bytes unpacked, the most is %d", n, maxBytes)
	}
	raw, err := snappy.Decode(nil, r.Body)
	if err != nil {
		return nil, err
	}
	if remotewrite.Protocol(r.Protocol) == remotewrite.V2 {
		return decodeV2(raw)
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(raw); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(16)
	var list []Series
	for i := range req.Timeseries {
		ts := &req.Timeseries[i]
		s := Series{Series: frame.Series{Labels: ts.ToLabels(&b, nil)}}
		for _, v := range ts.Samples {
			s.Samples = append(s.Samples, writev2.Sample{Timestamp: v.Timestamp, Value: v.Value})
		}
		for _, h := range ts.Histograms {
			s.Histograms = append(s.Histograms, histogramOf(h.Timestamp, 0, &h))
		}
		for _, e := range ts.Exemplars {
			s.Exemplars = append(s.Exemplars, e.ToExemplar(&b, nil))
		}
		// A histogram's exemplars come in a time series of their own behind it.
		if last := len(list) - 1; last >= 0 && len(s.Samples)+len(s.Histograms) == 0 && labels.Equal(list[last].Labels, s.Labels) {
			list[last].Exemplars = append(list[last].Exemplars, s.Exemplars...)
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

// wireHistogram is a native histogram of remote_write 1.0 or 2.0.
type wireHistogram interface {
	IsFloatHistogram() bool
	ToIntHistogram() *histogram.Histogram
	ToFloatHistogram() *histogram.FloatHistogram
}

func histogramOf(t, start int64, h wireHistogram) frame.Histogram {
	if h.IsFloatHistogram() {
		return frame.Histogram{Time: t, Start: start, Float: h.ToFloatHistogram()}
	}
	return frame.Histogram{Time: t, Start: start, Int: h.ToIntHistogram()}
}

// maxBytes bounds a rejected request when it is unpacked.
const maxBytes = 64 << 20

func decodeV2(raw []byte) ([]Series, error) {
	var req writev2.Request
	if err := req.Unmarshal(raw); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(16)
	list := make([]Series, len(req.Timeseries))
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
		s.Samples = ts.Samples
		for _, h := range ts.Histograms {
			s.Histograms = append(s.Histograms, histogramOf(h.Timestamp, h.StartTimestamp, &h))
		}
		for _, e := range ts.Exemplars {
			x, err := e.ToExemplar(&b, req.Symbols)
			if err != nil {
				return nil, err
			}
			s.Exemplars = append(s.Exemplars, x)
		}
	}
	return list, nil
}
