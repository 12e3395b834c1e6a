package scraper

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
)

// TestLabelsComeBackFromDictionaries has series of several dictionaries change their metadata, before and after compactions, in an order that is not that of the
// dictionaries.
func TestLabelsComeBackFromDictionaries(t *testing.T) {
	for what, c := range map[string]struct{ series, bytes int }{"many": {9000, 10}, "large": {2000, 800}} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t)
			target := newTarget("a:1")
			src := r.sourceOf(target)
			rnd := rand.New(rand.NewPCG(1, 2))
			all := make([]labels.Labels, c.series)
			for i := range all {
				long := make([]byte, c.bytes)
				for k := range long {
					long[k] = 'a' + byte(rnd.IntN(26))
				}
				all[i] = labels.FromStrings("__name__", fmt.Sprint("x", i%100), "i", fmt.Sprint(i), "long", string(long))
			}
			help := make([]string, c.series)
			compactions := 0
			for round := range 15 {
				list := rnd.Perm(c.series)
				if round > 5 {
					list = list[:c.series*2/3]
				}
				want := map[string]string{}
				a := r.appender(target)
				for _, i := range list {
					if rnd.IntN(4) == 0 {
						help[i] = fmt.Sprint("at ", round)
					}
					want[all[i].String()] = help[i]
					opts := storage.AOptions{MetricFamilyName: "x", Metadata: metadata.Metadata{Help: help[i]}}
					if _, err := a.Append(0, all[i], 0, int64(round+1), 1, nil, nil, opts); err != nil {
						t.Fatal(err)
					}
				}
				before := len(src.series)
				if err := a.Commit(); err != nil {
					t.Fatal(err)
				}
				if len(src.series) < before {
					compactions++
				}
				r.compareHelp(fmt.Sprint("round ", round), src, want)
			}
			if compactions < 2 {
				t.Errorf("%d compactions", compactions)
			}
		})
	}
}

// compareHelp compares the help of the series of the oldest scrape that was committed, by their labels.
func (r *rig) compareHelp(what string, src *source, want map[string]string) {
	r.t.Helper()
	got := map[string]string{}
	frames, dicts := decode(r.t, r.unitOf(src))
	for _, f := range frames {
		for _, s := range f.Sections {
			for k := range s.Values {
				at := uint32(k)
				if s.Present != nil {
					at = s.Present[k]
				}
				got[dicts[s.Dict][at].Labels.String()] = dicts[s.Dict][at].Metadata.Help
			}
		}
	}
	if len(got) != len(want) {
		r.t.Fatalf("%s: %d series, want %d", what, len(got), len(want))
	}
	for ls, help := range want {
		if have, ok := got[ls]; !ok || have != help {
			r.t.Fatalf("%s: %s has the help %q (%v), want %q", what, ls, have, ok, help)
		}
	}
}

func TestASeriesTakesLittleMemory(t *testing.T) {
	const sources, series = 20, 1000
	r := newRig(t)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what has cleanups
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for n := range sources {
		instance := fmt.Sprintf("host-%d.example.org:9100", n)
		target := newTarget(instance)
		a := r.appender(target)
		for i := range series {
			ls := labels.FromStrings("__name__", fmt.Sprintf("some_requests_%d_total", i%50), "cluster", "eu-west-1", "i", fmt.Sprint(i), "instance", instance, "job", "test", "path", "/api/v1/items")
			opts := storage.AOptions{MetricFamilyName: ls.Get("__name__"), Metadata: metadata.Metadata{Type: "counter", Help: "What was requested."}}
			if _, err := a.Append(0, ls, 0, 1000, 1, nil, nil, opts); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Commit(); err != nil {
			t.Fatal(err)
		}
		r.unitOf(a.to)
	}
	perSeries := float64(heap()-before) / (sources * series)
	t.Logf("%.1f B/series", perSeries)
	if perSeries > 80 {
		t.Errorf("a series takes %.1f bytes", perSeries)
	}
	runtime.KeepAlive(r)
}
