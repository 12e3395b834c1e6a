package discovery

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/scrape"

	"github.com/millrace/millrace/pkg/target"
)

// found is a target that relabelling has kept.
type found struct {
	target *target.Target
	sum    uint64 // of its message
}

// result is what relabelling makes of one target group.
type result struct {
	found        []found
	dropped      []labels.Labels // at most keep_dropped_targets
	droppedCount int
	failed       int
}

// relabeller relabels the groups of a job. A group that it has seen, which means the same pointer, is not relabelled again.
type relabeller struct {
	log    *slog.Logger
	config *promconfig.ScrapeConfig
	cache  map[*targetgroup.Group]*result
}

// targets is a job's targets by ID, and what did not become one.
type targets struct {
	byID         map[uint64]found
	order        []uint64 // of byID, by group
	dropped      []labels.Labels
	droppedCount int
	failed       int
}

// relabel returns the targets of the groups, and how many failed in groups that it had not seen before.
func (r *relabeller) relabel(config *promconfig.ScrapeConfig, groups []*targetgroup.Group) (targets, int) {
	if r.config != config {
		r.config, r.cache = config, nil
	}
	groups = slices.Clone(groups)
	slices.SortStableFunc(groups, func(a, b *targetgroup.Group) int { return strings.Compare(a.Source, b.Source) })
	all := targets{byID: map[uint64]found{}}
	cache := make(map[*targetgroup.Group]*result, len(groups))
	lb := labels.NewBuilder(labels.EmptyLabels())
	limit, newlyFailed := int(config.KeepDroppedTargets), 0
	for _, g := range groups {
		res := r.cache[g]
		if res == nil {
			res = r.group(lb, g)
			newlyFailed += res.failed
		}
		cache[g] = res
		for _, f := range res.found {
			have, ok := all.byID[f.target.ID]
			if !ok {
				all.order = append(all.order, f.target.ID)
			}
			// Of two that differ in their discovered labels alone, always the same one is taken: groups of one source have no order.
			if !ok || f.sum < have.sum {
				all.byID[f.target.ID] = f
			}
		}
		for _, d := range res.dropped {
			if limit == 0 || len(all.dropped) < limit {
				all.dropped = append(all.dropped, d)
			}
		}
		all.droppedCount += res.droppedCount
		all.failed += res.failed
	}
	r.cache = cache // without the groups that are gone
	return all, newlyFailed
}

// group relabels a group. What is wrong with a target costs that target alone.
func (r *relabeller) group(lb *labels.Builder, g *targetgroup.Group) *result {
	res := &result{}
	limit := int(r.config.KeepDroppedTargets)
	var first error
	for i, t := range g.Targets {
		scrape.PopulateDiscoveredLabels(lb, r.config, t, g.Labels)
		discovered := lb.Labels()
		final, err := scrape.PopulateLabels(lb, r.config, t, g.Labels)
		if err == nil && final.IsEmpty() {
			if limit == 0 || len(res.dropped) < limit {
				res.dropped = append(res.dropped, target.New(r.config.JobName, final, discovered, r.config.Params).Discovered)
			}
			res.droppedCount++
			continue
		}
		var f found
		if err == nil {
			f, err = r.found(final, discovered)
		}
		if err != nil {
			res.failed++
			if first == nil {
				first = fmt.Errorf("target %d: %w", i, err)
			}
			continue
		}
		res.found = append(res.found, f)
	}
	if first != nil {
		r.log.Error("Targets are malformed and left out", "group", g.Source, "targets", res.failed, "first_err", first)
	}
	return res
}

func (r *relabeller) found(final, discovered labels.Labels) (found, error) {
	t := target.New(r.config.JobName, final, discovered, r.config.Params)
	b, err := target.Encode(t)
	if err != nil {
		return found{}, err
	}
	return found{target: t, sum: xxhash.Sum64(b)}, nil
}
