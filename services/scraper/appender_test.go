package scraper

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
)

func TestSeriesKeepTheirNumbers(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a := r.appender(target)
	ref := r.add(a, 0, "x", 1000, 1)
	r.compare("first scrape", r.commit(a), float("x", 1000, 1))
	a = r.appender(target)
	if again := r.add(a, 0, "x", 2000, 2); again != ref {
		t.Errorf("ref %x became %x", ref, again)
	}
	if again := r.add(a, 0, "y", 2000, 3); again == ref {
		t.Errorf("two series have the ref %x", ref)
	}
	r.compare("second scrape", r.commit(a), float("x", 2000, 2), float("y", 2000, 3))
	src := r.sourceOf(target)
	if len(src.dicts) != 2 || src.dicts[0].n != 1 || src.dicts[1].n != 1 {
		t.Errorf("dictionaries %+v, want one for each scrape with new series", src.dicts)
	}
	a = r.appender(target)
	r.add(a, 0, "x", 3000, 4)
	r.compare("a part of the series", r.commit(a), float("x", 3000, 4))
	if r.sourceOf(newTarget("b:1")) == src {
		t.Error("two targets share a source")
	}
	if r.sourceOf(newTarget("a:1")) != src {
		t.Error("a target that came back has another source")
	}
}

func TestErrorsAreThoseOfPrometheusStorage(t *testing.T) {
	h := &histogram.Histogram{Count: 1, Sum: 2}
	for name, test := range map[string]struct {
		t       int64
		v       float64
		h       *histogram.Histogram
		reject  bool
		want    error
		appends int // samples that the scrape has then
	}{
		"newer":                            {t: 2001, appends: 1},
		"out of order":                     {t: 1500, want: storage.ErrOutOfOrderSample},
		"the same again":                   {t: 2000, v: 2},
		"another value for the timestamp":  {t: 2000, v: 3, want: storage.ErrDuplicateSampleForTimestamp},
		"the same, where newer are wanted": {t: 2000, v: 2, reject: true, want: storage.ErrOutOfOrderSample},
		"a histogram for the timestamp":    {t: 2000, h: h},
		"an older histogram":               {t: 1999, h: h, want: storage.ErrOutOfOrderSample},
		"a newer histogram":                {t: 2001, h: h, appends: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			target := newTarget("a:1")
			a := r.appender(target)
			r.add(a, 0, "x", 2000, 2) // with a timestamp of its own
			r.add(a, 0, "up", 2500, 1)
			r.commit(a)
			a = r.appender(target)
			_, err := a.Append(0, labels.FromStrings("__name__", "x"), 0, test.t, test.v, test.h, nil, storage.AOptions{RejectOutOfOrder: test.reject})
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			if got := r.commit(a); len(got) != test.appends {
				t.Errorf("the scrape has %v, want %d samples", got, test.appends)
			}
		})
	}
}

func TestWhatNoStorageTakesIsRefusedAlone(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a := r.appender(target)
	for what, ls := range map[string]labels.Labels{
		"no labels":    labels.EmptyLabels(),
		"only empty":   labels.FromStrings("a", ""),
		"a name twice": labels.New(labels.Label{Name: "__name__", Value: "x"}, labels.Label{Name: "a", Value: "1"}, labels.Label{Name: "a", Value: "2"}),
		"too large":    labels.FromStrings("__name__", strings.Repeat("x", frame.MaxLabelSetBytes)),
	} {
		if _, err := a.Append(0, ls, 0, 1000, 1, nil, nil, storage.AOptions{}); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	r.add(a, 0, "good", 1000, 1)
	// A label without a value is none.
	if _, err := a.Append(0, labels.FromStrings("__name__", "good", "a", ""), 0, 1000, 2, nil, nil, storage.AOptions{}); !errors.Is(err, storage.ErrDuplicateSampleForTimestamp) {
		t.Errorf("the same series with an empty label: %v", err)
	}
	r.compare("the rest", r.commit(a), float("good", 1000, 1))
}

func TestSeveralSamplesOfASeriesInOneScrape(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a := r.appender(target)
	for i := range int64(4) {
		r.add(a, 0, "x", 100+i, float64(i))
		r.add(a, 0, "y", 200+i, float64(i))
		if i == 2 {
			r.add(a, 0, "z", 300, 9)
		}
	}
	if _, err := a.Append(0, name("x"), 0, 102, 7, nil, nil, storage.AOptions{}); !errors.Is(err, storage.ErrOutOfOrderSample) {
		t.Errorf("an older sample in the same scrape: %v", err)
	}
	if _, err := a.Append(0, name("x"), 0, 103, 7, nil, nil, storage.AOptions{}); !errors.Is(err, storage.ErrDuplicateSampleForTimestamp) {
		t.Errorf("another value in the same scrape: %v", err)
	}
	r.add(a, 0, "x", 103, 3)
	r.add(a, 0, "up", 1000, 1)
	r.compare("samples", r.commit(a),
		float("x", 100, 0), float("y", 200, 0), float("z", 300, 9), float("up", 1000, 1),
		float("x", 101, 1), float("y", 201, 1),
		float("x", 102, 2), float("y", 202, 2),
		float("x", 103, 3), float("y", 203, 3))
	a = r.appender(target)
	r.add(a, 0, "x", 103, 3)
	r.compare("the last one again", r.commit(a))
}

func TestChangedMetadataMakesANewEntry(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	append := func(at int64, ref storage.SeriesRef, help string) storage.SeriesRef {
		a := r.appender(target)
		family := []byte("x") // which the caller uses again
		ref, err := a.Append(ref, name("x"), 0, at, 1, nil, nil, storage.AOptions{
			MetricFamilyName: string(family), Metadata: metadata.Metadata{Type: "gauge", Help: help},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Commit(); err != nil {
			t.Fatal(err)
		}
		u := r.unitOf(src)
		_, dicts := decode(t, u)
		for _, series := range dicts {
			if want := (metadata.Metadata{Type: "gauge", Help: help}); len(series) != 1 || series[0].Metadata != want || series[0].Family != "x" {
				t.Errorf("dictionary %+v, want the metadata %+v", series, want)
			}
		}
		return ref
	}
	first := append(1000, 0, "one")
	if again := append(2000, first, "one"); again != first {
		t.Error("the same metadata changed the ref")
	}
	second := append(3000, first, "two")
	if second == first {
		t.Error("other metadata did not change the ref")
	}
	// The old number, which a template still has, leads to the new entry.
	if again := src.resolve(uint32(first) - 1); again != uint32(second)-1 {
		t.Error("the old number leads to the old entry")
	}
	a := r.appender(target)
	a.begun()
	if _, err := a.append(uint32(first)-1, scraped{t: 2500, v: 1}, &storage.AOptions{}); !errors.Is(err, storage.ErrOutOfOrderSample) {
		t.Errorf("an older sample by the old number: %v", err)
	}
	_ = a.Rollback()
	if len(src.series) != 2 {
		t.Errorf("%d entries, want 2", len(src.series))
	}
	huge := append(5000, second, strings.Repeat("é", maxHelp/2))
	a = r.appender(target)
	again, err := a.Append(huge, name("x"), 0, 6000, 1, nil, nil, storage.AOptions{
		MetricFamilyName: "x", Metadata: metadata.Metadata{Type: "gauge", Help: strings.Repeat("é", maxHelp/2) + "é and more"},
	})
	if err != nil || again != huge {
		t.Errorf("help beyond the limit counts: %x became %x, %v", huge, again, err)
	}
	_ = a.Rollback()
}

func TestStalenessMarkersAndRollback(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a := r.appender(target)
	x := r.add(a, 0, "x", 1000, 1)
	r.commit(a)

	a = r.appender(target)
	r.add(a, x, "x", 2000, 2)
	r.add(a, 0, "y", 2000, 2)
	if err := a.Rollback(); err != nil {
		t.Fatal(err)
	}
	a = r.appender(target)
	r.add(a, x, "x", 2000, staleNaN)
	r.add(a, 0, "up", 2000, 0)
	r.compare("after a rollback", r.commit(a), float("x", 2000, staleNaN), float("up", 2000, 0))

	a = r.appender(target)
	r.add(a, x, "x", 3000, 3)
	r.compare("back again", r.commit(a), float("x", 3000, 3))

	a = r.appender(target)
	r.compare("an empty scrape", r.commit(a))
}

func ex(trace string, at int64, v float64) exemplar.Exemplar {
	return exemplar.Exemplar{Labels: labels.FromStrings("trace_id", trace), Ts: at, HasTs: true, Value: v}
}

func TestExemplarsComeOnce(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	long := exemplar.Exemplar{Labels: labels.FromStrings("trace_id", strings.Repeat("é", exemplar.ExemplarMaxLabelSetLength-8)), Ts: 9000, HasTs: true}
	longer := exemplar.Exemplar{Labels: labels.FromStrings("trace_id", strings.Repeat("é", exemplar.ExemplarMaxLabelSetLength-7)), Ts: 9001, HasTs: true}
	for i, test := range []struct {
		give, want []exemplar.Exemplar
		errs       []error
	}{
		{give: []exemplar.Exemplar{ex("a", 1000, 1), ex("b", 1001, 2)}, want: []exemplar.Exemplar{ex("a", 1000, 1), ex("b", 1001, 2)}},
		{give: []exemplar.Exemplar{ex("b", 1001, 2)}},
		{give: []exemplar.Exemplar{ex("a", 1000, 1), ex("b", 1001, 2), ex("c", 1001, 3)}, want: []exemplar.Exemplar{ex("c", 1001, 3)}, errs: []error{storage.ErrOutOfOrderExemplar}},
		{give: []exemplar.Exemplar{ex("c", 1001, 2)}, errs: []error{storage.ErrOutOfOrderExemplar}},
		{give: []exemplar.Exemplar{long, longer}, want: []exemplar.Exemplar{long}, errs: []error{storage.ErrExemplarLabelLength}},
	} {
		a := r.appender(target)
		_, err := a.Append(0, name("x"), 0, int64(2000+i), 1, nil, nil, storage.AOptions{Exemplars: test.give})
		var partial *storage.AppendPartialError
		if errors.As(err, &partial) && !slices.Equal(partial.ExemplarErrors, test.errs) || (err != nil) != (len(test.errs) > 0) {
			t.Errorf("scrape %d: error %v, want %v", i, err, test.errs)
		}
		if err := a.Commit(); err != nil {
			t.Fatal(err)
		}
		frames, _ := decode(t, r.unitOf(src))
		var got []exemplar.Exemplar
		for _, x := range frames[0].Sections[0].Exemplars {
			got = append(got, x.Exemplar)
		}
		if !slices.EqualFunc(got, test.want, func(a, b exemplar.Exemplar) bool { return a.Equals(b) }) || len(frames[0].Sections[0].Values) != 1 {
			t.Errorf("scrape %d: exemplars %v, want %v", i, got, test.want)
		}
	}
}

func TestHistogramsAreCopiedAndSpreadOverFrames(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	const n = 3*maxFrameHistograms + 5
	a := r.appender(target)
	var want []sample
	h := &histogram.Histogram{PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{0}}
	fh := &histogram.FloatHistogram{PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []float64{0}}
	for i := range n {
		series := numbered("h", i)
		opts := storage.AOptions{Exemplars: []exemplar.Exemplar{ex(series, 900, 1)}}
		x := sample{Series: name(series).String(), T: 1000, St: 500}
		var err error
		if i%2 == 0 {
			h.Count, h.PositiveBuckets[0] = uint64(i), int64(i)
			x.Histogram = h.Copy()
			_, err = a.Append(0, name(series), 500, 1000, 0, h, nil, opts)
		} else {
			fh.Count, fh.PositiveBuckets[0] = float64(i), float64(i)
			x.Histogram = fh.Copy()
			_, err = a.Append(0, name(series), 500, 1000, 0, nil, fh, opts)
		}
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, x)
	}
	h.Count, fh.Count = 77, 77 // the caller uses them again
	h.PositiveBuckets[0], fh.PositiveBuckets[0] = 77, 77
	r.add(a, 0, "up", 1000, 1)
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	frames, dicts := decode(t, r.unitOf(src))
	var got []sample
	for _, x := range samples(t, frames, dicts) {
		if x.Histogram != nil {
			got = append(got, x)
		}
	}
	r.compare("histograms", got, want...)
	exemplars := 0
	for _, f := range frames {
		for _, s := range f.Sections {
			if len(s.Histograms) > maxFrameHistograms {
				t.Errorf("a section has %d histograms", len(s.Histograms))
			}
			for _, x := range s.Exemplars {
				exemplars++
				if !slices.ContainsFunc(s.Histograms, func(h frame.Histogram) bool { return h.Index == x.Index }) {
					t.Errorf("an exemplar stands in another section than its histogram %d", x.Index)
				}
			}
		}
	}
	if exemplars != n {
		t.Errorf("%d exemplars, want %d", exemplars, n)
	}
}

func TestLargeHistogramsMakeSmallFrames(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a := r.appender(target)
	h := &histogram.FloatHistogram{PositiveSpans: []histogram.Span{{Length: 8000}}, PositiveBuckets: make([]float64, 8000)}
	for i := range h.PositiveBuckets {
		h.PositiveBuckets[i] = 1 / float64(i+3)
	}
	for i := range 40 {
		if _, err := a.Append(0, name(numbered("h", i)), 0, 1000, 0, nil, h, storage.AOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	src := a.to
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.unitOf(src).Frames {
		if len(f.Data) > 2*maxFrameBytes {
			t.Errorf("a frame has %d bytes", len(f.Data))
		}
	}
}

func TestStartTimestampsAppearInTheMiddleOfAScrape(t *testing.T) {
	r := newRig(t)
	a := r.appender(newTarget("a:1"))
	var want []sample
	for i := range 200 {
		st := int64(0)
		if i > 100 && i%3 == 0 {
			st = int64(500 + i)
		}
		x := sample{Series: name(numbered("x", i)).String(), T: 1000, St: st, V: float64(i)}
		if _, err := a.Append(0, name(numbered("x", i)), st, 1000, x.V, nil, nil, storage.AOptions{}); err != nil {
			t.Fatal(err)
		}
		want = append(want, x)
	}
	r.compare("samples", r.commit(a), want...)
}

func TestADroppedScrapeLeavesNoTrace(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxPendingBytes = 0 })
	target := newTarget("a:1")
	fill := func(at int64) *testAppender {
		a := r.appender(target)
		for i := range 10 {
			opts := storage.AOptions{Exemplars: []exemplar.Exemplar{ex("a", 900, 1)}}
			if _, err := a.Append(0, name(numbered("x", i)), 0, at, float64(i), nil, nil, opts); err != nil {
				t.Fatal(err)
			}
		}
		return a
	}
	if got := r.commit(fill(1000)); got != nil {
		t.Fatalf("a scrape without room gave %v", got)
	}
	if n, m := r.value("millrace_scraper_dropped_scrapes_total"), r.value("millrace_scraper_dropped_samples_total"); n != 1 || m != 10 {
		t.Errorf("counted as dropped: %v scrapes, %v samples", n, m)
	}
	if r.budget.Pending() != 0 || !strings.Contains(r.log.String(), "Dropped whole scrapes") {
		t.Errorf("%d bytes are pending", r.budget.Pending())
	}
	r.budget = publish.NewBudget(1 << 20)
	a := fill(1000) // even with the same timestamp
	src := a.to
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	u := r.unitOf(src)
	frames, dicts := decode(t, u)
	if got := samples(t, frames, dicts); len(got) != 10 || len(frames[0].Sections[0].Exemplars) != 10 || len(u.Dicts) != 1 {
		t.Errorf("the next scrape has %d samples, %d exemplars, %d dictionaries", len(got), len(frames[0].Sections[0].Exemplars), len(u.Dicts))
	}
}

func TestTwoScrapeLoopsOfOneSource(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	a, b := r.appender(target), r.appender(target)
	r.add(b, 0, "x", 1001, 2)
	r.compare("the first", r.commit(b), float("x", 1001, 2))
	if _, err := a.Append(0, name("x"), 0, 1000, 1, nil, nil, storage.AOptions{}); !errors.Is(err, storage.ErrOutOfOrderSample) {
		t.Errorf("a sample of a scrape that was overtaken: %v", err)
	}
	r.add(a, 0, "only a", 1000, 1)
	r.compare("the second, which was overtaken", r.commit(a), float("only a", 1000, 1))

	// A staleness marker that comes late does not end a series that is back.
	a = r.appender(target)
	if _, err := a.Append(0, name("x"), 0, 1001, staleNaN, nil, nil, storage.AOptions{RejectOutOfOrder: true}); !errors.Is(err, storage.ErrOutOfOrderSample) {
		t.Errorf("a late staleness marker: %v", err)
	}
	r.compare("nothing", r.commit(a))
}
