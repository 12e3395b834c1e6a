package scraper

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/target"
)

// fill takes all the memory for frames, so that no scrape is taken until the result is called.
func (f *bed) fill() (free func()) {
	f.t.Helper()
	n := f.budget.Limit()
	await.True(f.t, "the publishers to hold nothing", func() bool { return f.budget.Take(n) })
	return func() { f.budget.Give(n) }
}

// awaitRefusals waits until n more scrapes are dropped.
func (f *bed) awaitRefusals(n float64) {
	f.t.Helper()
	before := f.value("millrace_scraper_dropped_scrapes_total")
	await.True(f.t, "dropped scrapes", func() bool { return f.value("millrace_scraper_dropped_scrapes_total") >= before+n })
}

// kept returns the revision in the bucket of what is known of a target's source; 0 where there is nothing.
func (f *bed) kept(of *target.Target) uint64 {
	f.t.Helper()
	entry, err := f.bucket().Get(f.t.Context(), sourceKey(target.SourceID(of.Labels.Range)))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return entry.Revision()
}

func (f *bed) bucket() jetstream.KeyValue {
	f.t.Helper()
	kv, err := f.keeper.bucket(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return kv
}

// wantEnded waits for the staleness markers of series, and fails where one has several.
func (f *bed) wantEnded(series ...string) {
	f.t.Helper()
	for _, s := range series {
		await.True(f.t, "a staleness marker of "+s, func() bool { _, stale := f.count(s); return stale > 0 })
		if _, stale := f.count(s); stale != 1 {
			f.t.Errorf("%s has %d staleness markers", s, stale)
		}
	}
}

// TestASeriesThatVanishesInADroppedScrapeIsEnded has series vanish, and others come and go, while no scrape is taken.
func TestASeriesThatVanishesInADroppedScrapeIsEnded(t *testing.T) {
	f := newBed(t, "a")
	const vanishing, passing = `{__name__="vanishing", instance="one", job="a"}`, `{__name__="passing", instance="one", job="a"}`
	expose := func(text string) { f.text.Store(&text) }
	expose("metric 1\nvanishing 1\n")
	f.publishTarget("a")
	f.waitFor(vanishing)
	free := f.fill()
	expose("metric 1\npassing 1\n")
	f.awaitRefusals(2) // the first may have begun before
	expose("metric 1\n")
	f.awaitRefusals(2)
	free()
	f.wantEnded(vanishing)
	n, _ := f.count(metricOfOne)
	await.True(t, "more samples", func() bool { now, _ := f.count(metricOfOne); return now > n+1 })
	f.wantEnded(vanishing)
	if _, stale := f.count(metricOfOne); stale != 0 {
		t.Errorf("a series that goes on has %d staleness markers", stale)
	}
	if n, stale := f.count(passing); n != 0 || stale != 0 {
		t.Errorf("a series that only dropped scrapes had has %d samples and %d staleness markers", n, stale)
	}
}

// TestATargetThatGoesWhileScrapesAreDroppedIsEnded has room again after the first try to end it.
func TestATargetThatGoesWhileScrapesAreDroppedIsEnded(t *testing.T) {
	f := newBed(t, "a")
	gone := f.publishTarget("a")
	f.waitFor(metricOfOne)
	free := f.fill()
	f.removeTarget(gone)
	await.True(t, "the end of its scrapes", func() bool { return len(f.Targets()) == 0 && f.running("target") == 0 })
	f.awaitRefusals(1)
	free()
	f.wantEnded(metricOfOne, upOfOne)
	await.True(t, "nothing to be known of it", func() bool { return f.kept(gone) == 0 })
}

// TestATargetThatGoesInALongOutageIsEndedLater has no room until all tries to end it are over.
func TestATargetThatGoesInALongOutageIsEndedLater(t *testing.T) {
	f := newBed(t, "a")
	gone := f.publishTarget("a")
	f.waitFor(metricOfOne)
	await.True(t, "what is known of it to be kept", func() bool { return f.kept(gone) > 0 })
	before := f.kept(gone)
	free := f.fill()
	f.removeTarget(gone)
	await.True(t, "all tries to end it", func() bool {
		sources, _ := f.sources.counts()
		return len(f.Targets()) == 0 && sources == 0
	})
	await.True(t, "what is known of it then", func() bool { return f.kept(gone) > before })
	lookForOrphans := func() { f.keeper.endOrphans(t.Context(), []int{gone.Shard(), gone.Shard()}) } // which the keeper does in half a minute
	lookForOrphans()
	if sources, _ := f.sources.counts(); sources != 0 || f.kept(gone) == 0 {
		t.Fatalf("after a try without room there are %d sources, and the bucket has revision %d of what is known of the target", sources, f.kept(gone))
	}
	free()
	lookForOrphans()
	f.wantEnded(metricOfOne, upOfOne)
	if f.kept(gone) > 0 {
		t.Error("what is known of a target that has ended is still kept")
	}
}

// TestStoppingDoesNotWaitForEndings stops the service while a target cannot be ended.
func TestStoppingDoesNotWaitForEndings(t *testing.T) {
	f := newBed(t, "a")
	gone := f.publishTarget("a")
	f.waitFor(metricOfOne)
	f.fill()
	f.removeTarget(gone)
	await.True(t, "the end of its scrapes", func() bool { return len(f.Targets()) == 0 && f.running("target") == 0 })
	f.stop()
	if f.kept(gone) == 0 {
		t.Error("the next owner does not know of the target's series")
	}
}

// TestAReloadInALongOutageEndsSeries does away with a series while no scrape is taken.
func TestAReloadInALongOutageEndsSeries(t *testing.T) {
	f := newBed(t, "a")
	f.publishTarget("a")
	f.waitFor(metricOfOne)
	free := f.fill()
	f.apply("a\nmetric_relabel_configs: [{source_labels: [__name__], regex: metric, target_label: __name__, replacement: renamed}]")
	views := func() int {
		f.sources.mu.Lock()
		defer f.sources.mu.Unlock()
		n := 0
		for _, src := range f.sources.byID {
			n += len(src.views)
		}
		return n
	}
	await.True(t, "a loop of before and one of now", func() bool { return views() == 2 })
	await.True(t, "all tries to end what the former had", func() bool { return views() == 1 })
	free()
	f.wantEnded(metricOfOne)
	f.waitFor(`{__name__="renamed", instance="one", job="a"}`)
}
