package survey

import (
	"cmp"
	"hash/maphash"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// Report is what a survey has counted. Lists begin with the largest.
type Report struct {
	// Time is that of the newest sample's message; Since is the time after which a series counts as new.
	Time  time.Time `json:"time"`
	Since time.Time `json:"since"`
	// WindowSeconds is the time before Time in which a series has to have a sample.
	WindowSeconds float64 `json:"window_seconds"`
	// Series are the active series, New those of them that are new, and Refused those that limits keep from the endpoints.
	Series  int `json:"series"`
	New     int `json:"new"`
	Refused int `json:"refused"`
	// Unknown are series whose dictionary the stream has lost.
	Unknown int `json:"unknown"`

	Metrics []Group `json:"metrics"`
	Labels  []Label `json:"labels"`
	Jobs    []Group `json:"jobs"`
	Targets []Group `json:"targets"`
}

// Group are the series of a metric, job or target.
type Group struct {
	// Name is the metric's or the job's; of a target, the job's, and Instance is set.
	Name     string `json:"name"`
	Instance string `json:"instance,omitempty"`
	Series   int    `json:"series"`
	New      int    `json:"new"`
	Refused  int    `json:"refused"`
}

// Label is a label of any series.
type Label struct {
	Name string `json:"name"`
	// Series have it, with so many Values, of which New are had by new series only.
	Series int `json:"series"`
	Values int `json:"values"`
	New    int `json:"new"`
}

// count is a survey on its way.
type count struct {
	time, since time.Time
	seed        maphash.Seed
	buf         []byte
	entries     map[uint64]*entry // by the hash of the labels
	names       map[string]string // so that what recurs is held once
	unknown     int
}

// entry is a series.
type entry struct {
	job, metric, instance, seriesJob string
	isNew, refused                   bool
	last                             last
	pairs                            []pair
}

// pair is a label with the hash of its value.
type pair struct {
	name  string
	value uint64
}

func newCount(at, since time.Time) *count {
	return &count{time: at, since: since, seed: maphash.MakeSeed(), entries: map[uint64]*entry{}, names: map[string]string{}}
}

func (c *count) hash(ls labels.Labels) uint64 {
	c.buf = ls.Bytes(c.buf)
	return maphash.Bytes(c.seed, c.buf)
}

func (c *count) once(s string) string {
	if have, ok := c.names[s]; ok {
		return have
	}
	c.names[s] = s
	return s
}

// add counts a series of a dictionary, which may be in others too. Its newest sample tells whether it is refused, or gone.
func (c *count) add(job string, ls labels.Labels, at last, refused, isNew bool) *entry {
	h := c.hash(ls)
	e := c.entries[h]
	if e == nil {
		e = &entry{
			job: c.once(job), metric: c.once(ls.Get(model.MetricNameLabel)), instance: c.once(ls.Get(model.InstanceLabel)), seriesJob: c.once(ls.Get(model.JobLabel)),
			isNew: isNew, refused: refused, last: at,
		}
		ls.Range(func(l labels.Label) {
			if l.Name != model.MetricNameLabel {
				e.pairs = append(e.pairs, pair{c.once(l.Name), maphash.String(c.seed, l.Value)})
			}
		})
		c.entries[h] = e
		return e
	}
	if at.seq > e.last.seq || at.seq == e.last.seq && e.last.gone {
		e.refused, e.last = refused, at
	}
	e.isNew = e.isNew && isNew
	return e
}

// report adds up.
func (c *count) report(top int) *Report {
	r := &Report{Time: c.time.UTC(), Since: c.since.UTC(), Unknown: c.unknown}
	metrics, jobs, targets := map[Group]*Group{}, map[Group]*Group{}, map[Group]*Group{}
	type values struct {
		series int
		old    map[uint64]bool // whether a series has the value that is not new
	}
	byLabel := map[string]*values{}
	for _, e := range c.entries {
		if e.last.gone {
			continue
		}
		r.Series++
		one := Group{Series: 1}
		if e.isNew {
			r.New++
			one.New = 1
		}
		if e.refused {
			r.Refused++
			one.Refused = 1
		}
		sum(metrics, Group{Name: e.metric}, one)
		sum(jobs, Group{Name: e.job}, one)
		if e.instance != "" {
			sum(targets, Group{Name: e.seriesJob, Instance: e.instance}, one)
		}
		for _, p := range e.pairs {
			v := byLabel[p.name]
			if v == nil {
				v = &values{old: map[uint64]bool{}}
				byLabel[p.name] = v
			}
			v.series++
			v.old[p.value] = v.old[p.value] || !e.isNew
		}
	}
	r.Metrics, r.Jobs, r.Targets = sorted(metrics, top), sorted(jobs, top), sorted(targets, top)
	r.Labels = []Label{}
	for name, v := range byLabel {
		l := Label{Name: name, Series: v.series, Values: len(v.old)}
		for _, old := range v.old {
			if !old {
				l.New++
			}
		}
		r.Labels = append(r.Labels, l)
	}
	slices.SortFunc(r.Labels, func(a, b Label) int { return cmp.Or(cmp.Compare(b.Values, a.Values), cmp.Compare(a.Name, b.Name)) })
	if top > 0 {
		r.Labels = r.Labels[:min(top, len(r.Labels))]
	}
	return r
}

func sum(groups map[Group]*Group, k, one Group) {
	g := groups[k]
	if g == nil {
		g = &Group{Name: k.Name, Instance: k.Instance}
		groups[k] = g
	}
	g.Series, g.New, g.Refused = g.Series+one.Series, g.New+one.New, g.Refused+one.Refused
}

func sorted(groups map[Group]*Group, top int) []Group {
	list := make([]Group, 0, len(groups))
	for _, g := range groups {
		list = append(list, *g)
	}
	slices.SortFunc(list, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Series, a.Series), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Instance, b.Instance))
	})
	if top > 0 {
		list = list[:min(top, len(list))]
	}
	return list
}
