package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/config"
	_ "github.com/prometheus/prometheus/discovery/file" // registers file_sd_configs

	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/bench/pusher"
	"github.com/millrace/millrace/bench/receiver"
)

func TestUsageOfAProcess(t *testing.T) {
	stat := "42 (a b) c) S 1 42 42 0 -1 4194560 1 2 3 4 250 75 0 0 20 0 9 0 100 1 2"
	status := "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
	got, err := parseUsage([]byte(stat), []byte(status))
	if err != nil {
		t.Fatal(err)
	}
	if want := (usage{cpu: 3250 * time.Millisecond, rss: 1 << 20, peak: 2 << 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, tc := range [][2]string{{"", status}, {"42 (a) S", status}, {stat, ""}, {stat, "VmRSS: x kB\n"}} {
		if _, err := parseUsage([]byte(tc[0]), []byte(tc[1])); err == nil {
			t.Errorf("parsed %q, %q", tc[0], tc[1])
		}
	}
}

func TestStoredBytesAreAddedUp(t *testing.T) {
	text := "# TYPE millrace_stream_bytes gauge\nmillrace_stream_bytes{stream=\"FRAMES\",x=\"1\"} 1e3\n" +
		"millrace_stream_bytes{stream=\"DICTS\"} 7\nmillrace_stream_bytes{stream=\"FRAMES\",x=\"2\"} 24\n"
	if got, err := parseStoredBytes(strings.NewReader(text)); err != nil || got != 1024 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseStoredBytes(strings.NewReader("other 1\n")); err == nil {
		t.Error("no error without the metric")
	}
}

func TestCatchUp(t *testing.T) {
	recovered := time.Unix(100, 0)
	seconds := []receiver.Second{
		{Unix: 98, Samples: 999, MaxLag: 1}, {Unix: 101, Samples: 50, MaxLag: 60}, {Unix: 102, Samples: 70, MaxLag: 30},
		{Unix: 103, Samples: 5, MaxLag: .5}, {Unix: 104, Samples: 5, MaxLag: 2.5}, {Unix: 105, Samples: 5, MaxLag: .5},
	}
	for _, tc := range []struct {
		name    string
		seconds []receiver.Second
		now     int64
		want    catchUp
	}{
		{"nothing yet", seconds[:1], 120, catchUp{}},
		{"catching up", seconds[:3], 120, catchUp{PeakRate: 70, Seconds: 3}},
		{"fresh again, but not for long", seconds, 114, catchUp{PeakRate: 70, Seconds: 5}},
		{"gone", seconds, 115, catchUp{PeakRate: 70, Seconds: 5, Gone: true}},
	} {
		if got := catchUpOf(tc.seconds, recovered, time.Unix(tc.now, 0)); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestTableHasMediansAndRatios(t *testing.T) {
	stored := 2.5
	var results []result
	for round, cpu := range []float64{3, 1, 2} {
		results = append(results,
			result{Agent: "millrace", Round: round + 1, Samples: 10, Seconds: 1, CPUPerSample: cpu, RSS: 100, StoredPerSample: &stored},
			result{Agent: "prometheus", Round: round + 1, Samples: 10, Seconds: 1, CPUPerSample: 2 * cpu, RSS: 400})
	}
	s := scenario{Targets: 1, Series: 2, Interval: time.Second}
	summaries := summarize(s, results)
	if len(summaries) != 2 || summaries[0].Medians["CPU µs/sample"] != 2 || summaries[1].Medians["CPU µs/sample"] != 4 {
		t.Errorf("summaries %+v", summaries)
	}
	if _, ok := summaries[1].Medians["stored B/sample"]; ok {
		t.Error("prometheus has stored bytes")
	}
	want := []ratio{{Of: "millrace", To: "prometheus", By: map[string]float64{"CPU µs/sample": .5, "RSS MiB": .25}}}
	if diff := cmp.Diff(want, ratios(s, summaries)); diff != "" {
		t.Error(diff)
	}
	var table, encoded bytes.Buffer
	if err := printTable(&table, s, results); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"millrace 3", "prometheus median", "millrace / prometheus", "stored B/sample"} {
		if !strings.Contains(table.String(), part) {
			t.Errorf("table has no %q:\n%s", part, &table)
		}
	}
	if err := writeResults(&encoded, s, results); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(encoded.Bytes()) {
		t.Errorf("not JSON: %s", &encoded)
	}
}

func TestConfigIsWhatPrometheusAccepts(t *testing.T) {
	for _, a := range agents("a", "b", "c") {
		for _, s := range []scenario{
			{Interval: 2 * time.Second, Protocol: "1.0", Kind: "generated"}, {Interval: time.Minute, Protocol: "2.0", Kind: "protobuf"},
		} {
			text := s.config(a, "/tmp/targets.json", "http://127.0.0.1:1/api/v1/write", "127.0.0.1:2")
			parsed, err := config.Load(text, promslog.NewNopLogger())
			if err != nil {
				t.Fatalf("%s: %v\n%s", a.name, err, text)
			}
			if got, want := len(parsed.RemoteWriteConfigs), 1; a.scrapeOnly == (got == want) {
				t.Errorf("%s: %d endpoints", a.name, got)
			}
			if got := time.Duration(parsed.GlobalConfig.ScrapeInterval); got != s.Interval {
				t.Errorf("%s: interval %s", a.name, got)
			}
		}
	}
}

func TestConfigForPushesHasNoTargets(t *testing.T) {
	for _, a := range agents("a", "b", "c") {
		for _, protocol := range pusher.Protocols() {
			s := scenario{Interval: 2 * time.Second, Protocol: "2.0", Kind: "generated", Push: protocol}
			text := s.config(a, "", "http://127.0.0.1:1/api/v1/write", "127.0.0.1:2")
			forPrometheus, own, _ := strings.Cut(text, "millrace:\n")
			parsed, err := config.Load(forPrometheus, promslog.NewNopLogger())
			if err != nil {
				t.Fatalf("%s: %v\n%s", a.name, err, text)
			}
			if len(parsed.ScrapeConfigs) > 0 || a.scrapeOnly == (len(parsed.RemoteWriteConfigs) == 1) {
				t.Errorf("%s: %s", a.name, text)
			}
			if a.name != "millrace" {
				if own != "" {
					t.Errorf("%s has the block of Millrace", a.name)
				}
				continue
			}
			var block struct {
				Ingest struct {
					OTLP map[string]struct{ Listen string }
				}
			}
			if err := yaml.Unmarshal([]byte(own), &block); err != nil {
				t.Fatal(err)
			}
			for name, of := range map[string]pusher.Protocol{"grpc": pusher.OTLPGRPC, "http": pusher.OTLPHTTP} {
				if listen := block.Ingest.OTLP[name].Listen; (listen == "127.0.0.1:2") != (protocol == of) || listen != "" && protocol != of {
					t.Errorf("%s listens on %q for %s", protocol, listen, name)
				}
			}
		}
	}
}

func TestAgentsTakeWhatTheyCan(t *testing.T) {
	want := map[string]map[pusher.Protocol]string{
		"millrace": {
			pusher.OTLPHTTP: "http://b:2/v1/metrics", pusher.OTLPGRPC: "http://b:2",
			pusher.RemoteWrite: "http://a:1/api/v1/write", pusher.RemoteWrite2: "http://a:1/api/v1/write",
		},
		"prometheus": {
			pusher.OTLPHTTP: "http://a:1/api/v1/otlp/v1/metrics", pusher.RemoteWrite: "http://a:1/api/v1/write", pusher.RemoteWrite2: "http://a:1/api/v1/write",
		},
		"vmagent": {pusher.OTLPHTTP: "http://a:1/opentelemetry/v1/metrics", pusher.RemoteWrite: "http://a:1/api/v1/write"},
	}
	for _, a := range agents("a", "b", "c") {
		for _, protocol := range pusher.Protocols() {
			if got := a.pushURL(protocol, "a:1", "b:2"); got != want[a.name][protocol] {
				t.Errorf("%s takes %s at %q", a.name, protocol, got)
			}
		}
	}
}

func TestTableOfPushesHasAnswers(t *testing.T) {
	s := scenario{Push: pusher.OTLPHTTP, Senders: 3, PushSeries: 40, PushInterval: time.Second}
	between := pushesBetween(pusher.Stats{Acknowledged: 5, Refused: 1},
		pusher.Stats{Acknowledged: 9, Refused: 3, Failures: map[string]int{"503": 4, "timeout": 2}, Answer: pusher.Answer{P50: .001, P99: .02, Max: .5}})
	want := &pushes{Acknowledged: 4, Refused: 2, Failures: map[string]int{"503": 4, "timeout": 2}, P50: 1, P99: 20, Max: 500}
	if diff := cmp.Diff(want, between); diff != "" {
		t.Error(diff)
	}
	results := []result{{Agent: "millrace", Round: 1, Samples: 10, Seconds: 1, Pushes: between}}
	medians := summarize(s, results)[0].Medians
	for head, want := range map[string]float64{"answer p50 ms": 1, "answer p99 ms": 20, "answer max ms": 500, "failed": 6, "refused": 2} {
		if medians[head] != want {
			t.Errorf("%s is %v, want %v", head, medians[head], want)
		}
	}
	var table bytes.Buffer
	if err := printTable(&table, s, results); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "3 senders of 40 series") || !strings.Contains(table.String(), "answer p99 ms") {
		t.Errorf("table:\n%s", &table)
	}
}

func TestPushesAreProvedByTheLog(t *testing.T) {
	server := httptest.NewServer(receiver.New(receiver.Config{}))
	defer server.Close()
	log := filepath.Join(t.TempDir(), "log.json")
	c := pushCommand{
		listen: "127.0.0.1:0", protocol: string(pusher.RemoteWrite), log: log, duration: 200 * time.Millisecond,
		config: pusher.Config{URL: server.URL + "/api/v1/write", Senders: 3, Series: 20, Interval: 20 * time.Millisecond},
	}
	if err := c.serve(t.Context()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var complete receiver.Completeness
	if err := call(t.Context(), http.MethodPost, server.URL+"/complete", json.RawMessage(data), &complete); err != nil {
		t.Fatal(err)
	}
	if complete.Scrapes < 15 || complete.Samples != 20*complete.Scrapes || len(complete.Missing)+len(complete.Partial) > 0 {
		t.Errorf("%+v", complete)
	}
}

func TestWaitingForAListenerEndsWithTheProcess(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho unknown flag\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(t.Context(), "agent", filepath.Join(t.TempDir(), "log"), binary)
	if err != nil {
		t.Fatal(err)
	}
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	if err := waitForListener(t.Context(), p, "http://"+address+"/v1/metrics"); err == nil || !strings.Contains(err.Error(), "unknown flag") {
		t.Errorf("error %v", err)
	}
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	if err := waitForListener(t.Context(), p, server.URL); err != nil {
		t.Error(err)
	}
}

func TestServersSayWhereTheyListenAndEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addresses, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- listenAndServe(ctx, "127.0.0.1:0", receiver.New(receiver.Config{}), func(_ context.Context, address string) error {
			addresses <- address
			return nil
		})
	}()
	var report receiver.Report
	if err := call(t.Context(), http.MethodGet, "http://"+<-addresses+"/report", nil, &report); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCallTellsWhatWasRefused(t *testing.T) {
	server := httptest.NewServer(receiver.New(receiver.Config{}))
	defer server.Close()
	err := call(t.Context(), http.MethodPost, server.URL+"/control", receiver.Control{Mode: "teapot"}, nil)
	if err == nil || !strings.Contains(err.Error(), "teapot") {
		t.Errorf("error %v", err)
	}
}

func TestAnAgentThatEndsIsReportedWithItsOutput(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho bad configuration\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(t.Context(), "agent", filepath.Join(t.TempDir(), "log"), binary)
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if err := p.alive(); err == nil || !strings.Contains(err.Error(), "bad configuration") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v", err)
	}
}
