package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/millrace/millrace/bench/loadgen"
)

var upLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z up\{instance="[^"]+", job="load", target="t[01]"\} 1$`)

// checkUp checks lines of the series up.
func checkUp(t *testing.T, from, stdout, stderr string, code, want int) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if code != 0 || stderr != "" || len(lines) != want {
		t.Errorf("from %s it ends with %d: %s%s", from, code, stdout, stderr)
	}
	for _, l := range lines {
		if !upLine.MatchString(l) {
			t.Errorf("from %s: %q", from, l)
		}
	}
}

// TestTailShowsWhatPasses looks at one machine, as samples are collected and as an endpoint gets them.
func TestTailShowsWhatPasses(t *testing.T) {
	r, end := newRigOf(t, loadgen.Config{Targets: 2, Series: 10}), newEndpoint(t)
	relabelled := remoteWrite("main", end.URL) + "  write_relabel_configs:\n  - {source_labels: [__name__], regex: up, action: keep}\n  - {target_label: seen, replacement: 'yes'}\n"
	p := startMillrace(t, r.config("", relabelled))
	at := "--web.url=" + p.URL
	stdout, stderr, code := runMillrace(t, "tail", at, "--match=up", "--limit=4")
	checkUp(t, "the page", stdout, stderr, code, 4)

	eventually(t, startTimeout, "something relabelled", func() error {
		if stdout, stderr, code = runMillrace(t, "tail", at, "--endpoint=main", "--json", "--limit=3"); code != 0 {
			return fmt.Errorf("it ends with %d: %s", code, stderr)
		}
		return nil
	})
	for l := range strings.Lines(stdout) {
		var e struct {
			Time, Value string
			Labels      map[string]string
		}
		if err := json.Unmarshal([]byte(l), &e); err != nil || e.Value != "1" || e.Labels["__name__"] != "up" || e.Labels["seen"] != "yes" || e.Time == "" {
			t.Errorf("%v: %s", err, l)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{at, "--match={"}, 2, "--match: "},
		{[]string{at, "--endpoint=nobody"}, 1, "`millrace status` lists the endpoints"},
		{[]string{at, "--nats.url=nats://localhost"}, 2, "give one of them"},
		{[]string{fmt.Sprintf("--web.url=http://127.0.0.1:%d", freePort(t))}, 1, "connection refused"},
	} {
		if _, stderr, code := runMillrace(t, append([]string{"tail"}, c.args...)...); code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("%q ends with %d: %s", c.args, code, stderr)
		}
	}

	// Only so many at a time; those who go make room.
	var open []*http.Response
	for range 4 {
		res, err := http.Get(p.URL + "/api/v1/tail?match[]=nothing")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		open = append(open, res)
	}
	if code, body := p.Get("/api/v1/tail"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), "ask another process") {
		t.Errorf("one more: %d %s", code, body)
	}
	open[0].Body.Close()
	eventually(t, startTimeout, "room for another", func() error {
		if code, body := p.Get("/api/v1/tail?limit=1"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	if code := p.Stop(); code != 0 || strings.Contains(p.Logs(), "Cutting off HTTP requests") {
		t.Errorf("with clients that watch it ends with %d:\n%s", code, tail(p.Logs(), 5))
	}
}

// TestTailOfAFleet looks at a fleet over NATS, and from a process that has nothing to do with the samples.
func TestTailOfAFleet(t *testing.T) {
	c := newCrew(t, 3, 2, 10)
	discovery := c.join("discovery")
	c.join("scraper")
	for _, at := range []string{"--nats.url=" + c.nats.URL, "--web.url=" + discovery.URL} {
		stdout, stderr, code := runMillrace(t, "tail", at, "--match=up", `--match={__name__="nothing"}`, "--limit=4")
		checkUp(t, at, stdout, stderr, code, 4)
	}
}
