package frame

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
)

func TestFrameRoundTrip(t *testing.T) {
	all := &Frame{Source: 1, Epoch: 2, Seq: 3, Time: testTime, Sections: []Section{{Dict: DictID{9}, Series: 3, Values: []float64{1, 2, 3}}}}
	many := &Frame{Time: -1}
	for i := range 300 {
		many.Sections = append(many.Sections, Section{Dict: DictID{byte(i), byte(i >> 8)}, Series: 1 + i%3, Present: []uint32{uint32(i % 3)}, Values: []float64{float64(i)}})
	}
	cases := map[string]*Frame{
		"no sections":       {},
		"extreme header":    {Source: math.MaxUint64, Epoch: math.MaxUint64, Seq: math.MaxUint64, Time: math.MinInt64},
		"empty section":     {Sections: []Section{{}}},
		"all present":       all,
		"everything":        richFrame(),
		"many sections":     many,
		"largest section":   {Sections: []Section{{Series: MaxSeries, Values: make([]float64, MaxSeries)}}},
		"recorded scrape":   scrapes(t)[0].frame(testTime, 42),
		"times of all ends": {Time: math.MinInt64, Sections: []Section{{Series: 3, Values: make([]float64, 3), Times: []int64{math.MinInt64, 0, math.MaxInt64}}}},
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			diff(t, "frame", decodeNew(t, encode(f)), f)
		})
	}
	if got, want := richFrame().Samples(), 6+4+1+6; got != want {
		t.Errorf("Samples() = %d, want %d", got, want)
	}
}

func TestFramePresence(t *testing.T) {
	for _, series := range []int{1, 7, 8, 9, 16, 17, 1000, MaxSeries} {
		for _, n := range []int{0, 1, series / 17, series / 16, series/16 + 1, series / 2, series} {
			t.Run(fmt.Sprintf("%d of %d", n, series), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(series), uint64(n)))
				s := Section{Series: series, Present: []uint32{}, Values: []float64{}}
				for _, i := range rng.Perm(series)[:min(n, series)] {
					s.Present = append(s.Present, uint32(i))
					s.Values = append(s.Values, float64(i))
				}
				slices.Sort(s.Present)
				f := &Frame{Sections: []Section{s}}
				diff(t, "frame", decodeNew(t, encode(f)), f)
			})
		}
	}
}

func TestFrameWithoutFloatSamplesNeedsNoPresentList(t *testing.T) {
	f := &Frame{Sections: []Section{{Series: 2, Histograms: []Histogram{{Index: 1, Int: &histogram.Histogram{}}}}}}
	got := decodeNew(t, encode(f))
	f.Sections[0].Present = []uint32{}
	diff(t, "frame", got, f)
}

func TestFrameKeepsEveryStartTimestamp(t *testing.T) {
	ends := []int64{math.MinInt64, math.MinInt64 + 1, -1, 0, 1, testTime - 1, testTime, testTime + 1, 2*testTime - 1, 2 * testTime, 2*testTime + 1, math.MaxInt64 - 1, math.MaxInt64}
	for _, frameTime := range ends {
		f := &Frame{Time: frameTime}
		s := Section{}
		for _, a := range ends {
			for d := int64(-2); d <= 2; d++ {
				// Sums that wrap are timestamps like others.
				s.Starts = append(s.Starts, a+d, frameTime-a+d)
			}
		}
		s.Series, s.Values = len(s.Starts), make([]float64, len(s.Starts))
		for i, start := range s.Starts {
			s.Histograms = append(s.Histograms, Histogram{Index: uint32(i), Time: start, Start: start, Int: &histogram.Histogram{}})
		}
		f.Sections = []Section{s}
		diff(t, fmt.Sprintf("frame of time %d", frameTime), decodeNew(t, encode(f)), f)
	}
}

func TestFrameRandomRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	used := new(Frame)
	for i := range 60 {
		f := randomFrame(rng)
		b := encode(f)
		diff(t, fmt.Sprintf("frame %d", i), decodeNew(t, b), f)
		if err := used.decode(b); err != nil {
			t.Fatal(err)
		}
		diff(t, fmt.Sprintf("frame %d in a used Frame", i), used, f)
	}
}

func randomFrame(rng *rand.Rand) *Frame {
	f := &Frame{Source: rng.Uint64(), Epoch: rng.Uint64() >> rng.IntN(64), Seq: rng.Uint64() >> rng.IntN(64), Time: int64(rng.Uint64()) >> rng.IntN(64)}
	for range rng.IntN(80) >> rng.IntN(6) {
		s := Section{Series: 1 + rng.IntN(50)}
		n := s.Series
		if rng.IntN(2) == 0 {
			s.Present = []uint32{}
			for i := range s.Series {
				if rng.IntN(8) < rng.IntN(9) {
					s.Present = append(s.Present, uint32(i))
				}
			}
			n = len(s.Present)
		}
		times, starts := rng.IntN(3) == 0, rng.IntN(3) == 0
		for range n {
			s.Values = append(s.Values, randomFloat(rng))
			if times {
				s.Times = append(s.Times, int64(rng.Uint64())>>rng.IntN(64))
			}
			if starts {
				s.Starts = append(s.Starts, int64(rng.Uint64())>>rng.IntN(64))
			}
		}
		for range rng.IntN(4) {
			s.Histograms = append(s.Histograms, Histogram{Index: uint32(rng.IntN(s.Series)), Time: f.Time, Float: &histogram.FloatHistogram{
				CounterResetHint: histogram.CounterResetHint(rng.IntN(4)), Schema: int32(rng.IntN(12) - 4), Sum: randomFloat(rng), Count: randomFloat(rng),
				PositiveSpans: []histogram.Span{{Offset: int32(rng.Uint32()), Length: rng.Uint32()}}, PositiveBuckets: []float64{randomFloat(rng)},
			}})
		}
		for range rng.IntN(4) {
			s.Exemplars = append(s.Exemplars, Exemplar{Index: uint32(rng.IntN(s.Series)), Exemplar: exemplar.Exemplar{
				Value: randomFloat(rng), Ts: int64(rng.Uint64()), HasTs: rng.IntN(2) == 0, Labels: labels.FromStrings("id", fmt.Sprint(rng.Uint64())),
			}})
		}
		f.Sections = append(f.Sections, s)
	}
	return f
}

func TestReusedFrameHoldsNothingOfTheLastOne(t *testing.T) {
	plain := &Frame{Time: 5, Sections: []Section{{Series: 1, Values: []float64{1}}, {Series: 2, Present: []uint32{1}, Values: []float64{2}}}}
	f := decodeNew(t, encode(richFrame()))
	old := f.Sections[3].Histograms
	if err := f.decode(encode(plain)); err != nil {
		t.Fatal(err)
	}
	diff(t, "frame", f, plain)
	for i := range old {
		if old[i].Int != nil || old[i].Float != nil {
			t.Errorf("histogram %d of the last frame is still referred to", i)
		}
	}
	if err := f.decode(encode(richFrame())); err != nil {
		t.Fatal(err)
	}
	diff(t, "frame", f, richFrame())
	if err := f.decode(encode(plain)[:30]); err == nil || len(f.Sections) != 0 {
		t.Errorf("cut frame: error %v and %d sections, want an error and none", err, len(f.Sections))
	}
}

func TestReusedFrameDecodesWithoutAllocating(t *testing.T) {
	b := encode(scrapes(t)[0].frame(testTime, 1))
	f := decodeNew(t, b)
	if n := testing.AllocsPerRun(10, func() {
		if err := f.decode(b); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestReusedFrameForgetsTheMemoryOfHugeOnes(t *testing.T) {
	huge := new(Frame)
	for range 5000 {
		huge.Sections = append(huge.Sections, Section{Series: 1000, Values: make([]float64, 1000)})
	}
	f := decodeNew(t, encode(huge))
	if err := f.decode(encode(richFrame())); err != nil {
		t.Fatal(err)
	}
	if cap(f.Sections) > keptSections {
		t.Errorf("keeps %d sections, want at most %d", cap(f.Sections), keptSections)
	}
}

func TestExemplarsWithHugeLabelsAreLeftOut(t *testing.T) {
	of := func(n int) Exemplar {
		return Exemplar{Exemplar: exemplar.Exemplar{Value: float64(n), Labels: labels.FromStrings("x", strings.Repeat("y", n-1))}}
	}
	f := &Frame{Sections: []Section{{Series: 1, Values: []float64{1}, Exemplars: []Exemplar{of(MaxLabelSetBytes + 1), of(2), of(MaxLabelSetBytes)}}}}
	got := decodeNew(t, encode(f))
	f.Sections[0].Exemplars = f.Sections[0].Exemplars[1:]
	diff(t, "frame", got, f)
	f.Sections[0].Exemplars = []Exemplar{of(MaxLabelSetBytes + 1)}
	if got := decodeNew(t, encode(f)); len(got.Sections[0].Exemplars) != 0 {
		t.Error("an exemplar above the limit was encoded")
	}
}

func TestEncodeAppends(t *testing.T) {
	var e Encoder
	b := e.Encode([]byte("before"), richFrame())
	if !bytes.Equal(b, append([]byte("before"), encode(richFrame())...)) {
		t.Error("encoding behind other bytes differs")
	}
}

func TestEncodePanicsForBrokenSections(t *testing.T) {
	h := &histogram.Histogram{}
	cases := map[string]Section{
		"more series than a dictionary has": {Series: MaxSeries + 1, Values: make([]float64, MaxSeries+1)},
		"values missing":                    {Series: 2, Values: []float64{1}},
		"values without present series":     {Series: 2, Present: []uint32{}, Values: []float64{1}},
		"present series out of order":       {Series: 3, Present: []uint32{2, 1}, Values: []float64{1, 2}},
		"present series twice":              {Series: 300, Present: []uint32{2, 2}, Values: []float64{1, 2}},
		"present series beyond the last":    {Series: 3, Present: []uint32{3}, Values: []float64{1}},
		"sparse series beyond the last":     {Series: 300, Present: []uint32{300}, Values: []float64{1}},
		"timestamps missing":                {Series: 2, Values: []float64{1, 2}, Times: []int64{1}},
		"start timestamps missing":          {Series: 2, Values: []float64{1, 2}, Starts: []int64{1}},
		"histogram beyond the last series":  {Series: 1, Values: []float64{1}, Histograms: []Histogram{{Index: 1, Int: h}}},
		"histogram of nothing":              {Series: 1, Values: []float64{1}, Histograms: []Histogram{{}}},
		"histogram of both":                 {Series: 1, Values: []float64{1}, Histograms: []Histogram{{Int: h, Float: &histogram.FloatHistogram{}}}},
		"exemplar beyond the last series":   {Series: 1, Values: []float64{1}, Exemplars: []Exemplar{{Index: 1}}},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("encoded without a panic")
				}
			}()
			encode(&Frame{Sections: []Section{s}})
		})
	}
}

func TestParseDictID(t *testing.T) {
	id := DictID{0xab, 1, 2, 15: 0xff}
	if got, err := ParseDictID(id.String()); err != nil || got != id {
		t.Errorf("ParseDictID(%q) = %v, %v", id, got, err)
	}
	for _, s := range []string{"", id.String()[1:], id.String() + "00", strings.ToUpper(id.String()), strings.Repeat("g", 32)} {
		if _, err := ParseDictID(s); err == nil {
			t.Errorf("ParseDictID(%q) gave no error", s)
		}
	}
}
