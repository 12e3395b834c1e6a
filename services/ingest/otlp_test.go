package ingest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/otlptranslator"
	promconfig "github.com/prometheus/prometheus/config"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/millrace/millrace/services/ingest/door"
)

var testLimits = &door.Limits{MaxSeriesPerRequest: 100_000, MaxLabelNames: 64, MaxLabelNameBytes: 1024, MaxLabelValueBytes: 4096}

// newTranslating returns a service of which only the translation is used.
func newTranslating(cfg promconfig.OTLPConfig) *Service {
	s := New(Config{Partitions: 4, MaxSeries: 1 << 20, MaxPendingBytes: 1 << 20, Registerer: prometheus.NewRegistry()})
	s.ApplyConfig(cfg)
	return s
}

// gathered returns what a service makes of a request, one line a sample.
func gathered(t *testing.T, s *Service, format door.Format, body []byte) []string {
	t.Helper()
	r := s.begin(&door.Push{Format: format, Limits: testLimits})
	defer r.release()
	var err error
	switch format {
	case door.OTLP:
		err = r.readOTLP(body)
	case door.RemoteWriteV1:
		err = r.readV1(body)
	case door.RemoteWriteV2:
		err = r.readV2(body)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range r.reasons {
		t.Log(reason)
	}
	lines := []string{}
	for _, g := range r.gathers {
		for i := range g.samples {
			x := &g.samples[i]
			y := translated{labels: x.ser.labels, t: x.t, st: x.st, v: x.v, family: x.ser.family, meta: x.ser.meta, exs: x.exs}
			if x.hist != nil {
				y.h, y.fh = x.hist.Int, x.hist.Float
			}
			lines = append(lines, y.line())
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines) // target_info may be there twice
}

// line tells all of a sample.
func (x *translated) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %d %x %s %+v", x.labels, x.t, x.st, math.Float64bits(x.v), x.family, x.meta)
	if x.h != nil {
		fmt.Fprintf(&b, " %x %+v", math.Float64bits(x.h.Sum), x.h)
	}
	if x.fh != nil {
		fmt.Fprintf(&b, " %+v", x.fh)
	}
	for _, e := range x.exs {
		fmt.Fprintf(&b, " # %s %v %d %t", e.Labels, e.Value, e.Ts, e.HasTs)
	}
	return b.String()
}

// byPrometheus returns what Prometheus's package makes of metrics in one go.
func byPrometheus(t *testing.T, s *Service, md pmetric.Metrics) []string {
	t.Helper()
	l := &learner{}
	l.converter.Reset(l)
	if _, err := l.converter.FromMetrics(context.Background(), md, s.translation.Load().settings); err != nil {
		t.Fatal(err)
	}
	lines := []string{}
	for i := range l.got {
		l.got[i].labels = l.got[i].labels.WithoutEmpty()
		lines = append(lines, l.got[i].line())
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// generator makes metrics of every kind. Two generators with the same seed make the same series; their values follow from the round.
type generator struct {
	r     *rand.Rand
	round int
	start time.Time
}

func newGenerator(seed uint64, round int) *generator {
	return &generator{rand.New(rand.NewPCG(seed, 7)), round, time.Now().Truncate(time.Second)}
}

func (g *generator) metrics() pmetric.Metrics {
	md := pmetric.NewMetrics()
	for range 1 + g.r.IntN(3) {
		rm := md.ResourceMetrics().AppendEmpty()
		a := rm.Resource().Attributes()
		if g.r.IntN(6) > 0 {
			a.PutStr("service.name", g.word())
		}
		if g.r.IntN(3) > 0 {
			a.PutStr("service.instance.id", g.word())
		}
		if g.r.IntN(2) > 0 {
			a.PutStr("service.namespace", g.word())
		}
		g.attributes(a, 4)
		rm.SetSchemaUrl("https://opentelemetry.io/schemas/1.26.0")
		for range 1 + g.r.IntN(2) {
			sm := rm.ScopeMetrics().AppendEmpty()
			if g.r.IntN(3) > 0 {
				sm.Scope().SetName(g.word())
				sm.Scope().SetVersion("1.2")
				g.attributes(sm.Scope().Attributes(), 2)
			}
			names := map[string]bool{}
			for range 1 + g.r.IntN(6) {
				name := g.word() + "." + g.word()
				if names[name] {
					continue
				}
				names[name] = true
				m := sm.Metrics().AppendEmpty()
				m.SetName(fmt.Sprintf("%s_%d", name, md.MetricCount()))
				m.SetUnit([]string{"", "s", "By", "1", "{packet}", "m/s"}[g.r.IntN(6)])
				m.SetDescription(g.word())
				g.fill(m)
			}
		}
	}
	return md
}

func (g *generator) word() string {
	words := []string{"http", "server", "Größe", "request/duration", "a.b", "cpu usage", "_x", "__y", "k8s.pod", "9lives", "process"}
	return words[g.r.IntN(len(words))]
}

func (g *generator) attributes(m pcommon.Map, most int) {
	for range g.r.IntN(most + 1) {
		name := g.word()
		switch g.r.IntN(5) {
		case 0:
			m.PutInt(name, g.r.Int64N(5))
		case 1:
			m.PutBool(name, true)
		case 2:
			m.PutEmptySlice(name).AppendEmpty().SetStr("in a list")
		case 3:
			m.PutStr(name, "")
		default:
			m.PutStr(name, fmt.Sprintf("value %d ä", g.r.IntN(100)))
		}
	}
}

// value is a number that changes with the round; the random source does not.
func (g *generator) value() float64 {
	return float64(g.r.IntN(1000))/4 + float64(g.round*g.r.IntN(100))
}

func (g *generator) times() (start, now pcommon.Timestamp) {
	now = pcommon.NewTimestampFromTime(g.start.Add(time.Duration(g.round)*15*time.Second + time.Duration(g.r.IntN(3))*time.Millisecond))
	if g.r.IntN(3) > 0 {
		start = pcommon.NewTimestampFromTime(g.start.Add(-time.Hour))
	}
	return start, now
}

func (g *generator) flags() pmetric.DataPointFlags {
	return pmetric.DefaultDataPointFlags.WithNoRecordedValue(g.r.IntN(10) == 0 && g.round%2 == 1)
}

func (g *generator) exemplars(list pmetric.ExemplarSlice) {
	for range max(g.r.IntN(6)-3, 0) {
		e := list.AppendEmpty()
		e.SetDoubleValue(g.value())
		_, now := g.times()
		e.SetTimestamp(now)
		e.SetTraceID(pcommon.TraceID{1, 2, byte(g.round)})
		e.FilteredAttributes().PutStr("user", g.word())
	}
}

// points gives each of a metric's points attributes of its own.
func (g *generator) points(add func() pcommon.Map) {
	for i := range 1 + g.r.IntN(4) {
		a := add()
		g.attributes(a, 5)
		a.PutInt("point", int64(i))
	}
}

func (g *generator) fill(m pmetric.Metric) {
	switch g.r.IntN(5) {
	case 0:
		m.SetEmptyGauge()
		g.points(func() pcommon.Map { return g.number(m.Gauge().DataPoints().AppendEmpty(), false) })
	case 1:
		m.SetEmptySum().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		m.Sum().SetIsMonotonic(g.r.IntN(2) == 0)
		g.points(func() pcommon.Map { return g.number(m.Sum().DataPoints().AppendEmpty(), true) })
	case 2:
		m.SetEmptyHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		g.points(func() pcommon.Map { return g.histogram(m.Histogram().DataPoints().AppendEmpty()) })
	case 3:
		m.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		g.points(func() pcommon.Map { return g.exponential(m.ExponentialHistogram().DataPoints().AppendEmpty()) })
	default:
		m.SetEmptySummary()
		g.points(func() pcommon.Map { return g.summary(m.Summary().DataPoints().AppendEmpty()) })
	}
}

func (g *generator) number(p pmetric.NumberDataPoint, exemplars bool) pcommon.Map {
	start, now := g.times()
	p.SetStartTimestamp(start)
	p.SetTimestamp(now)
	p.SetFlags(g.flags())
	if v := g.value(); g.r.IntN(2) == 0 {
		p.SetIntValue(int64(v))
	} else {
		p.SetDoubleValue(v)
	}
	if exemplars {
		g.exemplars(p.Exemplars())
	}
	return p.Attributes()
}

func (g *generator) histogram(p pmetric.HistogramDataPoint) pcommon.Map {
	start, now := g.times()
	p.SetStartTimestamp(start)
	p.SetTimestamp(now)
	p.SetFlags(g.flags())
	n := g.r.IntN(5)
	for i := range n {
		p.ExplicitBounds().Append(float64(i*10) + 0.5)
	}
	count := uint64(0)
	for range n + 1 {
		c := uint64(g.value())
		count += c
		p.BucketCounts().Append(c)
	}
	p.SetCount(count)
	if g.r.IntN(2) == 0 {
		p.SetSum(g.value())
	}
	g.exemplars(p.Exemplars())
	return p.Attributes()
}

func (g *generator) exponential(p pmetric.ExponentialHistogramDataPoint) pcommon.Map {
	start, now := g.times()
	p.SetStartTimestamp(start)
	p.SetTimestamp(now)
	p.SetScale(int32(g.r.IntN(14)) - 4)
	count := uint64(3)
	p.SetZeroCount(3)
	for _, b := range []pmetric.ExponentialHistogramDataPointBuckets{p.Positive(), p.Negative()} {
		b.SetOffset(int32(g.r.IntN(40)) - 20)
		for range g.r.IntN(20) {
			c := uint64(g.r.IntN(3)) * uint64(g.round+1)
			count += c
			b.BucketCounts().Append(c)
		}
	}
	p.SetCount(count)
	p.SetSum(g.value())
	g.exemplars(p.Exemplars())
	return p.Attributes()
}

func (g *generator) summary(p pmetric.SummaryDataPoint) pcommon.Map {
	start, now := g.times()
	p.SetStartTimestamp(start)
	p.SetTimestamp(now)
	p.SetFlags(g.flags())
	p.SetCount(uint64(g.value()))
	p.SetSum(g.value())
	for i := range g.r.IntN(4) {
		q := p.QuantileValues().AppendEmpty()
		q.SetQuantile(float64(i) / 4)
		q.SetValue(g.value())
	}
	return p.Attributes()
}

// otlpConfigs are the options of the section otlp of a configuration.
func otlpConfigs() map[string]promconfig.OTLPConfig {
	with := func(change func(*promconfig.OTLPConfig)) promconfig.OTLPConfig {
		c := promconfig.DefaultOTLPConfig
		change(&c)
		return c
	}
	return map[string]promconfig.OTLPConfig{
		"default": promconfig.DefaultOTLPConfig,
		"utf8":    with(func(c *promconfig.OTLPConfig) { c.TranslationStrategy = otlptranslator.NoUTF8EscapingWithSuffixes }),
		"no suffixes": with(func(c *promconfig.OTLPConfig) {
			c.TranslationStrategy = otlptranslator.UnderscoreEscapingWithoutSuffixes
		}),
		"no translation":       with(func(c *promconfig.OTLPConfig) { c.TranslationStrategy = otlptranslator.NoTranslation }),
		"promoted":             with(func(c *promconfig.OTLPConfig) { c.PromoteResourceAttributes = []string{"k8s.pod", "http", "process"} }),
		"all promoted":         with(func(c *promconfig.OTLPConfig) { c.PromoteAllResourceAttributes = true }),
		"identifying":          with(func(c *promconfig.OTLPConfig) { c.KeepIdentifyingResourceAttributes = true }),
		"custom buckets":       with(func(c *promconfig.OTLPConfig) { c.ConvertHistogramsToNHCB = true }),
		"scope":                with(func(c *promconfig.OTLPConfig) { c.PromoteScopeMetadata = true }),
		"multiple underscores": with(func(c *promconfig.OTLPConfig) { c.LabelNamePreserveMultipleUnderscores = true }),
	}
}

func TestOTLPIsTranslatedAsByPrometheus(t *testing.T) {
	for name, cfg := range otlpConfigs() {
		t.Run(name, func(t *testing.T) {
			s := newTranslating(cfg)
			for seed := range uint64(60) {
				for round := range 3 {
					md := newGenerator(seed, round).metrics()
					body, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(md)
					if err != nil {
						t.Fatal(err)
					}
					want, got := byPrometheus(t, s, md), gathered(t, s, door.OTLP, body)
					if !slices.Equal(want, got) {
						t.Fatalf("seed %d, round %d:\n%s", seed, round, diff(want, got))
					}
				}
			}
		})
	}
}

// diff tells in which lines two sorted lists differ.
func diff(want, got []string) string {
	var b strings.Builder
	for _, l := range want {
		if !slices.Contains(got, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}
