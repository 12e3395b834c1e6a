package remotewrite

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"github.com/millrace/millrace/pkg/frame"
)

// decoded returns the message of a request as golang/snappy and Prometheus's code read it.
func decoded(t testing.TB, r *Request) *prompb.WriteRequest {
	t.Helper()
	raw, err := snappy.Decode(nil, r.Body())
	if err != nil {
		t.Fatal(err)
	}
	var m prompb.WriteRequest
	if err := m.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	if string(r.Raw()) != string(raw) || r.Size() != len(raw) {
		t.Fatalf("Raw has %d bytes and Size says %d, the body holds %d", len(r.Raw()), r.Size(), len(raw))
	}
	return &m
}

// section is what a frame says of a dictionary's series.
type section struct {
	present []uint32 // nil: all
	time    int64
	values  []float64
}

func (s *section) index(k int) uint32 {
	if s.present != nil {
		return s.present[k]
	}
	return uint32(k)
}

// addRuns adds a section in runs where that is possible, and tells how many samples went so.
func addRuns(r *Request, b *Block, s *section) (packed int) {
	for k := 0; k < len(s.values); {
		present := s.present
		if present != nil {
			present = present[k:]
		}
		n := r.AddRun(b, present, uint32(k), s.time, s.values[k:])
		packed += n
		if n > 0 {
			k += n
			continue
		}
		for run := RunOf(s.index(k)); k < len(s.values) && RunOf(s.index(k)) == run; k++ {
			r.Add(b, s.index(k), s.time, 0, s.values[k])
		}
	}
	return packed
}

func sameMessages(t *testing.T, got, want *prompb.WriteRequest) {
	t.Helper()
	if len(got.Timeseries) != len(want.Timeseries) {
		t.Fatalf("%d series, want %d", len(got.Timeseries), len(want.Timeseries))
	}
	for i := range got.Timeseries {
		g, w := &got.Timeseries[i], &want.Timeseries[i]
		same := slices.EqualFunc(g.Labels, w.Labels, func(a, b prompb.Label) bool { return a.Name == b.Name && a.Value == b.Value }) && len(g.Samples) == len(w.Samples) && len(g.Histograms) == len(w.Histograms) && len(g.Exemplars) == len(w.Exemplars)
		for k := range w.Samples {
			same = same && g.Samples[k].Timestamp == w.Samples[k].Timestamp && math.Float64bits(g.Samples[k].Value) == math.Float64bits(w.Samples[k].Value)
		}
		if !same || len(w.Samples) == 0 && g.String() != w.String() {
			t.Fatalf("series %d is %v, want %v", i, g, w)
		}
	}
}

func TestRunsAreWhatSamplesAreOneByOne(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	large := strings.Repeat("large", 300)
	dictionaries := map[string][]frame.Series{
		"one": targetSeries(1, 1), "a run": targetSeries(1, runLength), "more": targetSeries(2, 1000), "recorded": recordedSeries(t),
	}
	dropping := targetSeries(3, 700)
	for i := range dropping {
		if rnd.IntN(5) == 0 || i >= 256 && i < 384 {
			dropping[i].Labels = labels.EmptyLabels()
		}
	}
	dictionaries["dropping"] = dropping
	long := targetSeries(4, 300)
	for i := range long {
		if i < 128 || rnd.IntN(3) == 0 {
			long[i].Labels = labels.FromStrings("__name__", "long", "value", large+string(rune('a'+i%26)), "number", strings.Repeat("x", i))
		}
	}
	dictionaries["long"] = long
	for name, series := range dictionaries {
		t.Run(name, func(t *testing.T) {
			block := NewBlock(V1, series)
			var present []uint32
			packed := 0
			for round := range 40 {
				switch rnd.IntN(4) {
				case 0: // others are there than before
					present = []uint32{}
					for i := range series {
						if rnd.IntN(10) > 0 {
							present = append(present, uint32(i))
						}
					}
				case 1:
					present = nil
				}
				s := section{present: present, time: benchTime + int64(round)*15_000, values: scrape(len(series))}
				if present != nil {
					s.values = s.values[:len(present)]
				}
				for i := range s.values {
					switch rnd.IntN(20) {
					case 0:
						s.values[i] = math.Float64frombits(0x7ff0000000000002)
					case 1:
						s.values[i] = math.Copysign(0, -1)
					case 2, 3, 4: // like one before, in whole or in part
						s.values[i] = s.values[rnd.IntN(i+1)] + float64(rnd.IntN(2))
					}
				}
				if round == 20 {
					s.time = 12 // no run has this year
				}
				got, want := NewRequest(V1), NewRequest(V1)
				for range 1 + rnd.IntN(2) {
					packed += addRuns(got, block, &s)
					for k, v := range s.values {
						want.Add(block, s.index(k), s.time, 0, v)
					}
				}
				if got.Samples() != want.Samples() {
					t.Fatalf("%d samples, want %d", got.Samples(), want.Samples())
				}
				sameMessages(t, decoded(t, got), decoded(t, want))
			}
			if packed == 0 {
				t.Error("no run was packed")
			}
		})
	}
}

func TestRunsAndOthersStandInOneRequest(t *testing.T) {
	series := targetSeries(1, 2*runLength)
	block := NewBlock(V1, series)
	add := func(r *Request, runs bool) {
		all := section{time: benchTime, values: scrape(len(series))}
		r.Add(block, 7, benchTime-1, 0, 5)
		r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("trace", "a"), Value: 1})
		r.AddHistogram(block, &frame.Histogram{Index: 9, Time: benchTime, Int: tsdbutil.GenerateTestHistogram(3)})
		if runs {
			addRuns(r, block, &all)
		} else {
			for k, v := range all.values {
				r.Add(block, uint32(k), benchTime, 0, v)
			}
		}
		r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("trace", "lost"), Value: 1})
		r.Add(block, 8, benchTime+1, 0, 6)
		r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("trace", "b"), Value: 2})
	}
	got, want := NewRequest(V1), NewRequest(V1)
	for range 4 {
		got.Reset()
		add(got, true)
	}
	add(want, false)
	g, w := decoded(t, got), decoded(t, want)
	// An exemplar belongs to the sample that was added just before by itself.
	last := &w.Timeseries[len(w.Timeseries)-2]
	if len(last.Exemplars) != 1 {
		t.Fatalf("the sample before has %d exemplars", len(last.Exemplars))
	}
	last.Exemplars = nil
	sameMessages(t, g, w)
}

func TestRunsCompressAsWellAsSnappy(t *testing.T) {
	for name, series := range map[string][]frame.Series{"generated": targetSeries(1, 2000), "recorded": recordedSeries(t)} {
		block := NewBlock(V1, series)
		s := section{time: benchTime, values: scrape(len(series))}
		one, runs := NewRequest(V1), NewRequest(V1)
		for k, v := range s.values {
			one.Add(block, uint32(k), s.time, 0, v)
		}
		for range 3 {
			runs.Reset()
			addRuns(runs, block, &s)
		}
		n := float64(len(series))
		t.Logf("%s: %.1f bytes a sample in runs, %.1f by snappy", name, float64(len(runs.Body()))/n, float64(len(one.Body()))/n)
		if len(runs.Body()) > len(one.Body())*11/10 {
			t.Errorf("%s: %d bytes in runs, %d by snappy", name, len(runs.Body()), len(one.Body()))
		}
	}
}

func TestSamplesThatDifferEachTimeAreNotPacked(t *testing.T) {
	series := targetSeries(1, runLength)
	block := NewBlock(V1, series)
	for i := range 10 {
		r := NewRequest(V1)
		s := section{present: []uint32{uint32(i), 100}, time: benchTime, values: []float64{1, 2}}
		if n := addRuns(r, block, &s); n != 0 {
			t.Fatalf("%d samples were packed the first time", n)
		}
	}
}

func BenchmarkAddRun(b *testing.B) {
	for name, series := range map[string][]frame.Series{"series=1000": targetSeries(1, 1000), "recorded": recordedSeries(b)} {
		b.Run(name, func(b *testing.B) {
			block := NewBlock(V1, series)
			s := section{time: benchTime, values: scrape(len(series))}
			r := NewRequest(V1)
			b.ReportAllocs()
			for b.Loop() {
				r.Reset()
				addRuns(r, block, &s)
				r.Body()
			}
			perSample(b, r)
		})
	}
}

func BenchmarkPack(b *testing.B) {
	series := recordedSeries(b)
	block := NewBlock(V1, series)
	for b.Loop() {
		block.pack(0, mask{math.MaxUint64, math.MaxUint64})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/runLength, "ns/series")
}
