package survey

import (
	"cmp"
	"slices"

	"github.com/millrace/millrace/pkg/cardinality"
)

// report puts together what was counted.
func (c *count) report(top int) *cardinality.Report {
	r := &cardinality.Report{
		Time: c.time.UTC(), Metric: c.metric, Since: c.since.UTC(), Series: c.all.series, New: c.all.fresh, Refused: c.all.refused, Unknown: c.unknown, Partial: c.partial,
		Metrics: c.sorted(c.metrics, top), Jobs: c.sorted(c.jobs, top), Targets: c.sorted(c.targets, top), Labels: []cardinality.Label{},
	}
	for name, v := range c.labels {
		l := cardinality.Label{Name: c.names[name], Series: v.series, Values: len(v.old)}
		for _, old := range v.old {
			if !old {
				l.New++
			}
		}
		r.Labels = append(r.Labels, l)
	}
	slices.SortFunc(r.Labels, func(a, b cardinality.Label) int {
		return cmp.Or(cmp.Compare(b.Values, a.Values), cmp.Compare(a.Name, b.Name))
	})
	r.Labels = first(r.Labels, top)
	return r
}

func (c *count) sorted(groups map[group]*tally, top int) []cardinality.Group {
	list := make([]cardinality.Group, 0, len(groups))
	for g, t := range groups {
		list = append(list, cardinality.Group{Name: c.names[g.name], Instance: c.names[g.instance], Series: t.series, New: t.fresh, Refused: t.refused})
	}
	slices.SortFunc(list, func(a, b cardinality.Group) int {
		return cmp.Or(cmp.Compare(b.Series, a.Series), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance))
	})
	return first(list, top)
}

// first returns so many of a list; 0 for all.
func first[T any](list []T, top int) []T {
	if top > 0 {
		list = list[:min(top, len(list))]
	}
	return list
}
