package delta

import (
	"io"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/frame"
)

// benchPartition returns an actor without streams that knows a dictionary of n series.
func benchPartition(n int) (*partition, frame.DictID) {
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	s := New(Config{Partitions: 1, Logger: logger, Registerer: prometheus.NewPedanticRegistry()}, nil)
	d := &dictionary{keys: make([]key, n), sums: make([]*sum, n)}
	for i := range d.keys {
		d.keys[i] = key{uint64(i), 1}
	}
	id := frame.DictID{1}
	return &partition{svc: s, log: logger, sums: newSums(60_000, s.budget), dicts: map[frame.DictID]*dictionary{id: d}}, id
}

// BenchmarkAccumulate makes frames of known series cumulative, as far as the bytes of the frame.
func BenchmarkAccumulate(b *testing.B) {
	const n = frame.MaxSeries
	run := func(b *testing.B, p *partition, section func(now int64) frame.Section) {
		b.ReportAllocs()
		samples, now := 0, int64(1_700_000_000_000)
		for b.Loop() {
			now += 1000
			f := frame.Frame{Time: now, Sections: []frame.Section{section(now)}}
			if err := p.accumulate(b.Context(), &f, now); err != nil {
				b.Fatal(err)
			}
			samples += f.Samples()
			p.data = p.enc.Encode(p.data[:0], &f)
		}
		if int(p.sums.budget.used.Load()) == 0 || samples == 0 {
			b.Fatal("nothing was added")
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/point")
	}
	b.Run("floats", func(b *testing.B) {
		p, id := benchPartition(n)
		values, starts := make([]float64, n), make([]int64, n)
		run(b, p, func(now int64) frame.Section {
			for i := range values {
				values[i], starts[i] = float64(i%100), now-1000
			}
			return frame.Section{Dict: id, Series: n, Values: values, Starts: starts}
		})
	})
	b.Run("histograms", func(b *testing.B) {
		p, id := benchPartition(n)
		list := make([]frame.Histogram, 100)
		run(b, p, func(now int64) frame.Section {
			for i := range list {
				list[i] = frame.Histogram{Index: uint32(i), Time: now, Start: now - 1000, Int: exponential(3, int32(i%5), 1, 2, 0, 4, 5, 6, 7, 8, 9, 10)}
			}
			return frame.Section{Dict: id, Series: n, Histograms: list}
		})
	})
}
