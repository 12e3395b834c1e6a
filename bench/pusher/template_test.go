package pusher

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"

	"github.com/millrace/millrace/bench/numbered"
)

// example is push 3 of sender p07, as text names it below.
var example = push{n: 3, at: 1_790_000_003_123, since: 1_790_000_002_123}

// encode encodes the example.
func encode(t *testing.T, config Config) []byte {
	t.Helper()
	config.URL = "http://127.0.0.1:1"
	if err := config.validate(); err != nil {
		t.Fatal(err)
	}
	template, err := newTemplate(config, 2)
	if err != nil {
		t.Fatal(err)
	}
	before := string(template.bytes)
	body := template.append([]byte("before"), "07", numbered.TargetSeed("p07"), example)
	if string(template.bytes) != before {
		t.Error("the template itself was written")
	}
	return body[len("before"):]
}

// valueOf is the value of a series in a push.
func valueOf(t *testing.T, get func(string) string, n uint64) float64 {
	t.Helper()
	code, ok := numbered.Of(get)
	if !ok {
		t.Fatalf("series %s of target %q with shape %q has no number", get("__name__"), get("target"), get("shape"))
	}
	return code.Value(n)
}

// check compares the series of a remote_write request with what the layout says.
func check(t *testing.T, list []labels.Labels, values []float64, times []int64) {
	t.Helper()
	if len(list) != 100 {
		t.Errorf("%d series, want 100", len(list))
	}
	seen := map[string]bool{}
	for i, l := range list {
		if name, repeated := l.HasDuplicateLabelNames(); repeated || seen[l.String()] {
			t.Errorf("%s: repeated, or label %q is", l, name)
		}
		seen[l.String()] = true
		if l.Get("instance") != "checkout-07.shop:8080" || l.Get("job") != "shop/checkout" || l.Get("target") != "p07" {
			t.Errorf("%s: not of sender 07", l)
		}
		if want := valueOf(t, l.Get, example.n); values[i] != want {
			t.Errorf("%s: value %v, want %v", l, values[i], want)
		}
		if times[i] != example.at {
			t.Errorf("%s: time %d", l, times[i])
		}
	}
}

func TestRemoteWriteIsWhatPrometheusDecodes(t *testing.T) {
	var request prompb.WriteRequest
	if err := request.Unmarshal(encode(t, Config{Protocol: RemoteWrite, Series: 100, Histograms: 2})); err != nil {
		t.Fatal(err)
	}
	var list []labels.Labels
	var values []float64
	var times []int64
	for _, s := range request.Timeseries {
		if len(s.Samples) != 1 {
			t.Fatalf("%d samples of %v", len(s.Samples), s.Labels)
		}
		builder := labels.NewScratchBuilder(0)
		for i, l := range s.Labels {
			if i > 0 && s.Labels[i-1].Name >= l.Name {
				t.Errorf("label %s follows %s", l.Name, s.Labels[i-1].Name)
			}
			builder.Add(l.Name, l.Value)
		}
		list, values, times = append(list, builder.Labels()), append(values, s.Samples[0].Value), append(times, s.Samples[0].Timestamp)
	}
	check(t, list, values, times)
}

func TestRemoteWrite2IsWhatPrometheusDecodes(t *testing.T) {
	var request writev2.Request
	if err := request.Unmarshal(encode(t, Config{Protocol: RemoteWrite2, Series: 100, Histograms: 2})); err != nil {
		t.Fatal(err)
	}
	var list []labels.Labels
	var values []float64
	var times []int64
	builder := labels.NewScratchBuilder(0)
	for _, s := range request.Timeseries {
		l, err := s.ToLabels(&builder, request.Symbols)
		if err != nil || len(s.Samples) != 1 {
			t.Fatalf("%d samples, %v", len(s.Samples), err)
		}
		list, values, times = append(list, l), append(values, s.Samples[0].Value), append(times, s.Samples[0].Timestamp)
		want := writev2.Metadata_METRIC_TYPE_GAUGE
		switch name := l.Get("__name__"); {
		case strings.HasSuffix(name, "_total"):
			want = writev2.Metadata_METRIC_TYPE_COUNTER
		case strings.HasPrefix(name, "http_server_request_duration"):
			want = writev2.Metadata_METRIC_TYPE_HISTOGRAM
		}
		if s.Metadata.Type != want || request.Symbols[s.Metadata.HelpRef] == "" {
			t.Errorf("%s: metadata %+v", l, s.Metadata)
		}
	}
	check(t, list, values, times)
}

func TestOTLPIsWhatTheCollectorDecodes(t *testing.T) {
	for _, delta := range []bool{false, true} {
		request := pmetricotlp.NewExportRequest()
		if err := request.UnmarshalProto(encode(t, Config{Series: 100, Histograms: 2, Delta: delta})); err != nil {
			t.Fatal(err)
		}
		if n := request.Metrics().ResourceMetrics().Len(); n != 1 {
			t.Fatalf("%d resources", n)
		}
		r := request.Metrics().ResourceMetrics().At(0)
		for name, want := range map[string]string{
			"service.name": "checkout", "service.namespace": "shop", "service.instance.id": "checkout-07.shop:8080", "host.name": "checkout-07", "process.pid": "4711",
		} {
			if got, ok := r.Resource().Attributes().Get(name); !ok || got.AsString() != want {
				t.Errorf("%s is not %q", name, want)
			}
		}
		scope := r.ScopeMetrics().At(0)
		if scope.Scope().Name() == "" || scope.Scope().Version() == "" || r.SchemaUrl() == "" {
			t.Error("scope or schema is empty")
		}
		samples := 0
		for _, m := range scope.Metrics().All() {
			samples += checkMetric(t, m, delta)
		}
		if samples != 100 {
			t.Errorf("%d samples, want 100", samples)
		}
	}
}

// checked is a metric of OTLP under test.
type checked struct {
	t     *testing.T
	delta bool
	// name is what Prometheus makes of the metric's.
	name string
}

// checkMetric compares the points of a metric with what the layout says and returns how many samples they become.
func checkMetric(t *testing.T, m pmetric.Metric, delta bool) int {
	t.Helper()
	translated := otlptranslator.Metric{Name: m.Name(), Unit: m.Unit(), Type: otlptranslator.MetricTypeGauge}
	temporality := pmetric.AggregationTemporalityUnspecified
	switch m.Type() {
	case pmetric.MetricTypeSum:
		translated.Type, temporality = otlptranslator.MetricTypeMonotonicCounter, m.Sum().AggregationTemporality()
		if !m.Sum().IsMonotonic() {
			t.Errorf("%s is not monotonic", m.Name())
		}
	case pmetric.MetricTypeHistogram:
		translated.Type, temporality = otlptranslator.MetricTypeHistogram, m.Histogram().AggregationTemporality()
	}
	c := checked{t: t, delta: temporality == pmetric.AggregationTemporalityDelta}
	if c.delta != (delta && m.Type() != pmetric.MetricTypeGauge) {
		t.Errorf("%s has temporality %s", m.Name(), temporality)
	}
	namer := otlptranslator.NewMetricNamer("", otlptranslator.UnderscoreEscapingWithSuffixes)
	var err error
	if c.name, err = namer.Build(translated); err != nil {
		t.Fatal(err)
	}
	if want := prometheusName(m.Name()); c.name != want {
		t.Errorf("%s in %q becomes %s, want %s", m.Name(), m.Unit(), c.name, want)
	}
	switch m.Type() {
	case pmetric.MetricTypeHistogram:
		for _, p := range m.Histogram().DataPoints().All() {
			c.histogram(p)
		}
		return samplesOf * m.Histogram().DataPoints().Len()
	case pmetric.MetricTypeSum:
		for _, p := range m.Sum().DataPoints().All() {
			c.number(p, true)
		}
		return m.Sum().DataPoints().Len()
	default:
		for _, p := range m.Gauge().DataPoints().All() {
			c.number(p, false)
		}
		return m.Gauge().DataPoints().Len()
	}
}

func (c checked) number(p pmetric.NumberDataPoint, started bool) {
	c.t.Helper()
	c.times(p.Timestamp(), p.StartTimestamp(), started)
	got := p.DoubleValue()
	if p.ValueType() == pmetric.NumberDataPointValueTypeInt {
		got = float64(p.IntValue())
	}
	if want := c.value(p.Attributes(), "", ""); got != want {
		c.t.Errorf("%s: value %v, want %v", c.name, got, want)
	}
}

func (c checked) histogram(p pmetric.HistogramDataPoint) {
	c.t.Helper()
	c.times(p.Timestamp(), p.StartTimestamp(), true)
	upTo := uint64(0)
	for i, n := range p.BucketCounts().All() {
		if upTo += n; float64(upTo) != c.value(p.Attributes(), "_bucket", bound(i)) {
			c.t.Errorf("%s: bucket %d ends at %d", c.name, i, upTo)
		}
	}
	if !slices.Equal(p.ExplicitBounds().AsRaw(), numbered.Bounds) || upTo != p.Count() || p.Sum() != c.value(p.Attributes(), "_sum", "") {
		c.t.Errorf("%s: count %d, sum %v, bounds %v", c.name, p.Count(), p.Sum(), p.ExplicitBounds().AsRaw())
	}
}

func (c checked) times(at, start pcommon.Timestamp, started bool) {
	c.t.Helper()
	if int64(at) != example.at*1e6 || started && int64(start) != example.since*1e6 {
		c.t.Errorf("%s: a point from %d to %d", c.name, start, at)
	}
}

// value is what the series with these attributes has in the example.
func (c checked) value(attributes pcommon.Map, suffix, le string) float64 {
	c.t.Helper()
	get := func(label string) string {
		switch label {
		case "__name__":
			return c.name + suffix
		case "le":
			return le
		}
		if v, ok := attributes.Get(label); ok {
			return v.AsString()
		}
		return ""
	}
	v := valueOf(c.t, get, example.n)
	if c.delta {
		v -= valueOf(c.t, get, example.n-1)
	}
	return v
}

// prometheusName is the name that the layout gives a metric in Prometheus.
func prometheusName(name string) string {
	for _, i := range append(instruments[:len(instruments):len(instruments)], duration, number) {
		if i.name == name {
			return i.prometheus
		}
	}
	return ""
}

func BenchmarkPush(b *testing.B) {
	for _, protocol := range Protocols() {
		b.Run(string(protocol), func(b *testing.B) {
			config := Config{URL: "http://127.0.0.1:1", Protocol: protocol}
			if err := config.validate(); err != nil {
				b.Fatal(err)
			}
			template, err := newTemplate(config, 2)
			if err != nil {
				b.Fatal(err)
			}
			transport := newHTTPTransport(config)
			if protocol == OTLPGRPC {
				transport.protocol = OTLPHTTP
			}
			var body, encoded []byte
			p := example
			for b.Loop() {
				p.n++
				body = template.append(body[:0], "07", 7, p)
				if encoded, err = transport.compress(body); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(config.Series), "ns/sample")
			b.ReportMetric(float64(len(body))/float64(config.Series), "plain-B/sample")
			b.ReportMetric(float64(len(encoded))/float64(config.Series), "wire-B/sample")
		})
	}
}
