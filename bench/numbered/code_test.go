package numbered

import (
	"math"
	"strconv"
	"testing"
)

func TestEveryValueTellsItsScrape(t *testing.T) {
	cases := []struct{ shape, name, le string }{
		{"n1", "millrace_bench_scrape", ""},
		{"c1", "requests_total", ""},
		{"c7340", "requests_total", ""},
		{"c16777216", "bytes_total", ""},
		{"q3", "cpu_seconds_total", ""},
		{"q99991", "cpu_seconds_total", ""},
		{"g1", "temperature", ""},
		{"g1664525", "temperature", ""},
		{"h1", "latency_bucket", "0.005"},
		{"h31", "latency_bucket", "1"},
		{"h31", "latency_bucket", "1.0"},
		{"h31", "latency_bucket", "+Inf"},
		{"h31", "latency_count", ""},
		{"h31", "latency_sum", ""},
		{"h31", "latency", ""},
	}
	for _, tc := range cases {
		t.Run(tc.shape+tc.name+tc.le, func(t *testing.T) {
			for _, target := range []string{"t0", "t17"} {
				code, ok := Of(func(label string) string {
					return map[string]string{"__name__": tc.name, "shape": tc.shape, "le": tc.le, "target": target}[label]
				})
				if !ok {
					t.Fatal("no code")
				}
				last := -1.0
				for n := uint64(1); n < 1<<gaugeBits; n += 1 + n/7 {
					v := code.Value(n)
					got, ok := code.N(v)
					if !ok || got != n {
						t.Fatalf("value %v of scrape %d: read as scrape %d, %t", v, n, got, ok)
					}
					if tc.shape[0] != 'g' && v <= last {
						t.Fatalf("scrape %d: %v after %v", n, v, last)
					}
					last = v
					if text, want := string(code.Append(nil, n)), strconv.FormatFloat(v, 'g', -1, 64); text != want {
						t.Fatalf("scrape %d: text %s, want %s", n, text, want)
					}
				}
			}
		})
	}
}

func TestValuesOfNoScrapeAreRefused(t *testing.T) {
	code, err := Parse("c7340", "requests_total", "")
	if err != nil {
		t.Fatal(err)
	}
	code = code.ForTarget("t1")
	for _, v := range []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), 1e300, code.Value(3) + 1, code.Value(3) + .25, -code.Value(3)} {
		if n, ok := code.N(v); ok {
			t.Errorf("%v was read as scrape %d", v, n)
		}
	}
	if code.Value(3) == code.ForTarget("t2").Value(3) {
		t.Error("two targets have the same value")
	}
}

func TestHistogramIsCumulative(t *testing.T) {
	for n := uint64(1); n < 1000; n++ {
		last := 0.0
		for _, bound := range append([]float64{}, append(Bounds, math.Inf(1))...) {
			code, err := Parse("h77", "latency_bucket", strconv.FormatFloat(bound, 'g', -1, 64))
			if err != nil {
				t.Fatal(err)
			}
			v := code.ForTarget("t1").Value(n)
			if v < last {
				t.Fatalf("bucket %v of scrape %d: %v after %v", bound, n, v, last)
			}
			last = v
		}
		count, _ := Parse("h77", "latency_count", "")
		if got := count.ForTarget("t1").Value(n); got != last {
			t.Fatalf("scrape %d: count %v, last bucket %v", n, got, last)
		}
	}
}

func TestBrokenShapesAreRefused(t *testing.T) {
	for _, tc := range []struct{ shape, name, le string }{
		{"", "a", ""}, {"c", "a", ""}, {"c0", "a", ""}, {"c-1", "a", ""}, {"c16777217", "a", ""}, {"x1", "a", ""},
		{"g2", "a", ""}, {"h1", "a_bucket", ""}, {"h1", "a_bucket", "0.3"},
	} {
		if _, err := Parse(tc.shape, tc.name, tc.le); err == nil {
			t.Errorf("Parse(%q, %q, %q) succeeded", tc.shape, tc.name, tc.le)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	code, err := Parse("c7340", "requests_total", "")
	if err != nil {
		b.Fatal(err)
	}
	var dst []byte
	n := uint64(0)
	for b.Loop() {
		n++
		dst = code.Append(dst[:0], n)
	}
}
