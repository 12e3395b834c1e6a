package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func names(c *Config) []string {
	var names []string
	for _, e := range c.Endpoints {
		names = append(names, e.Name)
	}
	return names
}

func TestEndpointNames(t *testing.T) {
	cases := []struct {
		name, items string
		want        []string
	}{
		{"as written", "[{url: http://a/w, name: prod-eu_1}]", []string{"prod-eu_1"}},
		{"made a token", "[{url: http://a/w, name: prod.eu}]", []string{"prod_eu-" + hash("prod.eu", 6)}},
		{
			"two that look alike as tokens", "[{url: http://a/w, name: a.b}, {url: http://a/w, name: a b}, {url: http://a/w, name: a_b}]",
			[]string{"a_b-" + hash("a.b", 6), "a_b-" + hash("a b", 6), "a_b"},
		},
		{
			"one that is written like another's", "[{url: http://a/w, name: a.b}, {url: http://a/w, name: a_b-" + hash("a.b", 6) + "}]",
			[]string{"a_b-" + hash("a.b", 8), "a_b-" + hash("a.b", 6)},
		},
		{"not ASCII", "[{url: http://a/w, name: ü}]", []string{"_-" + hash("ü", 6)}},
		{
			"long", "[{url: http://a/w, name: " + strings.Repeat("x", 100) + "}]",
			[]string{strings.Repeat("x", 64) + "-" + hash(strings.Repeat("x", 100), 6)},
		},
		{"of the URL", "[{url: 'http://a.example:9090/w?x=1'}]", []string{"a_example_9090-" + hash("http://a.example:9090/w?x=1", 8)}},
		{"IPv6", "[{url: 'http://[::1]:9090/w'}]", []string{"__1_9090-" + hash("http://[::1]:9090/w", 8)}},
		{
			"one URL three times", "[{url: http://a/w}, {url: http://a/w}, {url: http://a/w}]",
			[]string{"a-" + hash("http://a/w", 8), "a-" + hash("http://a/w", 8) + "-2", "a-" + hash("http://a/w", 8) + "-3"},
		},
		{
			"a name that is another's URL's", "[{url: http://a/w}, {url: http://b/w, name: a-" + hash("http://a/w", 8) + "}]",
			[]string{"a-" + hash("http://a/w", 8) + "-2", "a-" + hash("http://a/w", 8)},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := names(mustLoadText(t, "remote_write: "+c.items+"\n"))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
			for _, name := range got {
				if !tokenPattern.MatchString(name) {
					t.Errorf("%q is no token", name)
				}
			}
		})
	}
}

// TestEndpointNameIsFixed guards the read positions that are stored under these names.
func TestEndpointNameIsFixed(t *testing.T) {
	got := names(mustLoadText(t, "remote_write: [{url: 'https://mimir.example.org/api/v1/push'}, {url: http://a/w, name: prod.eu}]\n"))
	want := []string{"mimir_example_org-739873f1", "prod_eu-274065"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestEndpointNameSurvivesChangesOfAuthAndRules(t *testing.T) {
	base := names(mustLoadText(t, "remote_write: [{url: http://a/w}]\n"))
	for _, item := range []string{
		"{url: 'http://user:pw@a/w'}",
		"{url: http://a/w, basic_auth: {username: u, password: p}}",
		"{url: http://a/w, write_relabel_configs: [{action: labeldrop, regex: x}], remote_timeout: 5s}",
	} {
		if diff := cmp.Diff(base, names(mustLoadText(t, "remote_write: ["+item+"]\n"))); diff != "" {
			t.Errorf("%s: names (-want +got):\n%s", item, diff)
		}
	}
}

func TestRequestsAreLargeUnlessWritten(t *testing.T) {
	for queue, want := range map[string]int{"{}": 10_000, "{max_shards: 3}": 10_000, "{max_samples_per_send: 2000}": 2000, "*base": 7} {
		text := fmt.Sprintf("remote_write:\n  - {url: http://a/w, queue_config: &base {max_samples_per_send: 7}}\n  - {url: http://b/w, queue_config: %s}\n", queue)
		if got := mustLoadText(t, text).Endpoints[1].QueueConfig.MaxSamplesPerSend; got != want {
			t.Errorf("queue_config: %s: %d samples in a request, want %d", queue, got, want)
		}
	}
	if got := mustLoadText(t, "remote_write:\n  - url: http://a/w\n").Endpoints[0].QueueConfig.MaxSamplesPerSend; got != 10_000 {
		t.Errorf("without a queue_config: %d samples in a request", got)
	}
}

func TestRetryOn429IsTrueUnlessRefused(t *testing.T) {
	cases := map[string]bool{
		"{}": true, "{max_shards: 3}": true, "{retry_on_http_429: true}": true,
		"{retry_on_http_429: ~}": true, "{retry_on_http_429: false}": false, "{retry_on_http_429: no}": false,
		"{<<: *base}": false, "*base": false, "{<<: *base, retry_on_http_429: true}": true,
	}
	for queue, want := range cases {
		text := fmt.Sprintf("remote_write:\n  - {url: http://a/w, queue_config: &base {retry_on_http_429: false}}\n"+
			"  - {url: http://b/w, queue_config: %s}\n", queue)
		if got := mustLoadText(t, text).Endpoints[1].RetryOn429; got != want {
			t.Errorf("queue_config: %s: RetryOn429 = %t, want %t", queue, got, want)
		}
	}
}
