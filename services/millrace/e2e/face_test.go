package e2e_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// targetsAnswer is what /api/v1/targets answers, without what depends on when a scrape ran.
type targetsAnswer struct {
	ActiveTargets       []activeTarget
	DroppedTargets      []droppedTarget
	DroppedTargetCounts map[string]int
}

type activeTarget struct {
	DiscoveredLabels, Labels         map[string]string
	ScrapePool, ScrapeURL, GlobalURL string
	LastError, Health                string
	ScrapeInterval, ScrapeTimeout    string
}

type droppedTarget struct {
	DiscoveredLabels map[string]string
	ScrapePool       string
}

func targetsOf(t *testing.T, p *proc) targetsAnswer {
	t.Helper()
	var a targetsAnswer
	api(t, p, "/api/v1/targets", url.Values{}, &a)
	slices.SortFunc(a.ActiveTargets, func(x, y activeTarget) int {
		return cmp.Or(cmp.Compare(x.ScrapePool, y.ScrapePool), cmp.Compare(x.ScrapeURL, y.ScrapeURL))
	})
	slices.SortFunc(a.DroppedTargets, func(x, y droppedTarget) int {
		return cmp.Or(cmp.Compare(x.ScrapePool, y.ScrapePool), cmp.Compare(x.DiscoveredLabels["__address__"], y.DiscoveredLabels["__address__"]))
	})
	return a
}

// TestTargetsAreThoseOfPrometheus compares /api/v1/targets.
func TestTargetsAreThoseOfPrometheus(t *testing.T) {
	s := &stage{}
	up, failing, down := serveTarget(t, s, plainText), serveTarget(t, s, func(scene) exposition { return exposition{status: 500} }), serveNothing(t)
	file := filepath.Join(t.TempDir(), "targets.yml")
	writeFile(t, file, fmt.Sprintf("- targets: [%q, %q]\n  labels: {zone: a, __meta_x: hidden}\n- targets: [%q]\n  labels: {zone: b}\n", up, down, failing))
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 900ms, keep_dropped_targets: 10}
scrape_configs:
- job_name: static
  metrics_path: /some/path
  params: {module: [http, icmp], x: [y]}
  static_configs: [{targets: [%[1]q], labels: {team: a}}, {targets: [%[2]q, %[3]q]}]
- job_name: files
  scrape_interval: 2s
  file_sd_configs: [{files: [%[4]q]}]
  relabel_configs:
  - {source_labels: [__meta_filepath], regex: '.*/(.*)', target_label: file}
  - {source_labels: [zone], regex: b, action: drop}
- job_name: relabelled
  static_configs: [{targets: [%[1]q, gone-1, gone-2, %[3]q]}]
  keep_dropped_targets: 1
  relabel_configs:
  - {source_labels: [__address__], regex: 'gone.*', action: drop}
  - {target_label: __scrape_interval__, replacement: 1500ms}
  - {target_label: __scrape_timeout__, replacement: 700ms}
  - {target_label: __metrics_path__, replacement: /other}
  - {target_label: __param_added, replacement: by relabelling}
  - {source_labels: [__address__], target_label: instance, replacement: 'host $1'}
- job_name: none
  static_configs: [{targets: [%[1]q]}]
  relabel_configs: [{action: drop}]
`, up, failing, down, file)
	direct := startPrometheus(t, config)
	m := startMillrace(t, config)
	eventually(t, 30*time.Second, "the targets of Prometheus", func() error {
		want := targetsOf(t, direct)
		for _, a := range want.ActiveTargets {
			if a.Health == "unknown" {
				return fmt.Errorf("%s is not scraped yet", a.ScrapeURL)
			}
		}
		if n := len(want.ActiveTargets); n != 7 {
			return fmt.Errorf("Prometheus has %d targets", n)
		}
		if diff := gocmp.Diff(want, targetsOf(t, m)); diff != "" {
			return fmt.Errorf("/api/v1/targets (-Prometheus +Millrace):\n%s", diff)
		}
		return nil
	})
	for _, query := range []string{"state=active", "state=dropped", "scrapePool=files", "state=any&scrapePool=none", "state=unheard-of"} {
		var want, got struct{ Data map[string]json.RawMessage }
		for p, into := range map[*proc]any{direct: &want, m: &got} {
			if _, body := p.Get("/api/v1/targets?" + query); json.Unmarshal(body, into) != nil {
				t.Errorf("%s: %s answers %s", query, p.name, body)
			}
		}
		for key := range want.Data {
			if count(want.Data[key]) != count(got.Data[key]) {
				t.Errorf("%s: %s has %s, want %s", query, key, got.Data[key], want.Data[key])
			}
		}
	}
}

// count returns how many items a JSON list or object has, and -1 for null.
func count(raw json.RawMessage) int {
	var list []json.RawMessage
	var object map[string]json.RawMessage
	if string(raw) == "null" {
		return -1
	}
	if json.Unmarshal(raw, &list) != nil {
		json.Unmarshal(raw, &object)
	}
	return len(list) + len(object)
}

// TestMetricsFollowTheRules lints /metrics of a process that has done a bit of everything.
func TestMetricsFollowTheRules(t *testing.T) {
	r := newRecorder(t, "")
	s := &stage{}
	s.next()
	m := startMillrace(t, fmt.Sprintf(`
global: {scrape_interval: 1s}
scrape_configs:
- job_name: a
  static_configs: [{targets: [%q, %q]}]
remote_write:
- {name: one, url: %q}
- {name: two, url: %q, protobuf_message: io.prometheus.write.v2.Request}
- {name: nobody, url: "http://%s/"}
`, serveTarget(t, s, native), serveNothing(t), r.URL, r.URL, serveNothing(t)))
	eventually(t, 30*time.Second, "samples sent and retried", func() error {
		for name, labels := range map[string]map[string]string{
			"millrace_writer_sent_samples_total": {"endpoint": "two"}, "millrace_writer_retried_samples_total": {"endpoint": "nobody"},
		} {
			if m.Metric(name, labels) == 0 {
				return fmt.Errorf("%s%v is 0", name, labels)
			}
		}
		return nil
	})
	_, page := m.Get("/metrics")
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "millrace_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	for _, name := range []string{
		"millrace_writer_sent_samples_total", "millrace_writer_retried_samples_total", "millrace_writer_rejected_samples_total", "millrace_writer_lag_seconds",
		"millrace_writer_lag_messages", "millrace_writer_oldest_unsent_timestamp_seconds", "millrace_scraper_samples_total", "millrace_scraper_frames_total",
		"millrace_publisher_dictionaries_total", "millrace_scraper_dropped_scrapes_total", "millrace_stream_bytes", "millrace_actor_restarts_total",
	} {
		if !bytes.Contains(page, []byte("# TYPE "+name+" ")) {
			t.Errorf("/metrics does not have %s", name)
		}
	}
	if lag := m.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": "nobody"}); lag == 0 {
		t.Error("a dead endpoint has no messages to get")
	}
}
