package ingest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/millrace/millrace/services/ingest/door"
)

// service makes metrics of one resource with a gauge point, which change may add to.
func onePoint(change func(pmetric.ResourceMetrics, pmetric.NumberDataPoint)) pmetric.Metrics {
	md := pmetric.NewMetrics()
	rm := md.ResourceMetrics().AppendEmpty()
	rm.Resource().Attributes().PutStr("service.name", "api")
	rm.Resource().Attributes().PutStr("service.instance.id", "a")
	m := rm.ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	m.SetName("queue.length")
	p := m.SetEmptyGauge().DataPoints().AppendEmpty()
	p.SetIntValue(7)
	p.SetTimestamp(pcommon.NewTimestampFromTime(time.Now()))
	change(rm, p)
	return md
}

func (r *rig) otlp(md pmetric.Metrics, tenant string) (door.Outcome, error) {
	r.t.Helper()
	body, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(md)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.Take(r.t.Context(), &door.Push{Format: door.OTLP, Body: body, Tenant: tenant, Limits: testLimits})
}

func TestPointsThatCannotBeTakenAreNamed(t *testing.T) {
	cases := []struct {
		name    string
		change  func(pmetric.ResourceMetrics, pmetric.NumberDataPoint)
		refused int
		reason  string
	}{
		{"no timestamp", func(_ pmetric.ResourceMetrics, p pmetric.NumberDataPoint) { p.SetTimestamp(0) }, 1, "no timestamp"},
		{"future", func(_ pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			p.SetTimestamp(pcommon.NewTimestampFromTime(time.Now().Add(24 * time.Hour)))
		}, 1, "too far in the future"},
		{"delta", func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetName("requests")
			m.SetEmptySum().SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
			p.CopyTo(m.Sum().DataPoints().AppendEmpty())
			p.CopyTo(m.Sum().DataPoints().AppendEmpty())
		}, 2, "millrace.ingest.delta.enabled"},
		{"no temporality", func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetEmptySum()
			p.CopyTo(m.Sum().DataPoints().AppendEmpty())
		}, 1, "no aggregation temporality"},
		{"no name", func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			rm.ScopeMetrics().At(0).Metrics().At(0).SetName("")
		}, 1, "cannot be translated"},
		{"invalid UTF-8", func(_ pmetric.ResourceMetrics, p pmetric.NumberDataPoint) { p.Attributes().PutStr("a", "\xff\xfe") }, 1, "UTF-8"},
		{"many attributes", func(_ pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			for i := range 1000 {
				p.Attributes().PutStr(fmt.Sprint("a", i), "x")
			}
		}, 1, "1000 attributes"},
		{"long value", func(_ pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			p.Attributes().PutStr("a", strings.Repeat("x", 5000))
		}, 1, "5000 bytes"},
		{"resource of many attributes", func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			for i := range 1000 {
				rm.Resource().Attributes().PutStr(fmt.Sprint("a", i), "x")
			}
		}, 1, "1002 attributes"},
		{"scale", func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetName("h")
			m.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			h := m.ExponentialHistogram().DataPoints().AppendEmpty()
			h.SetTimestamp(pcommon.NewTimestampFromTime(time.Now()))
			h.SetScale(-10)
		}, 1, "Scale must be"},
		{"histogram that does not add up", func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetName("h")
			m.SetEmptyExponentialHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			h := m.ExponentialHistogram().DataPoints().AppendEmpty()
			h.SetTimestamp(pcommon.NewTimestampFromTime(time.Now()))
			h.Positive().BucketCounts().FromRaw([]uint64{5})
			h.SetCount(1)
			h.SetSum(1)
		}, 1, "invalid histogram"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			for range 2 { // also when the others are known
				out, err := r.otlp(onePoint(c.change), "")
				if err != nil || out.Refused != c.refused || !strings.Contains(out.Reason, c.reason) {
					t.Errorf("%+v, %v; want %d refused, because of %q", out, err, c.refused, c.reason)
				}
			}
		})
	}
}

func TestRequestThatCannotBeReadIsRefusedWhole(t *testing.T) {
	r := newRig(t)
	body, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(onePoint(func(pmetric.ResourceMetrics, pmetric.NumberDataPoint) {}))
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []door.Format{door.OTLP, door.RemoteWriteV1, door.RemoteWriteV2} {
		_, err := r.Take(t.Context(), &door.Push{Format: format, Body: append(body[:len(body):len(body)], 0x0a, 0xff), Limits: testLimits})
		if kind, ok := kindOf(err); !ok || kind != door.Malformed {
			t.Errorf("format %d: %v", format, err)
		}
		if out, err := r.Take(t.Context(), &door.Push{Format: format, Limits: testLimits}); err != nil || out != (door.Outcome{}) {
			t.Errorf("an empty request of format %d: %+v, %v", format, out, err)
		}
	}
	few := *testLimits
	few.MaxSeriesPerRequest = 3
	md := onePoint(func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
		for range 4 {
			p.CopyTo(rm.ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().AppendEmpty())
		}
	})
	body, _ = (&pmetric.ProtoMarshaler{}).MarshalMetrics(md)
	if _, err := r.Take(t.Context(), &door.Push{Body: body, Limits: &few}); err == nil || !strings.Contains(err.Error(), "more than 3 points") {
		t.Errorf("%v", err)
	}
	if list := r.stored(); len(list) > 0 {
		t.Errorf("%d samples are in the stream", len(list))
	}
}

// What a request leaves behind that was given up in the middle must not get into the next one, which has its memory.
func TestMalformedRequestLeavesNothingBehind(t *testing.T) {
	r := newRig(t)
	l := &learner{}
	malformed := []byte{2<<3 | wireFixed64, 1}
	metric := l.metricOf(appendBytesField(nil, 1, []byte("m")), &metric{kind: kindGauge}, numberPoint('b'), numberPoint('c'), malformed)
	l.assemble([]byte{}, nil, []byte{}, nil, metric)
	for i := range 20 {
		if _, err := r.Take(t.Context(), &door.Push{Body: l.request, Limits: testLimits}); err == nil {
			t.Fatal("a malformed point was taken")
		}
		if out, err := r.otlp(onePoint(func(pmetric.ResourceMetrics, pmetric.NumberDataPoint) {}), ""); err != nil || out.Refused > 0 {
			t.Fatalf("push %d: %+v, %v", i, out, err)
		}
	}
	md := onePoint(func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
		for i := range 4 {
			q := rm.ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().AppendEmpty()
			p.CopyTo(q)
			q.Attributes().PutInt("i", int64(i))
		}
	})
	if out, err := r.otlp(md, ""); err != nil || out.Refused > 0 || out.Samples != 5 {
		t.Errorf("%+v, %v", out, err)
	}
}

// numberPoint is a number point with an attribute.
func numberPoint(i byte) []byte {
	b := []byte{3<<3 | wireFixed64, 1, 0, 0, 0, 0, 0, 0, 1}
	return appendBytesField(b, 7, appendBytesField(nil, 1, []byte{'a', i}))
}

func kindOf(err error) (door.Kind, bool) {
	r, ok := err.(*door.Refusal)
	if !ok {
		return 0, false
	}
	return r.Kind, true
}

func TestTenantBecomesALabel(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TenantLabel = "tenant" })
	for _, tenant := range []string{"red", "blue", ""} {
		if out, err := r.otlp(onePoint(func(pmetric.ResourceMetrics, pmetric.NumberDataPoint) {}), tenant); err != nil || out.Refused > 0 {
			t.Fatal(out, err)
		}
	}
	tenants := map[string]int{}
	for _, x := range r.stored() {
		tenants[x.labels.Get("tenant")]++
	}
	if len(tenants) != 3 || tenants["red"] != 1 || tenants["blue"] != 1 {
		t.Errorf("samples by tenant: %v", tenants)
	}
}

func TestOtherTranslationHoldsFromTheNextRequestOn(t *testing.T) {
	r := newRig(t)
	push := func() {
		if out, err := r.otlp(onePoint(func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			rm.Resource().Attributes().PutStr("zone", "eu")
		}), ""); err != nil || out.Refused > 0 {
			t.Fatal(out, err)
		}
	}
	push()
	cfg := promconfig.DefaultOTLPConfig
	cfg.PromoteResourceAttributes = []string{"zone"}
	r.ApplyConfig(cfg)
	push()
	zones := map[string]int{}
	for _, x := range r.stored() {
		if x.labels.Get(model.MetricNameLabel) == "queue_length" {
			zones[x.labels.Get("zone")]++
		}
	}
	if zones[""] != 1 || zones["eu"] != 1 {
		t.Errorf("samples by promoted attribute: %v", zones)
	}
}

func TestTargetInfoIsBounded(t *testing.T) {
	r := newRig(t)
	md := onePoint(func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
		rm.Resource().Attributes().PutStr("zone", "eu")
		q := rm.ScopeMetrics().At(0).Metrics().At(0).Gauge().DataPoints().AppendEmpty()
		p.CopyTo(q)
		q.SetTimestamp(1)
		q.Attributes().PutStr("old", "1")
	})
	if out, err := r.otlp(md, ""); err != nil || out.Refused > 0 || out.Samples != 3 {
		t.Errorf("%+v, %v", out, err)
	}
}

// The stream of frames that hold deltas stands in for DELTAS: what the frames are like does not depend on it.
func TestDeltasAreFramesOfTheirOwn(t *testing.T) {
	var deltas *rig
	r := newRig(t, func(c *Config) { c.Deltas = c.Frames })
	deltas = r
	now := time.Now()
	for i := range 3 {
		md := onePoint(func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetName("requests")
			m.SetEmptySum().SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
			m.Sum().SetIsMonotonic(true)
			q := m.Sum().DataPoints().AppendEmpty()
			q.SetIntValue(5)
			q.SetTimestamp(pcommon.NewTimestampFromTime(now.Add(time.Duration(i%2) * time.Second))) // the third is the first again
		})
		if out, err := r.otlp(md, ""); err != nil || out.Refused > 0 {
			t.Fatal(out, err)
		}
	}
	n := 0
	for _, x := range deltas.stored() {
		if x.labels.Get(model.MetricNameLabel) == "requests_total" {
			n++
			if x.v != 5 || x.meta.Type != "counter" {
				t.Errorf("%+v", x)
			}
		}
	}
	if n != 3 { // which are repetitions is for the actor to say that has the state
		t.Errorf("%d deltas", n)
	}
}

// What is late of target_info is no point of the sender's.
func TestLateTargetInfoIsNoRefusedPoint(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	push := func(name string, at time.Time) {
		t.Helper()
		out, err := r.otlp(onePoint(func(rm pmetric.ResourceMetrics, p pmetric.NumberDataPoint) {
			rm.Resource().Attributes().PutStr("zone", "eu")
			rm.ScopeMetrics().At(0).Metrics().At(0).SetName(name)
			p.SetTimestamp(pcommon.NewTimestampFromTime(at))
		}), "")
		if err != nil || out.Refused > 0 {
			t.Errorf("%+v, %v", out, err)
		}
	}
	push("a", now)
	push("b", now.Add(-time.Minute))
}

// A point counts once, however many of its samples are refused, and whichever come between.
func TestRefusedPointsOfHistogramsAreCountedOnce(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	push := func(at ...time.Time) door.Outcome {
		t.Helper()
		md := onePoint(func(rm pmetric.ResourceMetrics, _ pmetric.NumberDataPoint) {
			rm.ScopeMetrics().At(0).Metrics().RemoveIf(func(pmetric.Metric) bool { return true })
			m := rm.ScopeMetrics().At(0).Metrics().AppendEmpty()
			m.SetName("h")
			m.SetEmptyHistogram().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			for _, t := range at {
				h := m.Histogram().DataPoints().AppendEmpty()
				h.SetTimestamp(pcommon.NewTimestampFromTime(t))
				h.ExplicitBounds().FromRaw([]float64{1, 2})
				h.BucketCounts().FromRaw([]uint64{1, 1, 1})
				h.SetCount(3)
			}
		})
		out, err := r.otlp(md, "")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	push(now)
	if out := push(now.Add(-3*time.Second), now.Add(-2*time.Second)); out.Refused != 2 {
		t.Errorf("%+v", out)
	}
}
