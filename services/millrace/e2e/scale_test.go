package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTenThousandTargets spreads many targets over 1, 2, 4 and 8 scrapers, one process each.
func TestTenThousandTargets(t *testing.T) {
	const targets = 10_000
	var fresh atomic.Pointer[time.Time] // when the target that comes later was scraped first
	exporter := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/new" {
			now := time.Now()
			fresh.CompareAndSwap(nil, &now)
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprint(w, "a 1\nb 2\n")
	}))
	defer exporter.Close()
	dir := t.TempDir()
	address := strings.TrimPrefix(exporter.URL, "http://")
	var groups []map[string]any
	for i := range targets {
		groups = append(groups, map[string]any{"targets": []string{address}, "labels": map[string]string{"instance": fmt.Sprint("host-", i)}})
	}
	list, err := json.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	many, one := filepath.Join(dir, "many.json"), filepath.Join(dir, "one.json")
	writeFile(t, many, string(list))
	writeFile(t, one, "[]")
	nats := startNATS(t, 1)
	config := fmt.Sprintf(`
global: {scrape_interval: 30s, scrape_timeout: 10s}
scrape_configs:
- job_name: many
  file_sd_configs: [{files: [%q]}]
- job_name: one
  scrape_interval: 1s
  scrape_timeout: 1s
  metrics_path: /new
  file_sd_configs: [{files: [%q]}]
millrace:
  nats: {url: %q}
  streams: {partitions: 4}
`, many, one, nats.URL)
	start := func(services string) *proc {
		return startMillrace(t, config, asShipped(), withArgs("--services="+services))
	}
	start("discovery")
	var scrapers []*proc
	owners := map[string]int{}
	for _, n := range []int{1, 2, 4, 8} {
		for len(scrapers) < n {
			scrapers = append(scrapers, start("scraper"))
			before := owners
			owners = spreadOver(t, targets, scrapers)
			moved := 0
			for target, owner := range owners {
				if was, ok := before[target]; ok && was != owner {
					moved++
				}
			}
			if fair := float64(targets) / float64(len(scrapers)); len(before) > 0 {
				t.Logf("%d scrapers: %d targets moved, %.2f of a fair share", len(scrapers), moved, float64(moved)/fair)
				if float64(moved) > 1.2*fair {
					t.Errorf("%d targets moved to the scraper number %d", moved, len(scrapers))
				}
			}
		}
		parts := make([]int, n)
		for _, owner := range owners {
			parts[owner]++
		}
		t.Logf("%d scrapers have %v targets", n, parts)
		for i, part := range parts {
			if fair := float64(targets) / float64(n); float64(part) < 0.85*fair || float64(part) > 1.15*fair {
				t.Errorf("scraper %d of %d has %d targets", i+1, n, part)
			}
		}
	}
	published := time.Now()
	replaceFile(t, one, fmt.Sprintf(`[{"targets": [%q]}]`, address))
	eventually(t, 60*time.Second, "the first scrape of a new target", func() error {
		if fresh.Load() == nil {
			return fmt.Errorf("not scraped after %s", time.Since(published))
		}
		return nil
	})
	t.Logf("a new target was scraped %s after it was written to its file", fresh.Load().Sub(published).Round(time.Millisecond))
}

// spreadOver waits until each target has one of the scrapers, and returns which.
func spreadOver(t *testing.T, targets int, scrapers []*proc) (owners map[string]int) {
	t.Helper()
	eventually(t, 120*time.Second, fmt.Sprintf("targets of %d scrapers", len(scrapers)), func() error {
		owners = map[string]int{}
		lists := make([][]string, len(scrapers))
		var asking sync.WaitGroup
		for i, p := range scrapers {
			asking.Go(func() { lists[i] = instances(p) })
		}
		asking.Wait()
		sum := 0
		for i, list := range lists {
			if len(list) == 0 {
				return fmt.Errorf("scraper %d has no targets", i+1)
			}
			sum += len(list)
			for _, instance := range list {
				owners[instance] = i
			}
		}
		if sum != targets || len(owners) != targets {
			return fmt.Errorf("%d targets are scraped, %d different ones", sum, len(owners))
		}
		return nil
	})
	return owners
}

// instances returns the targets of a process by their label instance.
func instances(p *proc) (list []string) {
	_, body := p.Get("/api/v1/targets?state=active&scrapePool=many")
	var answer struct {
		Data struct {
			ActiveTargets []struct{ Labels map[string]string }
		}
	}
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	for _, t := range answer.Data.ActiveTargets {
		list = append(list, t.Labels["instance"])
	}
	return list
}
