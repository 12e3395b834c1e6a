package e2e_test

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// job is a scrape config of the comparison.
type job struct {
	name      string
	settings  string   // YAML, indented as a scrape config's keys are
	addresses []string // of its static targets
	expose    func(scene) exposition
	down      []int // phases in which its scrapes fail; 0 stands for all
	gone      []int // phases in which discovery does not have it; only for file_sd
}

func (j *job) isDown(phase int) bool {
	return !j.isGone(phase) && (slices.Contains(j.down, 0) || slices.Contains(j.down, phase))
}
func (j *job) isGone(phase int) bool { return slices.Contains(j.gone, phase) }

// lastPhase is how many phases the comparison has.
const lastPhase = 4

// comparedJobs are the jobs of the comparison. Targets with recorded scrapes are added to them.
func comparedJobs() []*job {
	return []*job{
		{name: "native", expose: native, settings: "  scrape_native_histograms: true\n"},
		{name: "native_and_classic", expose: native, settings: "  scrape_native_histograms: true\n  always_scrape_classic_histograms: true\n"},
		{name: "protobuf_classic", expose: native, settings: "  scrape_protocols: [PrometheusProto]\n"},
		{name: "protobuf_nhcb", expose: native, settings: "  scrape_native_histograms: true\n  convert_classic_histograms_to_nhcb: true\n"},
		{name: "native_limited", expose: native, settings: "  scrape_native_histograms: true\n  native_histogram_bucket_limit: 4\n  native_histogram_min_bucket_factor: 1.5\n"},
		{name: "classic", expose: classic},
		{name: "nhcb", expose: classic, settings: "  convert_classic_histograms_to_nhcb: true\n"},
		{name: "nhcb_and_classic", expose: classic, settings: "  convert_classic_histograms_to_nhcb: true\n  always_scrape_classic_histograms: true\n"},
		{name: "openmetrics", expose: openMetricsTarget},
		{name: "openmetrics_nhcb", expose: openMetricsTarget, settings: "  convert_classic_histograms_to_nhcb: true\n"},
		{name: "timestamps", expose: timestamped},
		{name: "timestamps_ignored", expose: timestamped, settings: "  honor_timestamps: false\n"},
		{name: "timestamps_tracked", expose: timestamped, settings: "  track_timestamps_staleness: true\n"},
		{name: "honor_labels", expose: clashing, settings: "  honor_labels: true\n"},
		{name: "own_labels", expose: clashing},
		{name: "special", expose: specialValues},
		{name: "vanishing", expose: vanishing},
		{name: "duplicates", expose: duplicates},
		{name: "relabelled", expose: relabelled, settings: relabelSettings},
		{name: "limited", expose: limited, settings: "  sample_limit: 6\n", down: []int{2}},
		{name: "label_limited", expose: overlabelled, settings: "  label_limit: 7\n", down: []int{3}},
		{name: "body_limited", expose: limited, settings: "  body_size_limit: 200B\n", down: []int{2}},
		{name: "flapping", expose: flapping, down: []int{3}},
		{name: "hanging", expose: hanging, down: []int{2}},
		{name: "broken", expose: broken, down: []int{3}},
		{name: "down", down: []int{0}},
		{name: "untyped", expose: untyped, down: []int{0}},
		{name: "untyped_fallback", expose: untyped, settings: "  fallback_scrape_protocol: PrometheusText0.0.4\n"},
		{name: "leaving", expose: leaving, gone: []int{3}},
	}
}

const relabelSettings = `  relabel_configs:
  - {source_labels: [__address__], regex: '(.*):.*', target_label: host}
  - {target_label: instance, replacement: relabelled-1}
  - {target_label: __tmp_x, replacement: hidden}
  - {source_labels: [__meta_does_not_exist], target_label: nothing}
  - {action: labelmap, regex: __meta_(.+), replacement: "found_$1"}
  metric_relabel_configs:
  - {source_labels: [__name__], regex: unwanted_.*, action: drop}
  - {source_labels: [__name__], regex: renamed_(.*), target_label: __name__, replacement: "new_${1}"}
  - {regex: noise, action: labeldrop}
  - {action: labelmap, regex: meta_(.+), replacement: "$1"}
  - {regex: meta_.*, action: labeldrop}
  - {source_labels: [user], modulus: 8, target_label: shard, action: hashmod}
  - {source_labels: [Case], target_label: Case, action: lowercase}
`

// scrapeConfigs returns the YAML of the jobs.
func scrapeConfigs(jobs []*job, sdFile string) string {
	var b strings.Builder
	b.WriteString("scrape_configs:\n")
	for _, j := range jobs {
		fmt.Fprintf(&b, "- job_name: %s\n%s", j.name, j.settings)
		if len(j.gone) > 0 {
			fmt.Fprintf(&b, "  file_sd_configs: [{files: [%s]}]\n", sdFile)
			continue
		}
		b.WriteString("  static_configs:\n")
		for i, a := range j.addresses {
			fmt.Fprintf(&b, "  - {targets: [%s], labels: {env: test, target: \"%s %d\"}}\n", a, j.name, i)
		}
	}
	return b.String()
}

// compared is the comparison: one Prometheus that scrapes, and those that Millrace writes to.
type compared struct {
	jobs    []*job
	stage   stage
	sdFile  string
	began   time.Time
	direct  *proc
	written map[string]*proc
}

// all returns every Prometheus, by name.
func (c *compared) all() map[string]*proc {
	m := maps.Clone(c.written)
	m["direct"] = c.direct
	return m
}

// startTargets starts the targets of all jobs, and adds those with recorded scrapes.
func (c *compared) startTargets(t *testing.T) {
	c.jobs = comparedJobs()
	for _, j := range c.jobs {
		if j.expose == nil {
			j.addresses = []string{serveNothing(t)}
			continue
		}
		j.addresses = []string{serveTarget(t, &c.stage, j.expose)}
	}
	scrapes := recordedScrapes(t)
	nodes := &job{name: "node"}
	for i := range 20 {
		nodes.addresses = append(nodes.addresses, serveTarget(t, &c.stage, func(s scene) exposition {
			return text(string(scrapes[(i*7+s.phase)%len(scrapes)]) + phaseText(s))
		}))
	}
	c.jobs = append(c.jobs, nodes)
	c.sdFile = filepath.Join(t.TempDir(), "targets.json")
}

// setDiscovery writes the file of file_sd for a phase.
func (c *compared) setDiscovery(t *testing.T, phase int) {
	for _, j := range c.jobs {
		if len(j.gone) == 0 {
			continue
		}
		targets := fmt.Sprintf(`[{"targets": [%q], "labels": {"env": "file", "target": "%s 0"}}]`, j.addresses[0], j.name)
		if j.isGone(phase) {
			targets = "[]"
		}
		replaceFile(t, c.sdFile, targets)
	}
}

// expect returns what is true of each target in a phase: whether it is up, and the phase that its series show.
func (c *compared) expect(phase int) (up, seen map[string]string) {
	up, seen = map[string]string{}, map[string]string{}
	for _, j := range c.jobs {
		for i := range j.addresses {
			name := fmt.Sprintf("%s %d", j.name, i)
			switch {
			case j.isGone(phase):
			case j.isDown(phase):
				up[name] = "0"
			default:
				up[name], seen[name] = "1", fmt.Sprint(phase)
			}
		}
	}
	return up, seen
}

// shows returns nil when a Prometheus has seen a phase of every target.
func (c *compared) shows(t *testing.T, p *proc, phase int) error {
	now := time.Now()
	up, seen := c.expect(phase)
	if err := difference(up, byTarget(instant(t, p, "up", now))); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	got := byTarget(instant(t, p, phaseMetric, now))
	// What a target showed before it went down is not always stale: Prometheus leaves the series that a scrape had up to its sample_limit.
	maps.DeleteFunc(got, func(target, _ string) bool { return up[target] == "0" })
	if err := difference(seen, got); err != nil {
		return fmt.Errorf("%s: %w", phaseMetric, err)
	}
	return nil
}

// everything returns what an instant query for all series says. Of what depends on when a scrape ran, only the existence counts.
func everything(t *testing.T, p *proc, at time.Time) map[string]string {
	m := instant(t, p, `{__name__=~".+"}`, at)
	for k := range m {
		if timing(k) {
			m[k] = "any"
		}
	}
	return m
}

func timing(series string) bool {
	return strings.Contains(series, `__name__="scrape_duration_seconds"`) || strings.Contains(series, `__name__="scrape_series_added"`)
}

// The two protocols.
const (
	protocol1 = "remote_write 1.0"
	protocol2 = "remote_write 2.0"
)

// carried leaves out what a protocol cannot carry: 1.0 has no histograms with custom buckets.
func carried(protocol string, all map[string]string) map[string]string {
	if protocol == protocol2 {
		return all
	}
	m := maps.Clone(all)
	maps.DeleteFunc(m, func(series, _ string) bool { return hasCustomBuckets(series) })
	return m
}

// hasCustomBuckets reports whether a series is what convert_classic_histograms_to_nhcb has made.
func hasCustomBuckets(series string) bool {
	for _, name := range []string{"classic_seconds", "wait_seconds", "buckets_seconds"} {
		if strings.Contains(series, fmt.Sprintf("__name__=%q", name)) {
			return true
		}
	}
	return false
}

// equalAt compares all servers at one instant.
func (c *compared) equalAt(t *testing.T, at time.Time) error {
	want := everything(t, c.direct, at)
	var errs []error
	for name, p := range c.written {
		if err := difference(carried(name, want), everything(t, p, at)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// TestEndpointEqualsDirectScrape is the promise that Millrace behaves as Prometheus: a Prometheus that Millrace writes to answers what one answers
// that scrapes the same targets itself.
func TestEndpointEqualsDirectScrape(t *testing.T) {
	c := &compared{began: time.Now()}
	c.startTargets(t)
	c.stage.next()
	c.setDiscovery(t, 1)

	interval := "2s"
	if raceBuild {
		interval = "5s" // a scrape that takes too long spoils the comparison
	}
	global := fmt.Sprintf("global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, extra_scrape_metrics: true}\n", interval)
	scraping := global + scrapeConfigs(c.jobs, c.sdFile)
	c.direct = startPrometheus(t, scraping)
	v1, v2 := startPrometheus(t, global), startPrometheus(t, global)
	c.written = map[string]*proc{protocol1: v1, protocol2: v2}
	rec1, rec2 := newRecorder(t, v1.URL+"/api/v1/write"), newRecorder(t, v2.URL+"/api/v1/write")
	m := startMillrace(t, scraping+fmt.Sprintf(`remote_write:
- {name: one, url: %q, send_exemplars: true, send_native_histograms: true, metadata_config: {send_interval: 1s}}
- {name: two, url: %q, protobuf_message: io.prometheus.write.v2.Request, send_exemplars: true, send_native_histograms: true}
`, rec1.URL, rec2.URL))

	var instants []time.Time
	for phase := 1; ; phase++ {
		eventually(t, 2*time.Minute, fmt.Sprintf("every Prometheus shows phase %d", phase), func() error {
			var errs []error
			for name, p := range c.all() {
				if err := c.shows(t, p, phase); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
				}
			}
			return errors.Join(errs...)
		})
		var at time.Time
		eventually(t, 20*time.Second, fmt.Sprintf("equal answers in phase %d", phase), func() error {
			at = time.Now()
			return c.equalAt(t, at)
		})
		instants = append(instants, at)
		if phase == lastPhase {
			break
		}
		c.setDiscovery(t, c.stage.next())
	}

	c.compareMetadata(t, rec1, rec2)
	if m.Metric("millrace_writer_unsupported_samples_total", map[string]string{"endpoint": "one"}) == 0 {
		t.Error("no histogram with custom buckets is counted that remote_write 1.0 cannot carry")
	}
	if code := m.Stop(); code != 0 {
		t.Errorf("millrace ended with code %d", code)
	}
	for i, at := range instants {
		// Remote read does not tell it from 0.
		if !slices.Contains(slices.Collect(maps.Values(instant(t, c.direct, "special", at))), "-0") {
			t.Errorf("phase %d has no -0", i+1)
		}
		if err := c.equalAt(t, at); err != nil {
			t.Errorf("phase %d, looked at again: %v", i+1, err)
		}
	}
	c.compareStored(t)
	c.compareExemplars(t)
}

// compareStored compares the stored samples: for each series the same values after each other, staleness markers among them, and where targets
// give the times, also the same times.
func (c *compared) compareStored(t *testing.T) {
	t.Helper()
	flat := func(p *proc) map[string]string {
		m := map[string]string{}
		for name, points := range stored(t, p, c.began, time.Now()) {
			switch {
			case timing(name):
				m[name] = "any"
			case explicitTimes(name):
				m[name] = timesAndValues(points)
			default:
				m[name] = runs(points)
			}
		}
		return m
	}
	want := flat(c.direct)
	all := strings.Join(slices.Collect(maps.Values(want)), "\n")
	for _, bits := range []string{staleBits, "7ff8000000000123 ", "fff8000000000000 ", "1 (5e-324)", "7ff0000000000000 (+Inf)", "int {", "float {"} {
		if !strings.Contains(all, bits) {
			t.Errorf("nothing is compared that has %q", bits)
		}
	}
	for name, p := range c.written {
		if err := difference(carried(name, want), flat(p)); err != nil {
			t.Errorf("stored samples, %s: %v", name, err)
		}
	}
}

// explicitTimes reports whether all samples of a series have times that the target gave.
func explicitTimes(series string) bool {
	ours := strings.Contains(series, `__name__="stamped"`) || strings.Contains(series, `__name__="history"`)
	return ours && !strings.Contains(series, `job="timestamps_ignored"`)
}

// timesAndValues tells the samples with their times. A staleness marker has that of a scrape, which is left out.
func timesAndValues(points []point) string {
	var list []string
	for _, p := range points {
		if strings.HasPrefix(p.v, staleBits) {
			list = append(list, "stale")
			continue
		}
		list = append(list, fmt.Sprintf("%d: %s", p.t, p.v))
	}
	return strings.Join(list, " | ")
}

const staleBits = "7ff0000000000002 "

func (c *compared) compareExemplars(t *testing.T) {
	t.Helper()
	timed := func(ls labels.Labels) bool {
		return !strings.HasPrefix(ls.Get("trace_id"), "without-time") && !ls.IsEmpty()
	}
	until := time.Now()
	want := exemplars(t, c.direct, c.began, until, timed)
	if len(want) < 2*manyHistograms {
		t.Errorf("only %d series have exemplars", len(want))
	}
	for name, p := range c.written {
		if err := difference(carried(name, want), exemplars(t, p, c.began, until, timed)); err != nil {
			t.Errorf("exemplars, %s: %v", name, err)
		}
	}
}

// compareMetadata compares type, help and unit of all families with what the scraping Prometheus knows. A Prometheus that is written to does not show
// them in its API, so the requests themselves tell.
func (c *compared) compareMetadata(t *testing.T, v1, v2 *recorder) {
	t.Helper()
	var direct map[string][]familyMetadata
	api(t, c.direct, "/api/v1/metadata", url.Values{}, &direct)
	if len(direct) < manyHistograms {
		t.Errorf("only %d families have metadata", len(direct))
	}
	eventually(t, 20*time.Second, "metadata by remote_write 1.0 as in the scraping Prometheus", func() error {
		got := v1.metadata()
		for name, want := range direct {
			if !dropped(name) && !slices.ContainsFunc(want, func(m familyMetadata) bool { return got[name][m] }) {
				return fmt.Errorf("family %s has %v, want one of %v", name, got[name], want)
			}
		}
		return nil
	})
	byFamily := map[string]map[familyMetadata]bool{}
	for series, set := range v2.metadata() {
		for _, name := range familyNames(series) {
			if _, ok := direct[name]; ok {
				if byFamily[name] == nil {
					byFamily[name] = map[familyMetadata]bool{}
				}
				maps.Copy(byFamily[name], set)
			}
		}
	}
	for name, want := range direct {
		for _, m := range want {
			if !dropped(name) && !byFamily[name][m] {
				t.Errorf("metadata by remote_write 2.0: family %s has %v, want %v", name, byFamily[name], m)
			}
		}
	}
}

// dropped names the families that relabelling renames or drops.
func dropped(family string) bool {
	return family == "unwanted_total" || family == "renamed_total"
}

// familyNames returns the names that the family of a series may have.
func familyNames(series string) []string {
	names := []string{series}
	for _, suffix := range []string{"_bucket", "_sum", "_count", "_total", "_created", "_info"} {
		if name, ok := strings.CutSuffix(series, suffix); ok {
			names = append(names, name)
		}
	}
	return names
}
