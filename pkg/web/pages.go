package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
)

// pages are the pages for people, in the order of the navigation. Each has a file of its own, page_NAME.go, with its [page] and what it shows, and a template of its own,
// assets/NAME.html, which defines "main". All of them stand at the top level, so that their links are relative and work behind a proxy that adds a path.
var pages = []page{
	overviewPage,
	targetsPage,
	streamsPage,
	rejectedPage,
	replaysPage,
	cardinalityPage,
	relabelPage,
	processPage,
}

// page is one page for people.
type page struct {
	// name is that of the template, of the file assets/NAME.html.
	name string
	// path is where it stands: one slash and one word.
	path string
	// Title is how the navigation calls it, and what the browser's window says.
	Title string
	// Style is a style sheet among the assets that it has beside page.css, such as overview.css. Optional.
	Style string
	// aside says that it stands at the end of the navigation, apart from the others.
	aside bool
	// still says that it does not load itself again: what it shows does not change by itself, costs much to find, or is being filled in.
	still bool
	// absent reports that this process has nothing for the page, which then does not exist. Optional.
	absent func(*Config) bool
	// view finds what the page shows, worked out so far that the template only lays it out. An error is shown in place of it. Its context ends after
	// [Config].ProviderTimeout.
	view func(s *Server, ctx context.Context, r *http.Request) (view, error)
	// act does what a form of the page asks for with POST, and returns where the browser goes then: a relative link. An error is shown on the page, which view then finds
	// with what was filled in; one that is a [fieldError] stands beside its field. Without a link, the page is the answer, which view finds with what was filled in: for
	// forms that change nothing and whose fields are no matter of a URL. Requests that pages of other sites make do not come here. Optional.
	act func(s *Server, ctx context.Context, r *http.Request) (to string, err error)
}

// fieldError is why a form was refused, for one of its fields.
type fieldError struct {
	// field is the name of the field.
	field string
	err   error
}

func (e *fieldError) Error() string { return e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// view is what a page shows.
type view struct {
	// Alert goes before the title where something is the matter, in two or three words.
	Alert string
	// Live has a page load itself again although it is a still one; Still keeps another from it.
	Live, Still bool
	// Content is what the template gets as .Content.
	Content any
}

// frame is what the layout shows, and what templates get: $ is the frame in all of them.
type frame struct {
	Page       *page
	Pages      []navItem
	Version    VersionInfo
	AssetsHash string
	// Now is when the page was made.
	Now time.Time
	// Refresh is after how many seconds the page loads itself again; 0: it does not.
	Refresh int
	// Held says that the reader has stopped that; Link is the page's own link, with the parameters but for that one, and LinkHeld with it.
	Held           bool
	Link, LinkHeld string
	// NotReady is what this process waits for.
	NotReady []string
	Alert    string
	// Error says why there is no content, ActError why a form was refused.
	Error, ActError string
	// ActField is the field that it was refused for, if it was for one.
	ActField string
	Content  any
}

// navItem is a link of the navigation.
type navItem struct {
	Link, Title    string
	Current, Aside bool
}

// Limits of what pages list, so that they stay small whatever is configured and whatever targets answer.
const (
	maxTextRunes   = 400
	briefRunes     = 12 // of hashes
	refreshSeconds = 5
	maxFormBytes   = 1 << 20
)

var functions = template.FuncMap{
	"count":    readable.Count,
	"exact":    readable.Exact,
	"bytes":    readable.Bytes,
	"duration": readable.Duration,
	"seconds":  readable.Seconds,
	"tone":     tone,
	"stamp":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"precise":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") },
	"short":    func(s string) string { return readable.Shorten(s, maxTextRunes) },
	"brief":    func(hash string) string { return readable.Shorten(hash, briefRunes) },
	"float":    func(n uint64) float64 { return float64(n) },
	"unsigned": func(n int64) uint64 { return uint64(max(n, 0)) },
	"whole":    func(n int) uint64 { return uint64(max(n, 0)) },
	"ago":      ago,
	"plural":   plural,
	"fill":     fill,
	"place":    func(name string, s station) placed { return placed{Place: name, station: s} },
	"link":     func(name string, strength int) placed { return placed{Place: name, Strength: strength} },
}

// templates are those of the pages, by name: the layout, with the page's own "main".
var templates = sync.OnceValue(func() map[string]*template.Template {
	layout := template.Must(template.New("layout.html").Funcs(functions).ParseFS(assets, "assets/layout.html"))
	all := map[string]*template.Template{}
	for _, p := range pages {
		all[p.name] = template.Must(template.Must(layout.Clone()).ParseFS(assets, "assets/"+p.name+".html"))
	}
	return all
})

// assetsHash names the content of all assets; the pages' links carry it, so that a new version is never shown with an old style sheet.
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

// pageRoutes adds the pages.
func (s *Server) pageRoutes(handle func(pattern string, h http.Handler)) {
	for i := range pages {
		s.pageRoute(&pages[i], handle)
	}
}

// pageRoute adds a page, unless this process has nothing for it.
func (s *Server) pageRoute(p *page, handle func(pattern string, h http.Handler)) {
	if p.absent != nil && p.absent(&s.cfg) {
		return
	}
	pattern := p.path
	if pattern == "/" {
		pattern = "/{$}"
	}
	handle("GET "+pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.showPage(w, r, p, nil) }))
	if p.act != nil {
		act := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.actPage(w, r, p) })
		handle("POST "+pattern, http.NewCrossOriginProtection().Handler(act))
	}
}

// actPage does what a form asks for, and sends the browser on, so that loading the page again does not do it again.
func (s *Server) actPage(w http.ResponseWriter, r *http.Request, p *page) {
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	err := r.ParseForm()
	if err != nil {
		err = fmt.Errorf("reading the form: %w", err)
	} else {
		ctx, cancel := context.WithTimeout(r.Context(), s.cfg.ProviderTimeout)
		defer cancel()
		var to string
		if to, err = p.act(s, ctx, r); err == nil && to != "" {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusSeeOther)
			return
		}
	}
	s.showPage(w, r, p, err)
}

// showPage answers with a page. failed is why its form was refused; nil where there was none.
func (s *Server) showPage(w http.ResponseWriter, r *http.Request, p *page, failed error) {
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.ProviderTimeout)
	defer cancel()
	f := s.frame(p, r)
	v, err := p.view(s, ctx, r)
	f.Alert, f.Content = v.Alert, v.Content
	if f.Held || p.still && !v.Live || v.Still || r.Method == http.MethodPost { // what is filled in stays
		f.Refresh = 0
	}
	code := http.StatusOK
	if failed != nil {
		f.ActError, code = failed.Error(), http.StatusBadRequest
		if field, ok := errors.AsType[*fieldError](failed); ok {
			f.ActField = field.field
		}
	}
	if err != nil {
		f.Error, code = err.Error(), http.StatusServiceUnavailable
		if errors.Is(err, ErrBadParameter) || errors.Is(err, status.ErrQuery) {
			code = http.StatusBadRequest
		}
	}
	var body bytes.Buffer
	if err := templates()[p.name].Execute(&body, f); err != nil {
		s.cfg.Logger.Error("Rendering a page failed", "page", p.name, "err", err)
		http.Error(w, "rendering the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	s.write(w, r, body.Bytes())
}

// frame is the layout's part of a page.
func (s *Server) frame(p *page, r *http.Request) *frame {
	f := &frame{Page: p, Version: s.cfg.Version, AssetsHash: assetsHash(), Now: time.Now(), NotReady: s.cfg.Ready()}
	for i := range pages {
		q := &pages[i]
		if q.absent == nil || !q.absent(&s.cfg) {
			f.Pages = append(f.Pages, navItem{Link: relative(q.path), Title: q.Title, Current: q == p, Aside: q.aside})
		}
	}
	query := r.URL.Query()
	f.Held = query.Get("refresh") == "off"
	f.Refresh = refreshSeconds
	query.Del("refresh")
	f.Link = relative(p.path)
	if q := query.Encode(); q != "" {
		f.Link += "?" + q
	}
	query.Set("refresh", "off")
	f.LinkHeld = relative(p.path) + "?" + query.Encode()
	return f
}

// relative is the link from one page to another.
func relative(path string) string { return cmp.Or(path[1:], "./") }

// moment is a time in the past, if it is not zero.
type moment struct {
	At    time.Time
	Since time.Duration
}

func ago(now, at time.Time) moment { return moment{at, max(now.Sub(at), 0)} }

// plural is a number with its noun: 1 target, 2 targets.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return readable.Exact(uint64(max(n, 0))) + " " + many
}

// tone is the style class of a state: it adds a colour to the word, never replaces it. It knows the states of [Status], of the fleet's document and of targets.
func tone(state any) string {
	switch fmt.Sprint(state) {
	case "running", "sending", "ready", "ok", "up":
		return "good"
	case "waiting", "starting", "degraded":
		return "warn"
	case "failed", "silent", "no leader", "down":
		return "bad"
	}
	return "calm"
}

// fill is the style class of a stream's bar. A full stream is no failure in itself: it drops its oldest messages.
func fill(size, limit uint64) string {
	if limit > 0 && float64(size) >= 0.9*float64(limit) {
		return "warn"
	}
	return "good"
}
