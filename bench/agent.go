package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
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
}

// agents returns the programs whose binaries are given; Millrace comes first.
func agents(millrace, prometheus, vmagent string) []agent {
	all := []agent{
		{name: "millrace", binary: millrace, stored: true, args: func(config, data, address, _ string) []string {
			return []string{"run", "--config.file=" + config, "--storage.path=" + data, "--web.listen-address=" + address}
		}},
		{name: "prometheus", binary: prometheus, args: func(config, data, address, _ string) []string {
			return []string{"--agent", "--config.file=" + config, "--storage.agent.path=" + data, "--web.listen-address=" + address}
		}},
		{name: "vmagent", binary: vmagent, scrapeOnly: true, args: func(config, data, address, endpoint string) []string {
			return []string{"-promscrape.config=" + config, "-remoteWrite.url=" + endpoint, "-remoteWrite.tmpDataPath=" + data,
				"-remoteWrite.forcePromProto=true", "-httpListenAddr=" + address}
		}},
	}
	var given []agent
	for _, a := range all {
		if a.binary != "" {
			given = append(given, a)
		}
	}
	return given
}

// scenario is what the agents have to do.
type scenario struct {
	Targets  int           `json:"targets"`
	Series   int           `json:"series"`
	Interval time.Duration `json:"interval"`
	Protocol string        `json:"protocol"`
	Encoding string        `json:"encoding"`
	Kind     string        `json:"kind"`
	Outage   time.Duration `json:"outage"`
}

// config writes the agent's configuration as Prometheus has it.
func (s scenario) config(a agent, sdFile, endpoint string) string {
	var b strings.Builder
	interval := strconv.FormatInt(s.Interval.Milliseconds(), 10) + "ms"
	timeout := strconv.FormatInt(min(s.Interval, 10*time.Second).Milliseconds(), 10) + "ms"
	fmt.Fprintf(&b, "global:\n  scrape_interval: %s\n  scrape_timeout: %s\n", interval, timeout)
	fmt.Fprintf(&b, "scrape_configs:\n- job_name: bench\n  file_sd_configs:\n  - files: [%q]\n", sdFile)
	if s.Kind == "protobuf" && !a.scrapeOnly {
		b.WriteString("  scrape_native_histograms: true\n  scrape_protocols: [PrometheusProto, PrometheusText0.0.4]\n")
	}
	if a.scrapeOnly {
		return b.String()
	}
	message := "prometheus.WriteRequest"
	if s.Protocol == "2.0" {
		message = "io.prometheus.write.v2.Request"
	}
	fmt.Fprintf(&b, "remote_write:\n- url: %q\n  protobuf_message: %s\n", endpoint, message)
	if s.Kind == "protobuf" {
		b.WriteString("  send_native_histograms: true\n  send_exemplars: true\n")
	}
	return b.String()
}

// startAgent starts an agent in a folder and returns its address.
func startAgent(ctx context.Context, a agent, s scenario, folder, sdFile, endpoint string) (*process, string, error) {
	config, data := filepath.Join(folder, "agent.yml"), filepath.Join(folder, "data")
	if err := os.WriteFile(config, []byte(s.config(a, sdFile, endpoint)), 0o644); err != nil {
		return nil, "", fmt.Errorf("writing the configuration of %s: %w", a.name, err)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := startProcess(ctx, a.name, filepath.Join(folder, "agent.log"), a.binary, a.args(config, data, address, endpoint)...)
	return p, address, err
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
