package e2e_test

import (
	"math"
	"time"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
)

// staleRound is the round in which the points that are made by hand say that there is no value.
const staleRound = 4

// pointMaker makes a request of what OpenTelemetry's SDK does not make: names that it refuses, summaries, points without a recorded value, exponential histograms of all shapes.
type pointMaker struct {
	round      int
	start, now pcommon.Timestamp
}

func pointsByHand(round int, start, now time.Time) pmetric.Metrics {
	p := pointMaker{round, pcommon.NewTimestampFromTime(start), pcommon.NewTimestampFromTime(now)}
	md := pmetric.NewMetrics()
	for _, instance := range []string{"hand-1", "hand-2"} {
		p.fill(md.ResourceMetrics().AppendEmpty(), instance)
	}
	return md
}

func (p pointMaker) fill(r pmetric.ResourceMetrics, instance string) {
	r.SetSchemaUrl("https://opentelemetry.io/schemas/1.26.0")
	r.Resource().Attributes().PutStr("service.name", "hand")
	r.Resource().Attributes().PutStr("service.instance.id", instance)
	r.Resource().Attributes().PutStr("deployment.environment", "test")
	r.Resource().Attributes().PutInt("process.pid", int64(p.round)) // another target_info in every round
	s := r.ScopeMetrics().AppendEmpty()
	s.SetSchemaUrl("https://example.com/scope")
	s.Scope().SetName("by/hand")
	s.Scope().SetVersion("2")
	s.Scope().Attributes().PutStr("größe", "klein")
	list := s.Metrics()
	p.numbers(list)
	p.summary(list)
	p.histograms(list)
	for i := range exponentialShapes {
		p.exponential(list, i)
	}
	list.AppendEmpty().SetName("without.points")
	list.At(list.Len() - 1).SetEmptyGauge()
}

// flags are those of a point whose series has no value in staleRound.
func (p pointMaker) flags() pmetric.DataPointFlags {
	return pmetric.DefaultDataPointFlags.WithNoRecordedValue(p.round == staleRound)
}

func (p pointMaker) numbers(list pmetric.MetricSlice) {
	gauge := list.AppendEmpty()
	gauge.SetName("größe des fasses/№1")
	gauge.SetUnit("m/s")
	gauge.SetDescription("Höhe über dem Boden.")
	points := gauge.SetEmptyGauge().DataPoints()
	for i := range 8 {
		d := points.AppendEmpty()
		d.SetTimestamp(p.now)
		d.SetDoubleValue(unusualValue(i + p.round))
		d.Attributes().PutInt("i", int64(i))
		d.Attributes().PutStr("straße", "ä")
		d.Attributes().PutEmptyMap("map").PutStr("k", "v")
		d.Attributes().PutEmptySlice("list").AppendEmpty().SetInt(7)
		d.Attributes().PutEmptyBytes("bytes").FromRaw([]byte{0, 1, 255})
		d.SetFlags(p.flags())
	}
	for _, monotonic := range []bool{true, false} {
		sum := list.AppendEmpty()
		sum.SetName(map[bool]string{true: "http.requests total", false: "0.balance"}[monotonic])
		sum.SetUnit("{requests}/min")
		s := sum.SetEmptySum()
		s.SetIsMonotonic(monotonic)
		s.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		d := s.DataPoints().AppendEmpty()
		d.SetStartTimestamp(p.start)
		d.SetTimestamp(p.now)
		d.SetIntValue(math.MaxInt64 - 100 + int64(p.round))
		d.SetFlags(p.flags())
		p.exemplar(d.Exemplars(), 1)
		// This one is never without a value.
		d = s.DataPoints().AppendEmpty()
		d.Attributes().PutBool("always", true)
		d.SetStartTimestamp(p.start)
		d.SetTimestamp(p.now)
		d.SetDoubleValue(float64(p.round) + 0.1)
	}
}

// exemplar adds an exemplar where there is a value: Prometheus takes none beside a staleness marker.
func (p pointMaker) exemplar(list pmetric.ExemplarSlice, value float64) {
	if p.flags().NoRecordedValue() {
		return
	}
	e := list.AppendEmpty()
	e.SetTimestamp(p.now)
	e.SetDoubleValue(value)
	e.SetTraceID(pcommon.TraceID{9, byte(p.round)})
	e.SetSpanID(pcommon.SpanID{8, byte(p.round)})
	e.FilteredAttributes().PutStr("user", "u1")
}

func (p pointMaker) summary(list pmetric.MetricSlice) {
	m := list.AppendEmpty()
	m.SetName("rpc.latency")
	m.SetUnit("s")
	d := m.SetEmptySummary().DataPoints().AppendEmpty()
	d.SetStartTimestamp(p.start)
	d.SetTimestamp(p.now)
	d.SetCount(uint64(p.round) * 10)
	d.SetSum(float64(p.round) * 1.5)
	d.SetFlags(p.flags())
	for _, q := range []float64{0, 0.5, 0.99, 1} {
		v := d.QuantileValues().AppendEmpty()
		v.SetQuantile(q)
		v.SetValue(q * float64(p.round))
	}
}

func (p pointMaker) histograms(list pmetric.MetricSlice) {
	m := list.AppendEmpty()
	m.SetName("response.size")
	m.SetUnit("KiBy")
	h := m.SetEmptyHistogram()
	h.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	n := uint64(p.round)
	d := h.DataPoints().AppendEmpty()
	d.SetStartTimestamp(p.start)
	d.SetTimestamp(p.now)
	d.ExplicitBounds().FromRaw([]float64{-1, 0, 0.1, 1e6})
	d.BucketCounts().FromRaw([]uint64{n, 0, 2 * n, 3, n})
	d.SetCount(4*n + 3)
	d.SetSum(float64(n) * 7.5)
	d.SetMin(-3)
	d.SetMax(2e6)
	d.SetFlags(p.flags())
	p.exemplar(d.Exemplars(), 0.05)
	p.exemplar(d.Exemplars(), 1e7)
	// Neither a sum nor bounds: everything lies in one bucket.
	d = h.DataPoints().AppendEmpty()
	d.Attributes().PutStr("bounds", "none")
	d.SetStartTimestamp(p.start)
	d.SetTimestamp(p.now)
	d.BucketCounts().FromRaw([]uint64{n})
	d.SetCount(n)
}

// exponentialShapes are the shapes of exponential histograms.
var exponentialShapes = []struct {
	name          string
	scale, offset int32
	buckets       []uint64
	zeros         uint64
	threshold     float64
}{
	{"plain", 3, -2, []uint64{1, 2, 3}, 4, 1e-9},
	{"coarse", -3, 0, []uint64{5, 0, 0, 0, 7}, 0, 0},
	{"finer.than.native", 12, 1000, []uint64{1, 1, 0, 1, 9, 0, 0, 0, 2}, 1, 0},
	{"far.out", 8, -20000, []uint64{3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}, 0, 0},
	{"zeros.only", 0, 0, nil, 6, 0.5},
}

func (p pointMaker) exponential(list pmetric.MetricSlice, i int) {
	shape := exponentialShapes[i]
	m := list.AppendEmpty()
	m.SetName("exponential." + shape.name)
	m.SetUnit("s")
	h := m.SetEmptyExponentialHistogram()
	h.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
	d := h.DataPoints().AppendEmpty()
	d.SetStartTimestamp(p.start)
	d.SetTimestamp(p.now)
	d.SetScale(shape.scale)
	d.SetZeroCount(shape.zeros)
	d.SetZeroThreshold(shape.threshold)
	d.SetSum(0.1 * float64(p.round))
	count := shape.zeros
	for _, side := range []pmetric.ExponentialHistogramDataPointBuckets{d.Positive(), d.Negative()} {
		side.SetOffset(shape.offset)
		for _, n := range shape.buckets {
			side.BucketCounts().Append(n * uint64(p.round))
			count += n * uint64(p.round)
		}
	}
	d.SetCount(count)
	d.SetFlags(p.flags())
	p.exemplar(d.Exemplars(), 2)
}
