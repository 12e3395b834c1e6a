package scraper

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const openMetrics2 = "application/openmetrics-text; version=2.0.0; charset=utf-8"

// variations are an exposition as it is, with lines that are missing, new, in another place and faulty, and as it was.
func variations(text string) (list []string) {
	lines := strings.SplitAfter(text, "\n")
	n := len(lines)
	without := append(append([]string(nil), lines[:n/3]...), lines[min(n/3+1, n):]...)
	with := append(append(append([]string(nil), lines[:n/2]...), "inserted_line 17\n"), lines[n/2:]...)
	turned := append(append(append([]string(nil), lines[n/4:n/2]...), lines[:n/4]...), lines[n/2:]...)
	faulty := append(append(append([]string(nil), lines[:2*n/3]...), "faulty{ 1\n"), lines[2*n/3:]...)
	return []string{text, text, strings.Join(without, ""), text, strings.Join(with, ""), strings.Join(turned, ""), strings.Join(faulty, ""), text}
}

// TestTestdataOfPrometheusIsReadAsByPrometheus compares the loop with Prometheus's on all expositions in Prometheus's own testdata, under every scrape config.
func TestTestdataOfPrometheusIsReadAsByPrometheus(t *testing.T) {
	cfg := differentialConfig(t)
	files, err := filepath.Glob("testdata/textparse/*.txt")
	if err != nil || len(files) < 11 {
		t.Fatal(files, err)
	}
	// Each file is read by each job once, half of them with start timestamps.
	var lists [2][]sequence
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		types := []string{plainText}
		if strings.Contains(file, ".om.") {
			types = []string{openMetrics}
		} else if strings.Contains(file, ".om2.") {
			types = []string{openMetrics2, openMetrics}
		}
		for k, j := range cfg.ScrapeConfigs {
			if len(text) > 100_000 && k%4 != 0 {
				continue // they differ in nothing from smaller ones but size
			}
			for _, contentType := range types {
				s := sequence{job: j.JobName}
				for _, body := range variations(string(text)) {
					s.steps = append(s.steps, step{body: body, contentType: contentType})
				}
				lists[(i+k)%2] = append(lists[(i+k)%2], s)
			}
		}
	}
	for i, startTimestamps := range []bool{false, true} {
		t.Run(fmt.Sprint("start timestamps ", startTimestamps), func(t *testing.T) {
			compareWithPrometheus(t, cfg, lists[i], startTimestamps)
		})
	}
}

// TestCasesOfPrometheusAreReadAsByPrometheus is the same on the bodies in the tests of Prometheus's parsers and scrape loops.
func TestCasesOfPrometheusAreReadAsByPrometheus(t *testing.T) {
	cfg := differentialConfig(t)
	text, err := os.ReadFile("testdata/textparse/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []string
	if err := json.Unmarshal(text, &cases); err != nil || len(cases) < 100 {
		t.Fatal(len(cases), err)
	}
	var list []sequence
	for i, body := range cases {
		for _, job := range []string{"plain", cfg.ScrapeConfigs[i%len(cfg.ScrapeConfigs)].JobName} {
			s := sequence{job: job}
			for _, contentType := range []string{plainText, plainText, openMetrics, openMetrics, plainText} {
				if contentType == openMetrics && !strings.HasSuffix(body, "# EOF\n") {
					s.steps = append(s.steps, step{body: body + "# EOF\n", contentType: contentType})
				} else {
					s.steps = append(s.steps, step{body: body, contentType: contentType})
				}
			}
			list = append(list, s)
		}
	}
	for _, startTimestamps := range []bool{false, true} {
		t.Run(fmt.Sprint("start timestamps ", startTimestamps), func(t *testing.T) {
			compareWithPrometheus(t, cfg, list, startTimestamps)
		})
	}
}
