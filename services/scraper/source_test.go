package scraper

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/frame"
)

func TestCompactionFollowsChurn(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	refs := map[string]storage.SeriesRef{}
	compactions, before := 0, 0
	for round := range 60 {
		a := r.appender(target)
		at := int64(1000 * (round + 1))
		var want []sample
		for i := range 100 {
			n := numbered("lasting", i)
			refs[n] = r.add(a, refs[n], n, at, float64(i))
			want = append(want, float(n, at, float64(i)))
		}
		// A tenth is new each time; that of the last time is gone.
		for i := range 10 {
			n := numbered(fmt.Sprint("passing_", round), i)
			refs[n] = r.add(a, 0, n, at, 1)
			want = append(want, float(n, at, 1))
			if gone := numbered(fmt.Sprint("passing_", round-1), i); round > 0 {
				r.add(a, refs[gone], gone, at, staleNaN)
				delete(refs, gone)
				want = append(want, float(gone, at, staleNaN))
			}
		}
		// "The same again" keeps a series too.
		if round == 0 {
			refs["same"] = r.add(a, 0, "same", 500, 1)
			want = append(want, float("same", 500, 1))
		} else {
			refs["same"] = r.add(a, refs["same"], "same", 500, 1)
		}
		r.add(a, 0, "up", at, 1)
		want = append(want, float("up", at, 1))
		got := r.commit(a)
		bySeries := func(a, b sample) int { return strings.Compare(a.Series, b.Series) }
		slices.SortFunc(got, bySeries)
		slices.SortFunc(want, bySeries)
		r.compare(fmt.Sprint("round ", round), got, want...)
		if len(src.series) < before {
			compactions++
		}
		before = len(src.series)
		if len(src.series) > 2*131+compactSeries || len(src.dicts) > compactDicts+4 {
			t.Fatalf("round %d: %d series, %d dictionaries", round, len(src.series), len(src.dicts))
		}
	}
	if compactions < 2 {
		t.Errorf("%d compactions in 60 scrapes with new series", compactions)
	}
}

func TestSeriesThatAreGoneForLongLeaveTheirDictionaries(t *testing.T) {
	const idle = 10 * time.Second
	r := newRig(t, func(c *Config) { c.SeriesIdle = idle })
	target := newTarget("a:1")
	src := r.sourceOf(target)
	scrape := func(at time.Duration, names ...string) {
		a := r.appender(target)
		for _, n := range names {
			r.add(a, 0, n, at.Milliseconds(), 1)
		}
		r.commit(a)
	}
	scrape(1*time.Second, "a", "b", "c")
	scrape(2*time.Second, "a", "b")
	for at := 3 * time.Second; at <= idle; at += time.Second {
		scrape(at, "a", "b")
		if len(src.series) != 3 {
			t.Fatalf("%d series %s after one was there last", len(src.series), at-time.Second)
		}
	}
	for at := idle + time.Second; at <= 2*idle; at += time.Second {
		scrape(at, "a", "b")
	}
	if len(src.series) != 2 || len(src.dicts) != 1 {
		t.Fatalf("%d series in %d dictionaries, of which one has been gone for long", len(src.series), len(src.dicts))
	}
	id := src.dicts[0].id
	if scrape(3*idle, "a", "b"); len(src.dicts) != 1 || src.dicts[0].id != id {
		t.Error("a dictionary whose series are all there was made anew")
	}
}

func TestMetadataOfSeriesThatAreGoneIsForgotten(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	for round := range 200 {
		a := r.appender(target)
		_, err := a.Append(0, name("x"), 0, int64(round+1), 1, nil, nil, storage.AOptions{MetricFamilyName: "x", Metadata: metadata.Metadata{Help: fmt.Sprint("at ", round)}})
		if err != nil {
			t.Fatal(err)
		}
		r.commit(a)
	}
	if len(src.metrics) > 50 || len(src.series) > 50 {
		t.Errorf("%d metrics and %d series are kept of one that changes", len(src.metrics), len(src.series))
	}
}

func TestAFailedScrapeForgetsNothing(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	var refs []storage.SeriesRef
	a := r.appender(target)
	for i := range 3000 {
		refs = append(refs, r.add(a, 0, numbered("x", i), 1000, 1))
	}
	r.commit(a)
	a = r.appender(target)
	for i := range refs {
		r.add(a, 0, numbered("x", i), 2000, staleNaN)
	}
	r.add(a, 0, "up", 2000, 0)
	r.commit(a)
	if len(src.series) != 3001 {
		t.Errorf("one failed scrape left %d series", len(src.series))
	}
	for i := range int64(200) {
		a = r.appender(target)
		r.add(a, 0, "up", 3000+i, 0)
		r.commit(a)
	}
	if len(src.series) > 1 {
		t.Errorf("a target that is down for long keeps %d series", len(src.series))
	}
}

func TestABigSourceHasSeveralDictionaries(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	src := r.sourceOf(target)
	const n = 20_000
	var refs []storage.SeriesRef
	for round, step := range []int{1, 1, 3, 5000} { // all, again, every third, hardly any
		a := r.appender(target)
		at := int64(1000 * (round + 1))
		var want []sample
		for i := 0; i < n; i += step {
			if len(refs) <= i {
				refs = append(refs, 0)
			}
			refs[i] = r.add(a, refs[i], numbered("x", i), at, float64(i))
			want = append(want, float(numbered("x", i), at, float64(i)))
		}
		if err := a.Commit(); err != nil {
			t.Fatal(err)
		}
		u := r.unitOf(src)
		frames, dicts := decode(t, u)
		r.compare(fmt.Sprint("round ", round), samples(t, frames, dicts), want...)
		for _, d := range src.dicts {
			if d.n > frame.MaxSeries || len(d.msg) > frame.MaxDictBytes {
				t.Errorf("a dictionary has %d series in %d bytes", d.n, len(d.msg))
			}
		}
		if round == 0 && len(u.Dicts) < 3 {
			t.Errorf("%d dictionaries for %d series", len(u.Dicts), n)
		}
	}
}

func TestDictionariesOfLabelsThatDoNotRecurFitIntoMessages(t *testing.T) {
	r := newRig(t)
	a := r.appender(newTarget("a:1"))
	src := a.to
	const n = 2500
	random := uint64(1)
	for i := range n {
		var b strings.Builder
		for b.Len() < 800 {
			random = random*6364136223846793005 + 1442695040888963407
			fmt.Fprintf(&b, "%016x", random)
		}
		ls := labels.FromStrings("__name__", "x", "i", fmt.Sprint(i), "long", b.String())
		opts := storage.AOptions{MetricFamilyName: fmt.Sprint("x", i), Metadata: metadata.Metadata{Help: b.String()}}
		if _, err := a.Append(0, ls, 0, 1000, 1, nil, nil, opts); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Commit(); err != nil {
		t.Fatal(err)
	}
	series := 0
	for _, d := range src.dicts {
		if len(d.msg) > frame.MaxDictBytes {
			t.Errorf("a dictionary of %d series has %d bytes", d.n, len(d.msg))
		}
		series += d.n
	}
	if series != n {
		t.Errorf("the dictionaries have %d series, want %d", series, n)
	}
	if u := r.unitOf(src); u.Samples != n {
		t.Errorf("%d samples", u.Samples)
	}
}

func TestForgottenSourcesNumberTheirFramesOn(t *testing.T) {
	r := newRig(t)
	target := newTarget("a:1")
	seq := func() uint64 {
		src, v := r.sources.attach(target)
		defer r.sources.detach(src, v)
		a := &testAppender{&appender{svc: r.Service}, src}
		r.add(a, 0, "x", time.Now().UnixMilli()+int64(src.seq), 1)
		if err := a.Commit(); err != nil {
			t.Fatal(err)
		}
		frames, _ := decode(t, r.unitOf(src))
		return frames[0].Seq
	}
	src, v := r.sources.attach(target)
	var last uint64
	for range 3 {
		last = seq()
	}
	if n, _ := r.sources.counts(); n != 1 {
		t.Error("a source with a view was forgotten")
	}
	r.sources.detach(src, v)
	if n, _ := r.sources.counts(); n != 0 {
		t.Fatalf("%d sources are kept", n)
	}
	if got := seq(); got <= last {
		t.Errorf("after the source was forgotten, its frame has the number %d, before %d: writers would drop it", got, last)
	}
}
