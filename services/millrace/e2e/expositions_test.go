package e2e_test

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// phaseMetric tells the phase that a scrape has seen. Every target exposes it.
const phaseMetric = "e2e_phase"

func phaseText(s scene) string {
	return fmt.Sprintf("# HELP %[1]s Phase of the test.\n# TYPE %[1]s gauge\n%[1]s %[2]d\n", phaseMetric, s.phase)
}

// plainText is a target with nothing special about it.
func plainText(s scene) exposition {
	return text(phaseText(s) + fmt.Sprintf("# HELP plain_total Counts.\n# TYPE plain_total counter\nplain_total{kind=\"a\"} %d\nplain_total{kind=\"b\"} %d.5\n", s.phase*10, s.phase))
}

// specialValues is a target with the values that are easily spoiled.
func specialValues(s scene) exposition {
	var b strings.Builder
	b.WriteString(phaseText(s))
	values := []string{"NaN", "+Inf", "-Inf", "-0", "0", "5e-324", "1.7976931348623157e308", "-1e-310", "0.1", "123456789012345678", "1e21", "3.0000000000000004"}
	for i := range values {
		// Each series goes through all values, one in a phase.
		fmt.Fprintf(&b, "special{i=\"%d\"} %s\n", i, values[(i+s.phase)%len(values)])
	}
	fmt.Fprintf(&b, "special{escaped=\"a\\\\b\\\"c\\nd\",unicode=\"Grüße 東京\",empty=\"\"} %d\n", s.phase)
	fmt.Fprintf(&b, "{\"dotted.name\",\"label.with dots\"=\"x\"} %d\n", s.phase)
	return text(b.String())
}

// vanishing is a target of whose series some are gone in the second phase and back in the third.
func vanishing(s scene) exposition {
	b := phaseText(s) + fmt.Sprintf("stays %d\n", s.phase)
	if s.phase != 2 {
		b += fmt.Sprintf("goes{n=\"1\"} %d\ngoes{n=\"2\"} 7\n", s.phase)
	}
	if s.phase == 2 {
		b += "comes 1\n"
	}
	return text(b)
}

// duplicates is a target that exposes a series twice.
func duplicates(s scene) exposition {
	return text(phaseText(s) + fmt.Sprintf("twice{v=\"same\"} %[1]d\ntwice{v=\"same\"} %[1]d\ntwice{v=\"other\"} %[1]d\ntwice{v=\"other\"} -%[1]d\nafter %[1]d\n", s.phase))
}

// clashing is a target that has labels which the scraper sets too.
func clashing(s scene) exposition {
	return text(phaseText(s) + fmt.Sprintf("clash{job=\"own\",instance=\"mine\",env=\"exposed\"} %[1]d\nclash{job=\"\",instance=\"other\"} %[1]d\nclash{exported_job=\"x\",job=\"y\"} %[1]d\n", s.phase))
}

// relabelled is a target for metric_relabel_configs.
func relabelled(s scene) exposition {
	return text(phaseText(s) + fmt.Sprintf(`unwanted_total 1
renamed_total{path="/a/b",noise="1"} %[1]d
renamed_total{path="/c",noise="2"} %[1]d
labelled{meta_team="x",meta_tier="1"} %[1]d
hashed{user="alice"} %[1]d
hashed{user="bob"} %[1]d
UPPER{Case="MiXed"} %[1]d
`, s.phase))
}

// limited is a target that exposes more in the second phase than limits allow.
func limited(s scene) exposition {
	b := phaseText(s)
	n := 4
	if s.phase == 2 {
		n = 10
	}
	for i := range n {
		b += fmt.Sprintf("limited{i=\"%d\"} %d\n", i, s.phase)
	}
	return text(b)
}

// overlabelled has too many labels in the third phase.
func overlabelled(s scene) exposition {
	if s.phase == 3 {
		return text(phaseText(s) + "labels{a=\"1\",b=\"2\",c=\"3\",d=\"4\"} 1\n")
	}
	return text(phaseText(s) + "labels{a=\"1\"} 1\n")
}

// broken exposes half a page in the third phase.
func broken(s scene) exposition {
	b := phaseText(s) + fmt.Sprintf("before %d\n", s.phase)
	if s.phase == 3 {
		b += "this is {not an exposition\n"
	}
	return text(b + fmt.Sprintf("behind %d\n", s.phase))
}

func flapping(s scene) exposition {
	if s.phase == 3 {
		return exposition{status: 503, body: []byte("down for maintenance\n")}
	}
	return plainText(s)
}

// leaving is a target that discovery takes away some time in the third phase. Until then it shows the second.
func leaving(s scene) exposition {
	if s.phase == 3 {
		s.phase = 2
	}
	return vanishing(s)
}

func hanging(s scene) exposition {
	if s.phase == 2 {
		return exposition{hang: true}
	}
	return plainText(s)
}

func untyped(s scene) exposition {
	e := plainText(s)
	e.contentType = ""
	return e
}

// timestamped is a target with timestamps of its own, some of which are gone in the third phase.
func timestamped(s scene) exposition {
	b := phaseText(s) + fmt.Sprintf("stamped{i=\"1\"} %d %d\n", s.phase, s.start)
	b += fmt.Sprintf("stamped{i=\"2\"} %d %d\nunstamped %d\n", s.phase, s.start-700, s.phase)
	if s.phase != 3 {
		b += fmt.Sprintf("stamped{i=\"leaves\"} %d %d\n", s.phase, s.start-1)
	}
	// Two samples of one series, as a page may have them that looks back.
	b += fmt.Sprintf("history %d %d\nhistory %d %d\n", s.phase*10, s.start-500, s.phase*10+1, s.start-100)
	// Hours ahead: such samples are refused.
	return text(b + fmt.Sprintf("future 1 %d\n", s.start+2*3600*1000))
}

// classic is a target with classic histograms and summaries.
func classic(s scene) exposition {
	n := s.phase
	if n == 4 {
		n = 1 // the target has restarted
	}
	var b strings.Builder
	b.WriteString(phaseText(s) + "# HELP classic_seconds Durations.\n# TYPE classic_seconds histogram\n")
	for i := range 3 {
		for k, le := range []string{"0.1", "0.5", "1", "+Inf"} {
			fmt.Fprintf(&b, "classic_seconds_bucket{i=\"%d\",le=\"%s\"} %d\n", i, le, n*(k+1)*(i+1))
		}
		fmt.Fprintf(&b, "classic_seconds_sum{i=\"%d\"} %g\nclassic_seconds_count{i=\"%d\"} %d\n", i, float64(n)*.3, i, n*4*(i+1))
	}
	b.WriteString("# HELP quantiles Summary.\n# TYPE quantiles summary\n")
	fmt.Fprintf(&b, "quantiles{quantile=\"0.5\"} %d\nquantiles{quantile=\"0.99\"} NaN\nquantiles_sum %d\nquantiles_count %d\n", n, n*7, n*2)
	return text(b.String())
}

// openMetricsTarget has what only OpenMetrics has.
func openMetricsTarget(s scene) exposition {
	b := phaseText(s) + fmt.Sprintf(`# HELP orders Orders taken.
# TYPE orders counter
orders_total{shop="a"} %[1]d # {trace_id="with-time-%[1]d"} 0.5 %[2]s
orders_created{shop="a"} 1700000000.25
orders_total{shop="b"} %[1]d # {trace_id="without-time-%[1]d",span="ü"} 1.5
orders_created{shop="b"} 1700000001
# HELP wait_seconds Time waited.
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
wait_seconds_bucket{le="0.1"} %[1]d # {trace_id="fast-%[1]d"} 0.05 %[2]s
wait_seconds_bucket{le="1.0"} %[3]d # {} 0.7
wait_seconds_bucket{le="+Inf"} %[4]d
wait_seconds_sum 12.5
wait_seconds_count %[4]d
wait_seconds_created 1700000002.125
# TYPE build info
build_info{version="1.2.%[1]d"} 1
# TYPE mode stateset
mode{mode="on"} 1
mode{mode="off"} 0
# HELP stamped With a time.
# TYPE stamped gauge
stamped %[1]d %[2]s
# TYPE what unknown
what -1
# EOF
`, s.phase, seconds(s.start), s.phase*2, s.phase*3)
	return openMetrics(b)
}

func seconds(ms int64) string { return strconv.FormatFloat(float64(ms)/1000, 'f', 3, 64) }

// manyHistograms is more than one section of a frame holds.
const manyHistograms = 300

// native is a protobuf target with histograms of all kinds.
func native(s scene) exposition {
	n := uint64(s.phase)
	if n == 4 {
		n = 1 // the target has restarted: counters are reset
	}
	at := timestamppb.New(msTime(s.start))
	families := []*dto.MetricFamily{
		family(phaseMetric, "Phase of the test.", dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(float64(s.phase))}}),
		family("native_float", "Float native histogram.", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: floatHistogram(float64(n))}),
		family("native_gauge", "Gauge histogram.", dto.MetricType_GAUGE_HISTOGRAM, &dto.Metric{Histogram: gaugeHistogram(n)}),
		family("changing", "Another schema in each phase.", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: changingHistogram(s.phase)}),
		family("buckets_seconds", "Classic buckets only.", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: classicHistogram(n, at)}),
		family("events_total", "Counter with an exemplar and a start.", dto.MetricType_COUNTER, &dto.Metric{Counter: &dto.Counter{
			Value: proto.Float64(float64(n)), Exemplar: protoExemplar(fmt.Sprint("event", s.phase), 1, at), CreatedTimestamp: timestamppb.New(msTime(1700000000000)),
		}}),
		family("quantile_seconds", "Summary.", dto.MetricType_SUMMARY, &dto.Metric{Summary: &dto.Summary{
			SampleCount: proto.Uint64(n), SampleSum: proto.Float64(2), Quantile: []*dto.Quantile{{Quantile: proto.Float64(.5), Value: proto.Float64(math.NaN())}},
		}}),
		family("odd", "Values that text cannot carry.", dto.MetricType_UNTYPED, oddValues(s.phase)...),
	}
	// A family each: of a family of native histograms, Prometheus's parser returns the first one's exemplars only.
	for i := range manyHistograms {
		families = append(families, family(fmt.Sprintf("native_%d_seconds", i), "Integer native histogram.", dto.MetricType_HISTOGRAM, intHistogram(s, i, n, at)))
	}
	if s.phase != 3 {
		families = append(families, family("leaving_native", "Gone in the third phase.", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: floatHistogram(3)}))
	}
	// One name, first a histogram, then a float.
	if s.phase <= 2 {
		families = append(families, family("turning", "Histogram.", dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: floatHistogram(float64(n))}))
	} else {
		families = append(families, family("turning", "Gauge.", dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: proto.Float64(float64(n))}}))
	}
	var body bytes.Buffer
	enc := expfmt.NewEncoder(&body, expfmt.Format(protobufType))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			panic(err) // cannot happen: the buffer takes everything, and the families are valid
		}
	}
	return exposition{contentType: protobufType, body: body.Bytes()}
}

func family(name, help string, kind dto.MetricType, metrics ...*dto.Metric) *dto.MetricFamily {
	return &dto.MetricFamily{Name: proto.String(name), Help: proto.String(help), Type: kind.Enum(), Metric: metrics}
}

func pair(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)}
}

func protoExemplar(trace string, value float64, at *timestamppb.Timestamp) *dto.Exemplar {
	return &dto.Exemplar{Label: []*dto.LabelPair{pair("trace_id", trace)}, Value: proto.Float64(value), Timestamp: at}
}

func span(offset int32, length uint32) *dto.BucketSpan {
	return &dto.BucketSpan{Offset: proto.Int32(offset), Length: proto.Uint32(length)}
}

func intHistogram(s scene, i int, n uint64, at *timestamppb.Timestamp) *dto.Metric {
	before := timestamppb.New(at.AsTime().Add(-time.Millisecond))
	h := &dto.Histogram{
		SampleCount: proto.Uint64(n + n + 2*n + n + 6*n), // zero bucket, positive ones, negative ones
		SampleSum:   proto.Float64(float64(n) * 1.5), Schema: proto.Int32(3), ZeroThreshold: proto.Float64(1e-9), ZeroCount: proto.Uint64(n),
		PositiveSpan: []*dto.BucketSpan{span(-2, 2), span(3, 1)}, PositiveDelta: []int64{int64(n), int64(n), -int64(n)},
		NegativeSpan: []*dto.BucketSpan{span(0, 2)}, NegativeDelta: []int64{int64(3 * n), 0},
		Exemplars: []*dto.Exemplar{protoExemplar(fmt.Sprintf("a-%d-%d", i, s.phase), .1, before), protoExemplar(fmt.Sprintf("b-%d-%d", i, s.phase), .2, at)},
	}
	if i < 10 {
		// Classic buckets besides.
		h.Bucket = []*dto.Bucket{
			{UpperBound: proto.Float64(.5), CumulativeCount: proto.Uint64(n)},
			{UpperBound: proto.Float64(5), CumulativeCount: proto.Uint64(2 * n), Exemplar: protoExemplar(fmt.Sprintf("classic-%d-%d", i, s.phase), 4, at)},
		}
	}
	return &dto.Metric{Label: []*dto.LabelPair{pair("i", strconv.Itoa(i))}, Histogram: h}
}

func floatHistogram(n float64) *dto.Histogram {
	return &dto.Histogram{
		SampleCountFloat: proto.Float64(n * 2.25), SampleSum: proto.Float64(n / 3), Schema: proto.Int32(-1), ZeroThreshold: proto.Float64(.001), ZeroCountFloat: proto.Float64(n * .25),
		PositiveSpan: []*dto.BucketSpan{span(0, 1), span(100, 2)}, PositiveCount: []float64{n * .5, n * .5, n},
	}
}

func gaugeHistogram(n uint64) *dto.Histogram {
	return &dto.Histogram{
		SampleCount: proto.Uint64(10 / n), SampleSum: proto.Float64(-1), Schema: proto.Int32(0), ZeroThreshold: proto.Float64(0), ZeroCount: proto.Uint64(0),
		PositiveSpan: []*dto.BucketSpan{span(int32(n), 1)}, PositiveDelta: []int64{int64(10 / n)},
	}
}

func changingHistogram(phase int) *dto.Histogram {
	return &dto.Histogram{
		SampleCount: proto.Uint64(uint64(3 * phase)), SampleSum: proto.Float64(math.Inf(1)), Schema: proto.Int32(int32(5 - phase)),
		ZeroThreshold: proto.Float64(math.Pow(2, float64(-10*phase))), ZeroCount: proto.Uint64(0),
		PositiveSpan: []*dto.BucketSpan{span(int32(phase*10), uint32(phase))}, PositiveDelta: append([]int64{3}, make([]int64, phase-1)...),
	}
}

func classicHistogram(n uint64, at *timestamppb.Timestamp) *dto.Histogram {
	return &dto.Histogram{
		SampleCount: proto.Uint64(4 * n), SampleSum: proto.Float64(7),
		Bucket: []*dto.Bucket{
			{UpperBound: proto.Float64(.25), CumulativeCount: proto.Uint64(n), Exemplar: protoExemplar(fmt.Sprint("low", n), .2, at)},
			{UpperBound: proto.Float64(2.5), CumulativeCount: proto.Uint64(3 * n)},
			{UpperBound: proto.Float64(math.Inf(1)), CumulativeCount: proto.Uint64(4 * n), Exemplar: protoExemplar(fmt.Sprint("high", n), 9, at)},
		},
	}
}

// oddValues are NaNs other than the one that text has, and a negative zero.
func oddValues(phase int) []*dto.Metric {
	bits := []uint64{0x7ff8000000000001, 0x7ff8000000000123, 0xfff8000000000000, 1 << 63, 1, 0x7ff0000000000000}
	var list []*dto.Metric
	for i := range bits {
		list = append(list, &dto.Metric{Label: []*dto.LabelPair{pair("i", strconv.Itoa(i))}, Untyped: &dto.Untyped{Value: proto.Float64(math.Float64frombits(bits[(i+phase)%len(bits)]))}})
	}
	return list
}
