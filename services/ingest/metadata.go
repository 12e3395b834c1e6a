package ingest

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/metadata"
)

// families holds the metadata that remote_write 1.0 sends by itself, once in a while, and not with the series. It is safe for concurrent use.
type families struct {
	mu      sync.RWMutex
	byName  map[familyKey]*family
	bytes   int    // of all of them
	gen     uint64 // counts changes
	changed time.Time
	settled uint64 // gen as it was before the changes of late
}

type familyKey struct{ tenant, name string }

// family is the metadata of a metric family.
type family struct {
	meta metadata.Metadata
	seen atomic.Int64 // when it was pushed last as it is, in seconds
}

const (
	// maxFamilies and maxFamilyBytes bound what is remembered.
	maxFamilies, maxFamilyBytes = 1 << 17, 64 << 20
	// keepFamily is how long metadata stays, in seconds, while another is pushed for the family: senders that differ take turns, and each change makes dictionaries anew.
	keepFamily = 10 * 60
	// settleFamilies is how long after a change the series' dictionaries follow: senders spread their families over several requests.
	settleFamilies = 2 * time.Second
	// maxHelp is how much of a family's help is kept, in bytes.
	maxHelp = 32 << 10
)

func newFamilies() *families { return &families{byName: map[familyKey]*family{}} }

// learn notes a family's metadata at a time, in seconds. Where there is another, that one stays until it was not pushed for a while.
func (f *families) learn(tenant, name string, m metadata.Metadata, now int64) {
	k := familyKey{tenant, name}
	f.mu.RLock()
	have, ok := f.byName[k]
	f.mu.RUnlock()
	if ok && have.meta == m {
		have.seen.Store(now)
		return
	}
	if ok && now-have.seen.Load() < keepFamily {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have, ok = f.byName[k]
	if ok && now-have.seen.Load() < keepFamily { // since it was looked at above
		return
	}
	added := familyBytes(k, m)
	if ok {
		added -= familyBytes(k, have.meta)
	} else if len(f.byName) >= maxFamilies {
		return
	}
	if f.bytes+added > maxFamilyBytes {
		return
	}
	f.bytes += added
	learned := &family{meta: metadata.Metadata{Type: m.Type, Unit: strings.Clone(m.Unit), Help: strings.Clone(m.Help)}}
	learned.seen.Store(now)
	f.byName[familyKey{strings.Clone(tenant), strings.Clone(name)}] = learned
	if now := time.Now(); now.Sub(f.changed) > settleFamilies {
		f.settled = f.gen
		f.changed = now
	} else {
		f.changed = now
	}
	f.gen++
}

// familyBytes returns about how much memory a family takes.
func familyBytes(k familyKey, m metadata.Metadata) int {
	return 200 + len(k.tenant) + len(k.name) + len(m.Help) + len(m.Unit)
}

// forget drops the families whose metadata was not pushed since a time, in seconds. Series that have it keep it.
func (f *families) forget(before int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, x := range f.byName {
		if x.seen.Load() < before {
			f.bytes -= familyBytes(k, x.meta)
			delete(f.byName, k)
		}
	}
}

// generation changes when series may have other metadata than before.
func (f *families) generation() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if time.Since(f.changed) < settleFamilies {
		return f.settled
	}
	return f.gen
}

// suffixes are what series of a family add to its name, by the family's type.
var suffixes = []struct {
	suffix string
	types  []model.MetricType
}{
	{"_bucket", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeGaugeHistogram}},
	{"_count", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeSummary, model.MetricTypeGaugeHistogram}},
	{"_sum", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeSummary, model.MetricTypeGaugeHistogram}},
	{"_total", []model.MetricType{model.MetricTypeCounter}},
	{"_info", []model.MetricType{model.MetricTypeInfo}},
}

// of returns the family of a series with a name, and its metadata; "" where it is not known.
func (f *families) of(tenant, name string) (family string, m metadata.Metadata) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if x, ok := f.byName[familyKey{tenant, name}]; ok {
		return name, x.meta
	}
	for _, s := range suffixes {
		base, ok := strings.CutSuffix(name, s.suffix)
		if !ok {
			continue
		}
		x, ok := f.byName[familyKey{tenant, base}]
		for _, t := range s.types {
			if ok && x.meta.Type == t {
				return base, x.meta
			}
		}
	}
	return "", metadata.Metadata{}
}

// describe gives the source's series the metadata that was learned since it was called last. The source's lock is held.
func (s *source) describe(f *families) {
	gen := f.generation()
	if gen == s.metaGen {
		return
	}
	s.metaGen = gen
	for _, x := range s.series {
		family, m := f.of(s.key.tenant, x.labels.Get(model.MetricNameLabel))
		if family != "" {
			s.setMetadata(x, family, m)
		}
	}
}

// about is what a sender says of series along with their samples: their family and its metadata. The zero one is nothing. Equal ones are the same, so that comparing costs next to
// nothing, and have their texts in one place, so that keeping one with each point and series does not take the memory of a help each time.
type about struct{ unique.Handle[description] }

type description struct {
	family string
	meta   metadata.Metadata
}

func aboutOf(family string, m metadata.Metadata) about {
	if m == (metadata.Metadata{}) {
		return about{}
	}
	return about{unique.Make(description{family, clipped(m)})}
}

// size returns how long the texts are, in bytes.
func (a about) size() int {
	if a == (about{}) {
		return 0
	}
	d := a.Value()
	return len(d.family) + len(d.meta.Help) + len(d.meta.Unit)
}

// tell gives a series what a sender says of it, which is not nothing. The source's lock is held.
func (s *source) tell(x *series, a about) {
	d := a.Value()
	x.about = a
	s.setMetadata(x, d.family, d.meta)
}

// retellEvery is how often what known points say of series may change their metadata, in seconds.
const retellEvery = 60

// retell is tell for a series of a known point, of which something else was said since. Senders that differ may take turns, and each change makes dictionaries anew: so a source has such changes
// in one second of a minute alone. The source's lock is held.
func (s *source) retell(x *series, a about, now int64) {
	if now != s.changed && now-s.changed < retellEvery {
		return
	}
	s.changed = now
	s.tell(x, a)
}

// setMetadata gives a series metadata. The source's lock is held.
func (s *source) setMetadata(x *series, family string, m metadata.Metadata) {
	if x.family == family && x.meta == m {
		return
	}
	x.family, x.meta = family, m
	s.described = s.described || int(x.number) < s.sealed
}

// clippedText returns help or a unit as it is sent, of which more than can be kept is not copied.
func clippedText(b []byte) string {
	if len(b) > maxHelp {
		return strings.ToValidUTF8(string(b[:maxHelp]), "")
	}
	return string(b)
}

// clipped returns metadata with a help that is not too long for a dictionary.
func clipped(m metadata.Metadata) metadata.Metadata {
	if len(m.Help) > maxHelp {
		m.Help = strings.Clone(strings.ToValidUTF8(m.Help[:maxHelp], "")) // which is not to keep the rest in memory
	}
	if len(m.Unit) > maxHelp {
		m.Unit = ""
	}
	return m
}
