package receiver

import (
	"fmt"
	"hash/maphash"
	"math"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
)

func TestLabelsMayStandAnywhereInASeries(t *testing.T) {
	label := func(name, value string) []byte {
		data, err := (&prompb.Label{Name: name, Value: value}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{0x0a, byte(len(data))}, data...)
	}
	sample := []byte{0x12, 2, 0x10, 1}
	var message []byte
	for _, part := range [][]byte{label("__name__", "a"), sample, label("b", "1"), sample, label("c", "2")} {
		message = append(message, part...)
	}
	b, err := decode(append([]byte{0x0a, byte(len(message))}, message...), false, maphash.MakeSeed())
	if err != nil {
		t.Fatal(err)
	}
	defer b.release()
	got, err := b.labelsOf(b.series[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := text(got); got != `a{b="1",c="2"}` || len(b.samples) != 2 {
		t.Errorf("%s, %d samples", got, len(b.samples))
	}
}

// FuzzDecode checks that decoding never fails otherwise than by an error, and that what Prometheus's own decoder accepts
// is read as it reads it.
func FuzzDecode(f *testing.F) {
	points := []point{{series: plain, ts: 5, v: 1.5}, {series: nativeSeries, ts: 7, h: native(f, 3)}, {series: counter("t1"), ts: 9, v: staleNaN}}
	f.Add(encodeV1(points...), false)
	f.Add(encodeV2(points...), true)
	f.Add([]byte{0x0a, 5, 1}, false)
	seed := maphash.MakeSeed()
	f.Fuzz(func(t *testing.T, body []byte, v2 bool) {
		b, err := decode(body, v2, seed)
		if err != nil {
			return
		}
		defer b.release()
		New(Config{History: 2}).apply(b, len(body), nil)
		if !v2 {
			var want prompb.WriteRequest
			if want.Unmarshal(body) == nil {
				compareSamples(t, b, len(want.Timeseries), func(i int) []prompb.Sample { return want.Timeseries[i].Samples })
			}
			return
		}
		var want writev2.Request
		if want.Unmarshal(body) == nil {
			compareSamples(t, b, len(want.Timeseries), func(i int) []prompb.Sample {
				var out []prompb.Sample
				for _, s := range want.Timeseries[i].Samples {
					out = append(out, prompb.Sample{Value: s.Value, Timestamp: s.Timestamp})
				}
				return out
			})
		}
	})
}

func compareSamples(t *testing.T, b *batch, series int, samplesOf func(int) []prompb.Sample) {
	t.Helper()
	if len(b.series) != series {
		t.Fatalf("%d series, want %d", len(b.series), series)
	}
	at := 0
	for i := range series {
		var want []sampleEntry
		for _, s := range samplesOf(i) {
			want = append(want, sampleEntry{s.Timestamp, math.Float64bits(s.Value)})
		}
		if diff := cmp.Diff(want, append([]sampleEntry(nil), b.samples[at:b.series[i].samplesEnd]...), cmp.AllowUnexported(sampleEntry{})); diff != "" {
			t.Fatal(diff)
		}
		at = b.series[i].samplesEnd
	}
}

func BenchmarkReceive(b *testing.B) {
	const perRequest, requests = 2000, 50
	for version, v := range versions {
		b.Run(v.name, func(b *testing.B) {
			r := New(Config{})
			all := make([][]labels.Labels, requests)
			for i := range all {
				for j := range perRequest {
					all[i] = append(all[i], labels.FromStrings("__name__", "http_requests_total", "cluster", "eu-central-1",
						"handler", fmt.Sprintf("/api/v1/items/%d", j), "instance", "127.0.0.1:8080", "job", "bench", "namespace", "shop",
						"shape", "c7340", "target", fmt.Sprintf("t%d", i)))
				}
			}
			n, samples := uint64(0), 0
			var spent time.Duration
			for b.Loop() {
				n++
				for _, series := range all {
					points := make([]point, len(series))
					for j := range series {
						points[j] = point{series: series[j], ts: int64(n), v: valueOf(b, series[j], n)}
					}
					compressed := snappy.Encode(nil, v.encode(points...))
					start := time.Now()
					body, err := snappy.Decode(nil, compressed)
					if err != nil {
						b.Fatal(err)
					}
					batch, err := decode(body, version == 1, r.seed)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := r.apply(batch, len(compressed), nil); err != nil {
						b.Fatal(err)
					}
					batch.release()
					// The first scrape makes the series.
					if n > 1 {
						spent += time.Since(start)
						samples += len(points)
					}
				}
			}
			if got := r.Report(); got.Changed+got.Lost+got.Reordered > 0 {
				b.Fatalf("%+v", got)
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(samples), "ns/sample")
		})
	}
}
