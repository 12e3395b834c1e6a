package web

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/status"
)

// targetsPage shows the targets of the whole fleet, a part at a time. Its parameters are pool, health, search, after and before, see [status.TargetQuery].
var targetsPage = page{
	name: "targets", path: targetsPath, Title: "Targets", Style: "targets.css", view: (*Server).viewTargets,
	absent: func(c *Config) bool { return c.FleetTargets == nil },
}

const targetsPath = "/targets"

// Bounds of the page.
const (
	targetsPerPage = 100
	maxListedPools = 500
	maxSearch      = 500 // bytes
)

// targetsContent is what the page shows.
type targetsContent struct {
	*status.TargetPage
	Query status.TargetQuery
	// Choices are links to the targets of each health, Clear is one to all.
	Choices []healthChoice
	Clear   string
	Chosen  bool // not all are shown
	Groups  []poolGroup
	// Last is the number of the last target shown.
	Last                   int
	NextLink, PreviousLink string
	// ListedPools are as many of the pools as the page has room for, without MorePools.
	ListedPools []poolLine
	MorePools   int
	PoolNames   []string
	// Missing says that there are no targets any more at the place that was asked for.
	Missing bool
}

// healthChoice is a link to the targets of one health.
type healthChoice struct {
	Link, Title, Tone string
	Count             int
	Current           bool
}

// poolLine is a scrape pool with a link to its targets.
type poolLine struct {
	status.Pool
	Link string
}

// Title is never empty: pools whose names are too many or too long to be told one by one have none.
func (p poolLine) Title() string {
	if p.Name == "" {
		return "further scrape pools"
	}
	return p.Name
}

// Max is the length of the pool's bar, which may not be 0.
func (p poolLine) Max() int { return max(p.Total(), 1) }

// poolGroup are the targets of one pool on the page.
type poolGroup struct {
	poolLine
	Targets []targetLine
}

// targetLine is a target, its labels one by one.
type targetLine struct {
	status.Target
	Pairs      []labels.Label
	Discovered string
	Took       time.Duration
}

// viewTargets finds the targets that are asked for.
func (s *Server) viewTargets(ctx context.Context, r *http.Request) (view, error) {
	q, err := targetQuery(r.URL.Query(), targetsPerPage)
	if err != nil {
		return view{}, err
	}
	found, err := s.cfg.FleetTargets(ctx, q)
	if err != nil {
		return view{}, err
	}
	c := &targetsContent{TargetPage: found, Query: *q, Clear: relative(targetsPath), Last: found.First + len(found.Targets) - 1}
	c.Chosen = q.Pool != "" || q.Health != "" || q.Search != ""
	c.Missing = len(found.Targets) == 0 && (q.After != nil || q.Before != nil)
	c.choices()
	c.pools()
	if found.Next != "" {
		c.NextLink = c.link(func(v url.Values) { v.Set("after", found.Next) })
	}
	if found.Previous != "" {
		c.PreviousLink = c.link(func(v url.Values) { v.Set("before", found.Previous) })
	}
	for _, t := range found.Targets {
		if n := len(c.Groups); n == 0 || c.Groups[n-1].Name != t.Pool {
			c.Groups = append(c.Groups, poolGroup{poolLine: c.pool(t.Pool)})
		}
		g := &c.Groups[len(c.Groups)-1]
		g.Targets = append(g.Targets, lineOf(t))
	}
	v := view{Content: c}
	if found.All.Down > 0 {
		v.Alert = plural(found.All.Down, "target down", "targets down")
	}
	return v, nil
}

// targetQuery reads the parameters of the page, and of the API.
func targetQuery(v url.Values, limit int) (*status.TargetQuery, error) {
	q := &status.TargetQuery{Pool: v.Get("pool"), Health: v.Get("health"), Search: v.Get("search"), Limit: limit}
	if len(q.Search) > maxSearch {
		q.Search = q.Search[:maxSearch]
	}
	for name, place := range map[string]**status.TargetKey{"after": &q.After, "before": &q.Before} {
		if s := v.Get(name); s != "" {
			key, err := status.ParseTargetKey(s)
			if err != nil {
				return nil, err
			}
			*place = key
		}
	}
	return q, q.Validate()
}

func lineOf(t status.Target) targetLine {
	l := targetLine{Target: t, Took: time.Duration(t.LastScrapeSeconds * float64(time.Second))}
	t.Labels.Range(func(label labels.Label) { l.Pairs = append(l.Pairs, label) })
	if !t.DiscoveredLabels.IsEmpty() {
		l.Discovered = t.DiscoveredLabels.String()
	}
	return l
}

// link is one to the page with what is chosen, changed.
func (c *targetsContent) link(change func(url.Values)) string {
	v := url.Values{}
	for name, value := range map[string]string{"pool": c.Query.Pool, "health": c.Query.Health, "search": c.Query.Search} {
		if value != "" {
			v.Set(name, value)
		}
	}
	change(v)
	if len(v) == 0 {
		return c.Clear
	}
	return c.Clear + "?" + v.Encode()
}

// choices are the links to the targets of each health. They count those of the chosen pool, or all.
func (c *targetsContent) choices() {
	counted := c.All
	if c.Query.Pool != "" {
		counted = c.pool(c.Query.Pool).Pool
	}
	for _, h := range []healthChoice{
		{"", "All", "", counted.Total(), false}, {"up", "Up", "good", counted.Up, false}, {"down", "Down", "bad", counted.Down, false},
		{"unknown", "Not scraped yet", "calm", counted.Unknown, false},
	} {
		health := h.Link
		h.Current = health == c.Query.Health
		h.Link = c.link(func(v url.Values) {
			v.Del("health")
			if health != "" {
				v.Set("health", health)
			}
		})
		c.Choices = append(c.Choices, h)
	}
}

// pool returns the counts of a pool.
func (c *targetsContent) pool(name string) poolLine {
	line := poolLine{Pool: status.Pool{Name: name}}
	for i := range c.Pools {
		if c.Pools[i].Name == name {
			line.Pool = c.Pools[i]
		}
	}
	line.Link = c.Clear + "?" + url.Values{"pool": {name}}.Encode()
	return line
}

// pools lists the pools, and their names to choose from.
func (c *targetsContent) pools() {
	for _, p := range c.Pools {
		if len(c.ListedPools) == maxListedPools {
			c.MorePools++
			continue
		}
		line := poolLine{Pool: p, Link: c.Clear + "?" + url.Values{"pool": {p.Name}}.Encode()}
		c.ListedPools = append(c.ListedPools, line)
		if p.Name != "" {
			c.PoolNames = append(c.PoolNames, p.Name)
		}
	}
}
