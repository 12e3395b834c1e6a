package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rulesTarget is a target for write_relabel_configs.
func rulesTarget(scene) exposition {
	return text("unwanted 1\nkept{label_team=\"x\",user=\"alice\"} 1\nkept{label_team=\"y\",region=\"own\"} 2\n")
}

// rulesConfig is a configuration with two endpoints and the given rules for each.
func rulesConfig(address string, a, b *recorder, rulesA, rulesB string) string {
	return fmt.Sprintf(`
millrace: {scraper: {linger: 50ms}}
global:
  scrape_interval: 250ms
  scrape_timeout: 250ms
  external_labels: {region: eu, replica: r1}
scrape_configs:
- job_name: rules
  static_configs: [{targets: [%q]}]
  relabel_configs: [{target_label: instance, replacement: i}]
  metric_relabel_configs: [{target_label: job, replacement: j}]
remote_write:
- name: a
  url: %q
  write_relabel_configs:
%s- name: b
  url: %q
  protobuf_message: io.prometheus.write.v2.Request
  write_relabel_configs:
%s`, address, a.URL, rulesA, b.URL, rulesB)
}

const (
	dropRules = `  - {source_labels: [__name__], regex: unwanted|scrape_.*, action: drop}
  - {action: labelmap, regex: label_(.+)}
  - {action: labeldrop, regex: label_.+|user}
  - {source_labels: [region, replica], separator: /, target_label: from}
`
	keepRules    = "  - {source_labels: [__name__], regex: kept, action: keep}\n"
	changedRules = `  - {source_labels: [__name__], regex: kept, action: keep}
  - {target_label: replica}
  - {target_label: changed, replacement: "yes"}
`
)

// settled waits until an endpoint gets series, and from then on for a while exactly these.
func settled(t *testing.T, r *recorder, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, 30*time.Second, "the series of an endpoint", func() error {
		// What was sent before the test looked does not count.
		r.reset()
		_, before := r.header("")
		eventually(t, 30*time.Second, "requests to an endpoint", func() error {
			if _, now := r.header(""); now < before+4 {
				return fmt.Errorf("%d requests", now-before)
			}
			return nil
		})
		if diff := cmp.Diff(want, r.got("")); diff != "" {
			return fmt.Errorf("series (-want +got):\n%s", diff)
		}
		return nil
	})
}

// TestEndpointsHaveTheirOwnRules covers external_labels and write_relabel_configs, and reloads of them.
func TestEndpointsHaveTheirOwnRules(t *testing.T) {
	address := serveTarget(t, &stage{}, rulesTarget)
	a, b := newRecorder(t, ""), newRecorder(t, "")
	m := startMillrace(t, rulesConfig(address, a, b, dropRules, keepRules))
	dropped := []string{
		`{__name__="kept", from="eu/r1", instance="i", job="j", region="eu", replica="r1", team="x"}`,
		`{__name__="kept", from="own/r1", instance="i", job="j", region="own", replica="r1", team="y"}`,
		`{__name__="up", from="eu/r1", instance="i", job="rules", region="eu", replica="r1"}`,
	}
	settled(t, a, dropped...)
	settled(t, b,
		`{__name__="kept", instance="i", job="j", label_team="x", region="eu", replica="r1", user="alice"}`,
		`{__name__="kept", instance="i", job="j", label_team="y", region="own", replica="r1"}`)

	// A reload evaluates dictionaries again that are there already.
	m.SetConfig(rulesConfig(address, a, b, dropRules, changedRules))
	m.Signal(syscall.SIGHUP)
	changed := []string{
		`{__name__="kept", changed="yes", instance="i", job="j", label_team="x", region="eu", user="alice"}`,
		`{__name__="kept", changed="yes", instance="i", job="j", label_team="y", region="own"}`,
	}
	settled(t, b, changed...)
	settled(t, a, dropped...)

	for name, broken := range map[string]string{
		"unknown key":   strings.Replace(rulesConfig(address, a, b, keepRules, dropRules), "remote_write:", "remote_wrote:", 1),
		"no such file":  rulesConfig(address, a, b, keepRules, dropRules+"  tls_config: {ca_file: /does/not/exist.pem}\n"),
		"not YAML":      "remote_write: [",
		"needs a start": strings.Replace(rulesConfig(address, a, b, keepRules, dropRules), "linger: 50ms", "linger: 60ms", 1),
	} {
		m.SetConfig(broken)
		res, err := http.Post(m.URL+"/-/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("%s: the reload is answered %s", name, res.Status)
		}
		if got := m.Metric("millrace_config_last_reload_successful", nil); got != 0 {
			t.Errorf("%s: millrace_config_last_reload_successful is %v", name, got)
		}
	}
	settled(t, b, changed...)
	settled(t, a, dropped...)

	// By signal, too, a broken file is noticed and a good one mends it.
	m.SetConfig(rulesConfig(address, a, b, keepRules, keepRules))
	m.Signal(syscall.SIGHUP)
	eventually(t, 20*time.Second, "the reload", func() error {
		if m.Metric("millrace_config_last_reload_successful", nil) != 1 {
			return fmt.Errorf("not successful")
		}
		return nil
	})
	settled(t, a,
		`{__name__="kept", instance="i", job="j", label_team="x", region="eu", replica="r1", user="alice"}`,
		`{__name__="kept", instance="i", job="j", label_team="y", region="own", replica="r1"}`)
	m.SetConfig("remote_write: [")
	m.Signal(syscall.SIGHUP)
	eventually(t, 20*time.Second, "the metric of a failed reload", func() error {
		if m.Metric("millrace_config_last_reload_successful", nil) != 0 {
			return fmt.Errorf("still successful")
		}
		return nil
	})
}

// TestEndpointAuthentication writes to endpoints that want credentials or TLS.
func TestEndpointAuthentication(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	writeFile(t, token, "token-from-file\n")
	plain := func(h http.Handler) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.URL
	}
	type endpoint struct {
		name, settings string
		serve          func(*recorder) string
		*recorder
	}
	good := []*endpoint{
		{name: "basic", settings: "  basic_auth: {username: me, password: secret}\n", serve: func(r *recorder) string {
			return plain(requireHeader("Authorization", basicAuth("me", "secret"), r))
		}},
		{name: "bearer", settings: "  authorization: {credentials: token-1}\n", serve: func(r *recorder) string {
			return plain(requireHeader("Authorization", "Bearer token-1", r))
		}},
		{name: "bearer_file", settings: fmt.Sprintf("  authorization: {credentials_file: %q}\n", token), serve: func(r *recorder) string {
			return plain(requireHeader("Authorization", "Bearer token-from-file", r))
		}},
		{name: "headers", settings: "  headers: {X-Scope-OrgID: tenant-1}\n", serve: func(r *recorder) string {
			return plain(requireHeader("X-Scope-OrgID", "tenant-1", r))
		}},
		{name: "tls", settings: fmt.Sprintf("  tls_config: {ca_file: %q}\n", ca.caFile), serve: func(r *recorder) string {
			return ca.serve(t, r, false).URL
		}},
		{name: "client_certificate", settings: fmt.Sprintf("  tls_config: {ca_file: %q, cert_file: %q, key_file: %q}\n", ca.caFile, ca.certFile, ca.keyFile), serve: func(r *recorder) string {
			return ca.serve(t, r, true).URL
		}},
	}
	bad := []*endpoint{
		{name: "wrong_password", settings: "  basic_auth: {username: me, password: wrong}\n", serve: good[0].serve},
		{name: "unknown_ca", settings: fmt.Sprintf("  tls_config: {ca_file: %q}\n", other.caFile), serve: good[4].serve},
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: a\n  static_configs: [{targets: [%q]}]\nremote_write:\n", serveTarget(t, &stage{}, rulesTarget))
	for _, e := range append(good, bad...) {
		e.recorder = recorderHandler(t)
		config += fmt.Sprintf("- name: %s\n  url: %s/write\n%s", e.name, e.serve(e.recorder), e.settings)
	}
	m := startMillrace(t, config)
	for _, e := range good {
		eventually(t, 30*time.Second, "samples at the endpoint "+e.name, func() error {
			if len(e.got("kept")) != 2 {
				return fmt.Errorf("it has %d series", len(e.got("kept")))
			}
			return nil
		})
	}
	eventually(t, 30*time.Second, "refused samples", func() error {
		if m.Metric("millrace_writer_rejected_samples_total", map[string]string{"endpoint": "wrong_password"}) == 0 {
			return fmt.Errorf("none at the endpoint with a wrong password")
		}
		if m.Metric("millrace_writer_retried_samples_total", map[string]string{"endpoint": "unknown_ca"}) == 0 {
			return fmt.Errorf("none at the endpoint with an unknown CA")
		}
		return nil
	})
	for _, e := range bad {
		if got := e.got(""); len(got) > 0 {
			t.Errorf("the endpoint %s has got %v", e.name, got)
		}
		if n := m.Metric("millrace_writer_sent_samples_total", map[string]string{"endpoint": e.name}); n != 0 {
			t.Errorf("%v samples count as sent to %s", n, e.name)
		}
	}
}
