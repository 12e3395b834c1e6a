package writer

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/metadata"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
)

// families collects the metadata of the metric families that an endpoint gets. Remote write 1.0 sends it by itself, once in
// an interval; 2.0 sends it with each series and does not need this.
type families struct {
	gen atomic.Uint64 // see forget

	mu   sync.Mutex
	meta map[string]metadata.Metadata
}

// maxFamilies bounds what is remembered.
const maxFamilies = 1 << 16

func newFamilies() *families {
	f := &families{meta: map[string]metadata.Metadata{}}
	f.gen.Store(1)
	return f
}

// generation changes when all is to be learned again.
func (f *families) generation() uint64 { return f.gen.Load() }

// learn takes the families of a final series list.
func (f *families) learn(series []frame.Series) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range series {
		s := &series[i]
		if s.Family == "" || s.Labels.IsEmpty() {
			continue
		}
		if have, ok := f.meta[s.Family]; ok && have == s.Metadata || !ok && len(f.meta) >= maxFamilies {
			continue
		}
		f.meta[strings.Clone(s.Family)] = metadata.Metadata{Type: s.Metadata.Type, Unit: strings.Clone(s.Metadata.Unit), Help: strings.Clone(s.Metadata.Help)}
	}
}

// forget drops all, so that families which are gone do not stay: the partitions teach again what their dictionaries have.
func (f *families) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.meta)
	f.gen.Add(1)
}

func (f *families) list() []remotewrite.Family {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]remotewrite.Family, 0, len(f.meta))
	for name, m := range f.meta {
		list = append(list, remotewrite.Family{Name: name, Metadata: m})
	}
	slices.SortFunc(list, func(a, b remotewrite.Family) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// forgetFamilies is how often families are learned anew.
const forgetFamilies = time.Hour

// metadataSender is the actor that sends an endpoint's metadata once in an interval.
type metadataSender struct {
	ep *endpoint
}

// Serve sends until ctx ends. What an endpoint does not take is sent again in the next interval.
func (m *metadataSender) Serve(ctx context.Context) error {
	cfg := m.ep.cfg.MetadataConfig
	tick := time.NewTicker(time.Duration(cfg.SendInterval))
	defer tick.Stop()
	forgot := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		list := m.ep.families.list()
		for chunk := range slices.Chunk(list, max(cfg.MaxSamplesPerSend, 1)) {
			res := m.ep.client.Send(ctx, remotewrite.V1, remotewrite.EncodeMetadata(chunk), 0)
			if res.Outcome != remotewrite.Accepted {
				if ctx.Err() == nil {
					m.ep.metrics.metadataFailed.Add(float64(len(chunk)))
					m.ep.log.Debug("The endpoint did not take metadata; it is sent again in the next interval", "err", res.Message)
				}
				break
			}
			m.ep.metrics.metadata.Add(float64(len(chunk)))
		}
		if time.Since(forgot) > forgetFamilies {
			m.ep.families.forget()
			forgot = time.Now()
		}
	}
}
