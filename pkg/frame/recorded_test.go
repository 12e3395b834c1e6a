package frame

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// messageBytes returns the bytes and the samples of one batch that holds the frames.
func messageBytes(frames ...*Frame) (size, samples int) {
	for _, f := range frames {
		samples += f.Samples()
	}
	return len(sealed(1<<40, frames...)), samples
}

func TestRecordedScrapesTakeFewBytes(t *testing.T) {
	all := scrapes(t)
	if len(all) != 45 {
		t.Fatalf("%d scrapes, want 45", len(all))
	}
	var alone, total int
	var together []*Frame
	for i := range all {
		f := all[i].frame(testTime+int64(i)*2000, 1)
		size, samples := messageBytes(f)
		alone, total = alone+size, total+samples
		if perSample := float64(size) / float64(samples); perSample > 2.5 {
			t.Errorf("scrape %d takes %.2f B/sample alone, want at most 2.5", i, perSample)
		}
		together = append(together, f)
	}
	mean := float64(alone) / float64(total)
	t.Logf("one scrape a batch: %.2f B/sample", mean)
	if mean > 2.3 {
		t.Errorf("the recorded scrapes take %.2f B/sample alone, want at most 2.3", mean)
	}

	size, samples := messageBytes(together...)
	perSample := float64(size) / float64(samples)
	t.Logf("45 scrapes in a batch: %.2f B/sample", perSample)
	if perSample > 1.2 {
		t.Errorf("45 scrapes in a batch take %.2f B/sample, want at most 1.2", perSample)
	}
}

// alike makes frames of n targets that expose the same series with values of their own: each counter and gauge that is not a small number
// has gone on by another amount.
func alike(s scrape, n int) (frames []*Frame) {
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range n {
		own := scrape{series: s.series, values: append([]float64(nil), s.values...)}
		for k, v := range own.values {
			if v > 1000 && v == float64(int64(v)) {
				own.values[k] = float64(int64(v * (0.5 + rng.Float64())))
			}
		}
		frames = append(frames, own.frame(testTime+int64(rng.IntN(500)), rng.Uint64()+uint64(i)))
	}
	return frames
}

func TestAlikeTargetsTakeFewBytes(t *testing.T) {
	size, samples := messageBytes(alike(scrapes(t)[0], 100)...)
	perSample := float64(size) / float64(samples)
	t.Logf("100 alike targets in a batch: %.2f B/sample", perSample)
	if perSample > 1.2 {
		t.Errorf("100 alike targets in a batch take %.2f B/sample, want at most 1.2", perSample)
	}
}

func perSample(b *testing.B, samples int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(samples), "ns/sample")
}

func BenchmarkAppendColumn(b *testing.B) {
	values := scrapes(b)[0].values
	var ctrl, data []byte
	for b.Loop() {
		ctrl, data = appendColumn(ctrl[:0], data[:0], values)
	}
	perSample(b, len(values))
}

func BenchmarkReadColumn(b *testing.B) {
	s := scrapes(b)[0]
	ctrl, data := appendColumn(nil, nil, s.values)
	var values []float64
	for b.Loop() {
		var err error
		if values, err = readColumn(values[:0], ctrl, data); err != nil {
			b.Fatal(err)
		}
	}
	perSample(b, len(s.values))
}

func BenchmarkEncodeBatch(b *testing.B) {
	for _, n := range []int{1, 45} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			frames, samples := recordedFrames(b, n)
			var e Encoder
			var w BatchWriter
			var buf []byte
			size := 0
			for b.Loop() {
				for _, f := range frames {
					buf = e.Encode(buf[:0], f)
					w.Add(buf, f.Time, f.Samples())
				}
				size = len(w.Seal(1))
			}
			perSample(b, samples)
			b.ReportMetric(float64(size)/float64(samples), "B/sample")
		})
	}
}

func BenchmarkDecodeBatch(b *testing.B) {
	for _, n := range []int{1, 45} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			frames, samples := recordedFrames(b, n)
			msg := sealed(1, frames...)
			var f Frame
			var buf []byte
			for b.Loop() {
				batch, err := OpenBatch(msg, buf)
				for ok := true; ok && err == nil; {
					ok, err = batch.Next(&f)
				}
				if err != nil {
					b.Fatal(err)
				}
				buf = batch.Buffer()
			}
			perSample(b, samples)
		})
	}
}

func BenchmarkReadDictionary(b *testing.B) {
	d, msg, err := NewDictionary("node", scrapes(b)[0].series)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ReadDictionary(msg, d.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(d.Series)), "ns/series")
}

func recordedFrames(b *testing.B, n int) (frames []*Frame, samples int) {
	for i, s := range scrapes(b)[:n] {
		frames = append(frames, s.frame(testTime+int64(i)*2000, 1))
		samples += len(s.values)
	}
	return frames, samples
}
