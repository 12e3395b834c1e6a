package limit

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// BenchmarkJudge judges dictionaries of 8,000 new series, and tells what a series with a place costs in memory and time, the stream's included.
func BenchmarkJudge(b *testing.B) {
	const series = 8000
	h := newHouse(b, 1, Limits{Metric: Rule{MaxSeries: 1 << 30}, All: Rule{MaxSeries: 1 << 30}})
	dictionary := func(n int) *frame.Dictionary {
		d := &frame.Dictionary{ID: frame.DictID{byte(n), byte(n >> 8), byte(n >> 16)}, Job: "api"}
		for i := range series {
			d.Series = append(d.Series, frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprint("metric_", i%100), "instance", fmt.Sprint("host-", n), "job", "api", "number", fmt.Sprint(i))})
		}
		return d
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, n := heap(), 0
	for b.Loop() {
		b.StopTimer()
		d := dictionary(n)
		n++
		b.StartTimer()
		if _, err := h.parts[0].Judge(b.Context(), d, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(heap()-before)/float64(n*series), "B/series")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*series), "ns/series")
	runtime.KeepAlive(h)
}
