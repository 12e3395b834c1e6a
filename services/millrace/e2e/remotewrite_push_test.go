package e2e_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/bench/receiver"
)

// startAgent runs a Prometheus in agent mode until the test ends.
func startAgent(t testing.TB, config string, opts ...option) *proc {
	t.Helper()
	return startProc(t, "agent", build(t, prometheusBinary), config, func(dir, address string) []string {
		return []string{
			"--agent", "--config.file=" + configFile(dir, "agent"), "--storage.agent.path=" + filepath.Join(dir, "wal"), "--web.listen-address=" + address,
			"--enable-feature=exemplar-storage,metadata-wal-records",
		}
	}, opts)
}

// TestAnAgentPushesThroughKillsAndOutages lets a Prometheus agent scrape numbered targets and push them to Millrace, while the process that takes pushes, NATS and
// the endpoint fail in turn. The agent keeps what is not acknowledged, so everything that it scraped must arrive.
func TestAnAgentPushesThroughKillsAndOutages(t *testing.T) {
	for _, tc := range []struct {
		name    string
		load    loadgen.Config
		message string
	}{
		{"remote write 1.0", loadgen.Config{Targets: 20, Series: 200}, "prometheus.WriteRequest"},
		{"remote write 2.0", loadgen.Config{Targets: 10, Series: 60, Kind: loadgen.Protobuf}, "io.prometheus.write.v2.Request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newRelay(t, tc.load, tc.message).run()
		})
	}
}

// relay is an agent, a NATS server, the process that takes pushes, the processes that pass them on, and the endpoint.
type relay struct {
	*rig
	t      *testing.T
	nats   *natsCluster
	agent  *proc
	ingest *proc
	writer *proc
	end    *endpoint
}

func newRelay(t *testing.T, load loadgen.Config, message string) *relay {
	t.Helper()
	r := &relay{rig: newRigOf(t, load), t: t, nats: startNATS(t, 1), end: newEndpoint(t)}
	w := newWays(t)
	all := []string{"protobuf_message: " + message, "send_exemplars: true", "send_native_histograms: true", "remote_timeout: 15s"}
	config := fmt.Sprintf("remote_write:\n%smillrace:\n  nats: {url: %q}\n  streams: {replicas: 1, partitions: 4}\n%s", remoteWrite("main", r.end.URL, all...), r.nats.URL, w.config())
	r.writer = startMillrace(t, config, withArgs("--services=discovery,relabel,writer"))
	r.ingest = startMillrace(t, config, append(w.options(), withArgs("--services=ingest"))...)
	// As many shards at any time: a change of their number may drop what they hold, where the receiver is away.
	queue := "queue_config: {min_backoff: 30ms, max_backoff: 500ms, min_shards: 2, max_shards: 2, max_samples_per_send: 500, capacity: 5000, retry_on_http_429: true}"
	r.agent = startAgent(t, fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, scrape_native_histograms: true}
scrape_configs:
- job_name: load
  file_sd_configs: [{files: [%q], refresh_interval: 1s}]
remote_write:
%s`, r.sd, remoteWrite("millrace", w.remoteWriteURL(), append(all, queue)...)))
	return r
}

func (r *relay) run() {
	t := r.t
	r.arrived(r.end, 30*time.Second)
	rounds := 2
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		r.ingest.Kill9()
		pause(t, 1500*time.Millisecond)
		r.ingest.Again()
		r.arrived(r.end, 60*time.Second)

		r.nats.nodes[0].kill()
		pause(t, 1500*time.Millisecond)
		r.nats.nodes[0].start()
		r.nats.ready()
		r.arrived(r.end, 60*time.Second)

		for _, mode := range []receiver.Mode{receiver.Unavailable, receiver.ResetConnection} {
			r.end.control(t, receiver.Control{Mode: mode})
			pause(t, 1500*time.Millisecond)
			r.end.control(t, receiver.Control{Mode: receiver.OK})
			r.arrived(r.end, 60*time.Second)
		}
	}
	r.stopScraping()
	eventually(t, 60*time.Second, "every scrape of the agent", func() error {
		c := r.end.Complete(r.gen.Log())
		if len(c.Missing)+len(c.Partial) > 0 {
			return fmt.Errorf("%d scrapes are missing, %d arrived in part", len(c.Missing), len(c.Partial))
		}
		return nil
	})
	r.end.whole(t, r.gen.Log())
	r.end.inOrder(t)
	r.checkNothingRefused()
	report := r.end.Report()
	if report.Lost != 0 {
		t.Errorf("%d samples are lost: %v", report.Lost, report.Examples.Lost)
	}
	if strings.HasSuffix(t.Name(), "2.0") && (report.Exemplars == 0 || report.Histograms == 0) {
		t.Errorf("%d exemplars and %d histograms have arrived", report.Exemplars, report.Histograms)
	}
	for _, p := range []*proc{r.agent, r.ingest, r.writer} {
		if code := p.Stop(); code != 0 {
			t.Errorf("%s ended with code %d", p.name, code)
		}
	}
}

// stopScraping ends scraping such that no scrape is cut off: the targets fail at first, then they are gone. Their staleness markers arrive.
func (r *relay) stopScraping() {
	t := r.t
	t.Helper()
	r.shut.Store(true)
	targets := len(r.gen.Log())
	eventually(t, 20*time.Second, "every target has failed", func() error {
		_, body := r.agent.Get("/api/v1/targets?state=active")
		if n := strings.Count(string(body), `"health":"down"`); n != targets {
			return fmt.Errorf("%d of %d", n, targets)
		}
		return nil
	})
	eventually(t, 60*time.Second, "the staleness markers of all series", func() error {
		if report := r.end.Report(); report.StaleMarkers < report.Numbered {
			return fmt.Errorf("%d markers for %d series", report.StaleMarkers, report.Numbered)
		}
		return nil
	})
}

// checkNothingRefused fails the test where the agent has dropped something, or Millrace has refused something.
func (r *relay) checkNothingRefused() {
	t := r.t
	t.Helper()
	for _, name := range []string{"samples_failed_total", "samples_dropped_total", "histograms_failed_total", "exemplars_failed_total"} {
		if n := r.agent.Metric("prometheus_remote_storage_"+name, nil); n != 0 {
			t.Errorf("the agent's prometheus_remote_storage_%s is %v", name, n)
		}
	}
	if i := strings.Index(r.agent.Logs(), "non-recoverable error"); i >= 0 {
		t.Errorf("the agent's log says: %.1000s", r.agent.Logs()[i:])
	}
	if r.agent.Metric("prometheus_remote_storage_samples_retried_total", nil)+r.agent.Metric("prometheus_remote_storage_histograms_retried_total", nil) == 0 {
		t.Error("the agent has sent nothing again")
	}
	for _, name := range []string{"millrace_ingest_refused_points_total", "millrace_writer_lost_samples_total", "millrace_writer_rejected_samples_total"} {
		for _, p := range []*proc{r.ingest, r.writer} {
			if n := p.Metric(name, nil); n != 0 {
				t.Errorf("%s is %v", name, n)
			}
		}
	}
}
