package scraper

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/pkg/await"
)

// TestTargetsWithLongIntervalsKeepTheirTemplatesPacked follows two targets that are alike while their intervals change.
func TestTargetsWithLongIntervalsKeepTheirTemplatesPacked(t *testing.T) {
	r := newRig(t)
	body := recordedExposition(t, 1).text()
	a, b, short := r.plainLoop(1), r.plainLoop(2), r.plainLoop(3)
	a.interval, b.interval = time.Minute, time.Hour
	now, samples := int64(1000), 0
	scrape := func(l *loop, body string) {
		t.Helper()
		now += 1000
		got := len(r.give(l, step{body: body, contentType: plainText}, now).Samples)
		if samples == 0 {
			samples = got
		}
		if got != samples {
			t.Fatalf("a scrape has %d samples, want %d", got, samples)
		}
	}
	for range 3 {
		for _, l := range []*loop{a, b, short} {
			scrape(l, body)
		}
		if a.view.packed == nil || a.view.packed != b.view.packed || a.view.template != noTemplate {
			t.Fatal("the two targets do not share a packed template")
		}
		if short.view.packed != nil || len(short.view.template.lines) < 500 {
			t.Fatal("the target with a short interval has no template as it is")
		}
	}
	if n, of := len(a.view.packed.data), len(short.view.template.text); n > of/5 {
		t.Errorf("%d bytes of text are packed into %d", of, n)
	}
	a.interval = time.Second
	if scrape(a, body); a.view.packed != nil || a.view.template != short.view.template {
		t.Error("with a short interval, the target does not share the template of another such")
	}
	a.interval = time.Minute
	if scrape(a, body); a.view.packed != b.view.packed || a.view.template != noTemplate {
		t.Error("with a long interval again, the target does not share the packed template")
	}
	was := a.view.packed
	samples++
	if scrape(a, body+"one_more 1\n"); a.view.packed == was || a.view.packed.lines != was.lines+1 {
		t.Errorf("one more line made a packed template of %d lines, before %d", a.view.packed.lines, was.lines)
	}
}

// TestPackedTemplatesGiveTheSameSamples compares loops that keep their templates packed with ones that do not.
func TestPackedTemplatesGiveTheSameSamples(t *testing.T) {
	startTimestamps := func(c *Config) { c.StartTimestamps = true }
	for name, c := range map[string]struct {
		list   []step
		change []func(*Config)
	}{
		"changed":     {list: alternating(answers(t, loadgen.Config{Series: 300}, "", 6), 20)},
		"new":         {list: answers(t, loadgen.Config{Series: 300, ChurnPercent: 5}, "", 6)},
		"reordered":   {list: answers(t, loadgen.Config{Series: 300, ReorderEvery: 1}, "", 6)},
		"protobuf":    {list: answers(t, loadgen.Config{Series: 300, Kind: loadgen.Protobuf, ChurnPercent: 5}, protobuf, 6)},
		"openmetrics": {list: openMetricsAnswers(t, true, 4)},
		"starts":      {list: alternating(openMetricsAnswers(t, true, 4), 20), change: []func(*Config){startTimestamps}},
	} {
		t.Run(name, func(t *testing.T) {
			kept, packs := newRig(t, c.change...), newRig(t, c.change...)
			packs.packFrom = 0
			a, b := kept.plainLoop(1), packs.plainLoop(1)
			var u unpacker
			for k, s := range c.list {
				now := int64(1_750_000_000_000 + k*1000)
				if d := gocmp.Diff(kept.give(a, s, now), packs.give(b, s, now), exact); d != "" {
					t.Fatalf("scrape %d differs (-kept +packed):\n%s", k+1, d)
				}
				if b.view.packed == nil {
					t.Fatalf("scrape %d left no packed template", k+1)
				}
				x, y := a.view.template, u.unpack(b.view.packed)
				if x.format != y.format || x.text != y.text || !reflect.DeepEqual(x.lines, y.lines) || len(x.groups) != len(y.groups) {
					t.Fatalf("the template of scrape %d differs when it is unpacked", k+1)
				}
			}
		})
	}
}

func TestPackedTemplatesThatNobodyUsesAreForgotten(t *testing.T) {
	r := packing(t)
	l := r.plainLoop(1)
	for i := range 20 {
		r.give(l, step{body: fmt.Sprintf("series_%d 1\n", i), contentType: plainText}, int64(1000+i))
	}
	await.True(t, "only the last template", func() bool {
		runtime.GC()
		r.templates.mu.Lock()
		defer r.templates.mu.Unlock()
		return len(r.templates.byName) <= 1 && len(r.templates.byHash) == 0
	})
	runtime.KeepAlive(l)
}

// TestHugeTemplatesAreNotPacked shows that a target with a long interval that exposes much keeps its template as it is.
func TestHugeTemplatesAreNotPacked(t *testing.T) {
	r := packing(t)
	l := r.plainLoop(1)
	body := "x 1\n# " + strings.Repeat("x", hugeTemplate) + "\n"
	for k := range 2 {
		if r.give(l, step{body: body, contentType: plainText}, int64(1000*(k+1))); l.view.packed != nil || len(l.view.template.text) <= hugeTemplate {
			t.Errorf("scrape %d left a template of %d bytes, packed: %t", k+1, len(l.view.template.text), l.view.packed != nil)
		}
	}
}
