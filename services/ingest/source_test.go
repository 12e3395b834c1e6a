package ingest

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
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

// samePlace returns two jobs that have the same xxhash behind one byte, as anybody can make them: a lane of the hash takes 8 of each 32 bytes, and what differs after
// the first 8 is made up for in the second.
func samePlace(t *testing.T) (one, other string) {
	t.Helper()
	const p1, p2 = 11400714785074694791, 14029467366897019727
	round := func(acc, in uint64) uint64 { return bits.RotateLeft64(acc+in*p2, 31) * p1 }
	inverse := uint64(p2) // of p2, by Newton's method
	for range 6 {
		inverse *= 2 - p2*inverse
	}
	r := rand.New(rand.NewPCG(1, 2))
	text := func() uint64 { return r.Uint64()&0x3f3f3f3f3f3f3f3f | 0x4040404040404040 }
	job := func(first, second uint64) string {
		b := []byte(strings.Repeat("x", 64))
		binary.LittleEndian.PutUint64(b[7:], first) // the second lane's, behind the one byte
		binary.LittleEndian.PutUint64(b[39:], second)
		return string(b)
	}
	for {
		a, b, c := text(), text(), text()
		d := c + (round(p2, a)-round(p2, b))*inverse
		if d&0x8080808080808080 == 0 {
			return job(a, c), job(b, d)
		}
	}
}

// The writer drops the frames of a source that has another's ID, so no sender may be able to make one.
func TestSendersCannotMakeTwoSourcesShareAnID(t *testing.T) {
	one, other := samePlace(t)
	if one == other || xxhash.Sum64String("\xff"+one) != xxhash.Sum64String("\xff"+other) {
		t.Fatalf("%q and %q do not share a hash", one, other)
	}
	r := newRegistry(1<<20, 1)
	a, b := r.source(sourceKey{job: one}), r.source(sourceKey{job: other})
	if a.partition != b.partition {
		t.Errorf("partitions %d and %d of the same hash", a.partition, b.partition)
	}
	if a.id == b.id {
		t.Errorf("two sources have the ID %x", a.id)
	}
}

// All processes put a source's frames into one partition, today's and those before.
func TestPartitionOfASourceStays(t *testing.T) {
	k := sourceKey{tenant: "red", job: "api", instance: "a"}
	a, b := newRegistry(1<<20, 1).source(k), newRegistry(1<<20, 1).source(k)
	k.delta = true
	if c := newRegistry(1<<20, 1).source(k); a.partition != 721840 || b.partition != a.partition || c.partition != a.partition {
		t.Errorf("partitions %d, %d, %d", a.partition, b.partition, c.partition)
	}
	if a.id == b.id {
		t.Errorf("sources of two processes have the ID %x", a.id)
	}
}

// known returns how many points are known, and how many series they have in all.
func (r *registry) known() (points, series, places int) {
	for i := range r.shards {
		for _, e := range r.shards[i].known {
			points++
			series += len(e.series)
			places += int(e.places())
		}
	}
	return points, series, places
}

// What is known is bounded by its size, whatever a sender makes of few series; ordinary senders have room for all of theirs, twice.
func TestKnownPointsAreBoundedBySize(t *testing.T) {
	const most = 100
	newService := func() *Service {
		s := newTranslating(promconfig.DefaultOTLPConfig)
		s.registry = newRegistry(4, most)
		return s
	}
	check := func(t *testing.T, s *Service, points, series int) {
		t.Helper()
		n, all, places := s.registry.known()
		if n > points || all > series || places > placesPerSeries*most || int64(places) != s.registry.places.Load() {
			t.Errorf("%d points with %d series are known, at most %d with %d; %d places, %d counted", n, all, points, series, places, s.registry.places.Load())
		}
	}
	t.Run("ordinary", func(t *testing.T) {
		s := newService()
		for help := range 2 {
			var list []translated
			for i := range most {
				x := translated{labels: labels.FromStrings("__name__", fmt.Sprint("m", i)), t: time.Now().UnixMilli()}
				x.meta.Help = fmt.Sprintf("It is the %d. of those metrics that some have described in %d ways.", i, help)
				list = append(list, x)
			}
			gathered(t, s, door.RemoteWriteV2, encodeV2(t, list))
		}
		if n, _, _ := s.registry.known(); n != 2*most {
			t.Errorf("%d points are known", n)
		}
		s.registry.reset()
		check(t, s, 0, 0)
	})
	t.Run("descriptions of a large histogram", func(t *testing.T) {
		s := newService()
		for i := range 100 {
			gathered(t, s, door.OTLP, describedHistogram(time.Now(), most/2, fmt.Sprint("description ", i)))
		}
		check(t, s, 8, placesPerSeries*most)
		s.registry.sweep(1<<60, false)
		check(t, s, 0, 0)
	})
	t.Run("long descriptions of a series", func(t *testing.T) {
		s := newService()
		for i := range 100 {
			x := translated{labels: labels.FromStrings("__name__", "a"), t: time.Now().UnixMilli()}
			x.meta.Help = fmt.Sprint(i, strings.Repeat("x", 20<<10))
			gathered(t, s, door.RemoteWriteV2, encodeV2(t, []translated{x}))
		}
		check(t, s, placesPerSeries*most*helpPlace/(20<<10), most)
	})
	t.Run("resources without target_info", func(t *testing.T) {
		s := newService()
		for i := range 3 * most {
			resource := nested(attribute("a", fmt.Sprint(i)), 1, 1)
			metric := append(appendBytesField(nil, 1, []byte("m")), nested(gaugeAt(time.Now()), 5, 1)...)
			gathered(t, s, door.OTLP, appendBytesField(nil, 1, append(resource, nested(metric, 2, 2)...)))
		}
		check(t, s, 2*most, 2*most)
	})
}

// describedHistogram is a request of a histogram's point with a description.
func describedHistogram(at time.Time, buckets int, description string) []byte {
	metric := append(appendBytesField(nil, 1, []byte("h")), appendBytesField(nil, 2, []byte(description))...)
	data := append(nested(histogramOf(at, buckets), 1), 2<<3|wireVarint, temporalityCumulative)
	return nested(appendBytesField(metric, 9, data), 1, 2, 2)
}
