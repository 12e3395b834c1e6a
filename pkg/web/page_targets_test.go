package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/status"
)

// listed is a target of the tests.
type listed struct{ status.Target }

func (l listed) Key() status.TargetKey   { return l.TargetKey }
func (l listed) Health() string          { return l.Target.Health }
func (l listed) LastError() string       { return l.Target.LastError }
func (l listed) Text() string            { return l.Labels.String() }
func (l listed) Describe() status.Target { return l.Target }

// manyTargets are targets of four pools as they are found on Kubernetes, every hundredth of them down.
func manyTargets(n int) *status.TargetHolder {
	var list []listed
	for i := range n {
		address := fmt.Sprintf("10.%d.%d.%d:9100", i>>16, i>>8&255, i&255)
		t := status.Target{
			TargetKey: status.TargetKey{Pool: fmt.Sprintf("kubernetes-pods-%d", i*4/n), URL: "http://" + address + "/metrics", ID: uint64(i)},
			Labels:    labels.FromStrings("instance", address, "job", "kubernetes-pods", "namespace", fmt.Sprintf("team-%d", i%50), "pod", fmt.Sprintf("api-7d4b9c6f5-%05d", i), "zone", "a"),
			Health:    "up", LastScrape: time.Now().Add(-time.Second), LastScrapeSeconds: 0.0123, Interval: "15s", Timeout: "10s",
		}
		discovered := map[string]string{"__address__": address, "__scheme__": "http", "__metrics_path__": "/metrics"}
		for j := range 20 {
			discovered[fmt.Sprintf("__meta_kubernetes_pod_label_example_com_name_%d", j)] = fmt.Sprintf("value-%d-%d", i, j)
		}
		t.DiscoveredLabels = labels.FromMap(discovered)
		if i%100 == 0 {
			t.Health, t.LastError = "down", "Get \""+t.URL+"\": dial tcp "+address+": connect: connection refused"
		}
		list = append(list, listed{t})
	}
	return &status.TargetHolder{Member: "host-a-1", List: status.NewTargetList(list), Dropped: map[string]int{"kubernetes-pods-0": 12, "nothing-left": 3}}
}

// sampleFleetTargets has some hundred targets.
func sampleFleetTargets(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error) {
	return status.FindTargets(ctx, status.TargetSource{Self: manyTargets(250)}, q)
}

func TestTargetsPage(t *testing.T) {
	s := fleetServer(t)
	for _, tc := range []struct {
		query string
		code  int
		want  []string
		not   []string
	}{
		{"", 200, []string{
			"247 of 250 targets up; 15 dropped", "1 to 100 of 250", "<title>3 targets down – Targets", "http://10.0.0.0:9100/metrics", `namespace=&#34;team-1&#34;`, "connection refused",
			"host-a-1", "took 12 ms, every 15s", `__meta_kubernetes_pod_label_example_com_name_3=&#34;value-0-3&#34;`, "5 scrape pools", `<a class="button" href="targets?after=`,
		}, []string{"10.0.0.99:9100", "Previous", "Show all"}},
		{"?health=down", 200, []string{"1 to 3 of 3 that match", "10.0.0.200:9100", "Show all", `<a href="targets?health=down" aria-current="true">`, `<input type="hidden" name="health" value="down">`}, []string{"10.0.0.1:9100", "Next"}},
		{"?search=API-7d4b9c6f5-00042+ZONE%3D%22a%22", 200, []string{"1 to 1 of 1 that match", "10.0.0.42:9100", `value="API-7d4b9c6f5-00042 ZONE=&#34;a&#34;"`}, []string{"10.0.0.1:9100"}},
		{"?search=refused", 200, []string{"1 to 3 of 3 that match"}, nil},
		{"?pool=kubernetes-pods-3", 200, []string{"of 62 that match", "<option selected>kubernetes-pods-3</option>", `All <span class="tally">62</span>`}, []string{"http://10.0.0.0:9100"}},
		{"?pool=nothing-left", 200, []string{"No target matches"}, nil},
		{"?search=nowhere", 200, []string{"No target matches", `<a href="targets">Show all</a>`}, nil},
		{"?after=" + status.TargetKey{Pool: "z"}.String(), 200, []string{"There are no targets here any more"}, nil},
		{"?after=%25", 400, []string{"is not the place of a target"}, nil},
		{"?health=ill", 400, []string{"none of up, down and unknown"}, nil},
	} {
		w := do(t, s, "GET", "/targets"+tc.query)
		body := w.Body.String()
		if w.Code != tc.code {
			t.Errorf("%s: %d", tc.query, w.Code)
		}
		for _, want := range tc.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %q", tc.query, want)
			}
		}
		for _, not := range tc.not {
			if strings.Contains(body, not) {
				t.Errorf("%s has %q", tc.query, not)
			}
		}
	}
}

// TestTargetsPageLeadsToAll follows the links to the end.
func TestTargetsPageLeadsToAll(t *testing.T) {
	s := fleetServer(t)
	seen, path := 0, "/targets"
	for path != "" {
		body := do(t, s, "GET", path).Body.String()
		seen += strings.Count(body, `data-key="target `)
		_, rest, more := strings.Cut(body, `" rel="next"`)
		path = ""
		if more {
			before := body[:len(body)-len(rest)-len(`" rel="next"`)]
			path = "/" + before[strings.LastIndex(before, `href="`)+len(`href="`):]
		}
	}
	if seen != 250 {
		t.Errorf("%d targets on all pages", seen)
	}
}

// TestFleetTargetsAPI asks as programs do.
func TestFleetTargetsAPI(t *testing.T) {
	s := fleetServer(t)
	var got struct{ Data status.TargetPage }
	w := do(t, s, "GET", "/api/v1/targets?"+url.Values{"fleet": {"true"}, "health": {"down"}, "limit": {"2"}}.Encode())
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Data.Targets) != 2 || got.Data.Matching != 3 || got.Data.Next == "" || got.Data.Targets[1].Owner != "host-a-1" {
		t.Errorf("%v: %s", err, w.Body)
	}
	for _, query := range []string{"limit=x", "limit=1001", "after=!", "health=ill"} {
		if w := do(t, s, "GET", "/api/v1/targets?fleet=true&"+query); w.Code != 400 || !strings.Contains(w.Body.String(), `"errorType":"bad_data"`) {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	if w := do(t, newServer(t, nil), "GET", "/api/v1/targets?fleet=true"); !strings.Contains(w.Body.String(), "activeTargets") {
		t.Errorf("without a fleet: %s", w.Body)
	}
}

// BenchmarkTargetsPage makes the page of a process that scrapes 10,000 targets.
func BenchmarkTargetsPage(b *testing.B) {
	holder := manyTargets(10_000)
	s, err := New(Config{Gatherer: prometheus.NewRegistry(), FleetTargets: func(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error) {
		return status.FindTargets(ctx, status.TargetSource{Self: holder}, q)
	}})
	if err != nil {
		b.Fatal(err)
	}
	for name, path := range map[string]string{"all": "/targets", "down": "/targets?health=down", "searched": "/targets?search=team-7+zone"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if w := serveOnce(s, path); w.Code != 200 {
					b.Fatal(w.Code)
				}
			}
		})
	}
}
