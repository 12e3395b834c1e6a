package e2e_test

import (
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// guardedNATS runs a node with the users and rights of deploy/compose.
func guardedNATS(t *testing.T) (url string) {
	t.Helper()
	t.Setenv("NATS_NODE", "nats-1")
	opts, err := server.ProcessConfigFile("../../../deploy/compose/nats/nats.conf")
	require(t, err, "reading nats.conf")
	opts.Host, opts.Port, opts.HTTPPort, opts.StoreDir = "127.0.0.1", server.RANDOM_PORT, 0, t.TempDir()
	opts.Routes, opts.Cluster, opts.NoSigs = nil, server.ClusterOpts{}, true
	ns, err := server.NewServer(opts)
	require(t, err, "starting NATS")
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(startTimeout) {
		t.Fatal("NATS is not ready")
	}
	return ns.ClientURL()
}

// submit sends a form of a page, as a browser does, and returns the page that follows.
func submit(t *testing.T, p *proc, page string, form url.Values) (code int, path, body string) {
	t.Helper()
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	resp, err := client.PostForm(p.URL+"/"+page, form)
	require(t, err, "sending the form of "+page)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require(t, err, "reading "+page)
	return resp.StatusCode, resp.Request.URL.RequestURI(), html.UnescapeString(string(b))
}

// guardedShop runs each service with the rights of its own NATS user: a target with a hostile label, and an endpoint that refuses everything. It returns the scraper.
func guardedShop(t *testing.T) *proc {
	t.Helper()
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `wares{evil="<script>alert(1)</script>"} 1`+"\n"+`wares{evil="no"} 2`+"\n")
	}))
	t.Cleanup(target.Close)
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "these wares are <b>bad</b>", http.StatusBadRequest)
	}))
	t.Cleanup(endpoint.Close)
	config := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs: [{job_name: shop, static_configs: [{targets: [%q]}]}]\nremote_write: [{name: picky, url: %q}]\n",
		strings.TrimPrefix(target.URL, "http://"), endpoint.URL) +
		"millrace: {streams: {partitions: 1, frames: {max_bytes: 1GiB}, deltas: {max_bytes: 1GiB}, dictionaries: {max_bytes: 1GiB}}, cardinality: {metric: {max_series: 1000}}}\n"
	nats := guardedNATS(t)
	secrets, err := filepath.Abs("../../../deploy/compose/secrets")
	require(t, err, "finding the passwords")
	join := func(service string) *proc {
		return startMillrace(t, config, withArgs("--nats.url="+nats, "--nats.user="+service, "--nats.password-file="+filepath.Join(secrets, service), "--services="+service))
	}
	join("discovery")
	join("relabel")
	join("writer")
	return join("scraper")
}

// TestPagesOfAllProcessesShowTheWholeFleet looks from the scraper at what only the writer's NATS user may find out.
func TestPagesOfAllProcessesShowTheWholeFleet(t *testing.T) {
	p := guardedShop(t)
	shown := func(page string, texts ...string) (body string) {
		t.Helper()
		eventually(t, time.Minute, page, func() error {
			code, b := get(t, p.URL+"/"+page)
			body = html.UnescapeString(string(b))
			if strings.Contains(string(b), "<script>") || strings.Contains(string(b), "<b>bad") {
				t.Fatalf("a text is not escaped:\n%s", b)
			}
			for _, text := range texts {
				if !strings.Contains(body, text) {
					return fmt.Errorf("%d, without %q:\n%s", code, text, body)
				}
			}
			return nil
		})
		return body
	}
	shown("streams", "picky", `aria-label="Lag over the last `, "M0", "these wares are <b>bad</b>")
	list := shown("rejected", "these wares are <b>bad</b>", `href="rejected?message=`, "picky")
	if !strings.Contains(list, "The stream REJECTED holds") {
		t.Errorf("the list does not say how much there is:\n%s", list)
	}
	eventually(t, time.Minute, "a batch with the hostile label", func() error { // each series is refused by itself
		for message := 1; message <= 20; message++ {
			if strings.Contains(shown(fmt.Sprintf("rejected?message=%d", message), "Samples"), `evil=<q><script>alert(1)</script></q>`) {
				return nil
			}
		}
		return errors.New("none of 20 has it")
	})
	shown("rejected?message=100000", "Message 100000 is not there")

	code, path, body := submit(t, p, "replays", url.Values{"do": {"hold"}, "name": {"again"}, "from": {"yesterday"}, "endpoint": {"picky"}})
	if code != http.StatusBadRequest || !strings.Contains(body, `"yesterday" is no time`) {
		t.Errorf("a wrong time: %d %s\n%s", code, path, body)
	}
	code, path, body = submit(t, p, "replays", url.Values{"do": {"hold"}, "name": {"again"}, "from": {"-10m"}, "endpoint": {"picky"}, "dryrun": {"on"}})
	if code != http.StatusOK || path != "/replays?confirm=again" || !strings.Contains(body, "Count what would be sent?") {
		t.Fatalf("held: %d %s\n%s", code, path, body)
	}
	if code, path, body = submit(t, p, "replays", url.Values{"do": {"start"}, "name": {"again"}}); code != http.StatusOK || path != "/replays" {
		t.Fatalf("started: %d %s\n%s", code, path, body)
	}
	shown("replays", "again", "100 %", "found")
	if code, path, body = submit(t, p, "replays", url.Values{"do": {"remove"}, "name": {"again"}}); code != http.StatusOK || strings.Contains(body, `data-key="replay again"`) {
		t.Errorf("removed: %d %s\n%s", code, path, body)
	}

	code, path, body = submit(t, p, "cardinality", url.Values{"window": {"10m"}, "metric": {"wares"}})
	if code != http.StatusOK || !strings.HasPrefix(path, "/cardinality?metric=wares") {
		t.Fatalf("counting: %d %s\n%s", code, path, body)
	}
	counted := shown(path[1:], "Series of", "evil", "shop")
	if !strings.Contains(counted, `<dd title="2">2</dd>`) {
		t.Errorf("counted otherwise:\n%s", counted)
	}
	for path, want := range map[string]string{"/api/v1/replays": `"data":[]`, "/api/v1/cardinality?metric=wares": `"series":2,`} {
		if code, b := get(t, p.URL+path); code != http.StatusOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %d %s", path, code, b)
		}
	}
}
