package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"
)

const (
	alertRules = "../../../deploy/alerts/millrace.yml"
	dashboards = "../../../deploy/grafana/dashboards/*.json"
	// patience is how long a fault may take until its alert fires, and a remedy until it is quiet. Nothing is concluded from how long it takes.
	patience = 3 * time.Minute
)

// duration is one in an expression or in `for`.
var duration = regexp.MustCompile(`\b(\d+)([mh])\b`)

// hurried returns a rule file's content with the same expressions on another clock: every minute is a second, every hour a minute.
func hurried(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Name  string           `yaml:"name"`
			Rules []map[string]any `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	hurry := func(text string) string {
		return duration.ReplaceAllStringFunc(text, func(d string) string {
			return d[:len(d)-1] + map[string]string{"m": "s", "h": "m"}[d[len(d)-1:]]
		})
	}
	for _, g := range file.Groups {
		for _, rule := range g.Rules {
			rule["expr"] = hurry(rule["expr"].(string))
			if wait, ok := rule["for"].(string); ok {
				rule["for"] = hurry(wait)
			}
		}
	}
	out, err := yaml.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// watch is a Prometheus with the alerts of deploy/alerts, which scrapes processes of Millrace under the names of jobs. Several tests share it.
type watch struct {
	prometheus *proc
	sd         string

	mu    sync.Mutex
	jobs  map[string][]string // addresses by job
	fired map[string]bool     // names of alerts that a test has seen firing
}

func newWatch(t testing.TB) *watch {
	t.Helper()
	dir := t.TempDir()
	w := &watch{sd: filepath.Join(dir, "processes.json"), jobs: map[string][]string{}, fired: map[string]bool{}}
	rules := filepath.Join(dir, "rules.yml")
	writeFile(t, rules, hurried(t, alertRules))
	writeFile(t, w.sd, "[]")
	w.prometheus = startPrometheus(t, fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- job_name: millrace
  honor_labels: true
  file_sd_configs: [{files: [%q], refresh_interval: 1s}]
`, rules, w.sd), inDir(dir))
	return w
}

// scrape has the Prometheus scrape processes, under the name of a job.
func (w *watch) scrape(t testing.TB, job string, procs ...*proc) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs[job] = nil
	for _, p := range procs {
		w.jobs[job] = append(w.jobs[job], strings.TrimPrefix(p.URL, "http://"))
	}
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for _, name := range slices.Sorted(maps.Keys(w.jobs)) {
		groups = append(groups, group{w.jobs[name], map[string]string{"job": name}})
	}
	content, err := json.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, w.sd, string(content))
}

// scraped waits until the Prometheus has a sample of this process, and not only of one before it at its address.
func (w *watch) scraped(t testing.TB, p *proc) {
	t.Helper()
	query := fmt.Sprintf("process_start_time_seconds{instance=%q} == %f", strings.TrimPrefix(p.URL, "http://"), p.Metric("process_start_time_seconds", nil))
	eventually(t, startTimeout, "a scrape of the process", func() error {
		n, err := w.count(query)
		if err == nil && n == 0 {
			err = errors.New("none yet")
		}
		return err
	})
}

// count returns how many series an expression has.
func (w *watch) count(expr string) (int, error) {
	var answer struct {
		Data struct{ Result []any }
	}
	err := w.ask("/api/v1/query?query="+url.QueryEscape(expr), &answer)
	return len(answer.Data.Result), err
}

// ask decodes an answer of the Prometheus's API.
func (w *watch) ask(path string, into any) error {
	res, err := http.Get(w.prometheus.URL + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	return json.NewDecoder(res.Body).Decode(into)
}

// alert is one that a test waits for: its name, and labels that tell it from others.
type alert struct {
	name   string
	labels map[string]string
}

// on returns an alert with labels that are given as name and value in turn.
func on(name string, pairs ...string) alert {
	a := alert{name, map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		a.labels[pairs[i]] = pairs[i+1]
	}
	return a
}

// active returns the alerts of a job that are in one of the states now. Those of no job count for every job.
func (w *watch) active(job string, states ...string) ([]map[string]string, error) {
	var answer struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	if err := w.ask("/api/v1/alerts", &answer); err != nil {
		return nil, err
	}
	var list []map[string]string
	for _, a := range answer.Data.Alerts {
		if slices.Contains(states, a.State) && (a.Labels["job"] == job || a.Labels["job"] == "") {
			list = append(list, a.Labels)
		}
	}
	return list, nil
}

func (a alert) among(list []map[string]string) bool {
	return slices.ContainsFunc(list, func(l map[string]string) bool {
		for name, value := range a.labels {
			if l[name] != value {
				return false
			}
		}
		return l[model.AlertNameLabel] == a.name
	})
}

// States of alerts: pending ones have not been so for long enough yet.
const (
	firing  = "firing"
	pending = "pending"
)

// fires waits until each of the alerts has fired for a job, whether at the same time or one after the other.
func (w *watch) fires(t testing.TB, job string, alerts ...alert) {
	t.Helper()
	start, missing := time.Now(), alerts
	eventually(t, patience, "alerts", func() error {
		list, err := w.active(job, firing)
		if err != nil {
			return err
		}
		missing = slices.DeleteFunc(slices.Clone(missing), func(a alert) bool {
			if !a.among(list) {
				return false
			}
			t.Logf("%s%v fires after %s", a.name, a.labels, time.Since(start).Round(100*time.Millisecond))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.fired[a.name] = true
			return true
		})
		if len(missing) > 0 {
			return fmt.Errorf("%v has not fired; %v does", missing, list)
		}
		return nil
	})
}

// quiet waits until for some evaluations none of the alerts fires or is pending for a job.
func (w *watch) quiet(t testing.TB, job string, alerts ...alert) {
	t.Helper()
	start := time.Now()
	loud := start
	eventually(t, patience, "silence", func() error {
		list, err := w.active(job, firing, pending)
		if err != nil {
			return err
		}
		for _, a := range alerts {
			if a.among(list) {
				loud = time.Now()
				return fmt.Errorf("%s%v fires, or will", a.name, a.labels)
			}
		}
		if since := time.Since(loud); since < 4*time.Second {
			return fmt.Errorf("it is quiet since %s only", since)
		}
		return nil
	})
	t.Logf("%v are quiet %s after the remedy", alerts, time.Since(start).Round(100*time.Millisecond))
}

// TestAlertsFireAndGoQuiet makes each alert of deploy/alerts fire by a fault, and applies the remedy that the runbook names. The clock of the rules is 60 times as fast as it is in earnest.
func TestAlertsFireAndGoQuiet(t *testing.T) {
	w := newWatch(t)
	w.fires(t, "", on("MillraceAbsent"))
	t.Run("faults", func(t *testing.T) {
		for name, faults := range map[string]func(*testing.T, *watch){
			"endpoints": endpointFaults, "machine": machineFaults, "fleet": fleetFaults,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				faults(t, w)
			})
		}
	})
	names := map[string]bool{}
	for _, e := range expressions(t) {
		if e.alert != "" && !w.fired[e.alert] {
			t.Errorf("no test has made %s fire", e.alert)
		}
		for _, name := range e.metrics {
			names[name] = true
		}
	}
	for name := range names {
		if n, err := w.count("last_over_time(" + name + "[1h])"); err != nil || n == 0 {
			t.Errorf("no process has exposed %s, which a dashboard or an alert uses: %v", name, err)
		}
	}
}

// expression is one of an alert, or of a panel of a dashboard, and the metrics in it.
type expression struct {
	alert   string
	metrics []string
}

// expressions returns those of all alerts and dashboards.
func expressions(t testing.TB) (list []expression) {
	t.Helper()
	content, err := os.ReadFile(alertRules)
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(content, &rules); err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			list = append(list, expression{r.Alert, metricsIn(t, r.Expr)})
		}
	}
	files, err := filepath.Glob(dashboards)
	if err != nil || len(files) == 0 {
		t.Fatalf("dashboards %q: %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			Panels []struct{ Targets []struct{ Expr string } }
		}
		if err := json.Unmarshal(content, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, p := range dashboard.Panels {
			for _, target := range p.Targets {
				list = append(list, expression{metrics: metricsIn(t, strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h").Replace(target.Expr))})
			}
		}
	}
	return list
}

func metricsIn(t testing.TB, expr string) (names []string) {
	t.Helper()
	e, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			i := slices.IndexFunc(s.LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel })
			names = append(names, s.LabelMatchers[i].Value)
		}
		return nil
	})
	return names
}
