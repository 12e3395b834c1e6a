package remotewrite

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
)

func TestBlocksShareTheirSymbols(t *testing.T) {
	r := NewRequest(V2)
	blocks := make([]*Block, 50)
	for i := range blocks {
		blocks[i] = NewBlock(V2, targetSeries(i, 20))
	}
	var sizes []int
	for range 3 {
		r.Reset()
		var want []item
		// Round and round, so that blocks are met again within a request.
		for s := range uint32(20) {
			for i, b := range blocks {
				r.Add(b, s, benchTime, 0, 1)
				of := targetSeries(i, 20)[s]
				want = append(want, item{Labels: of.Labels.String(), Value: math.Float64bits(1), Time: benchTime, Metadata: of.Metadata})
			}
		}
		check(t, V2, r, want) // which refuses a symbol that is there twice
		sizes = append(sizes, r.Size())
	}
	if sizes[0] != sizes[1] || sizes[1] != sizes[2] {
		t.Errorf("the same request takes %v bytes", sizes)
	}
}

func TestManySymbolsGrowTheTable(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		r := NewRequest(p)
		var want []item
		for i := range 40 {
			var s []frame.Series
			for j := range 500 {
				s = append(s, series("__name__", "x", "id", fmt.Sprintf("%d-%d", i, j)))
				want = append(want, item{Labels: s[j].Labels.String(), Value: math.Float64bits(1), Time: 1})
			}
			b := NewBlock(p, s)
			for j := range s {
				r.Add(b, uint32(j), 1, 0, 1)
			}
		}
		check(t, p, r, want)
	})
}

// TestCacheOfBlocksIsBounded uses more labels than the cache keeps.
func TestCacheOfBlocksIsBounded(t *testing.T) {
	const perBlock = 60_000
	blocks := make([]*Block, maxRefs/perBlock+2)
	all := make([][]frame.Series, len(blocks))
	for i := range blocks {
		for j := range perBlock {
			all[i] = append(all[i], series("id", fmt.Sprintf("%d-%d", i, j)))
		}
		blocks[i] = NewBlock(V2, all[i])
	}
	r := NewRequest(V2)
	var want []item
	for s := range uint32(3) {
		for i, b := range blocks {
			r.Add(b, s, 1, 0, 1)
			want = append(want, item{Labels: all[i][s].Labels.String(), Value: math.Float64bits(1), Time: 1})
		}
	}
	check(t, V2, r, want)
	if n := len(r.refs.allPairs); n > maxRefs {
		t.Errorf("the cache knows %d labels, the bound is %d", n, maxRefs)
	}
}

func TestGenerationsStartOver(t *testing.T) {
	b := NewBlock(V2, targetSeries(1, 10))
	other := NewBlock(V2, targetSeries(2, 10))
	r := NewRequest(V2)
	r.Add(b, 0, 1, 0, 1)
	r.refs.lastGen, r.symbols.gen = math.MaxUint32-1, math.MaxUint32-1
	for range 4 {
		r.Reset()
		var want []item
		for i := range uint32(10) {
			for target, b := range map[int]*Block{1: b, 2: other} {
				of := targetSeries(target, 10)[i]
				r.Add(b, i, 1, 0, 1)
				want = append(want, item{Labels: of.Labels.String(), Value: math.Float64bits(1), Time: 1, Metadata: of.Metadata})
			}
		}
		check(t, V2, r, want)
	}
}

func TestRequestDoesNotKeepHugeMemory(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		s := make([]frame.Series, 200)
		for i := range s {
			s[i] = series("id", fmt.Sprintf("%0100000d", i))
		}
		b, r := NewBlock(p, s), NewRequest(p)
		for i := range s {
			r.Add(b, uint32(i), 1, 0, 1)
		}
		r.Body()
		r.Reset()
		if n := cap(r.body) + cap(r.raw) + cap(r.symbols.fields); n > 3*keepBytes {
			t.Errorf("keeps %d bytes", n)
		}
		r.Add(b, 7, 1, 0, 1)
		check(t, p, r, []item{{Labels: s[7].Labels.String(), Value: math.Float64bits(1), Time: 1}})
	})
}

func TestBlockIsSharedByRequests(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		all := targetSeries(1, 100)
		b := NewBlock(p, all)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				r := NewRequest(p)
				for range 10 {
					r.Reset()
					for i := range all {
						r.Add(b, uint32(i), 1, 0, 1)
					}
				}
				if n := len(decode(t, p, r)); n != len(all) {
					t.Errorf("%d series", n)
				}
			})
		}
		group.Wait()
	})
}

func TestAddDoesNotAllocate(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		blocks := make([]*Block, 10)
		for i := range blocks {
			blocks[i] = NewBlock(p, targetSeries(i, 50))
		}
		r := NewRequest(p)
		values := scrape(50)
		run := func() {
			fill(r, blocks, values)
			r.Body()
		}
		run()
		if n := testing.AllocsPerRun(20, run); n > 1 {
			t.Errorf("%v allocations for a request of 500 samples", n)
		}
	})
}

func TestBlockTellsItsMemory(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		small, large := NewBlock(p, targetSeries(1, 10)), NewBlock(p, targetSeries(1, 1000))
		if small.Bytes() < 10*20 || large.Bytes() < 1000*20 || large.Bytes() > 1000*300 {
			t.Errorf("10 series take %d bytes, 1000 take %d", small.Bytes(), large.Bytes())
		}
	})
}

func TestMetadataOfFamilies(t *testing.T) {
	body := EncodeMetadata([]Family{
		{"http_requests", metadata.Metadata{Type: model.MetricTypeCounter, Help: "Requests.", Unit: "requests"}},
		{"up", metadata.Metadata{}},
	})
	raw, err := snappy.Decode(nil, body)
	if err != nil {
		t.Fatal(err)
	}
	var got prompb.WriteRequest
	if err := got.Unmarshal(raw); err != nil {
		t.Fatal(err)
	}
	want := []prompb.MetricMetadata{
		{Type: prompb.MetricMetadata_COUNTER, MetricFamilyName: "http_requests", Help: "Requests.", Unit: "requests"},
		{MetricFamilyName: "up"},
	}
	if diff := cmp.Diff(want, got.Metadata); diff != "" || len(got.Timeseries) != 0 {
		t.Errorf("-want +got:\n%s", diff)
	}
	if raw, err := snappy.Decode(nil, EncodeMetadata(nil)); err != nil || len(raw) != 0 {
		t.Errorf("no families give %x, %v", raw, err)
	}
}

func TestEmptyRequest(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		if got := decode(t, p, NewRequest(p)); len(got) != 0 {
			t.Errorf("%d series", len(got))
		}
	})
	var req writev2.Request
	if err := req.Unmarshal(NewRequest(V2).Raw()); err != nil || len(req.Symbols) != 1 {
		t.Errorf("symbols %q, %v", req.Symbols, err)
	}
}

// FuzzRequest builds random requests and reads them with Prometheus's own types.
func FuzzRequest(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed, seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, second bool) {
		p := V1
		if second {
			p = V2
		}
		g := generator{rand.New(rand.NewPCG(seed, 0))}
		r := NewRequest(p)
		for range 2 {
			r.Reset()
			all := make([][]frame.Series, 1+g.IntN(5))
			blocks := make([]*Block, len(all))
			for i := range all {
				all[i] = g.series()
				blocks[i] = NewBlock(p, all[i])
			}
			var want []item
			for range g.IntN(200) {
				n := g.IntN(len(all))
				want = g.add(r, blocks[n], all[n], want)
			}
			check(t, p, r, want)
		}
	})
}

type generator struct{ *rand.Rand }

func (g generator) word() string {
	n := g.IntN(8)
	if g.IntN(20) == 0 {
		n = g.IntN(40_000)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = "abc"[g.IntN(3)]
	}
	return string(b)
}

func (g generator) series() []frame.Series {
	all := make([]frame.Series, 1+g.IntN(20))
	for i := range all {
		set := map[string]string{}
		for range g.IntN(6) {
			if v := g.word(); v != "" {
				set["l"+g.word()] = v
			}
		}
		all[i].Labels = labels.FromMap(set)
		if g.IntN(2) == 0 {
			types := []model.MetricType{"", model.MetricTypeUnknown, model.MetricTypeCounter, model.MetricTypeStateset, model.MetricTypeInfo}
			all[i].Metadata = metadata.Metadata{Type: types[g.IntN(len(types))], Unit: g.word(), Help: g.word()}
		}
	}
	return all
}

func (g generator) time() int64 {
	switch g.IntN(4) {
	case 0:
		return 0
	case 1:
		return int64(g.Uint64())
	}
	return benchTime
}

func (g generator) add(r *Request, b *Block, all []frame.Series, want []item) []item {
	i := g.IntN(len(all))
	it := item{Labels: all[i].Labels.String(), Time: g.time(), Start: g.time(), Metadata: all[i].Metadata}
	if g.IntN(5) == 0 {
		for _, h := range testHistograms() { // in random order
			h.Index, h.Time, h.Start = uint32(i), it.Time, it.Start
			r.AddHistogram(b, &h)
			it.Histogram = showHistogram(h.Int, h.Float)
			break
		}
	} else {
		it.Value = g.Uint64() & -uint64(g.IntN(2))
		r.Add(b, uint32(i), it.Time, it.Start, math.Float64frombits(it.Value))
	}
	for range g.IntN(3) * g.IntN(2) {
		x := exemplar.Exemplar{Labels: labels.FromStrings("t", "w"+g.word()), Value: g.Float64(), Ts: g.time(), HasTs: true}
		r.AddExemplar(&x)
		it.Exemplars = append(it.Exemplars, showExemplar(x.Labels, x.Value, x.Ts))
	}
	if all[i].Labels.IsEmpty() {
		return want
	}
	return append(want, it)
}
