package ingest

import (
	"fmt"
	"testing"
	"time"

	promconfig "github.com/prometheus/prometheus/config"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/services/ingest/door"
)

// steadyPush is a request of 500 points with six attributes each.
func steadyPush(b *testing.B) []byte {
	md := pmetric.NewMetrics()
	rm := md.ResourceMetrics().AppendEmpty()
	for i, name := range []string{"service.name", "service.instance.id", "k8s.pod.name", "k8s.namespace.name", "host.name"} {
		rm.Resource().Attributes().PutStr(name, fmt.Sprintf("some value %d", i))
	}
	sm := rm.ScopeMetrics().AppendEmpty()
	sm.Scope().SetName("io.opentelemetry.runtime")
	now := pcommon.NewTimestampFromTime(time.Now())
	for i := range 50 {
		m := sm.Metrics().AppendEmpty()
		m.SetName(fmt.Sprintf("http.server.request.%d", i))
		m.SetUnit("By")
		m.SetEmptySum().SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
		m.Sum().SetIsMonotonic(true)
		for k := range 10 {
			p := m.Sum().DataPoints().AppendEmpty()
			p.SetTimestamp(now)
			p.SetStartTimestamp(now - 1e12)
			p.SetIntValue(int64(i * k * 100))
			for n, name := range []string{"http.request.method", "http.response.status_code", "http.route", "network.protocol.version", "url.scheme", "server.address"} {
				p.Attributes().PutStr(name, fmt.Sprintf("value %d of %d", n, k))
			}
		}
	}
	body, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(md)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// BenchmarkOTLP takes a request of known points as far as the frame.
func BenchmarkOTLP(b *testing.B) {
	body := steadyPush(b)
	s := newTranslating(promconfig.DefaultOTLPConfig)
	b.ReportAllocs()
	for b.Loop() {
		r := s.begin(&door.Push{Limits: testLimits})
		if err := r.readOTLP(body); err != nil {
			b.Fatal(err)
		}
		for _, g := range r.gathers {
			src := s.registry.lock(g.src)
			for i := range g.samples {
				g.samples[i].ser = r.settle(src, g.samples[i].ser, g.samples[i].about)
			}
			list := r.judge(src, g)
			if err := src.seal(); err != nil {
				b.Fatal(err)
			}
			r.build.frames(src, list, &publish.Unit{})
			src.mu.Unlock()
		}
		r.release()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/point")
}

// BenchmarkNewPoints takes a request of which no point is known.
func BenchmarkNewPoints(b *testing.B) {
	body := steadyPush(b)
	s := newTranslating(promconfig.DefaultOTLPConfig)
	b.ReportAllocs()
	for b.Loop() {
		s.registry.reset()
		r := s.begin(&door.Push{Limits: testLimits})
		if err := r.readOTLP(body); err != nil {
			b.Fatal(err)
		}
		r.release()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/500, "ns/point")
}
