package ingest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/services/ingest/door"
)

// Series that come one by one make a dictionary each, until there are so many that all are made one.
func TestManySmallDictionariesAreMadeOne(t *testing.T) {
	r := newRig(t)
	var all []translated
	var most int
	dictionaries := func() (n int) {
		r.registry.mu.RLock()
		defer r.registry.mu.RUnlock()
		for _, s := range r.registry.sources {
			s.mu.Lock()
			n += len(s.dicts)
			s.mu.Unlock()
		}
		return n
	}
	for i := range 3 * compactDicts {
		x := r.at(fmt.Sprintf("m%d", i), 0, float64(i))
		r.mustPush(x)
		all = append(all, x)
		most = max(most, dictionaries())
	}
	if most <= compactDicts || most > compactDicts+3 || dictionaries() >= most {
		t.Errorf("at most %d dictionaries, %d in the end", most, dictionaries())
	}
	// Each sample is of its own series, whatever dictionary it is in.
	for i := range all {
		x := r.at(fmt.Sprintf("m%d", i), 1, float64(i))
		r.mustPush(x)
		all = append(all, x)
	}
	slices.SortStableFunc(all, func(a, b translated) int { return labels.Compare(a.labels, b.labels) })
	r.mustStore(all...)
}

// What is forgotten can be collected, although what was pushed before it refers to it.
func TestForgottenPointsReferToNothing(t *testing.T) {
	s := newTranslating(promconfig.DefaultOTLPConfig)
	var list []translated
	for i := range 10 {
		list = append(list, translated{labels: labels.FromStrings("__name__", fmt.Sprint("m", i)), t: time.Now().UnixMilli()})
	}
	body := encodeV1(t, list)
	for range 2 {
		gathered(t, s, door.RemoteWriteV1, body)
	}
	for name, forget := range map[string]func(){"sweep": func() { s.registry.sweep(1<<60, false) }, "reset": s.registry.reset} {
		var entries []*entry
		linked := 0
		for i := range s.registry.shards {
			for _, e := range s.registry.shards[i].known {
				entries = append(entries, e)
				if e.next.Load() != nil {
					linked++
				}
			}
		}
		if linked < 9 {
			t.Fatalf("%s: %d of %d entries have a next", name, linked, len(entries))
		}
		forget()
		for _, e := range entries {
			if e.next.Load() != nil {
				t.Errorf("%s: an entry that is gone refers to another", name)
			}
		}
		for range 2 {
			gathered(t, s, door.RemoteWriteV1, body)
		}
	}
}
