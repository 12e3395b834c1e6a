package scraper

import (
	"runtime"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/pkg/await"
)

// TestSeriesTakeFewBytes bounds the memory of series, and compares it with what the metrics tell.
func TestSeriesTakeFewBytes(t *testing.T) {
	if raceDetector {
		t.Skip("it takes memory of its own")
	}
	for _, c := range []struct {
		name string
		own  bool // each target exposes series of its own
		from time.Duration
		most float64 // bytes a series
	}{
		{"alike", false, packFrom, 70},
		{"alike and packed", false, 0, 70},
		{"own", true, packFrom, 250},
		{"own and packed", true, 0, 75},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := answers(t, loadgen.Config{}, "", 3)
			r := newRig(t)
			r.packFrom = c.from
			before := liveHeap()
			loops, series := r.fill(list, 40, c.own)
			measured := float64(liveHeap()-before) / float64(series)
			if measured > c.most {
				t.Errorf("a series takes %.0f bytes, want at most %.0f", measured, c.most)
			}
			told := func() float64 {
				return (r.value("millrace_scraper_series_bytes") + r.value("millrace_scraper_dictionary_bytes") + r.value("millrace_scraper_template_bytes")) / float64(series)
			}
			await.True(t, "metrics that tell the memory", func() bool {
				runtime.GC() // what was replaced is told until it is freed
				return told() > 0.8*measured && told() < 1.1*measured
			})
			t.Logf("a series takes %.1f bytes; the metrics tell %.1f", measured, told())
			runtime.KeepAlive(loops)
		})
	}
}
