package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Limits of what the page lists, so that it stays small whatever is configured and whatever targets answer.
const (
	maxPools       = 100
	maxUnhealthy   = 100
	maxTextRunes   = 400
	refreshSeconds = 5
)

var pageTemplate = template.Must(template.New("page.html").Funcs(template.FuncMap{
	"count":    formatCount,
	"exact":    formatExact,
	"bytes":    formatBytes,
	"duration": formatDuration,
	"seconds":  formatSeconds,
	"tone":     tone,
	"stamp":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"short":    func(s string) string { return shorten(s, maxTextRunes) },
	"float":    func(n uint64) float64 { return float64(n) },
	"unsigned": func(n int64) uint64 { return uint64(max(n, 0)) },
	"whole":    func(n int) uint64 { return uint64(max(n, 0)) },
	"ago":      ago,
	"fill":     fill,
}).ParseFS(assets, "assets/page.html"))

// assetsHash names the content of all assets; the page's links carry it, so that a new version is never shown with an
// old style sheet.
var assetsHash = sync.OnceValue(func() string {
	h := sha256.New()
	err := fs.WalkDir(assets, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := assets.ReadFile(path)
		h.Write(content)
		return err
	})
	if err != nil {
		panic(fmt.Sprintf("reading the embedded assets: %v", err)) // they are part of the binary
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
})

// pageData is what the page shows, worked out so far that the template only lays it out.
type pageData struct {
	Version    VersionInfo
	AssetsHash string
	Now        time.Time
	Uptime     time.Duration // 0: unknown
	Refresh    int           // seconds; 0: the page does not load itself again
	NotReady   []string
	Status     Status
	Flow       []flowBox
	Targets    targetsView
}

// flowBox is one station of the data's way.
type flowBox struct {
	Name    string
	State   State
	Figures []flowFigure
}

type flowFigure struct{ Value, Name string }

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

// moment is a time in the past, if it is not zero.
type moment struct {
	At    time.Time
	Since time.Duration
}

func ago(now, at time.Time) moment { return moment{at, max(now.Sub(at), 0)} }

func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.ProviderTimeout)
	defer cancel()
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, s.pageData(ctx, r)); err != nil {
		s.cfg.Logger.Error("Rendering the status page failed", "err", err)
		http.Error(w, "rendering the status page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	s.write(w, r, body.Bytes())
}

func (s *Server) pageData(ctx context.Context, r *http.Request) pageData {
	status := s.cfg.Status(ctx).presentable()
	now := time.Now()
	data := pageData{
		Version:    s.cfg.Version,
		AssetsHash: assetsHash(),
		Now:        now,
		Refresh:    refreshSeconds,
		NotReady:   s.cfg.Ready(),
		Status:     status,
	}
	if r.URL.Query().Get("refresh") == "off" {
		data.Refresh = 0
	}
	if !status.Started.IsZero() {
		data.Uptime = max(now.Sub(status.Started), time.Second)
	}
	active, _, dropped, err := s.cfg.Targets(ctx)
	if err != nil {
		data.Targets.Error = err.Error()
	} else {
		data.Targets = viewTargets(active, dropped)
	}
	data.Flow = flow(status, data.Targets)
	return data
}

// viewTargets sums up per scrape pool, the pools with most targets down first, and lists the targets that are down.
func viewTargets(active []Target, dropped map[string]int) targetsView {
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
		u := unhealthyView{Pool: t.ScrapePool, URL: redactURL(t.ScrapeURL), Labels: t.Labels.String(), Error: t.LastError, LastScrape: t.LastScrape}
		if u.URL != t.ScrapeURL {
			u.Error = strings.ReplaceAll(u.Error, t.ScrapeURL, u.URL)
		}
		view.Unhealthy = append(view.Unhealthy, u)
	}
	return view
}

// flow is the data's way through this process: its services, with the streams between them and the endpoints at the
// end. A service that another process runs has a box without a state.
func flow(status Status, targets targetsView) []flowBox {
	service := func(name string, more ...flowFigure) flowBox {
		box := flowBox{Name: name}
		for _, s := range status.Services {
			if s.Name != name {
				continue
			}
			box.State, box.Figures = s.State, more
			for _, f := range s.Figures {
				box.Figures = append(box.Figures, flowFigure{formatCount(f.Value), f.Name})
			}
		}
		return box
	}
	var up []flowFigure
	if targets.Total > 0 {
		up = []flowFigure{{formatExact(uint64(targets.Up)) + " / " + formatExact(uint64(targets.Total)), "targets up"}}
	}
	return []flowBox{
		service(ServiceDiscovery),
		service(ServiceScraper, up...),
		service(ServiceIngest),
		streamBox(status.Streams),
		service(ServiceRelabel),
		service(ServiceWriter),
		endpointsBox(status.Endpoints),
	}
}

func streamBox(streams []StreamStatus) flowBox {
	box := flowBox{Name: "stream"}
	if len(streams) == 0 {
		return box
	}
	box.State = StateRunning
	var messages, size uint64
	for _, s := range streams {
		messages += s.Messages
		size += s.Bytes
		if s.LastError != "" {
			box.State = StateWaiting
		}
	}
	box.Figures = []flowFigure{{formatCount(float64(messages)), "messages"}, {formatBytes(size), "stored"}}
	return box
}

// endpointsBox takes the state of the endpoint that is worst off.
func endpointsBox(endpoints []EndpointStatus) flowBox {
	box := flowBox{Name: "endpoints"}
	if len(endpoints) == 0 {
		return box
	}
	severity := []State{StateStopped, StateIdle, StateRunning, StateSending, StateStarting, StateWaiting, StateFailed}
	worst, well, lag := -1, 0, 0.0
	for _, e := range endpoints {
		if i := slices.Index(severity, e.State); i > worst {
			worst, box.State = i, e.State
		}
		if e.State == StateSending || e.State == StateIdle || e.State == StateRunning {
			well++
		}
		lag = max(lag, e.LagSeconds)
	}
	box.Figures = []flowFigure{
		{fmt.Sprintf("%s / %s", formatExact(uint64(well)), formatExact(uint64(len(endpoints)))), "taking samples"},
		{formatSeconds(lag), "longest lag"},
	}
	return box
}

// tone is the style class of a state: it adds a colour to the word, never replaces it.
func tone(s State) string {
	switch s {
	case StateRunning, StateSending:
		return "good"
	case StateWaiting, StateStarting:
		return "warn"
	case StateFailed:
		return "bad"
	}
	return "calm"
}

// fill is the style class of a stream's bar. A full stream is no failure in itself: it drops its oldest messages.
func fill(s StreamStatus) string {
	if s.MaxBytes > 0 && float64(s.Bytes) >= 0.9*float64(s.MaxBytes) {
		return "warn"
	}
	return "good"
}
