package loadgen

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace/millrace/bench/numbered"
)

// native makes the bodies of protobuf targets: half native histograms with an exemplar each, half counters of which every
// tenth has one. It costs more than the other kinds.
type native struct {
	count    int
	encoders encoders
}

func newNative(series int) *native { return &native{count: series} }

func (s *native) body(t *target, n uint64, request http.Header, encoding string) (body, error) {
	format := expfmt.NegotiateAccept(request, expfmt.NewFormat(expfmt.TypeProtoDelim), expfmt.NewFormat(expfmt.TypeTextPlain))
	var out bytes.Buffer
	encoder := expfmt.NewEncoder(&out, format)
	families, err := s.families(t, n)
	if err != nil {
		return body{}, err
	}
	for _, f := range families {
		if err := encoder.Encode(f); err != nil {
			return body{}, fmt.Errorf("encoding family %s: %w", f.GetName(), err)
		}
	}
	b := body{data: out.Bytes(), contentType: string(format), contentEncoding: encoding, samples: s.count, release: func() {}}
	if b.contentEncoding != "" {
		if b.data, err = s.encoders.append(nil, b.contentEncoding, b.data); err != nil {
			return body{}, err
		}
	}
	return b, nil
}

// families returns the families of scrape n.
func (s *native) families(t *target, n uint64) ([]*dto.MetricFamily, error) {
	histograms := &dto.MetricFamily{
		Name: proto.String("rpc_duration_seconds"), Help: proto.String("How long calls took."), Type: dto.MetricType_HISTOGRAM.Enum(),
	}
	counters := &dto.MetricFamily{
		Name: proto.String("rpc_bytes_total"), Help: proto.String("Bytes of all calls."), Type: dto.MetricType_COUNTER.Enum(),
	}
	now := timestamppb.New(time.Now())
	for i := range s.count - 1 {
		if i%2 == 0 {
			m, err := histogram(i, t.seed, n, now)
			if err != nil {
				return nil, err
			}
			histograms.Metric = append(histograms.Metric, m)
			continue
		}
		shape := numbered.Shape(numbered.Counter, uint64(i*7919%65536+2))
		code, err := numbered.Parse(shape, counters.GetName(), "")
		if err != nil {
			return nil, err
		}
		counter := &dto.Counter{Value: proto.Float64(code.WithSeed(t.seed).Value(n))}
		if i%10 == 1 {
			counter.Exemplar = exemplar(i, n, 1, now)
		}
		counters.Metric = append(counters.Metric, &dto.Metric{Label: nativeLabels(i, shape), Counter: counter})
	}
	scrape := &dto.MetricFamily{
		Name: proto.String(numbered.ScrapeMetric), Help: proto.String("Number of this scrape of the target."), Type: dto.MetricType_GAUGE.Enum(),
		Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: proto.Float64(float64(n))}}},
	}
	out := make([]*dto.MetricFamily, 0, 3)
	for _, f := range []*dto.MetricFamily{histograms, counters, scrape} {
		if len(f.Metric) > 0 {
			out = append(out, f)
		}
	}
	return out, nil
}

// histogram returns a native histogram whose count tells n: its observations lie in eleven adjacent buckets, as many in each.
func histogram(i int, seed, n uint64, now *timestamppb.Timestamp) (*dto.Metric, error) {
	const name = "rpc_duration_seconds"
	shape := numbered.Shape(numbered.Histogram, uint64(i%997+1))
	code, err := numbered.Parse(shape, name, "")
	if err != nil {
		return nil, err
	}
	sum, err := numbered.Parse(shape, name+"_sum", "")
	if err != nil {
		return nil, err
	}
	count := uint64(code.WithSeed(seed).Value(n))
	buckets := len(numbered.Bounds) + 1
	deltas := make([]int64, buckets)
	deltas[0] = int64(count) / int64(buckets)
	return &dto.Metric{
		Label: nativeLabels(i, shape),
		Histogram: &dto.Histogram{
			SampleCount:   proto.Uint64(count),
			SampleSum:     proto.Float64(sum.WithSeed(seed).Value(n)),
			Schema:        proto.Int32(3),
			ZeroThreshold: proto.Float64(1e-9),
			ZeroCount:     proto.Uint64(0),
			PositiveSpan:  []*dto.BucketSpan{{Offset: proto.Int32(-20), Length: proto.Uint32(uint32(buckets))}},
			PositiveDelta: deltas,
			Exemplars:     []*dto.Exemplar{exemplar(i, n, .25, now)},
		},
	}, nil
}

func nativeLabels(i int, shape string) []*dto.LabelPair {
	pair := func(name, value string) *dto.LabelPair {
		return &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)}
	}
	return []*dto.LabelPair{
		pair("cluster", "eu-central-1"), pair("method", "/shop.Items/Get"+strconv.Itoa(i)), pair("namespace", "shop"),
		pair(numbered.ShapeLabel, shape),
	}
}

func exemplar(i int, n uint64, value float64, now *timestamppb.Timestamp) *dto.Exemplar {
	return &dto.Exemplar{
		Label:     []*dto.LabelPair{{Name: proto.String("trace_id"), Value: proto.String(fmt.Sprintf("%016x%016x", n, i))}},
		Value:     proto.Float64(value),
		Timestamp: now,
	}
}
