package web

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/status"
)

// hostile is a text that would run a script wherever it is not escaped.
const hostile = `"'><script>alert(1)</script><img src=x onerror=alert(1)>`

// hostileServer has the hostile text wherever a page may show a text.
func hostileServer(t *testing.T) *Server {
	return newServer(t, func(c *Config) {
		c.Version = VersionInfo{Version: hostile}
		c.Ready = func() []string { return []string{hostile} }
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) {
			return []Target{{
				Labels:     labels.FromStrings("instance", hostile, hostile, "x"),
				ScrapePool: hostile, ScrapeURL: "javascript:alert(1)//" + hostile, LastError: hostile, Health: HealthBad,
			}}, nil, map[string]int{hostile: 1}, nil
		}
		c.Status = func(context.Context) Status {
			return Status{
				Started: time.Now(), ConfigHash: hostile, ConfigError: hostile,
				Services:  []ServiceStatus{{Name: ServiceScraper, State: hostile, Detail: hostile, WaitingFor: []string{hostile}}},
				Members:   []MemberStatus{{ID: hostile, Host: hostile, Address: hostile, Version: hostile, ConfigHash: hostile, OtherConfig: true, Shares: []ShareStatus{{Service: hostile}}}},
				Streams:   []StreamStatus{{Name: hostile, LastError: hostile}},
				Endpoints: []EndpointStatus{{Name: hostile, URL: "http://h/" + hostile, Protocol: hostile, State: hostile, StateDetail: hostile, LastError: hostile}},
			}
		}
		c.FleetTargets = func(context.Context, *status.TargetQuery) (*status.TargetPage, error) {
			return &status.TargetPage{
				Pools: []status.Pool{{Name: hostile, Down: 1}}, Matching: 1, First: 1, Problems: []string{hostile}, Next: hostile, Previous: hostile,
				Targets: []status.Target{{
					TargetKey: status.TargetKey{Pool: hostile, URL: "javascript:alert(1)//" + hostile}, Owner: hostile, Labels: labels.FromStrings("instance", hostile, hostile, "x"),
					DiscoveredLabels: labels.FromStrings(hostile, hostile), Health: hostile, LastError: hostile, Interval: hostile, LastScrape: time.Now(),
				}},
			}, nil
		}
		hostileRest(c)
		c.Fleet = func(context.Context) (*status.Document, error) {
			return &status.Document{
				Time: time.Now(), Problems: []string{hostile},
				Members: []status.Member{{
					ID: hostile, Host: hostile, Address: hostile, Version: hostile, ConfigHash: hostile, OtherConfig: true, State: hostile, WaitingFor: []string{hostile},
					Services: []status.Service{{Name: ServiceScraper, State: status.Waiting, WaitingFor: []string{hostile}}, {Name: hostile}},
				}},
				Shares:    []status.Shares{{Service: hostile, All: 1, Owners: []status.Owner{{Member: hostile, Shares: []int{0}}}}},
				Streams:   []status.Stream{{Name: hostile, State: hostile, Error: hostile}, {Name: "FRAMES", State: hostile, Error: hostile}},
				Endpoints: []status.Endpoint{{Name: hostile, URL: "http://h/" + hostile, Protocol: hostile, State: status.Waiting, WaitingFor: []string{hostile}, LastError: hostile, LastErrorMember: hostile}},
			}, nil
		}
	})
}

func TestPagesEscapeWhateverTheyShow(t *testing.T) {
	s := hostileServer(t)
	least := map[string]int{"/": 20, "/process": 17, "/targets": 14, "/streams": 8, "/rejected": 5, "/replays": 9, "/relabel": 2}
	for _, p := range pages {
		body := do(t, s, "GET", p.path+"?search="+url.QueryEscape(hostile)+"&pool="+url.QueryEscape(hostile)).Body.String()
		if n := strings.Count(body, "&lt;script&gt;alert(1)&lt;/script&gt;"); n < max(least[p.path], 1) {
			t.Errorf("%s: the text is shown %d times only:\n%s", p.path, n, body)
		}
		for _, bad := range []string{"<script>", "<img src=x", `"'>`, `class="state "'`, `href="javascript`} {
			if strings.Contains(body, bad) {
				t.Errorf("%s contains %q", p.path, bad)
			}
		}
		if !strings.Contains(body, "</html>") {
			t.Errorf("%s is cut off", p.path)
		}
	}
}

// fleetServer has a fleet to show.
func fleetServer(t *testing.T) *Server {
	return newServer(t, func(c *Config) {
		c.Targets = sampleTargets
		c.Fleet = func(context.Context) (*status.Document, error) { return sampleFleet(), nil }
		c.FleetTargets = sampleFleetTargets
		sampleRest(c)
	})
}

func TestPagesNeedNothingFromOutside(t *testing.T) {
	const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; " +
		"frame-ancestors 'none'"
	s := fleetServer(t)
	for _, p := range pages {
		w := do(t, s, "GET", p.path)
		body := w.Body.String()
		for _, bad := range []string{"<script>", "<style", " style=", " onclick="} {
			if strings.Contains(body, bad) {
				t.Errorf("%s contains %q", p.path, bad)
			}
		}
		links := regexp.MustCompile(`(?:href|src|action)="([^"]*)"`).FindAllStringSubmatch(body, -1)
		if len(links) < 10 {
			t.Fatalf("%s: links: %v", p.path, links)
		}
		for _, link := range links {
			if strings.Contains(link[1], "//") || strings.HasPrefix(link[1], "/") {
				t.Errorf("%s: the link %q is not relative to the page", p.path, link[1])
				continue
			}
			if strings.HasPrefix(link[1], "#") {
				continue
			}
			path := "/" + strings.TrimPrefix(strings.ReplaceAll(link[1], "&amp;", "&"), "./")
			if w := do(t, s, "GET", path); w.Code != http.StatusOK {
				t.Errorf("%s: the link %q answers %d", p.path, link[1], w.Code)
			}
		}
		if got := w.Header().Get("Content-Security-Policy"); got != policy {
			t.Errorf("%s: Content-Security-Policy %q", p.path, got)
		}
	}
	err := fs.WalkDir(assets, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := assets.ReadFile(path)
		if strings.Contains(string(content), "@import") || strings.Contains(string(content), "url(") {
			t.Errorf("%s loads something else", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPagesAreInTheNavigation(t *testing.T) {
	s := fleetServer(t)
	for _, p := range pages {
		body := do(t, s, "GET", p.path).Body.String()
		if want := `<a href="` + relative(p.path) + `" aria-current="page">` + p.Title + `</a>`; !strings.Contains(body, want) {
			t.Errorf("%s lacks %s", p.path, want)
		}
		if n := strings.Count(body, `aria-current="page"`); n != 1 {
			t.Errorf("%s: %d current pages", p.path, n)
		}
		if !strings.Contains(body, "<title>") || !strings.Contains(body, p.Title+" – Millrace</title>") || strings.Count(body, "<h1") != 1 || !strings.Contains(body, `<html lang="en">`) {
			t.Errorf("%s lacks a title, its heading or its language", p.path)
		}
	}
}

func TestPagesRefreshUnlessHeldStill(t *testing.T) {
	const refresh = `<noscript><meta http-equiv="refresh" content="5"></noscript>`
	s := fleetServer(t)
	for _, p := range pages {
		body := do(t, s, "GET", p.path+"?a=b").Body.String()
		if got := strings.Contains(body, refresh) && strings.Contains(body, `data-refresh="5"`); got != !p.still {
			t.Errorf("%s refreshes: %t", p.path, got)
		}
		if want := `?a=b&amp;refresh=off"`; !p.still && !strings.Contains(body, want) {
			t.Errorf("%s: no link to hold it still with its own parameters", p.path)
		}
		body = do(t, s, "GET", p.path+"?a=b&refresh=off").Body.String()
		if strings.Contains(body, `http-equiv="refresh"`) || !strings.Contains(body, `data-refresh="0"`) || !strings.Contains(body, `?a=b"`) {
			t.Errorf("%s refreshes although held still", p.path)
		}
	}
}

func TestHandlerIsSafeUnderConcurrency(t *testing.T) {
	s := hostileServer(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, p := range pages {
				do(t, s, "GET", p.path)
			}
			for _, path := range []string{"/api/v1/status", "/api/v1/targets", "/metrics", "/-/ready"} {
				do(t, s, "GET", path)
			}
		})
	}
	wg.Wait()
}

// TestFormsOfPages tries what a page with a form can rely on.
func TestFormsOfPages(t *testing.T) {
	var done []string
	p := page{name: "process", path: "/form", Title: "Form", view: (*Server).viewProcess, act: func(_ *Server, _ context.Context, r *http.Request) (string, error) {
		if r.PostForm.Get("name") == "" {
			return "", errors.New("a name is <missing>")
		}
		done = append(done, r.PostForm.Get("name"))
		return "form?done=" + url.QueryEscape(r.PostForm.Get("name")), nil
	}}
	s := newServer(t, nil)
	mux := http.NewServeMux()
	s.pageRoute(&p, mux.Handle)
	for _, tc := range []struct {
		name, form, site, origin string
		code                     int
		location, body           string
	}{
		{"done, and sent on", "name=a", "same-origin", "", 303, "form?done=a", ""},
		{"by a program", "name=b", "", "", 303, "form?done=b", ""},
		{"by a browser, without TLS", "name=d", "", "http://example.com", 303, "form?done=d", ""},
		{"refused, and said why", "name=", "same-origin", "", 400, "", "a name is &lt;missing&gt;"},
		{"from another site", "name=c", "cross-site", "", 403, "", ""},
		{"from another site, without TLS", "name=c", "", "http://other.example", 403, "", ""},
		{"from a page without a site", "name=c", "", "null", 403, "", ""},
		{"too large", "name=" + strings.Repeat("x", maxFormBytes), "same-origin", "", 400, "", "reading the form"},
	} {
		r := httptest.NewRequest("POST", "/form", strings.NewReader(tc.form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if tc.site != "" {
			r.Header.Set("Sec-Fetch-Site", tc.site)
		}
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != tc.code || w.Header().Get("Location") != tc.location || !strings.Contains(w.Body.String(), tc.body) {
			t.Errorf("%s: %d to %q\n%s", tc.name, w.Code, w.Header().Get("Location"), w.Body)
		}
		if w.Code == 400 && strings.Contains(w.Body.String(), "http-equiv") {
			t.Errorf("%s: the page loads itself again, without what was filled in", tc.name)
		}
	}
	if got := strings.Join(done, " "); got != "a b d" {
		t.Errorf("done: %q", got)
	}
}
