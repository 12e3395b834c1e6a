package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// requestLog is a target that notes the requests it gets, and shows plain text.
type requestLog struct {
	mu       sync.Mutex
	requests []*http.Request
}

func (l *requestLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	l.requests = append(l.requests, r)
	l.mu.Unlock()
	page := text("shown 1\n")
	page.write(w, r)
}

// last returns the newest request; nil for none.
func (l *requestLog) last() *http.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.requests) == 0 {
		return nil
	}
	return l.requests[len(l.requests)-1]
}

// serve serves a target until the test ends, and returns its host:port.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// forwardProxy is a proxy that passes requests for plain HTTP on, and says so to the target.
func forwardProxy(w http.ResponseWriter, r *http.Request) {
	if !r.URL.IsAbs() {
		http.Error(w, "not a request to a proxy", http.StatusBadRequest)
		return
	}
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.Header.Set("Via", "1.1 test-proxy")
	res, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	for name, values := range res.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.StatusCode)
	io.Copy(w, res.Body)
}

// TestScrapeOptions covers what a scrape config says about requests and answers.
func TestScrapeOptions(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	failures := filepath.Join(dir, "failures.log")
	password := filepath.Join(dir, "password")
	writeFile(t, password, "secret")
	var proxied, parameters, basic, bearer, overTLS, protocols, uncompressed requestLog
	redirect := serve(t, http.RedirectHandler("/elsewhere", http.StatusFound))
	options := []struct {
		job, address, settings string
		up                     float64
		seen                   *requestLog
		check                  func(*http.Request) string // what is wrong with the request
	}{
		{job: "failing", address: serveNothing(t), settings: fmt.Sprintf("  scrape_failure_log_file: %q\n", failures)},
		{job: "too_large", address: serve(t, &requestLog{}), settings: "  body_size_limit: 3B\n"},
		{job: "large_enough", address: serve(t, &requestLog{}), settings: "  body_size_limit: 1KB\n", up: 1},
		{job: "proxied", address: serve(t, &proxied), settings: "  proxy_url: http://" + serve(t, http.HandlerFunc(forwardProxy)) + "\n", up: 1, seen: &proxied, check: func(r *http.Request) string {
			return differs("Via", r.Header.Get("Via"), "1.1 test-proxy")
		}},
		{job: "dead_proxy", address: serve(t, &requestLog{}), settings: "  proxy_url: http://" + serveNothing(t) + "\n"},
		{job: "params", address: serve(t, &parameters), settings: "  metrics_path: /some/path\n  params: {module: [a, b], 'q x': ['1 & 2']}\n  http_headers: {X-Own: {values: [one]}}\n", up: 1, seen: &parameters, check: func(r *http.Request) string {
			return differs("path", r.URL.Path, "/some/path") + differs("query", r.URL.Query().Encode(), "module=a&module=b&q+x=1+%26+2") + differs("X-Own", r.Header.Get("X-Own"), "one")
		}},
		{job: "basic", address: serve(t, requireHeader("Authorization", basicAuth("me", "secret"), &basic)), settings: fmt.Sprintf("  basic_auth: {username: me, password_file: %q}\n", password), up: 1, seen: &basic},
		{job: "wrong_basic", address: serve(t, requireHeader("Authorization", basicAuth("me", "secret"), &requestLog{})), settings: "  basic_auth: {username: me, password: guess}\n"},
		{job: "bearer", address: serve(t, requireHeader("Authorization", "Bearer t1", &bearer)), settings: "  authorization: {credentials: t1}\n", up: 1, seen: &bearer},
		{job: "tls", address: hostOf(ca.serve(t, &overTLS, true)), settings: fmt.Sprintf("  scheme: https\n  tls_config: {ca_file: %q, cert_file: %q, key_file: %q}\n", ca.caFile, ca.certFile, ca.keyFile), up: 1, seen: &overTLS},
		{job: "unknown_ca", address: hostOf(ca.serve(t, &requestLog{}, false)), settings: "  scheme: https\n"},
		{job: "scheme_by_relabelling", address: hostOf(ca.serve(t, &requestLog{}, false)), settings: fmt.Sprintf("  tls_config: {ca_file: %q}\n  relabel_configs: [{target_label: __scheme__, replacement: https}]\n", ca.caFile), up: 1},
		{job: "protocols", address: serve(t, &protocols), settings: "  scrape_protocols: [OpenMetricsText1.0.0, PrometheusText0.0.4]\n", up: 1, seen: &protocols, check: func(r *http.Request) string {
			if a := r.Header.Get("Accept"); strings.Contains(a, "vnd.google.protobuf") || !strings.HasPrefix(a, "application/openmetrics-text;version=1.0.0") {
				return "Accept is " + a
			}
			return differs("X-Prometheus-Scrape-Timeout-Seconds", r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), "1")
		}},
		{job: "uncompressed", address: serve(t, &uncompressed), settings: "  enable_compression: false\n", up: 1, seen: &uncompressed, check: func(r *http.Request) string {
			return differs("Accept-Encoding", r.Header.Get("Accept-Encoding"), "identity")
		}},
		{job: "no_redirects", address: redirect, settings: "  follow_redirects: false\n"},
		{job: "other_interval", address: serve(t, &requestLog{}), settings: "  relabel_configs:\n  - {target_label: __scrape_interval__, replacement: 1300ms}\n  - {target_label: __scrape_timeout__, replacement: 1200ms}\n", up: 1},
	}
	config := "global: {scrape_interval: 1s, scrape_timeout: 1s, extra_scrape_metrics: true}\nscrape_configs:\n"
	for _, o := range options {
		config += fmt.Sprintf("- job_name: %s\n  static_configs: [{targets: [%q]}]\n%s", o.job, o.address, o.settings)
	}
	r := newRecorder(t, "")
	m := startMillrace(t, config+fmt.Sprintf("remote_write: [{url: %q}]\n", r.URL))

	for _, o := range options {
		eventually(t, 30*time.Second, "scrapes of "+o.job, func() error {
			got, ok := r.newest()[fmt.Sprintf(`{__name__="up", instance=%q, job=%q}`, o.address, o.job)]
			if !ok || got != o.up {
				return fmt.Errorf("up is %v (%v), want %v", got, ok, o.up)
			}
			if o.seen != nil && o.seen.last() == nil {
				return errors.New("no request has come")
			}
			return nil
		})
		if o.check != nil {
			if wrong := o.check(o.seen.last()); wrong != "" {
				t.Errorf("job %s: %s", o.job, wrong)
			}
		}
	}

	eventually(t, 20*time.Second, "a line in the scrape failure log", func() error {
		b, err := os.ReadFile(failures)
		if err == nil && !strings.Contains(string(b), `"job_name":"failing"`) {
			err = fmt.Errorf("it holds %q", b)
		}
		return err
	})
	var answer targetsAnswer
	api(t, m, "/api/v1/targets", url.Values{"scrapePool": {"other_interval"}}, &answer)
	if len(answer.ActiveTargets) != 1 || answer.ActiveTargets[0].ScrapeInterval != "1300ms" || answer.ActiveTargets[0].ScrapeTimeout != "1200ms" {
		t.Errorf("targets with an interval by relabelling: %+v", answer.ActiveTargets)
	}
	timeout := fmt.Sprintf(`{__name__="scrape_timeout_seconds", instance=%q, job="other_interval"}`, answer.ActiveTargets[0].Labels["instance"])
	if got := r.newest()[timeout]; got != 1.2 {
		t.Errorf("%s is %v", timeout, got)
	}
}

func hostOf(s *httptest.Server) string { return s.Listener.Addr().String() }

// differs says so where got is not want.
func differs(what, got, want string) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("%s is %q, want %q; ", what, got, want)
}
