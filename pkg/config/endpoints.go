package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/redact"
)

// Endpoint is one remote_write item.
type Endpoint struct {
	// Name names the endpoint on subjects, in buckets and in metrics: unique in the file and of the form
	// [a-zA-Z0-9_-]+. The read position is stored under it, so it follows from the item's name, or from its URL where it
	// has none, and from nothing else. It hides the Name of the RemoteWriteConfig, which is as written.
	Name string
	// RetryOn429 says whether a request answered with 429 is sent again: true unless the file says
	// retry_on_http_429: false. (QueueConfig.RetryOnRateLimit cannot tell false from unset.)
	RetryOn429 bool
	// ExternalLabels are added to each series, environment variables replaced.
	ExternalLabels labels.Labels
	// RemoteWriteConfig is the item as Prometheus parsed it, but that QueueConfig.MaxSamplesPerSend is 10,000 unless it is written.
	*promconfig.RemoteWriteConfig
}

// samplesPerSend is how many samples a request has at most, unless the file says it. Prometheus, which has up to 50 requests under way, has 2,000 in each; here there is
// one for each partition, and few are to be enough for an endpoint far away. It is what vmagent takes (-remoteWrite.maxRowsPerBlock).
const samplesPerSend = 10_000

// endpoints makes the endpoints of a parsed configuration.
func (d *document) endpoints(cfg *promconfig.Config) ([]Endpoint, Errors) {
	var errs Errors
	nodes := items(lookup(d.root, "remote_write").value)
	endpoints := make([]Endpoint, len(cfg.RemoteWriteConfigs))
	names := endpointNames(cfg.RemoteWriteConfigs)
	for i, rw := range cfg.RemoteWriteConfigs {
		retry := true
		if i < len(nodes) {
			explicit := lookup(nodes[i], "queue_config", "retry_on_http_429")
			retry = isNull(explicit.value) || rw.QueueConfig.RetryOnRateLimit
			if isNull(lookup(nodes[i], "queue_config", "max_samples_per_send").value) {
				rw.QueueConfig.MaxSamplesPerSend = samplesPerSend
			}
		}
		if (rw.URL.Scheme != "http" && rw.URL.Scheme != "https") || rw.URL.Hostname() == "" {
			p := d.at("remote_write", i)
			if i < len(nodes) {
				p = p.below(nodes[i], "url")
			}
			errs = append(errs, p.error(fmt.Sprintf("%q is no HTTP URL", redact.URLs(rw.URL.Redacted())),
				"write it as https://host/path"))
		}
		endpoints[i] = Endpoint{
			Name:              names[i],
			RetryOn429:        retry,
			ExternalLabels:    cfg.GlobalConfig.ExternalLabels,
			RemoteWriteConfig: rw,
		}
	}
	return endpoints, errs
}

// maxEndpointName is where names are cut; the rest of a longer one counts in its hash.
const maxEndpointName = 64

// endpointNames names the items: by their names as they are where those are tokens, by what is left of them with a hash
// where not, by host and URL where there is none. Names written as tokens come first, so that nothing else can take
// one from its owner.
func endpointNames(configs []*promconfig.RemoteWriteConfig) []string {
	names := make([]string, len(configs))
	taken := map[string]bool{}
	for i, rw := range configs {
		if rw.Name != "" && token(rw.Name) == rw.Name {
			names[i] = rw.Name
			taken[rw.Name] = true
		}
	}
	for i, rw := range configs {
		if rw.Name == "" || names[i] != "" {
			continue
		}
		// Longer and longer, until it is no other's: names differ, so their hashes do.
		for digits := 6; ; digits += 2 {
			name := token(rw.Name) + "-" + hash(rw.Name, digits)
			if !taken[name] || digits >= 2*sha256.Size {
				names[i], taken[name] = name, true
				break
			}
		}
	}
	for i, rw := range configs {
		if rw.Name != "" {
			continue
		}
		base := token(hostOf(rw)) + "-" + hash(urlWithoutAuth(rw), 8)
		name := base
		for n := 2; taken[name]; n++ {
			name = base + "-" + strconv.Itoa(n)
		}
		names[i], taken[name] = name, true
	}
	return names
}

// token returns s with all but letters, digits, _ and - replaced by _, cut to maxEndpointName bytes.
func token(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x80 && tokenPattern.MatchString(string(r)) {
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), maxEndpointName)]
}

func hash(s string, digits int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:digits]
}

func hostOf(rw *promconfig.RemoteWriteConfig) string {
	return strings.Trim(strings.ReplaceAll(rw.URL.Host, "]", ""), "[")
}

// urlWithoutAuth returns the URL without user and password, which may change without the endpoint changing.
func urlWithoutAuth(rw *promconfig.RemoteWriteConfig) string {
	u := *rw.URL.URL
	u.User = nil
	return u.String()
}

// queueWarnings lists the settings of remote_write items that partitions replace.
func (d *document) queueWarnings() []string {
	var warnings []string
	for i, node := range items(lookup(d.root, "remote_write").value) {
		var keys []string
		for _, key := range []string{"capacity", "min_shards", "max_shards"} {
			if !isNull(lookup(node, "queue_config", key).value) {
				keys = append(keys, key)
			}
		}
		if len(keys) == 0 {
			continue
		}
		p := d.at("remote_write", i).below(node, "queue_config")
		warnings = append(warnings, p.warning(
			joinWords(keys)+" without effect: partitions replace them (millrace.streams.partitions)"))
	}
	return slices.Clip(warnings)
}

func joinWords(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}
