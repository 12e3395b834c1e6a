package remotewrite

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
)

// item is a TimeSeries as people see it, whatever the protocol.
type item struct {
	Labels    string
	Value     uint64 // bits
	Histogram string
	Time      int64
	Start     int64
	Exemplars []string
	Metadata  metadata.Metadata
}

func showExemplar(l labels.Labels, v float64, t int64) string {
	return fmt.Sprintf("%s %x @%d", l, math.Float64bits(v), t)
}

func showHistogram(i *histogram.Histogram, f *histogram.FloatHistogram) string {
	if i != nil {
		return fmt.Sprintf("int %d %d %d %x %d %x %v %v %v %v %x", i.CounterResetHint, i.Schema, i.Count, math.Float64bits(i.Sum), i.ZeroCount,
			math.Float64bits(i.ZeroThreshold), i.PositiveSpans, i.PositiveBuckets, i.NegativeSpans, i.NegativeBuckets, i.CustomValues)
	}
	return fmt.Sprintf("float %d %d %x %x %x %x %v %x %v %x %x", f.CounterResetHint, f.Schema, math.Float64bits(f.Count), math.Float64bits(f.Sum),
		math.Float64bits(f.ZeroCount), math.Float64bits(f.ZeroThreshold), f.PositiveSpans, f.PositiveBuckets, f.NegativeSpans,
		f.NegativeBuckets, f.CustomValues)
}

// decode reads a body with Prometheus's own types.
func decode(t testing.TB, p Protocol, r *Request) []item {
	t.Helper()
	raw, err := snappy.Decode(nil, r.Body())
	if err != nil {
		t.Fatalf("snappy: %v", err)
	}
	if !bytes.Equal(raw, r.Raw()) {
		t.Fatal("Body and Raw differ")
	}
	if len(raw) != r.Size() {
		t.Errorf("Size is %d, the message has %d bytes", r.Size(), len(raw))
	}
	if p == V1 {
		return decodeV1(t, raw)
	}
	return decodeV2(t, raw)
}

func decodeV1(t testing.TB, raw []byte) (items []item) {
	t.Helper()
	var req prompb.WriteRequest
	if err := req.Unmarshal(raw); err != nil {
		t.Fatalf("WriteRequest: %v", err)
	}
	for _, ts := range req.Timeseries {
		b := labels.NewScratchBuilder(0)
		it := item{Labels: ts.ToLabels(&b, nil).String()}
		var exemplars []string
		for _, x := range ts.Exemplars {
			exemplars = append(exemplars, showExemplar(x.ToExemplar(&b, nil).Labels, x.Value, x.Timestamp))
		}
		if n := len(items); len(ts.Samples)+len(ts.Histograms) == 0 && n > 0 && items[n-1].Histogram != "" && items[n-1].Labels == it.Labels {
			items[n-1].Exemplars = exemplars // a histogram's
			continue
		}
		if len(ts.Histograms) > 0 && len(exemplars) > 0 {
			t.Errorf("%s has exemplars beside a histogram", it.Labels)
		}
		it.Exemplars = exemplars
		for _, s := range ts.Samples {
			it.Value, it.Time = math.Float64bits(s.Value), s.Timestamp
		}
		for _, h := range ts.Histograms {
			it.Time = h.Timestamp
			if h.IsFloatHistogram() {
				it.Histogram = showHistogram(nil, h.ToFloatHistogram())
			} else {
				it.Histogram = showHistogram(h.ToIntHistogram(), nil)
			}
		}
		if len(ts.Samples)+len(ts.Histograms) != 1 {
			t.Errorf("%s has %d samples and %d histograms", it.Labels, len(ts.Samples), len(ts.Histograms))
		}
		items = append(items, it)
	}
	return items
}

func decodeV2(t testing.TB, raw []byte) (items []item) {
	t.Helper()
	var req writev2.Request
	if err := req.Unmarshal(raw); err != nil {
		t.Fatalf("Request: %v", err)
	}
	if len(req.Symbols) == 0 || req.Symbols[0] != "" {
		t.Fatalf("symbols do not begin with the empty one: %q", req.Symbols)
	}
	seen := map[string]bool{}
	for _, s := range req.Symbols {
		if seen[s] {
			t.Errorf("symbol %.40q is there twice", s)
		}
		seen[s] = true
	}
	for _, ts := range req.Timeseries {
		b := labels.NewScratchBuilder(0)
		ls, err := ts.ToLabels(&b, req.Symbols)
		if err != nil {
			t.Fatal(err)
		}
		it := item{Labels: ls.String()}
		if it.Metadata, err = ts.ToMetadata(req.Symbols); err != nil {
			t.Fatal(err)
		}
		for _, s := range ts.Samples {
			it.Value, it.Time, it.Start = math.Float64bits(s.Value), s.Timestamp, s.StartTimestamp
		}
		for _, h := range ts.Histograms {
			it.Time, it.Start = h.Timestamp, h.StartTimestamp
			if h.IsFloatHistogram() {
				it.Histogram = showHistogram(nil, h.ToFloatHistogram())
			} else {
				it.Histogram = showHistogram(h.ToIntHistogram(), nil)
			}
		}
		if len(ts.Samples)+len(ts.Histograms) != 1 {
			t.Errorf("%s has %d samples and %d histograms", it.Labels, len(ts.Samples), len(ts.Histograms))
		}
		for _, x := range ts.Exemplars {
			e, err := x.ToExemplar(&b, req.Symbols)
			if err != nil {
				t.Fatal(err)
			}
			it.Exemplars = append(it.Exemplars, showExemplar(e.Labels, x.Value, x.Timestamp))
		}
		items = append(items, it)
	}
	return items
}

// both runs a test for each protocol.
func both(t *testing.T, run func(t *testing.T, p Protocol)) {
	for _, p := range []Protocol{V1, V2} {
		t.Run("v"+p.String(), func(t *testing.T) { run(t, p) })
	}
}

// expected is an item as the protocol carries it.
func (it item) expected(p Protocol) item {
	if p == V1 {
		it.Start, it.Metadata = 0, metadata.Metadata{}
	} else if it.Metadata.Type == "" {
		it.Metadata.Type = model.MetricTypeUnknown
	}
	return it
}

func check(t testing.TB, p Protocol, r *Request, want []item) {
	t.Helper()
	for i := range want {
		want[i] = want[i].expected(p)
	}
	if diff := cmp.Diff(want, decode(t, p, r), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("decoded request (-want +got):\n%s", diff)
	}
}

func series(ls ...string) frame.Series { return frame.Series{Labels: labels.FromStrings(ls...)} }

func TestProtocolFollowsTheMessage(t *testing.T) {
	for m, want := range map[remoteapi.WriteMessageType]Protocol{
		"": V1, remoteapi.WriteV1MessageType: V1, remoteapi.WriteV2MessageType: V2,
	} {
		if got := ProtocolOf(m); got != want {
			t.Errorf("ProtocolOf(%q) = %v, want %v", m, got, want)
		}
	}
}

func TestFloatSamplesKeepTheirBits(t *testing.T) {
	times := []int64{0, 1, -1, math.MinInt64, math.MaxInt64, benchTime, benchTime}
	values := []float64{
		0, math.Copysign(0, -1), 1, -1.5, math.Inf(1), math.Inf(-1), math.NaN(), math.Float64frombits(value.StaleNaN),
		math.Float64frombits(0xfff8dead00000001), math.SmallestNonzeroFloat64, math.MaxFloat64,
	}
	both(t, func(t *testing.T, p Protocol) {
		s := series("__name__", "x", "a", "b")
		b := NewBlock(p, []frame.Series{s})
		r := NewRequest(p)
		var want []item
		for _, at := range times {
			for _, v := range values {
				for _, st := range times {
					r.Add(b, 0, at, st, v)
					want = append(want, item{Labels: s.Labels.String(), Value: math.Float64bits(v), Time: at, Start: st})
				}
			}
		}
		check(t, p, r, want)
		if r.Samples() != len(want) || r.Histograms() != 0 || r.Exemplars() != 0 {
			t.Errorf("counts %d samples, %d histograms, %d exemplars", r.Samples(), r.Histograms(), r.Exemplars())
		}
	})
}

// TestBytesAreThoseOfPrometheus compares with what the generated code writes for the same message.
func TestBytesAreThoseOfPrometheus(t *testing.T) {
	all := append(targetSeries(3, 200), recordedSeries(t)...)
	all = append(all, series("__name__", "long", "text", strings.Repeat("x", 20_000)), series("a", strings.Repeat("y", 110)))
	values := scrape(len(all))

	t.Run("v1", func(t *testing.T) {
		b, r := NewBlock(V1, all), NewRequest(V1)
		var want prompb.WriteRequest
		for i, s := range all {
			r.Add(b, uint32(i), benchTime+int64(i%3), 0, values[i])
			want.Timeseries = append(want.Timeseries, prompb.TimeSeries{
				Labels:  prompb.FromLabels(s.Labels, nil),
				Samples: []prompb.Sample{{Value: values[i], Timestamp: benchTime + int64(i%3)}},
			})
		}
		raw, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(raw, r.Raw()) {
			t.Error("the bytes differ")
		}
	})
	t.Run("v2", func(t *testing.T) {
		b, r := NewBlock(V2, all), NewRequest(V2)
		symbols := writev2.NewSymbolTable()
		var want writev2.Request
		for i, s := range all {
			// Prometheus writes an empty metadata field where nothing is known; here there is none.
			if s.Metadata.Help == "" {
				continue
			}
			r.Add(b, uint32(i), benchTime+int64(i%3), int64(i%2), values[i])
			ts := writev2.TimeSeries{
				LabelsRefs: symbols.SymbolizeLabels(s.Labels, nil),
				Samples:    []writev2.Sample{{Value: values[i], Timestamp: benchTime + int64(i%3), StartTimestamp: int64(i % 2)}},
			}
			ts.Metadata.Type = writev2.FromMetadataType(s.Metadata.Type)
			ts.Metadata.HelpRef = symbols.Symbolize(s.Metadata.Help)
			ts.Metadata.UnitRef = symbols.Symbolize(s.Metadata.Unit)
			want.Timeseries = append(want.Timeseries, ts)
		}
		want.Symbols = symbols.Symbols()
		raw, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(raw, r.Raw()) {
			t.Error("the bytes differ")
		}
	})
}

func testHistograms() map[string]frame.Histogram {
	spans := []histogram.Span{{Offset: -2, Length: 2}, {Offset: 3, Length: 1}}
	return map[string]frame.Histogram{
		"int": {Int: &histogram.Histogram{
			CounterResetHint: histogram.NotCounterReset, Schema: 3, Count: 21, Sum: 12.5, ZeroCount: 2, ZeroThreshold: 1e-128,
			PositiveSpans: spans, PositiveBuckets: []int64{3, -2, 7}, NegativeSpans: spans, NegativeBuckets: []int64{1, 1, 1},
		}, Time: benchTime, Start: 77},
		"float": {Float: &histogram.FloatHistogram{
			CounterResetHint: histogram.GaugeType, Schema: -4, Count: 21.5, Sum: math.Float64frombits(value.StaleNaN), ZeroCount: 0.5, ZeroThreshold: 1,
			PositiveSpans: spans, PositiveBuckets: []float64{3, 0, 7.25}, NegativeSpans: spans, NegativeBuckets: []float64{1, 1, 1},
		}, Time: benchTime},
		"int with custom buckets": {Int: &histogram.Histogram{
			Schema: histogram.CustomBucketsSchema, Count: 5, Sum: 1, PositiveSpans: []histogram.Span{{Length: 3}},
			PositiveBuckets: []int64{1, 1, 0}, CustomValues: []float64{-1, 0.5},
		}, Time: benchTime},
		"float with custom buckets": {Float: &histogram.FloatHistogram{
			Schema: histogram.CustomBucketsSchema, Count: 5, Sum: 1, PositiveSpans: []histogram.Span{{Length: 3}},
			PositiveBuckets: []float64{1, 2, 2}, CustomValues: []float64{-1, 0.5},
		}, Time: -5, Start: -9},
		"empty":         {Int: &histogram.Histogram{}},
		"negative zero": {Int: &histogram.Histogram{Sum: math.Copysign(0, -1)}, Time: 1},
		"stale":         {Float: &histogram.FloatHistogram{Sum: math.Float64frombits(value.StaleNaN)}, Time: 1},
	}
}

func TestHistograms(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		s := []frame.Series{
			series("__name__", "x"), series("__name__", "y", "long", strings.Repeat("z", 300)), {},
			{Labels: labels.FromStrings("__name__", "m"), Metadata: metadata.Metadata{Type: model.MetricTypeHistogram, Unit: "seconds", Help: "Took."}},
		}
		b := NewBlock(p, s)
		for name, h := range testHistograms() {
			t.Run(name, func(t *testing.T) {
				r := NewRequest(p)
				var want []item
				for i := range s {
					h.Index = uint32(i)
					r.AddHistogram(b, &h)
					r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("t", "1"), Value: 2})
					if i != 2 {
						want = append(want, item{
							Labels: s[i].Labels.String(), Histogram: showHistogram(h.Int, h.Float), Time: h.Time, Start: h.Start, Metadata: s[i].Metadata,
							Exemplars: []string{showExemplar(labels.FromStrings("t", "1"), 2, h.Time)},
						})
					}
				}
				check(t, p, r, want)
				if r.Samples() != 3 || r.Histograms() != 3 || r.Exemplars() != 3 {
					t.Errorf("counts %d samples, %d histograms, %d exemplars", r.Samples(), r.Histograms(), r.Exemplars())
				}
			})
		}
	})
}

// TestHistogramBytesOfV1 makes sure that the message of V2, which is used for both, is what V1's own type writes.
func TestHistogramBytesOfV1(t *testing.T) {
	b := NewBlock(V1, []frame.Series{series("__name__", "x")})
	for name, h := range testHistograms() {
		if name == "negative zero" {
			continue // which the generated code drops
		}
		m := prompb.FromIntHistogram
		ts := prompb.TimeSeries{Labels: []prompb.Label{{Name: "__name__", Value: "x"}}}
		if h.Int != nil {
			ts.Histograms = []prompb.Histogram{m(h.Time, h.Int)}
		} else {
			ts.Histograms = []prompb.Histogram{prompb.FromFloatHistogram(h.Time, h.Float)}
		}
		want, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{ts}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		r := NewRequest(V1)
		r.AddHistogram(b, &h)
		if !bytes.Equal(want, r.Raw()) {
			t.Errorf("%s: the bytes differ", name)
		}
	}
}

func TestOnlyV2CarriesCustomBuckets(t *testing.T) {
	for name, h := range testHistograms() {
		if got, want := V1.Carries(&h), !strings.Contains(name, "custom"); got != want {
			t.Errorf("V1 carries %s: %v", name, got)
		}
		if !V2.Carries(&h) {
			t.Errorf("V2 does not carry %s", name)
		}
	}
}

func TestExemplarsStayWithTheirSample(t *testing.T) {
	trace := labels.FromStrings("trace_id", "0af7651916cd43dd8448eb211c80319c")
	both(t, func(t *testing.T, p Protocol) {
		// Label sets whose message grows over the lengths of one, two and three bytes by the exemplars.
		s := []frame.Series{
			series("__name__", "x"), {}, series("__name__", strings.Repeat("x", 90)), series("__name__", "y", "z", strings.Repeat("y", 16_300)),
		}
		b := NewBlock(p, s)
		r := NewRequest(p)
		r.AddExemplar(&exemplar.Exemplar{Value: 1}) // belongs to nothing
		var want []item
		for i := range s {
			r.Add(b, uint32(i), benchTime, 0, 5)
			it := item{Labels: s[i].Labels.String(), Value: math.Float64bits(5), Time: benchTime}
			for n := range 4 {
				r.AddExemplar(&exemplar.Exemplar{Labels: trace, Value: float64(n), Ts: int64(n), HasTs: true})
				it.Exemplars = append(it.Exemplars, showExemplar(trace, float64(n), int64(n)))
			}
			r.AddExemplar(&exemplar.Exemplar{Value: math.Copysign(0, -1)})
			it.Exemplars = append(it.Exemplars, showExemplar(labels.EmptyLabels(), math.Copysign(0, -1), benchTime))
			if i != 1 {
				want = append(want, it)
			}
		}
		check(t, p, r, want)
		if r.Exemplars() != 15 {
			t.Errorf("%d exemplars", r.Exemplars())
		}
	})
}

func TestDroppedSeriesAreNotSent(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		s := []frame.Series{{}, series("__name__", "a"), {Metadata: metadata.Metadata{Help: "of a dropped one"}}, series("b", "c"), {}}
		b := NewBlock(p, s)
		if b.AllKept() || b.Series() != 5 {
			t.Errorf("AllKept %v, %d series", b.AllKept(), b.Series())
		}
		r := NewRequest(p)
		for i := range s {
			if got, want := b.Kept(uint32(i)), !s[i].Labels.IsEmpty(); got != want {
				t.Errorf("Kept(%d) = %v", i, got)
			}
			if got := b.Labels(uint32(i)); !labels.Equal(got, s[i].Labels) {
				t.Errorf("Labels(%d) = %s", i, got)
			}
			r.Add(b, uint32(i), 1, 0, 1)
		}
		check(t, p, r, []item{
			{Labels: `{__name__="a"}`, Value: math.Float64bits(1), Time: 1}, {Labels: `{b="c"}`, Value: math.Float64bits(1), Time: 1},
		})
		if !NewBlock(p, s[1:2]).AllKept() || !NewBlock(p, nil).AllKept() {
			t.Error("AllKept is false where nothing is dropped")
		}
	})
}

func TestHugeLabelSets(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		var s []frame.Series
		for _, n := range []int{1, 10, 62, 63, 64, 65, 500, 5000} {
			builder := labels.NewScratchBuilder(n)
			for i := range n {
				builder.Add(fmt.Sprintf("label_%d", i), strings.Repeat("v", i))
			}
			builder.Sort()
			s = append(s, frame.Series{Labels: builder.Labels(), Metadata: metadata.Metadata{Type: model.MetricTypeGauge, Unit: "bytes", Help: strings.Repeat("h", n)}})
		}
		b, r := NewBlock(p, s), NewRequest(p)
		for range 2 { // the second time in memory of the first
			r.Reset()
			var want []item
			for i := range s {
				if !labels.Equal(b.Labels(uint32(i)), s[i].Labels) {
					t.Errorf("Labels(%d) differs", i)
				}
				r.Add(b, uint32(i), benchTime, 1, 1)
				want = append(want, item{Labels: s[i].Labels.String(), Value: math.Float64bits(1), Time: benchTime, Start: 1, Metadata: s[i].Metadata})
			}
			check(t, p, r, want)
		}
	})
}
