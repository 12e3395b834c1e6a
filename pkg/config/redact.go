package config

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	promconfig "github.com/prometheus/prometheus/config"
	"gopkg.in/yaml.v3"
)

const secretToken = "<secret>"

var (
	userinfoPattern = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/?#@\s"']*@`)
	queryPattern    = regexp.MustCompile(`(?i)([?&](?:[a-z0-9_.-]*(?:key|token|secret|password|passwd|signature)|sig|p)=)[^&#\s"']+`)
	secretName      = regexp.MustCompile(`(?i)auth|cookie|credential|key|passw|secret|token`)
)

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
	return redactURLs(cfg.String()) + redactURLs(string(block))
}

func redactHeaders(headers map[string]string) map[string]string {
	redacted := maps.Clone(headers)
	for name := range redacted {
		if secretName.MatchString(name) {
			redacted[name] = secretToken
		}
	}
	return redacted
}

// redactURLs hides users, passwords and secret query parameters of each URL in a text.
func redactURLs(text string) string {
	if strings.Contains(text, "://") {
		text = userinfoPattern.ReplaceAllString(text, "${1}"+secretToken+"@")
	}
	return queryPattern.ReplaceAllString(text, "${1}"+secretToken)
}
