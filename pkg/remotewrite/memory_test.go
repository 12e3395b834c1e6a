package remotewrite

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"unsafe"
	"weak"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/frame"
)

func TestRealSeriesTakeLittleMemory(t *testing.T) {
	all := recordedSeries(t)
	for p, limit := range map[Protocol]float64{V1: 90, V2: 110} {
		b := NewBlock(p, all)
		perSeries := float64(b.Bytes()) / float64(len(all))
		t.Logf("%s: %.1f B/series", p, perSeries)
		if perSeries > limit {
			t.Errorf("%s: a series takes %.1f bytes, want at most %v", p, perSeries, limit)
		}
		if labels := float64(b.v1.bytes()) / float64(len(all)); labels > 55 {
			t.Errorf("%s: the labels of a series take %.1f bytes, want at most 55", p, labels)
		}
	}
	b, s := NewBlock(V1, all), section{time: benchTime, values: scrape(len(all))}
	for range 2 {
		addRuns(NewRequest(V1), b, &s)
	}
	held := 0
	for i := range b.slots {
		x := b.slots[i].run.Load()
		held += cap(x.packed) + size(x.gaps) + size(x.times)
	}
	if perSeries := float64(held) / float64(len(all)); perSeries > runBytes {
		t.Errorf("the run of a series takes %.1f bytes, and is counted as %d", perSeries, runBytes)
	}
}

// TestBlockKeepsNoMemoryOfTheSeries has series as they are read from a stream, whose metadata is one large string.
func TestBlockKeepsNoMemoryOfTheSeries(t *testing.T) {
	both(t, func(t *testing.T, p Protocol) {
		all := recordedSeries(t)
		dict, msg, err := frame.NewDictionary("node", all)
		if err != nil {
			t.Fatal(err)
		}
		read, err := frame.ReadDictionary(msg, dict.ID)
		if err != nil {
			t.Fatal(err)
		}
		held := map[string]weak.Pointer[byte]{
			"help": weak.Make(unsafe.StringData(read.Series[0].Metadata.Help)),
		}
		read.Series[0].Labels.Range(func(l labels.Label) { held["label "+l.Name] = weak.Make(unsafe.StringData(l.Value)) })
		b := NewBlock(p, read.Series)
		runtime.KeepAlive(read)
		read = nil
		runtime.GC()
		for what, s := range held {
			if s.Value() != nil {
				t.Errorf("the %s is still in memory", what)
			}
		}
		if got := b.Labels(0); !labels.Equal(got, all[0].Labels) {
			t.Errorf("Labels(0) = %s, want %s", got, all[0].Labels)
		}
	})
}

func TestMetadataIsHeldOnce(t *testing.T) {
	const help = "What it counts, in many words."
	var all []frame.Series
	for i := range 100 {
		s := series("__name__", fmt.Sprintf("x_%d", i))
		s.Metadata = metadata.Metadata{Type: model.MetricTypeCounter, Help: help}
		if i%2 == 0 {
			s.Metadata.Unit = "seconds" // the same help in other metadata
		}
		all = append(all, s)
	}
	b := NewBlock(V2, all)
	if n := strings.Count(b.text, help); n != 1 || len(b.metas) != 2 {
		t.Errorf("the help is held %d times, in %d metadata", n, len(b.metas))
	}
}

// TestFragmentsBeyond16Bits has just as many labels as two bytes number, one more, and many more.
func TestFragmentsBeyond16Bits(t *testing.T) {
	for _, n := range []int{maxNarrow, maxNarrow + 1, maxNarrow + 10_000} {
		all := make([]frame.Series, n)
		for i := range all {
			all[i] = series("id", fmt.Sprint(i))
		}
		b, r := NewBlock(V1, all), NewRequest(V1)
		if wide := b.v1.wide != nil; wide != (n > maxNarrow) {
			t.Errorf("%d labels: wide lists: %v", n, wide)
		}
		var want []item
		for _, i := range []int{0, 1, maxNarrow - 1, n - 1} {
			r.Add(b, uint32(i), 1, 0, 1)
			want = append(want, item{Labels: all[i].Labels.String(), Value: math.Float64bits(1), Time: 1})
			if got := b.Labels(uint32(i)); !labels.Equal(got, all[i].Labels) {
				t.Errorf("%d labels: Labels(%d) = %s", n, i, got)
			}
		}
		check(t, V1, r, want)
	}
}

// TestSizesBeyond16Bits has label sets of sizes around what two bytes tell.
func TestSizesBeyond16Bits(t *testing.T) {
	var all []frame.Series
	for size := hugeLabels - 2; size <= hugeLabels+2; size++ {
		overhead := fieldSize(fieldSize(1)+fieldSize(size)) - size
		all = append(all, series("a", strings.Repeat("x", size-overhead)))
	}
	b, r := NewBlock(V1, all), NewRequest(V1)
	var want []item
	for i := range all {
		if got := b.v1.size(uint32(i)); got != hugeLabels-2+i {
			t.Errorf("series %d takes %d bytes, want %d", i, got, hugeLabels-2+i)
		}
		r.Add(b, uint32(i), 1, 0, 1)
		want = append(want, item{Labels: all[i].Labels.String(), Value: math.Float64bits(1), Time: 1})
	}
	check(t, V1, r, want)
}

// TestJoinedLabels has labels that stand side by side often, seldom, and in overlapping runs, shorter and longer than a chunk.
func TestJoinedLabels(t *testing.T) {
	var all []frame.Series
	for i := range 600 {
		ls := []string{"__name__", fmt.Sprintf("x_%d", i%7), "a", "same", "b", strings.Repeat("y", i%5*20), "c", "same"}
		if i%3 == 0 {
			ls = append(ls, "d", "third", "e", "third")
		}
		if i%50 == 0 {
			ls = append(ls, "f", "seldom", "g", strings.Repeat("z", 300))
		}
		all = append(all, series(ls...))
	}
	b, r := NewBlock(V1, all), NewRequest(V1)
	var want []item
	for i := range all {
		if got := b.Labels(uint32(i)); !labels.Equal(got, all[i].Labels) {
			t.Errorf("Labels(%d) = %s, want %s", i, got, all[i].Labels)
		}
		r.Add(b, uint32(i), 1, 0, 1)
		want = append(want, item{Labels: all[i].Labels.String(), Value: math.Float64bits(1), Time: 1})
	}
	check(t, V1, r, want)
	if n := len(b.v1.narrow); n >= 4*len(all) {
		t.Errorf("%d series of 4 labels and more take %d fragments: none are joined", len(all), n)
	}
}
