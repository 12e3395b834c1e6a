package remotewrite

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/s2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/frame"
)

// targetSeries returns the series of one target: 8 labels and about 150 bytes each, as after external labels.
func targetSeries(target, n int) []frame.Series {
	series := make([]frame.Series, n)
	for i := range series {
		series[i] = frame.Series{
			Labels: labels.FromStrings(
				"__name__", fmt.Sprintf("node_cpu_guest_seconds_total_%d", i/16),
				"cluster", "europe-west-1", "cpu", fmt.Sprint(i%16), "device", fmt.Sprintf("nvme%dn1", i%7),
				"env", "production", "instance", fmt.Sprintf("10.20.30.%d:9100", target), "job", "node_exporter",
				"mode", []string{"idle", "iowait", "system", "user"}[i%4]),
			Metadata: metadata.Metadata{Type: model.MetricTypeCounter, Help: fmt.Sprintf("Seconds that something of kind %d took.", i/16)},
		}
	}
	return series
}

// scrape holds the values of a target's series: counters, many zeros and some fractions, as exposed.
func scrape(n int) []float64 {
	rnd := rand.New(rand.NewPCG(1, 2))
	values := make([]float64, n)
	for i := range values {
		switch rnd.IntN(4) {
		case 0:
		case 1:
			values[i] = float64(rnd.IntN(100000))
		case 2:
			values[i] = float64(rnd.IntN(1e9)) / 100
		default:
			values[i] = rnd.Float64()
		}
	}
	return values
}

const benchTime = 1_760_000_000_000

func benchRequests(b *testing.B, run func(b *testing.B, p Protocol, blocks []*Block, values []float64)) {
	for _, p := range []Protocol{V1, V2} {
		for _, perTarget := range []int{1000, 50} {
			blocks := make([]*Block, 2000/perTarget)
			for i := range blocks {
				blocks[i] = NewBlock(p, targetSeries(i, perTarget))
			}
			b.Run(fmt.Sprintf("v%s/series=%d", p, perTarget), func(b *testing.B) { run(b, p, blocks, scrape(perTarget)) })
		}
		recorded := recordedSeries(b)
		b.Run(fmt.Sprintf("v%s/recorded", p), func(b *testing.B) { run(b, p, []*Block{NewBlock(p, recorded)}, scrape(len(recorded))) })
	}
}

func fill(r *Request, blocks []*Block, values []float64) {
	r.Reset()
	for _, block := range blocks {
		for i, v := range values {
			r.Add(block, uint32(i), benchTime, 0, v)
		}
	}
}

func perSample(b *testing.B, r *Request) {
	n := float64(b.N) * float64(r.Samples())
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/sample")
}

func BenchmarkAdd(b *testing.B) {
	benchRequests(b, func(b *testing.B, p Protocol, blocks []*Block, values []float64) {
		r := NewRequest(p)
		b.ReportAllocs()
		for b.Loop() {
			fill(r, blocks, values)
		}
		perSample(b, r)
		b.ReportMetric(float64(r.Size())/float64(r.Samples()), "raw-B/sample")
		b.ReportMetric(float64(blocks[0].Bytes())/float64(blocks[0].Series()), "block-B/series")
	})
}

func BenchmarkBody(b *testing.B) {
	benchRequests(b, func(b *testing.B, p Protocol, blocks []*Block, values []float64) {
		r := NewRequest(p)
		b.ReportAllocs()
		for b.Loop() {
			fill(r, blocks, values)
			r.Body()
		}
		perSample(b, r)
		b.ReportMetric(float64(len(r.Body()))/float64(r.Samples()), "B/sample")
	})
}

func BenchmarkNewBlock(b *testing.B) {
	for _, p := range []Protocol{V1, V2} {
		for name, series := range map[string][]frame.Series{"generated": targetSeries(1, 1000), "recorded": recordedSeries(b)} {
			b.Run("v"+p.String()+"/"+name, func(b *testing.B) {
				for b.Loop() {
					NewBlock(p, series)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(series)), "ns/series")
			})
		}
	}
}

// BenchmarkSnappy compares encoders of snappy's block format on bodies of this package.
func BenchmarkSnappy(b *testing.B) {
	encoders := []struct {
		name   string
		encode func(dst, src []byte) []byte
	}{
		{"golang", snappy.Encode}, {"s2", s2.EncodeSnappy}, {"s2better", s2.EncodeSnappyBetter},
	}
	benchRequests(b, func(b *testing.B, p Protocol, blocks []*Block, values []float64) {
		r := NewRequest(p)
		fill(r, blocks, values)
		raw := bytes.Clone(r.Raw())
		for _, e := range encoders {
			b.Run(e.name, func(b *testing.B) {
				dst := make([]byte, s2.MaxEncodedLen(len(raw)))
				n := 0
				for b.Loop() {
					n = len(e.encode(dst, raw))
				}
				perSample(b, r)
				b.ReportMetric(float64(n)/float64(r.Samples()), "B/sample")
			})
		}
	})
}
