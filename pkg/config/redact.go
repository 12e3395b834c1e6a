package config

import (
	"fmt"
	"maps"
	"regexp"

	promconfig "github.com/prometheus/prometheus/config"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/redact"
)

var secretName = regexp.MustCompile(`(?i)auth|cookie|credential|key|passw|secret|token`)

// Redacted returns the configuration as YAML for people to read: what Prometheus prints of its part, which hides its
// secrets, and the millrace block with its defaults filled in. Beyond what Prometheus hides, users and passwords in any
// URL, query parameters and custom headers with a name that speaks of a secret are hidden too.
func (c *Config) Redacted() string {
	cfg := *c.Prometheus
	cfg.RemoteWriteConfigs = make([]*promconfig.RemoteWriteConfig, len(c.Prometheus.RemoteWriteConfigs))
	for i, rw := range c.Prometheus.RemoteWriteConfigs {
		copied := *rw
		copied.Headers = redactHeaders(rw.Headers)
		cfg.RemoteWriteConfigs[i] = &copied
	}
	cfg.TracingConfig.Headers = redactHeaders(cfg.TracingConfig.Headers)

	block, err := yaml.Marshal(map[string]Millrace{blockKey: c.Millrace})
	if err != nil {
		block = fmt.Appendf(nil, "# the millrace block cannot be printed: %s\n", err)
	}
	return redact.URLs(cfg.String()) + redact.URLs(string(block))
}

func redactHeaders(headers map[string]string) map[string]string {
	redacted := maps.Clone(headers)
	for name := range redacted {
		if secretName.MatchString(name) {
			redacted[name] = redact.Secret
		}
	}
	return redacted
}
