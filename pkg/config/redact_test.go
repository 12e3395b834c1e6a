package config

import (
	"strings"
	"testing"

	promconfig "github.com/prometheus/prometheus/config"
	"gopkg.in/yaml.v3"
)

func TestRedactedShowsNoSecretAndAllElse(t *testing.T) {
	for path, want := range map[string][]string{
		"testdata/agent.yml": {
			"job_name: names", "X-Scope-OrgID: tenant-1", "X-Api-Key: <secret>", "password: <secret>",
			"partitions: 0", "max_age: 3d", "sync: always", "linger: 500ms", "max_bytes: 10GiB",
		},
		"testdata/millrace.yml": {"username: millrace", "password: <secret>", "partitions: 32", "sync: 2s"},
	} {
		c := mustLoad(t, path)
		got := c.Redacted()
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: a secret is shown:\n%s", path, got)
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%s: %q is not shown:\n%s", path, w, got)
			}
		}
		var back map[string]any
		if err := yaml.Unmarshal([]byte(got), &back); err != nil {
			t.Errorf("%s: what is shown is no YAML: %v", path, err)
		}
	}
}

func TestRedactedHidesUserAndTokenInNATSURL(t *testing.T) {
	for _, url := range []string{"nats://hunter2@a:4222", "nats://u:hunter2@a:4222,nats://u:hunter2@b:4222"} {
		got := mustLoadText(t, "millrace: \n  nats: {url: '"+url+"'}\n").Redacted()
		if strings.Contains(got, "hunter2") || !strings.Contains(got, "nats://<secret>@a:4222") {
			t.Errorf("%s is shown as:\n%s", url, got)
		}
	}
}

func TestRedactedLeavesTheConfigAsItIs(t *testing.T) {
	c := mustLoad(t, "testdata/agent.yml")
	c.Redacted()
	if got := c.Endpoints[1].Headers["X-Api-Key"]; got != "hunter2-header" {
		t.Errorf("the header is %q after Redacted", got)
	}
}

// TestRedactedLoadsAsPrometheusConfig shows that what is printed is the configuration, not a picture of it.
func TestRedactedLoadsAsPrometheusConfig(t *testing.T) {
	c := mustLoad(t, "testdata/agent.yml")
	text, _, found := strings.Cut(c.Redacted(), "\nmillrace:")
	if !found {
		t.Fatal("no millrace block is shown")
	}
	// A hidden user cannot stand in a URL.
	text = strings.ReplaceAll(text, "<secret>@", "")
	if _, err := promconfig.Load(text, nil); err != nil {
		t.Errorf("what is shown does not load: %v", err)
	}
}
