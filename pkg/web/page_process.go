package web

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"
)

// processPage shows what this process knows of itself: its services, targets, streams and endpoints.
var processPage = page{name: "process", path: "/process", Title: "This process", aside: true, view: (*Server).viewProcess}

// Limits of what the page lists.
const (
	maxPools     = 100
	maxUnhealthy = 100
)

// processView is what the page shows.
type processView struct {
	Version VersionInfo
	Uptime  time.Duration // 0: unknown
	Status  Status
	Targets targetsView
}

func (s *Server) viewProcess(ctx context.Context, _ *http.Request) (view, error) {
	st := s.cfg.Status(ctx).presentable()
	v := processView{Version: s.cfg.Version, Status: st}
	if !st.Started.IsZero() {
		v.Uptime = max(time.Since(st.Started), time.Second)
	}
	active, _, dropped, err := s.cfg.Targets(ctx)
	if err != nil {
		v.Targets.Error = err.Error()
	} else {
		v.Targets = sumUpTargets(active, dropped)
	}
	out := view{Content: v}
	if v.Targets.Down > 0 {
		out.Alert = plural(v.Targets.Down, "target down", "targets down")
	}
	return out, nil
}

// targetsView sums up the targets' health.
type targetsView struct {
	Error                    string
	Up, Down, Unknown, Total int
	Dropped                  int
	Pools                    []poolView
	MorePools                int
	Unhealthy                []unhealthyView
	MoreUnhealthy            int
}

type poolView struct {
	Name                              string
	Up, Down, Unknown, Total, Dropped int
}

// Max is the length of the pool's bar, which may not be 0.
func (p poolView) Max() int { return max(p.Total, 1) }

type unhealthyView struct {
	Pool, URL, Labels, Error string
	LastScrape               time.Time
}

// sumUpTargets counts per scrape pool, the pools with most targets down first, and lists the targets that are down.
func sumUpTargets(active []Target, dropped map[string]int) targetsView {
	var view targetsView
	pools := map[string]*poolView{}
	pool := func(name string) *poolView {
		if pools[name] == nil {
			pools[name] = &poolView{Name: name}
		}
		return pools[name]
	}
	var down []*Target
	for i := range active {
		t := &active[i]
		p := pool(t.ScrapePool)
		p.Total++
		switch t.Health {
		case HealthGood:
			p.Up++
		case HealthBad:
			p.Down++
			down = append(down, t)
		default:
			p.Unknown++
		}
	}
	for name, n := range dropped {
		pool(name).Dropped = n
	}
	for _, p := range pools {
		view.Pools = append(view.Pools, *p)
		view.Up += p.Up
		view.Down += p.Down
		view.Unknown += p.Unknown
		view.Total += p.Total
		view.Dropped += p.Dropped
	}
	slices.SortFunc(view.Pools, func(a, b poolView) int {
		return cmp.Or(cmp.Compare(b.Down, a.Down), cmp.Compare(a.Name, b.Name))
	})
	if len(view.Pools) > maxPools {
		view.Pools, view.MorePools = view.Pools[:maxPools], len(view.Pools)-maxPools
	}
	slices.SortFunc(down, func(a, b *Target) int {
		return cmp.Or(cmp.Compare(a.ScrapePool, b.ScrapePool), cmp.Compare(a.ScrapeURL, b.ScrapeURL))
	})
	if len(down) > maxUnhealthy {
		down, view.MoreUnhealthy = down[:maxUnhealthy], len(down)-maxUnhealthy
	}
	for _, t := range down {
		u := unhealthyView{Pool: t.ScrapePool, URL: RedactURL(t.ScrapeURL), Labels: t.Labels.String(), Error: t.LastError, LastScrape: t.LastScrape}
		if u.URL != t.ScrapeURL {
			u.Error = strings.ReplaceAll(u.Error, t.ScrapeURL, u.URL)
		}
		view.Unhealthy = append(view.Unhealthy, u)
	}
	return view
}
