package delta

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/open-telemetry/opentelemetry-collector-contrib/processor/deltatocumulativeprocessor"
	"github.com/prometheus/prometheus/model/histogram"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/processor"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap"

	"github.com/millrace/millrace/pkg/frame"
)

// reference is the Collector's deltatocumulativeprocessor, and what came out of it.
type reference struct {
	processor.Metrics
	points []point
}

func newReference(t *testing.T) *reference {
	t.Helper()
	ref := &reference{}
	sink, err := consumer.NewMetrics(func(_ context.Context, md pmetric.Metrics) error {
		metrics := md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
		for i := range metrics.Len() {
			for _, s := range samplesOf(metrics.At(i)) {
				ref.points = append(ref.points, s.point())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	factory := deltatocumulativeprocessor.NewFactory()
	ref.Metrics, err = factory.CreateMetrics(t.Context(), processor.Settings{
		ID: component.NewID(factory.Type()),
		TelemetrySettings: component.TelemetrySettings{
			Logger: zap.NewNop(), MeterProvider: metricnoop.NewMeterProvider(), TracerProvider: tracenoop.NewTracerProvider(), Resource: pcommon.NewResource(),
		},
	}, factory.CreateDefaultConfig(), sink)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ref.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return ref
}

// otelSample is what becomes a sample of a series.
type otelSample struct {
	series   string
	t, start int64
	v        float64
	hist     *histogram.Histogram
}

func (s otelSample) point() point {
	p := point{series: s.series, t: s.t, start: s.start, v: s.v}
	if s.hist != nil {
		p.hist = "int " + s.hist.Copy().Compact(0).String()
	}
	return p
}

// samplesOf translates the points of a metric.
func samplesOf(m pmetric.Metric) (samples []otelSample) {
	at := func(name string, t, start pcommon.Timestamp) otelSample {
		return otelSample{series: name, t: t.AsTime().UnixMilli(), start: start.AsTime().UnixMilli()}
	}
	switch m.Type() {
	case pmetric.MetricTypeSum:
		for _, p := range m.Sum().DataPoints().All() {
			s := at(m.Name(), p.Timestamp(), p.StartTimestamp())
			s.v = p.DoubleValue()
			samples = append(samples, s)
		}
	case pmetric.MetricTypeHistogram:
		for _, p := range m.Histogram().DataPoints().All() {
			add := func(suffix string, v float64) {
				s := at(m.Name()+suffix, p.Timestamp(), p.StartTimestamp())
				s.v = v
				samples = append(samples, s)
			}
			add("_count", float64(p.Count()))
			add("_sum", p.Sum())
			total := uint64(0)
			for i, n := range p.BucketCounts().All() {
				total += n
				add(fmt.Sprintf("_bucket_%d", i), float64(total))
			}
		}
	case pmetric.MetricTypeExponentialHistogram:
		for _, p := range m.ExponentialHistogram().DataPoints().All() {
			s := at(m.Name(), p.Timestamp(), p.StartTimestamp())
			s.hist = &histogram.Histogram{Schema: p.Scale(), Count: p.Count(), Sum: p.Sum(), ZeroCount: p.ZeroCount(), ZeroThreshold: 1e-128}
			s.hist.PositiveSpans, s.hist.PositiveBuckets = bucketsOf(p.Positive())
			s.hist.NegativeSpans, s.hist.NegativeBuckets = bucketsOf(p.Negative())
			samples = append(samples, s)
		}
	}
	return samples
}

func bucketsOf(b pmetric.ExponentialHistogramDataPointBuckets) (spans []histogram.Span, deltas []int64) {
	before := int64(0)
	for _, n := range b.BucketCounts().All() {
		deltas = append(deltas, int64(n)-before)
		before = int64(n)
	}
	if len(deltas) > 0 {
		spans = []histogram.Span{{Offset: b.Offset() + 1, Length: uint32(len(deltas))}}
	}
	return spans, deltas
}

// randomMetrics returns a request of random points of a few metrics around a time, the buckets ever further apart, some of them late, or of a process that started earlier.
func randomMetrics(rnd *rand.Rand, now int64, round int) pmetric.Metrics {
	md := pmetric.NewMetrics()
	metrics := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics()
	times := func() (t, start pcommon.Timestamp) {
		at, began := now, now-1000
		if rnd.IntN(10) == 0 {
			at -= int64(rnd.IntN(3)) * 1000
		}
		if rnd.IntN(20) == 0 {
			began -= 60_000
		}
		return pcommon.Timestamp(at * 1e6), pcommon.Timestamp(began * 1e6)
	}
	for _, i := range rnd.Perm(12)[:6] {
		m := metrics.AppendEmpty()
		t, start := times()
		switch i % 3 {
		case 0:
			m.SetName(fmt.Sprintf("counter%d", i))
			m.SetEmptySum().SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
			p := m.Sum().DataPoints().AppendEmpty()
			p.SetTimestamp(t)
			p.SetStartTimestamp(start)
			p.SetDoubleValue(rnd.NormFloat64())
		case 1:
			m.SetName(fmt.Sprintf("classic%d", i))
			m.SetEmptyHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
			p := m.Histogram().DataPoints().AppendEmpty()
			p.SetTimestamp(t)
			p.SetStartTimestamp(start)
			p.ExplicitBounds().FromRaw([]float64{1, 2, 5})
			for range 4 {
				n := uint64(rnd.IntN(10))
				p.BucketCounts().Append(n)
				p.SetCount(p.Count() + n)
			}
			p.SetSum(rnd.Float64() * 100)
		case 2:
			m.SetName(fmt.Sprintf("native%d", i))
			m.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
			p := m.ExponentialHistogram().DataPoints().AppendEmpty()
			p.SetTimestamp(t)
			p.SetStartTimestamp(start)
			randomBuckets(rnd, p, 20+2*round)
		}
	}
	return md
}

// randomBuckets fills a histogram whose buckets may lie up to reach from 1.
func randomBuckets(rnd *rand.Rand, p pmetric.ExponentialHistogramDataPoint, reach int) {
	scale := 8 - rnd.IntN(2)
	if rnd.IntN(300) == 0 {
		scale = rnd.IntN(9)
	}
	p.SetScale(int32(scale))
	p.SetZeroCount(uint64(rnd.IntN(3)))
	p.SetCount(p.ZeroCount())
	for _, b := range []pmetric.ExponentialHistogramDataPointBuckets{p.Positive(), p.Negative()} {
		b.SetOffset(int32(rnd.IntN(2*reach) - reach))
		for range rnd.IntN(30) {
			n := uint64(rnd.IntN(4)) // 0 among them, also at both ends
			b.BucketCounts().Append(n)
			p.SetCount(p.Count() + n)
		}
	}
	p.SetSum(rnd.NormFloat64() * 10)
}

// TestSumsAreThoseOfTheCollector compares with the Collector's processor.
func TestSumsAreThoseOfTheCollector(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			ref := newReference(t)
			r := newRiver(t)
			r.start(Config{})
			now := int64(1_700_000_000_000)
			for round := range 500 {
				now += int64(rnd.IntN(3)) * 500
				md := randomMetrics(rnd, now, round)
				r.push(0, r.frameOfMetrics(now, md))
				if err := ref.ConsumeMetrics(t.Context(), md); err != nil {
					t.Fatal(err)
				}
			}
			res := r.wait(0, len(ref.points))
			t.Logf("%d points", len(ref.points))
			got, want := compacted(res.points), compacted(ref.points)
			if got == want {
				return
			}
			a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					t.Fatalf("%d points, the Collector has %d; the first that differs is\n%s\nthe Collector has\n%s", len(a), len(b), a[i], b[i])
				}
			}
			t.Fatalf("%d points, the Collector has %d", len(a), len(b))
		})
	}
}

// frameOfMetrics returns a frame of the points of a request, in a dictionary of its own.
func (r *river) frameOfMetrics(now int64, md pmetric.Metrics) *frame.Frame {
	r.t.Helper()
	var names []string
	s := frame.Section{Present: []uint32{}}
	metrics := md.ResourceMetrics().At(0).ScopeMetrics().At(0).Metrics()
	for i := range metrics.Len() {
		for _, x := range samplesOf(metrics.At(i)) {
			index := uint32(len(names))
			names = append(names, x.series)
			if x.hist != nil {
				s.Histograms = append(s.Histograms, frame.Histogram{Index: index, Time: x.t, Start: x.start, Int: x.hist})
				continue
			}
			s.Present = append(s.Present, index)
			s.Values, s.Times, s.Starts = append(s.Values, x.v), append(s.Times, x.t), append(s.Starts, x.start)
		}
	}
	s.Dict, s.Series = r.dict(0, names...), len(names)
	return r.frameOf(1, now, s)
}

// compacted returns points as text, each series by itself.
func compacted(points []point) string {
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Compare(a.series, b.series) })
	var b strings.Builder
	for _, p := range points {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}
