package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/millrace/millrace/bench/pusher"
)

// framesMetric is the series of Millrace that tells how many bytes its frames take in the stream.
const (
	framesMetric = "millrace_stream_bytes"
	framesLabel  = `stream="FRAMES"`
)

// agent is a program under test.
type agent struct {
	name, binary string
	// args are its arguments for a configuration file, a folder for its data, its own address and the endpoint's URL.
	args func(config, data, address, endpoint string) []string
	// scrapeOnly says that its configuration file must not have remote_write.
	scrapeOnly bool
	// stored says that it serves framesMetric.
	stored bool
	// pushArgs are its arguments where it is pushed to.
	pushArgs []string
	// pushURL is where it takes a protocol, "" if it does not: by its own address, or by the one that it is given for OTLP.
	pushURL func(protocol pusher.Protocol, address, otlp string) string
	// ingest says that its configuration file has the block of Millrace that says where it takes pushes.
	ingest bool
}

// agents returns the programs whose binaries are given; Millrace comes first.
func agents(millrace, prometheus, vmagent string) []agent {
	all := []agent{
		{name: "millrace", binary: millrace, stored: true, ingest: true, args: func(config, data, address, _ string) []string {
			return []string{"run", "--config.file=" + config, "--storage.path=" + data, "--web.listen-address=" + address}
		}, pushArgs: []string{"--web.enable-remote-write-receiver"}, pushURL: millraceURL},
		{name: "prometheus", binary: prometheus, args: func(config, data, address, _ string) []string {
			return []string{"--agent", "--config.file=" + config, "--storage.agent.path=" + data, "--web.listen-address=" + address}
		}, pushArgs: []string{"--web.enable-otlp-receiver", "--web.enable-remote-write-receiver"}, pushURL: prometheusURL},
		{name: "vmagent", binary: vmagent, scrapeOnly: true, args: func(config, data, address, endpoint string) []string {
			return []string{"-promscrape.config=" + config, "-remoteWrite.url=" + endpoint, "-remoteWrite.tmpDataPath=" + data,
				"-remoteWrite.forcePromProto=true", "-sortLabels", "-httpListenAddr=" + address}
		}, pushArgs: vmagentPushArgs, pushURL: vmagentURL},
	}
	var given []agent
	for _, a := range all {
		if a.binary != "" {
			given = append(given, a)
		}
	}
	return given
}

// millraceURL is where Millrace takes a protocol.
func millraceURL(protocol pusher.Protocol, address, otlp string) string {
	switch protocol {
	case pusher.OTLPHTTP:
		return "http://" + otlp + "/v1/metrics"
	case pusher.OTLPGRPC:
		return "http://" + otlp
	default:
		return "http://" + address + "/api/v1/write"
	}
}

// prometheusURL is where Prometheus takes a protocol.
func prometheusURL(protocol pusher.Protocol, address, _ string) string {
	switch protocol {
	case pusher.OTLPHTTP:
		return "http://" + address + "/api/v1/otlp/v1/metrics"
	case pusher.OTLPGRPC:
		return ""
	default:
		return "http://" + address + "/api/v1/write"
	}
}

// vmagentURL is where vmagent takes a protocol.
func vmagentURL(protocol pusher.Protocol, address, _ string) string {
	switch protocol {
	case pusher.OTLPHTTP:
		return "http://" + address + "/opentelemetry/v1/metrics"
	case pusher.RemoteWrite:
		return "http://" + address + "/api/v1/write"
	default:
		return ""
	}
}

// vmagentPushArgs make vmagent write series with the names and about the labels that Prometheus gives them. By its defaults it adds a label for each attribute of a resource, which would have it carry more than the others.
var vmagentPushArgs = []string{
	"-opentelemetry.usePrometheusNaming", "-opentelemetry.promoteAllResourceAttributes=false",
	"-opentelemetry.promoteResourceAttributes=service.name,service.instance.id", "-opentelemetry.promoteScopeMetadata=false",
}

// scenario is what the agents have to do.
type scenario struct {
	// Push is how applications push, instead of targets being scraped.
	Push pusher.Protocol `json:"push,omitempty"`
	// Senders, PushSeries, PushHistograms and PushInterval say what they push.
	Senders        int           `json:"senders,omitempty"`
	PushSeries     int           `json:"push_series,omitempty"`
	PushHistograms int           `json:"push_histograms,omitempty"`
	PushInterval   time.Duration `json:"push_interval,omitempty"`

	Targets  int           `json:"targets"`
	Series   int           `json:"series"`
	Interval time.Duration `json:"interval"`
	Protocol string        `json:"protocol"`
	Encoding string        `json:"encoding"`
	Kind     string        `json:"kind"`
	Outage   time.Duration `json:"outage"`
	Kill     bool          `json:"kill,omitempty"`
}

// config writes the agent's configuration as Prometheus has it. otlp is where it is to take the protocol of OTLP that is pushed, if it is Millrace.
func (s scenario) config(a agent, sdFile, endpoint, otlp string) string {
	var b strings.Builder
	interval := strconv.FormatInt(s.Interval.Milliseconds(), 10) + "ms"
	timeout := strconv.FormatInt(min(s.Interval, 10*time.Second).Milliseconds(), 10) + "ms"
	fmt.Fprintf(&b, "global:\n  scrape_interval: %s\n  scrape_timeout: %s\n", interval, timeout)
	if s.Push == "" {
		fmt.Fprintf(&b, "scrape_configs:\n- job_name: bench\n  file_sd_configs:\n  - files: [%q]\n", sdFile)
		if s.Kind == "protobuf" && !a.scrapeOnly {
			b.WriteString("  scrape_native_histograms: true\n  scrape_protocols: [PrometheusProto, PrometheusText0.0.4]\n")
		}
	}
	if a.scrapeOnly {
		return b.String()
	}
	message := "prometheus.WriteRequest"
	if s.Protocol == "2.0" {
		message = "io.prometheus.write.v2.Request"
	}
	fmt.Fprintf(&b, "remote_write:\n- url: %q\n  protobuf_message: %s\n", endpoint, message)
	if s.Kind == "protobuf" && s.Push == "" {
		b.WriteString("  send_native_histograms: true\n  send_exemplars: true\n")
	}
	if a.ingest && s.Push != "" {
		// The ports of OTLP are fixed by default, and another program may have them.
		listen := map[pusher.Protocol]string{s.Push: otlp}
		fmt.Fprintf(&b, "millrace:\n  ingest:\n    otlp:\n      grpc: {listen: %q}\n      http: {listen: %q}\n", listen[pusher.OTLPGRPC], listen[pusher.OTLPHTTP])
	}
	return b.String()
}

// prepareAgent writes an agent's configuration to a folder and returns what starts it, its address, and where it is to be pushed to in a scenario of pushes.
func prepareAgent(ctx context.Context, a agent, s scenario, folder, sdFile, endpoint string) (start func() (*process, error), address, pushURL string, err error) {
	if address, err = freeAddress(); err != nil {
		return nil, "", "", err
	}
	otlp, err := freeAddress()
	if err != nil {
		return nil, "", "", err
	}
	config, data := filepath.Join(folder, "agent.yml"), filepath.Join(folder, "data")
	if err := os.WriteFile(config, []byte(s.config(a, sdFile, endpoint, otlp)), 0o644); err != nil {
		return nil, "", "", fmt.Errorf("writing the configuration of %s: %w", a.name, err)
	}
	args := a.args(config, data, address, endpoint)
	if s.Push != "" {
		args, pushURL = append(args, a.pushArgs...), a.pushURL(s.Push, address, otlp)
	}
	starts := 0
	return func() (*process, error) {
		starts++
		return startProcess(ctx, a.name, filepath.Join(folder, fmt.Sprintf("agent-%d.log", starts)), a.binary, args...)
	}, address, pushURL, nil
}

// waitForListener waits until somebody listens where a URL points, as long as a process lives.
func waitForListener(ctx context.Context, p *process, at string) error {
	parsed, err := url.Parse(at)
	if err != nil {
		return fmt.Errorf("parsing %q: %w", at, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", parsed.Host)
		if err == nil {
			return connection.Close()
		}
		select {
		case <-again.C:
		case <-p.done:
			return p.alive()
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on %s: %w; its last output:\n%s", p.name, parsed.Host, err, p.output())
		}
	}
}

// freeAddress returns an address on which nobody listens now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// storedBytes reads how many bytes Millrace's frames take.
func storedBytes(ctx context.Context, address string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading the stored bytes: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("reading the stored bytes: %s answered %s", request.URL, response.Status)
	}
	return parseStoredBytes(response.Body)
}

// parseStoredBytes adds up framesMetric in a text exposition; each stream or partition may have its own series.
func parseStoredBytes(exposition io.Reader) (float64, error) {
	sum, found := 0.0, false
	lines := bufio.NewScanner(exposition)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, framesMetric+"{") || !strings.Contains(line, framesLabel) {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("parsing %q: %w", line, err)
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("reading the stored bytes: %w", err)
	}
	if !found {
		return 0, fmt.Errorf("reading the stored bytes: no series %s{%s}", framesMetric, framesLabel)
	}
	return sum, nil
}
