package frame

import (
	"io"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
)

// exact compares frames and series bit for bit. Nil and empty slices differ in Present only, where they mean different things.
var exact = cmp.Options{
	cmp.Comparer(func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }),
	cmp.Comparer(labels.Equal),
	cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() != ".Present" }, cmpopts.EquateEmpty()),
}

func diff(t testing.TB, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, exact); d != "" {
		t.Fatalf("%s differs (-want +got):\n%s", what, d)
	}
}

func encode(f *Frame) []byte {
	var e Encoder
	return e.Encode(nil, f)
}

func decodeNew(t testing.TB, b []byte) *Frame {
	t.Helper()
	f := new(Frame)
	if err := f.decode(b); err != nil {
		t.Fatalf("decoding: %v", err)
	}
	return f
}

// allocated returns how many bytes fn allocates in all.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func nan(payload uint64) float64 { return math.Float64frombits(0x7ff0_0000_0000_0000 | payload) }

var (
	staleNaN = math.Float64frombits(value.StaleNaN)
	negZero  = math.Copysign(0, -1)
)

const testTime = 1_767_225_600_123

// richFrame has one of everything.
func richFrame() *Frame {
	spans := []histogram.Span{{Offset: -3, Length: 2}, {Offset: 5, Length: 1}}
	return &Frame{
		Source: 0xfedc_ba98_7654_3210, Epoch: 7, Seq: 1 << 40, Time: testTime,
		Sections: []Section{
			{Dict: DictID{1}, Series: 6, Values: []float64{0, negZero, staleNaN, math.Inf(1), 3.25, 1e17}},
			{
				Dict: DictID{2}, Series: 20, Present: []uint32{0, 7, 8, 19}, Values: []float64{1, -2, math.Pi, nan(5)},
				Times:  []int64{testTime, testTime - 1, 0, math.MaxInt64},
				Starts: []int64{0, testTime + 5, math.MinInt64, testTime - 60_000},
			},
			{Dict: DictID{3}, Series: 8192, Present: []uint32{8191}, Values: []float64{0.1}},
			{
				Dict: DictID{4}, Series: 3, Present: []uint32{},
				Histograms: []Histogram{
					{Index: 0, Time: testTime, Start: testTime - 1000, Int: &histogram.Histogram{
						CounterResetHint: histogram.NotCounterReset, Schema: 3, ZeroThreshold: 1e-128, ZeroCount: 4, Count: 19, Sum: 12.5,
						PositiveSpans: spans, NegativeSpans: spans[:1], PositiveBuckets: []int64{5, -3, 2}, NegativeBuckets: []int64{2, -1},
					}},
					{Index: 1, Time: testTime - 5, Int: &histogram.Histogram{Sum: staleNaN}},
					{Index: 1, Time: testTime, Float: &histogram.FloatHistogram{
						CounterResetHint: histogram.GaugeType, Schema: histogram.CustomBucketsSchema, Count: 3.5, Sum: nan(0x8_0000_0000_0001),
						CustomValues: []float64{0.1, 1, math.Inf(1)}, PositiveSpans: []histogram.Span{{Length: 3}}, PositiveBuckets: []float64{1, negZero, 2.5},
					}},
					{Index: 2, Time: testTime, Float: &histogram.FloatHistogram{
						Schema: -4, ZeroThreshold: 0.001, ZeroCount: 0.5, Count: 4.5, Sum: -1,
						PositiveSpans: spans, NegativeSpans: spans, PositiveBuckets: []float64{1, 1, 1}, NegativeBuckets: []float64{0.25, 0.5, 0.25},
					}},
					{Index: 2, Time: testTime + 1, Float: &histogram.FloatHistogram{Sum: staleNaN}},
					{Index: 2, Time: testTime + 2, Int: &histogram.Histogram{
						Schema: histogram.CustomBucketsSchema, Count: 2, Sum: math.NaN(), CustomValues: []float64{5, 10},
						PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []int64{1, 0},
					}},
				},
				Exemplars: []Exemplar{
					{Index: 2, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "é", "span", ""), Value: -1.5, HasTs: true, Ts: testTime - 7}},
					{Index: 0, Exemplar: exemplar.Exemplar{Value: nan(9)}},
				},
			},
		},
	}
}

func richSeries() []Series {
	reqs := metadata.Metadata{Type: "counter", Unit: "requests", Help: "Requests, \"all\" of them.\n"}
	return []Series{
		{Labels: labels.FromStrings("__name__", "http_requests_total", "code", "200", "job", "web"), Family: "http_requests_total", Metadata: reqs},
		{Labels: labels.FromStrings("__name__", "http_requests_total", "code", "500", "job", "web"), Family: "http_requests_total", Metadata: reqs},
		{Labels: labels.FromStrings("__name__", "up", "job", "web")},
		{Labels: labels.FromStrings("__name__", "température", "with space", "\x00\xff", "zero", ""), Family: "température", Metadata: metadata.Metadata{Type: "gauge"}},
		{Labels: labels.FromStrings("host", strings.Repeat("x", 300))},
	}
}

// randomFloat draws from all the kinds of values that the column codec treats differently.
func randomFloat(rng *rand.Rand) float64 {
	switch rng.IntN(8) {
	case 0:
		return math.Float64frombits(rng.Uint64())
	case 1:
		return float64(int64(rng.Uint64()) >> rng.IntN(64))
	case 2: // a decimal of any exponent
		return float64(int64(rng.Uint64())>>(10+rng.IntN(54))) / pow10[rng.IntN(len(pow10))]
	case 3: // the neighbour of one
		v := float64(int64(rng.Uint64())>>(10+rng.IntN(54))) / pow10[rng.IntN(len(pow10))]
		return math.Nextafter(v, math.Inf(1-2*rng.IntN(2)))
	case 4:
		return rng.NormFloat64()
	case 5:
		return math.Float64frombits(rng.Uint64() >> 12) // subnormal
	case 6:
		return nan(rng.Uint64()>>12 | 1)
	}
	return []float64{0, negZero, staleNaN, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, -math.MaxFloat64, 1 << 53, 1e-17}[rng.IntN(10)]
}

// scrape is one recorded exposition: its series in order, and their values.
type scrape struct {
	series []Series
	values []float64
}

func (s *scrape) frame(time int64, source uint64) *Frame {
	return &Frame{Source: source, Epoch: 1, Seq: 1, Time: time, Sections: []Section{
		{Dict: DictID{byte(len(s.series))}, Series: len(s.series), Values: s.values},
	}}
}

var recorded = sync.OnceValues(func() ([]scrape, error) {
	file, err := os.Open("testdata/node_exporter.txt.zst")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	z, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	var scrapes []scrape
	for body := range strings.SplitSeq(strings.TrimSuffix(string(text), "# EOF\n"), "# EOF\n") {
		s, err := parseScrape([]byte(body))
		if err != nil {
			return nil, err
		}
		scrapes = append(scrapes, s)
	}
	return scrapes, nil
})

func parseScrape(body []byte) (s scrape, err error) {
	p := textparse.NewPromParser(body, labels.NewSymbolTable(), false)
	var family string
	var meta metadata.Metadata
	for {
		entry, err := p.Next()
		if err == io.EOF {
			return s, nil
		}
		if err != nil {
			return s, err
		}
		switch entry {
		case textparse.EntryHelp:
			name, help := p.Help()
			family, meta = string(name), metadata.Metadata{Help: string(help)}
		case textparse.EntryType:
			_, meta.Type = p.Type()
		case textparse.EntrySeries:
			_, _, v := p.Series()
			var ls labels.Labels
			p.Labels(&ls)
			s.series = append(s.series, Series{Labels: ls, Family: family, Metadata: meta})
			s.values = append(s.values, v)
		}
	}
}

func scrapes(t testing.TB) []scrape {
	t.Helper()
	s, err := recorded()
	if err != nil {
		t.Fatalf("reading the recorded scrapes: %v", err)
	}
	return s
}
