package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wild is a target of which each scrape has new series: one for each user, with a label that somebody has added without a thought.
type wild struct {
	address string
	scrapes atomic.Int64
	step    int
	most    atomic.Int64
	first   atomic.Int64 // user

	mu sync.Mutex
	at []time.Time // of each scrape
}

// wildPace is how often wild targets are scraped. With MILLRACE_TEST_LONG=1 that is as often as by default, and 40 scrapes take 10 minutes.
var wildPace = func() time.Duration {
	if longTest {
		return 15 * time.Second
	}
	return 500 * time.Millisecond
}()

// newWild returns one that adds step series a scrape, up to most.
func newWild(t testing.TB, step, most int) *wild {
	t.Helper()
	w := &wild{step: step}
	w.most.Store(int64(most))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		n := w.scrapes.Add(1)
		w.mu.Lock()
		w.at = append(w.at, time.Now())
		w.mu.Unlock()
		var b bytes.Buffer
		b.WriteString("# TYPE requests_total counter\n")
		first := w.first.Load()
		for user := first; user < first+min(n*int64(w.step), w.most.Load()); user++ {
			fmt.Fprintf(&b, "requests_total{path=\"/%d\",user_id=\"%d\",zone=\"a\"} %d\n", user%7, user, n)
		}
		rw.Header().Set("Content-Type", textType)
		_, _ = rw.Write(b.Bytes())
	}))
	t.Cleanup(server.Close)
	w.address = server.Listener.Addr().String()
	return w
}

// grownBeyond returns when wild targets had served more series than a limit, all together.
func grownBeyond(limit int, wilds ...*wild) time.Time {
	var all []time.Time
	for _, w := range wilds {
		w.mu.Lock()
		all = append(all, w.at...)
		w.mu.Unlock()
	}
	slices.SortFunc(all, time.Time.Compare)
	return all[limit/wilds[0].step] // each scrape has step more than the last
}

// limitedConfig scrapes the wild targets beside those of the rig. The endpoint main gets only the latter's samples.
func limitedConfig(r *rig, millrace string, main *endpoint, all *recorder, wilds ...*wild) string {
	var addresses []string
	for _, w := range wilds {
		addresses = append(addresses, fmt.Sprintf("%q", w.address))
	}
	c := r.config(millrace, remoteWrite("main", main.URL, "write_relabel_configs: [{source_labels: [job], regex: wild, action: drop}]"), remoteWrite("all", all.URL))
	return strings.Replace(c, "scrape_configs:\n", fmt.Sprintf(`scrape_configs:
- job_name: wild
  scrape_interval: %[1]s
  scrape_timeout: %[1]s
  static_configs: [{targets: [%[2]s]}]
`, wildPace, strings.Join(addresses, ", ")), 1)
}

const careless = "requests_total"

// grows waits until the wild targets have been scraped n times each, and checks all the while that the endpoint has got no more than the limit.
func grows(t *testing.T, all *recorder, limit, n int, wilds ...*wild) {
	t.Helper()
	for _, w := range wilds {
		eventually(t, 90*time.Second+time.Duration(n)*wildPace, fmt.Sprintf("%d scrapes", n), func() error {
			if got := all.count(careless); got > limit {
				t.Fatalf("the endpoint has got %d series, the limit is %d", got, limit)
			}
			if have := w.scrapes.Load(); have < int64(n) {
				return fmt.Errorf("%d scrapes", have)
			}
			return nil
		})
	}
}

// named waits until one of the processes names the offender in its metrics and its log, and returns how long after the limit was passed that was. The next scrapes pass it, if it is not yet.
func named(t *testing.T, limit int, wilds []*wild, procs ...*proc) time.Duration {
	t.Helper()
	labels := map[string]string{"limit": "metric", "name": careless, "metric": careless, "label": "user_id"}
	eventually(t, 2*wildPace+15*time.Second, "the offender in metrics and log", func() error {
		for _, p := range procs {
			if p.Metric("millrace_relabel_limited_series", labels) == 0 {
				continue
			}
			for line := range strings.Lines(p.Logs()) {
				if strings.Contains(line, "A limit on series is reached") && strings.Contains(line, "metric="+careless) && strings.Contains(line, "label=user_id") {
					return nil
				}
			}
		}
		return fmt.Errorf("not named")
	})
	return time.Since(grownBeyond(limit, wilds...))
}

// TestACarelessLabelHarmsNobody scrapes a target with 1,000 more series a scrape than the last, which is killed by nothing but a limit, and kills the process in the middle.
func TestACarelessLabelHarmsNobody(t *testing.T) {
	const limit = 10_000
	scrapes := 40
	if raceBuild {
		scrapes = 24 // to parse 40,000 series takes the race detector longer than there is between two scrapes
	}
	r := newRig(t, 20, 50)
	main, all := newEndpoint(t), newRecorder(t, "")
	w := newWild(t, 1000, scrapes*1000)
	p := startMillrace(t, limitedConfig(r, "  cardinality: {metric: {max_series: 10000}}\n", main, all, w))
	peak := p.watchRSS()
	r.arrived(main, 30*time.Second)
	main.ResetWindow() // without the start
	grows(t, all, limit, 10, w)
	below := main.Report().Latency
	main.ResetWindow()
	known := named(t, limit, []*wild{w}, p)
	grows(t, all, limit, 18, w)
	r.arrived(main, 30*time.Second)
	beyond := main.Report().Latency
	before := peak()
	p.Kill9()
	p.Again()
	peak = p.watchRSS()
	r.arrived(main, 30*time.Second)
	main.ResetWindow()
	grows(t, all, limit, scrapes, w)
	named(t, limit, []*wild{w}, p)
	eventually(t, 30*time.Second, "as many series as the limit allows", func() error {
		if n := all.count(careless); n != limit {
			return fmt.Errorf("%d series", n)
		}
		return nil
	})
	r.arrived(main, 30*time.Second)
	again, after := main.Report().Latency, peak()
	t.Logf("named %.1f s after the limit was passed", known.Seconds())
	t.Logf("latency of the other targets: p50 %.2f s p99 %.2f s below the limit, p50 %.2f s p99 %.2f s beyond it, p50 %.2f s p99 %.2f s after the kill",
		below.P50, below.P99, beyond.P50, beyond.P99, again.P50, again.P99)
	t.Logf("memory: %d MiB at most with up to 18,000 series at the target, %d MiB after the kill with up to %d", before>>20, after>>20, scrapes*1000)
	worst := beyond.P99
	if longTest { // else scrapes follow each other too fast for that after the start
		worst = max(worst, again.P99)
	}
	if worst > max(2*below.P99, below.P99+1) {
		t.Errorf("the p99 of the other targets' latency is %.2f s beyond the limit, %.2f s below it", worst, below.P99)
	}
	if most := max(before, after); most > 600<<20 && !raceBuild {
		t.Errorf("%d MiB of memory", most>>20)
	}
	main.inOrder(t)

	// What has grown is found where it stands, also when nothing runs any more.
	const left = 12_000
	w.most.Store(left)
	check := func(where string) {
		t.Helper()
		eventually(t, 60*time.Second, "the number of series "+where, func() error {
			r := countSeries(t, where)
			if len(r.Metrics) == 0 || r.Metrics[0].Name != careless || r.Metrics[0].Series != left || r.Refused != left-limit || r.New != r.Series ||
				len(r.Labels) == 0 || r.Labels[0].Name != "user_id" || r.Labels[0].Values != left {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
	check("--web.url=" + p.URL)
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	check("--storage.path=" + filepath.Join(p.Dir, "data"))
}

// seriesReport is what millrace cardinality prints, as far as the tests look at it.
type seriesReport struct {
	Series  int `json:"series"`
	New     int `json:"new"`
	Refused int `json:"refused"`
	Metrics []struct {
		Name   string `json:"name"`
		Series int    `json:"series"`
	} `json:"metrics"`
	Labels []struct {
		Name   string `json:"name"`
		Values int    `json:"values"`
	} `json:"labels"`
}

func countSeries(t *testing.T, where string) (r seriesReport) {
	t.Helper()
	stdout, stderr, code := runMillrace(t, "cardinality", where, "--json")
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != 0 {
		t.Fatalf("millrace cardinality %s: exit code %d, %v\n%s%s", where, code, err, stdout, stderr)
	}
	return r
}

// TestALimitHoldsForAFleet has two scrapers and two relabels, of which one is killed, and then the other, and replays what has grown, while the next one is killed.
func TestALimitHoldsForAFleet(t *testing.T) {
	const limit = 10_000
	scrapes := 30
	if longTest {
		scrapes = 40 // which take 10 minutes
	}
	c := newCrew(t, 1, 10, 20)
	kept := newEndpoint(t)
	all := newRecorder(t, kept.URL)
	var wilds []*wild
	for range 4 {
		wilds = append(wilds, newWild(t, 250, scrapes*250))
	}
	c.config = limitedConfig(c.rig, fmt.Sprintf("  nats: {url: %q}\n  streams: {partitions: 4}\n  cardinality: {metric: {max_series: %d}}\n", c.nats.URL, limit), c.end, all, wilds...)
	writer := c.join("discovery,writer")
	a, b := c.join("relabel"), c.join("relabel")
	s1, s2 := c.join("scraper"), c.join("scraper")
	c.spread("scraper", 256, s1, s2)
	c.spread("relabel", 4, a, b)
	memory := map[string]func() int64{"writer": writer.watchRSS(), "relabel": b.watchRSS(), "scraper": s1.watchRSS()}
	c.arrived(c.end, 30*time.Second)
	c.end.ResetWindow() // without the start
	grows(t, all, limit, 10, wilds...)
	below := c.end.Report().Latency
	c.end.ResetWindow()
	known := named(t, limit, wilds, a, b)
	grows(t, all, limit, 14, wilds...)
	c.arrived(c.end, 30*time.Second)
	past := c.end.Report().Latency
	// The one that grants places dies.
	if shares(a, "relabel") == 0 || shares(b, "relabel") == 0 {
		t.Fatal("the work is not shared")
	}
	a.Kill9()
	d := c.join("relabel")
	c.spread("relabel", 4, b, d)
	grows(t, all, limit, 22, wilds...)
	most := memory["relabel"]()
	memory["relabel"] = d.watchRSS()
	b.Kill9()
	grows(t, all, limit, scrapes, wilds...)
	named(t, limit, wilds, d)
	eventually(t, 60*time.Second, "as many series as the limit allows", func() error {
		if n := all.count(careless); n != limit {
			return fmt.Errorf("%d series", n)
		}
		return nil
	})
	c.arrived(c.end, 30*time.Second)
	t.Logf("named %.1f s after the limit was passed; latency of the other targets: p50 %.2f s p99 %.2f s below the limit, p50 %.2f s p99 %.2f s beyond it",
		known.Seconds(), below.P50, below.P99, past.P50, past.P99)
	if past.P99 > max(2*below.P99, below.P99+1) {
		t.Errorf("the p99 of the other targets' latency is %.2f s beyond the limit, %.2f s below it", past.P99, below.P99)
	}
	e := c.replaysWithin(limit, kept, all, writer, d)
	most = max(most, memory["relabel"]())
	t.Logf("memory: %d MiB a relabel, %d MiB a scraper, %d MiB the writer at most", most>>20, memory["scraper"]()>>20, memory["writer"]()>>20)
	for _, w := range wilds {
		w.most.Store(1000)
	}
	eventually(t, 60*time.Second, "the number of series", func() error {
		if r := countSeries(t, "--nats.url="+c.nats.URL); len(r.Metrics) == 0 || r.Metrics[0].Name != careless || r.Metrics[0].Series != 4000 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if n := e.Metric("millrace_relabel_limited_series", nil); n < 1 {
		t.Errorf("%v series beyond the limit", n)
	}
}

// replaysWithin replays what the wild targets have served, kills the relabel on the way, and checks that the endpoint gets the samples again that it has got, and no other series. It returns the next relabel.
func (c *crew) replaysWithin(limit int, kept *endpoint, all *recorder, writer, relabel *proc) (next *proc) {
	t := c.t
	t.Helper()
	live, until := all.got(careless), time.Now().Add(-3*time.Second).UnixMilli() // what is newer may be on its way
	before := kept.samplesOf(all.hashes(careless), until)
	kept.forget()
	all.reset()
	again := startCommand(t, build(t, shippedBinary), "replay", "--web.url="+writer.URL, "--from=-2h", "--match={job=\"wild\"}", "--endpoint=all", "--name=again", "--rate=40000")
	beyond(t, writer, "again", 50_000)
	relabel.Kill9()
	next = c.join("relabel")
	c.spread("relabel", 4, next)
	stdout, _ := again.wait(2 * time.Minute)
	says(t, stdout, "refused  0 samples", "skipped  0 samples")
	if got := all.got(careless); len(got) > limit || !slices.Equal(got, live) {
		t.Errorf("%d series are replayed, %d were sent before", len(got), len(live))
	}
	after, missing := kept.samplesOf(all.hashes(careless), until), 0
	for at, bits := range before {
		if got, ok := after[at]; !ok || got != bits {
			missing++
		}
	}
	if missing > 0 || len(before) == 0 {
		t.Errorf("of %d samples that had been sent, %d were not replayed", len(before), missing)
	}
	t.Logf("%sof %d samples that had been sent before, %d were not replayed; %d others were", stdout, len(before), missing, len(after)+missing-len(before))
	return next
}

// TestRulesCanBeTried tries rules of a configuration and of a file.
func TestRulesCanBeTried(t *testing.T) {
	dir := t.TempDir()
	config, list := filepath.Join(dir, "prometheus.yml"), filepath.Join(dir, "rules.yml")
	writeFile(t, config, `
global: {external_labels: {cluster: eu}}
scrape_configs:
- job_name: api
  relabel_configs: [{source_labels: [__meta_ns], target_label: ns}, {source_labels: [ns], regex: test, action: drop}]
  metric_relabel_configs: [{regex: pod, action: labeldrop}]
remote_write:
- {name: prod, url: "http://localhost/w", write_relabel_configs: [{source_labels: [cluster], regex: "(..)", replacement: "$1-west", target_label: cluster}]}
`)
	writeFile(t, list, "- {source_labels: [a], modulus: 10, action: hashmod, target_label: shard}\n- {action: keep, source_labels: [shard], regex: none}\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--config.file=" + config, "--job=api", `{__meta_ns="shop"}`}, `   {__meta_ns="shop"}
 1 action: replace, source_labels: [__meta_ns], target_label: ns
     + ns="shop"
 2 action: drop, source_labels: [ns], regex: "test"
     no change
=> {__meta_ns="shop", ns="shop"}
`},
		{[]string{"--config.file=" + config, "--job=api", `{__meta_ns="test"}`}, `   {__meta_ns="test"}
 1 action: replace, source_labels: [__meta_ns], target_label: ns
     + ns="test"
 2 action: drop, source_labels: [ns], regex: "test"
     dropped
=> dropped
`},
		{[]string{"--config.file=" + config, "--job=api", "--metrics", `up{pod="a"}`}, `   {__name__="up", pod="a"}
 1 action: labeldrop, regex: "pod"
     - pod="a"
=> {__name__="up"}
`},
		{[]string{"--config.file=" + config, "--endpoint=prod", "up"}, `   {__name__="up"}
 1 external_labels {cluster="eu"}
     + cluster="eu"
 2 action: replace, source_labels: [cluster], regex: "(..)", target_label: cluster, replacement: "$1-west"
     ~ cluster="eu-west", was "eu"
=> {__name__="up", cluster="eu-west"}
`},
		{[]string{"--rules.file=" + list, "--json", `{a="b"}`}, `[
  {
    "labels": {
      "a": "b"
    },
    "result": null,
    "steps": [
      {
        "rule": "action: hashmod, source_labels: [a], modulus: 10, target_label: shard",
        "dropped": false,
        "changes": [
          {
            "name": "shard",
            "before": "",
            "after": "1"
          }
        ]
      },
      {
        "rule": "action: keep, source_labels: [shard], regex: \"none\"",
        "dropped": true,
        "changes": []
      }
    ]
  }
]
`},
	} {
		stdout, stderr, code := runMillrace(t, append([]string{"relabel", "test"}, c.args...)...)
		if code != 0 || stdout != c.want {
			t.Errorf("relabel test %q: exit code %d, %s\n%s\nwant\n%s", c.args, code, stderr, stdout, c.want)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"up"}, "give one of --job, --endpoint and --rules.file"},
		{[]string{"--config.file=" + config, "--job=web", "up"}, `has no job "web"; it has api`},
		{[]string{"--config.file=" + config, "--endpoint=web", "up"}, `has no endpoint "web"; it has prod`},
		{[]string{"--rules.file=" + list, "--metrics", "up"}, "--metrics goes with --job"},
		{[]string{"--rules.file=" + list, "up{"}, "write them as"},
		{[]string{"--rules.file=" + config, "up"}, "list of rules"},
	} {
		if _, stderr, code := runMillrace(t, append([]string{"relabel", "test"}, c.args...)...); code != 2 || !strings.Contains(stderr, c.want) {
			t.Errorf("relabel test %q: exit code %d, %s", c.args, code, stderr)
		}
	}
}
