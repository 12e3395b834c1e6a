package scraper

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/stream"
)

// orphanGrace is how long after shards were taken a source without a target is taken for gone: discovery may be about to publish it.
const orphanGrace = 30 * time.Second

// lookForOrphans makes the keeper look, later, for sources in shards that were just taken whose target is gone.
func (k *keeper) lookForOrphans(shards []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taken = append(k.taken, shards...)
	k.rouse()
}

// endOrphans ends the series of sources that nobody scrapes any more.
func (k *keeper) endOrphans(ctx context.Context, shards []int) {
	kv, err := k.bucket(ctx)
	if err != nil {
		k.log.Debug("Cannot look for targets that are gone, trying again", "err", err)
		k.lookForOrphans(shards)
		return
	}
	var filters []string
	for _, s := range slices.Compact(slices.Sorted(slices.Values(shards))) { // JetStream takes no filter twice
		if k.svc.epochs[s].Load() != 0 {
			filters = append(filters, strconv.Itoa(s)+".*")
		}
	}
	if len(filters) == 0 {
		return
	}
	if len(filters) == stream.Shards {
		filters = []string{">"}
	}
	keys, err := kv.ListKeysFiltered(ctx, filters...)
	if err != nil {
		k.log.Debug("Cannot look for targets that are gone, trying again", "err", err)
		k.lookForOrphans(shards)
		return
	}
	var gone []uint64
	for key := range keys.Keys() {
		_, hex, _ := strings.Cut(key, ".")
		id, err := strconv.ParseUint(hex, 16, 64)
		if err == nil && k.svc.epochOf(id) != 0 && !k.svc.sources.hasID(id) {
			gone = append(gone, id)
		}
	}
	for _, id := range gone {
		if ctx.Err() != nil {
			return
		}
		k.endOrphan(ctx, id)
	}
}

func (k *keeper) endOrphan(ctx context.Context, id uint64) {
	src, v := k.svc.sources.attachID(id, "")
	k.restore(ctx, src, v)
	a := &appender{svc: k.svc}
	a.begin(src)
	now := time.Now().UnixMilli()
	for i := range src.series {
		if src.series[i].last != minTime {
			_, _ = a.append(uint32(i), scraped{t: now, v: math.Float64frombits(value.StaleNaN)}, &storage.AOptions{RejectOutOfOrder: true})
		}
	}
	taken, err := a.commit()
	if err != nil {
		k.log.Warn("Staleness markers of a target that is gone could not be committed", "source", fmt.Sprintf("%016x", id), "err", err)
	} else if !taken {
		k.svc.sources.detach(src, v) // its record stays
		k.lookForOrphans([]int{stream.ShardOf(id)})
		return
	}
	k.end(ctx, src, v)
}

// postpone gives back the view of a target that is gone for good, whose staleness markers the publishers have no room for. Another loop of the source ends its series; where there
// is none, their record stays, and is an orphan.
func (k *keeper) postpone(s *source, v *view) {
	b := s.record()
	s.bequeath(v)
	if k.svc.sources.detach(s, v); k.svc.sources.has(s) {
		k.note(s)
		return
	}
	if k.svc.epochOf(s.id) == 0 {
		return // another owner ends it
	}
	s.mu.Lock()
	s.left = b
	s.mu.Unlock()
	k.note(s)
	k.lookForOrphans([]int{stream.ShardOf(s.id)})
}

// bequeath makes the series that a loop has exposed those of another one, if there is one, which ends what it does not expose itself.
func (s *source) bequeath(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for heir := range s.views {
		if heir != v {
			v.exposed.each(heir.exposed.set)
			return
		}
	}
}
