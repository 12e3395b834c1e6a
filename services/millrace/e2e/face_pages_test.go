package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/millrace/millrace/bench/loadgen"
)

// hostileValue is a label's value that would run wherever a page does not escape it.
const hostileValue = "<script>alert(1)</script>"

// facePages are the pages that are looked at, each with what it must show of the fleet of [newFace].
var facePages = []struct {
	path, name string
	shows      []string
}{
	{"/", "overview", []string{
		"Needs a look", "the endpoint dead does not take samples now", "the endpoint refusing has refused", "targets are down", "discovery", "samples/s", "6 processes", "this one",
	}},
	{"/targets", "targets", []string{"failing", "1 down", "connection refused", `team="` + hostileValue + `"`, "2 dropped", "token=xxxxx"}},
	{"/streams", "streams", []string{"refusing", "dead", "FRAMES", "Buckets"}},
	{"/rejected", "rejected", []string{"out of order " + hostileValue}},
	{"/replays", "replays", []string{"There are none"}},
	{"/cardinality", "cardinality", []string{"Count"}},
	{"/relabel", "relabelling", []string{"Rules"}},
	{"/process", "process", []string{"Endpoints", "Services", "Fleet", "Streams", "ready"}},
}

// face is a fleet of separate processes with something the matter: a target that fails, an endpoint that nobody listens at, one that refuses all for good, and a label
// with a hostile value.
type face struct {
	procs map[string]*proc
}

func newFace(t *testing.T) *face {
	t.Helper()
	nats := startNATS(t, 1)
	r := newRigOf(t, loadgen.Config{Targets: 4, Series: 20})
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "shown{value=%q} 1\n", hostileValue)
	}))
	t.Cleanup(hostile.Close)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		http.Error(w, "out of order "+hostileValue, http.StatusBadRequest)
	}))
	t.Cleanup(refusing.Close)
	config := r.config(fmt.Sprintf("  nats: {url: %q}\n  streams: {partitions: 4}\n  ingest: {otlp: {grpc: {listen: \"\"}, http: {listen: \"\"}}}\n", nats.URL),
		remoteWrite("main", newEndpoint(t).URL), remoteWrite("refusing", refusing.URL), remoteWrite("dead", fmt.Sprintf("http://miller:grain@127.0.0.1:%d/", freePort(t))))
	config = strings.Replace(config, "remote_write:\n", fmt.Sprintf(`- job_name: hostile
  params: {token: [grain]}
  static_configs: [{targets: [%q], labels: {team: %q}}]
- job_name: failing
  static_configs: [{targets: ["127.0.0.1:%d"]}]
- job_name: dropped
  static_configs: [{targets: [a, b]}]
  relabel_configs: [{action: drop}]
remote_write:
`, strings.TrimPrefix(hostile.URL, "http://"), hostileValue, freePort(t)), 1)
	f := &face{procs: map[string]*proc{}}
	for _, p := range []struct{ name, services string }{
		{"discovery", "discovery"}, {"scraper", "scraper"}, {"scraper-2", "scraper"}, {"relabel", "relabel"}, {"writer", "writer"}, {"ingest", "ingest"},
	} {
		args := []string{"--services=" + p.services}
		if p.services == "ingest" {
			args = append(args, "--web.enable-remote-write-receiver")
		}
		f.procs[p.name] = startMillrace(t, config, withArgs(args...))
	}
	return f
}

// TestPagesInABrowser clicks through the pages of a fleet: in both themes and as wide as a phone, with the keyboard, and without scripts.
func TestPagesInABrowser(t *testing.T) {
	path := chromium(t)
	f := newFace(t)
	b := startBrowser(t, path, f.procs["ingest"].URL) // which knows the least of itself
	for _, page := range facePages {
		b.open(page.path)
		for _, want := range page.shows {
			b.waitFor(page.name+" to show "+want, fmt.Sprintf("document.body.innerText.includes(%q)", want))
		}
		if text := b.text(); strings.Contains(text, "grain") {
			t.Errorf("%s shows a secret:\n%s", page.name, text)
		}
	}
	b.clean("while the fleet starts")
	for _, page := range facePages {
		for _, v := range views {
			b.as(v)
			b.open(page.path)
			what := page.name + "-" + v.name
			for _, check := range []string{"names", "contrast", "fits"} {
				for _, complaint := range js[[]string](b, "face."+check+"()") {
					t.Errorf("%s, %s: %s", what, check, complaint)
				}
			}
			b.shoot(what)
			b.clean(what)
		}
		b.as(views[0])
		b.open(page.path)
		stops := b.tab(200)
		if len(stops) < 10 || stops[0] != "Skip to the content" || stops[1] != "Millrace" || stops[2] != "Overview" {
			t.Errorf("%s: the keyboard reaches %q", page.name, stops)
		}
		b.clean(page.name + " with the keyboard")
	}
	t.Run("targets", func(t *testing.T) { b.t = t; b.throughTargets() })
	t.Run("forms", func(t *testing.T) { b.t = t; b.throughForms() })
	b.t = t
	t.Run("without scripts", func(t *testing.T) {
		b.t = t
		b.scripts(false)
		b.open("/targets")
		b.do(chromedp.Click(chromedp.CSS(`.choices a[href*="down"]`)))
		b.do(chromedp.WaitVisible(chromedp.CSS(`.choices a[href*="down"][aria-current]`)))
		b.clean("without scripts")
		b.scripts(true)
	})
}

// throughTargets finds targets as a reader does.
func (b *browser) throughTargets() {
	t := b.t
	t.Helper()
	b.open("/targets")
	stops := b.tab(200)
	last := -1
	for _, want := range []string{"Targets", "All", "Down", "URL, labels or error contain", "Scrape pool", "Show", "scrape pools", "failing", "Labels before relabelling"} {
		i := slices.IndexFunc(stops[last+1:], func(s string) bool { return strings.Contains(s, want) })
		if i < 0 {
			t.Fatalf("the keyboard does not reach %q behind stop %d of %q", want, last, stops)
		}
		last += 1 + i
	}
	rows := `[...document.querySelectorAll("table.targets .url")].map((e) => e.textContent)`
	b.do(chromedp.Click(chromedp.CSS(`.choices a[href*="health=down"]`)))
	b.waitFor("the targets that are down", `document.querySelector('.choices a[href*="down"]').getAttribute("aria-current") === "true"`)
	if got := js[[]string](b, rows); len(got) != 1 {
		t.Errorf("down: %q", got)
	}
	b.open("/targets")
	b.do(chromedp.SendKeys(chromedp.CSS("#search"), "ALERT(1)\r"))
	b.waitFor("what was searched for", `location.search.includes("ALERT")`)
	if got := js[[]string](b, rows); len(got) != 1 || !strings.Contains(got[0], "token=xxxxx") {
		t.Errorf("found: %q", got)
	}
	// What the reader does stays when the page loads itself again.
	b.do(chromedp.Click(chromedp.CSS(".more-of summary")), chromedp.SendKeys(chromedp.CSS("#search"), " half"))
	b.refreshed()
	state := js[[]any](b, `[document.activeElement.id, document.querySelector("#search").value.includes("half"), document.querySelector(".more-of details").open]`)
	if fmt.Sprint(state) != "[search true true]" {
		t.Errorf("after the page has loaded itself again: %v", state)
	}
	if text := b.text(); !strings.Contains(text, "__address__=") {
		t.Errorf("the labels before relabelling are not shown:\n%s", text)
	}
	b.shoot("targets-found")
	b.clean("targets")
}
