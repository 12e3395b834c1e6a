package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// wild is a target of which each scrape has new series: one for each user, with a label that somebody has added without a thought.
type wild struct {
	address string
	scrapes atomic.Int64
	step    int
	most    int
}

// newWild returns one that adds step series a scrape, up to most.
func newWild(t testing.TB, step, most int) *wild {
	t.Helper()
	w := &wild{step: step, most: most}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		n := w.scrapes.Add(1)
		var b bytes.Buffer
		b.WriteString("# TYPE requests_total counter\n")
		for user := range min(int(n)*w.step, w.most) {
			fmt.Fprintf(&b, "requests_total{path=\"/%d\",user_id=\"%d\",zone=\"a\"} %d\n", user%7, user, n)
		}
		rw.Header().Set("Content-Type", textType)
		_, _ = rw.Write(b.Bytes())
	}))
	t.Cleanup(server.Close)
	w.address = server.Listener.Addr().String()
	return w
}

// limitedConfig scrapes the wild targets twice a second beside those of the rig. The endpoint main gets only the latter's samples.
func limitedConfig(r *rig, millrace string, main *endpoint, all *recorder, wilds ...*wild) string {
	var addresses []string
	for _, w := range wilds {
		addresses = append(addresses, fmt.Sprintf("%q", w.address))
	}
	c := r.config(millrace, remoteWrite("main", main.URL, "write_relabel_configs: [{source_labels: [job], regex: wild, action: drop}]"), remoteWrite("all", all.URL))
	return strings.Replace(c, "scrape_configs:\n", fmt.Sprintf(`scrape_configs:
- job_name: wild
  scrape_interval: 500ms
  scrape_timeout: 500ms
  static_configs: [{targets: [%s]}]
`, strings.Join(addresses, ", ")), 1)
}

const careless = "requests_total"

// grows waits until the wild targets have been scraped n times each, and checks all the while that the endpoint has got no more than the limit.
func grows(t *testing.T, all *recorder, limit, n int, wilds ...*wild) {
	t.Helper()
	for _, w := range wilds {
		eventually(t, 90*time.Second, fmt.Sprintf("%d scrapes", n), func() error {
			if got := len(all.got(careless)); got > limit {
				t.Fatalf("the endpoint has got %d series, the limit is %d", got, limit)
			}
			if have := w.scrapes.Load(); have < int64(n) {
				return fmt.Errorf("%d scrapes", have)
			}
			return nil
		})
	}
}

// named waits until one of the processes names the offender in its metrics and its log.
func named(t *testing.T, procs ...*proc) {
	t.Helper()
	eventually(t, 15*time.Second, "the offender in metrics and log", func() error {
		labels := map[string]string{"limit": "metric", "name": careless, "metric": careless, "label": "user_id"}
		for _, p := range procs {
			for line := range strings.Lines(p.Logs()) {
				if p.Metric("millrace_relabel_limited_series", labels) > 0 && strings.Contains(line, "A limit on series is reached") &&
					strings.Contains(line, "metric="+careless) && strings.Contains(line, "label=user_id") {
					return nil
				}
			}
		}
		return fmt.Errorf("not named")
	})
}

// TestACarelessLabelHarmsNobody scrapes a target with 1,000 more series a scrape than the last, which is killed by nothing but a limit, and kills the process in the middle.
func TestACarelessLabelHarmsNobody(t *testing.T) {
	const limit, scrapes = 10_000, 40
	r := newRig(t, 20, 50)
	main, all := newEndpoint(t), newRecorder(t, "")
	w := newWild(t, 1000, scrapes*1000)
	p := startMillrace(t, limitedConfig(r, "  cardinality: {metric: {max_series: 10000}}\n", main, all, w))
	peak := p.watchRSS()
	grows(t, all, limit, 5, w)
	before := main.Report().Latency
	grows(t, all, limit, 12, w)
	named(t, p)
	grows(t, all, limit, 16, w)
	most := peak()
	p.Kill9()
	p.Again()
	peak = p.watchRSS()
	grows(t, all, limit, scrapes, w)
	named(t, p)
	eventually(t, 30*time.Second, "as many series as the limit allows", func() error {
		if n := len(all.got(careless)); n != limit {
			return fmt.Errorf("%d series", n)
		}
		return nil
	})
	r.arrived(main, 30*time.Second)
	after := main.Report().Latency
	most = max(most, peak())
	t.Logf("latency of the other targets: p50 %.2f s p99 %.2f s before, p50 %.2f s p99 %.2f s in all; %d MiB at most", before.P50, before.P99, after.P50, after.P99, most>>20)
	if most > 600<<20 && !raceBuild {
		t.Errorf("%d MiB of memory", most>>20)
	}
	main.inOrder(t)

	stdout, stderr, code := runMillrace(t, "cardinality", "--web.url="+p.URL, "--json")
	var report struct {
		Series  int `json:"series"`
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
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 {
		t.Fatalf("millrace cardinality: exit code %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if len(report.Metrics) == 0 || report.Metrics[0].Name != careless || report.Metrics[0].Series != scrapes*1000 || report.Refused != scrapes*1000-limit {
		t.Errorf("millrace cardinality: %+v", report)
	}
	if len(report.Labels) == 0 || report.Labels[0].Name != "user_id" || report.Labels[0].Values != scrapes*1000 {
		t.Errorf("millrace cardinality: labels %+v", report.Labels)
	}
}

// TestALimitHoldsForAFleet has two scrapers and two relabels, of which one is killed.
func TestALimitHoldsForAFleet(t *testing.T) {
	const limit, scrapes = 10_000, 40
	c := newCrew(t, 1, 10, 20)
	all := newRecorder(t, "")
	var wilds []*wild
	for range 4 {
		wilds = append(wilds, newWild(t, 250, scrapes*250))
	}
	c.config = limitedConfig(c.rig, fmt.Sprintf("  nats: {url: %q}\n  streams: {partitions: 4}\n  cardinality: {metric: {max_series: %d}}\n", c.nats.URL, limit), c.end, all, wilds...)
	c.join("discovery,writer")
	a, b := c.join("relabel"), c.join("relabel")
	s1, s2 := c.join("scraper"), c.join("scraper")
	c.spread("scraper", 256, s1, s2)
	c.spread("relabel", 4, a, b)
	grows(t, all, limit, 14, wilds...)
	// The one that grants places dies.
	if shares(a, "relabel") == 0 || shares(b, "relabel") == 0 {
		t.Fatal("the work is not shared")
	}
	a.Kill9()
	d := c.join("relabel")
	c.spread("relabel", 4, b, d)
	grows(t, all, limit, 22, wilds...)
	b.Kill9()
	grows(t, all, limit, scrapes, wilds...)
	named(t, d)
	eventually(t, 60*time.Second, "as many series as the limit allows", func() error {
		if n := len(all.got(careless)); n != limit {
			return fmt.Errorf("%d series", n)
		}
		return nil
	})
	c.arrived(c.end, 30*time.Second)
	if n := d.Metric("millrace_relabel_limited_series", nil); n < 1 {
		t.Errorf("%v series beyond the limit", n)
	}
}
