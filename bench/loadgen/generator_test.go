package loadgen

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/millrace/millrace/bench/numbered"
)

func start(t *testing.T, config Config) (*Generator, string) {
	t.Helper()
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return g, server.URL
}

func get(t *testing.T, url, encoding string) (*http.Response, []byte) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept-Encoding", encoding)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, data
}

// scan returns the samples of a text body in their order.
func scan(t *testing.T, text []byte) (series []labels.Labels, values []float64) {
	t.Helper()
	p := parser.NewParser(parser.Options{})
	for line := range bytes.Lines(text) {
		if line[0] == '#' {
			continue
		}
		space := bytes.LastIndexByte(line, ' ')
		l, err := p.ParseMetric(string(line[:space]))
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(string(line[space:])), 64)
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		series, values = append(series, l), append(values, v)
	}
	return series, values
}

func TestEverySampleOfAGeneratedTargetTellsItsScrape(t *testing.T) {
	for _, config := range []Config{
		{Targets: 3, Series: 1}, {Targets: 3, Series: 40}, {Targets: 3, Series: 1000},
		{Targets: 3, Series: 200, ChurnPercent: 5, ReorderEvery: 3},
	} {
		t.Run(fmt.Sprint(config), func(t *testing.T) {
			_, url := start(t, config)
			for n := uint64(1); n <= 7; n++ {
				_, text := get(t, url+"/target/2/metrics", "identity")
				series, values := scan(t, text)
				if len(series) != config.Series {
					t.Fatalf("%d series, want %d", len(series), config.Series)
				}
				seen := map[string]bool{}
				for i, l := range series {
					if seen[l.String()] {
						t.Fatalf("scrape %d lists %s twice", n, l)
					}
					seen[l.String()] = true
					code, ok := numbered.Of(func(name string) string {
						if name == numbered.TargetLabel {
							return "t2"
						}
						return l.Get(name)
					})
					if !ok {
						t.Fatalf("%s has no code", l)
					}
					if got, ok := code.N(values[i]); !ok || got != n {
						t.Fatalf("%s = %v: scrape %d, %t; want %d", l, values[i], got, ok, n)
					}
				}
			}
		})
	}
}

func TestTextIsAcceptedByTheExpositionParser(t *testing.T) {
	for _, kind := range []Kind{Generated, Recorded} {
		_, url := start(t, Config{Kind: kind, ChurnPercent: 1})
		response, text := get(t, url+"/target/0/metrics", "identity")
		decoder := expfmt.NewDecoder(bytes.NewReader(text), expfmt.ResponseFormat(response.Header))
		families := 0
		for ; ; families++ {
			var f dto.MetricFamily
			if err := decoder.Decode(&f); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
		}
		if families < 10 {
			t.Errorf("%s: %d families", kind, families)
		}
	}
}

func TestEncodingsHoldTheSameBody(t *testing.T) {
	for _, config := range []Config{
		{}, {Series: 1}, {Series: 45}, {Series: 5000}, {ChurnPercent: 1, ReorderEvery: 2}, {Kind: Recorded},
	} {
		config.Targets = 2
		kind := fmt.Sprint(config)
		_, url := start(t, config)
		for n := 1; n <= 50; n += 7 {
			at := fmt.Sprintf("%s/target/1/metrics?n=%d", url, n)
			_, want := get(t, at, "identity")
			for accept, encoding := range map[string]string{
				"gzip": "gzip", "zstd": "zstd", "zstd, gzip": "zstd", "gzip;q=0, zstd;q=0.5": "zstd", "br": "", "gzip;q=0": "",
			} {
				response, data := get(t, at, accept)
				if got := response.Header.Get("Content-Encoding"); got != encoding {
					t.Fatalf("Accept-Encoding %q: answered in %q", accept, got)
				}
				if got := decode(t, encoding, data); !bytes.Equal(got, want) {
					t.Fatalf("%s, scrape %d, %q: body differs", kind, n, encoding)
				}
			}
		}
	}
}

func TestEncodingCanBeRestricted(t *testing.T) {
	for only, want := range map[string]string{"identity": "", "gzip": "gzip", "zstd": "zstd"} {
		_, url := start(t, Config{Encoding: only})
		if response, _ := get(t, url+"/target/0/metrics", "zstd, gzip"); response.Header.Get("Content-Encoding") != want {
			t.Errorf("%s: answered in %q", only, response.Header.Get("Content-Encoding"))
		}
	}
}

func decode(t *testing.T, encoding string, data []byte) []byte {
	t.Helper()
	var in io.Reader = bytes.NewReader(data)
	var err error
	switch encoding {
	case "gzip":
		in, err = gzip.NewReader(in)
	case "zstd":
		in, err = zstd.NewReader(in)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestChurnReplacesSeriesInTurn(t *testing.T) {
	_, url := start(t, Config{Series: 101, ChurnPercent: 10})
	names := func(n int) map[string]bool {
		_, text := get(t, fmt.Sprintf("%s/target/0/metrics?n=%d", url, n), "identity")
		series, _ := scan(t, text)
		out := map[string]bool{}
		for _, l := range series {
			out[l.String()] = true
		}
		return out
	}
	for n := 1; n < 30; n++ {
		before, replaced := names(n), 0
		for name := range names(n + 1) {
			if !before[name] {
				replaced++
			}
		}
		if replaced != 10 {
			t.Fatalf("scrape %d replaced %d series", n+1, replaced)
		}
	}
}

func TestProtobufTargetHasNumberedNativeHistogramsWithExemplars(t *testing.T) {
	_, url := start(t, Config{Kind: Protobuf, Series: 20})
	request, err := http.NewRequest(http.MethodGet, url+"/target/0/metrics?n=5", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	decoder := expfmt.NewDecoder(bufio.NewReader(response.Body), expfmt.ResponseFormat(response.Header))
	histograms, exemplars, metrics := 0, 0, 0
	for {
		var f dto.MetricFamily
		if err := decoder.Decode(&f); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range f.Metric {
			metrics++
			if m.Histogram == nil {
				continue
			}
			histograms++
			exemplars += len(m.Histogram.Exemplars)
			code, err := numbered.Parse(m.Label[3].GetValue(), f.GetName(), "")
			if err != nil {
				t.Fatal(err)
			}
			if n, ok := code.ForTarget("t0").N(float64(m.Histogram.GetSampleCount())); !ok || n != 5 {
				t.Fatalf("histogram of scrape %d, %t", n, ok)
			}
		}
	}
	if histograms != 10 || exemplars != 10 || metrics != 20 {
		t.Errorf("%d metrics, %d histograms, %d exemplars", metrics, histograms, exemplars)
	}
}

func TestLogSaysWhatWasServed(t *testing.T) {
	g, url := start(t, Config{Targets: 2, Series: 10, FailEvery: 3})
	var statuses []int
	for range 7 {
		response, _ := get(t, url+"/target/1/metrics", "identity")
		statuses = append(statuses, response.StatusCode)
	}
	if diff := cmp.Diff([]int{200, 200, 500, 200, 200, 500, 200}, statuses); diff != "" {
		t.Error(diff)
	}
	get(t, url+"/target/1/metrics?n=3", "identity")
	for path, status := range map[string]int{"/target/2/metrics": 404, "/target/x/metrics": 404, "/target/1/metrics?n=0": 400} {
		if response, _ := get(t, url+path, "identity"); response.StatusCode != status {
			t.Errorf("%s: status %d", path, response.StatusCode)
		}
	}
	if diff := cmp.Diff(map[string]int{"t0": 0, "t1": 5}, g.Served()); diff != "" {
		t.Error(diff)
	}
	_, data := get(t, url+"/served?log=1", "identity")
	var log numbered.Log
	if err := json.Unmarshal(data, &log); err != nil {
		t.Fatal(err)
	}
	if len(log["t1"]) != 5 {
		t.Fatalf("log: %v", log)
	}
	for _, s := range log["t1"] {
		if s.Samples != 10 || !s.Completed || s.At.IsZero() {
			t.Errorf("log entry %+v", s)
		}
	}
}

func TestSDFileNamesEachTargetAndItsPath(t *testing.T) {
	g, err := New(Config{Targets: 2})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "targets.json")
	if err := g.WriteSDFile(path, "127.0.0.1:1234"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var groups []Group
	if err := json.Unmarshal(data, &groups); err != nil {
		t.Fatal(err)
	}
	want := []Group{
		{Targets: []string{"127.0.0.1:1234"}, Labels: map[string]string{"target": "t0", "__metrics_path__": "/target/0/metrics"}},
		{Targets: []string{"127.0.0.1:1234"}, Labels: map[string]string{"target": "t1", "__metrics_path__": "/target/1/metrics"}},
	}
	if diff := cmp.Diff(want, groups); diff != "" {
		t.Error(diff)
	}
}

func TestSenselessConfigsAreRefused(t *testing.T) {
	for _, config := range []Config{{Targets: -1}, {Series: -1}, {Kind: "other"}, {ChurnPercent: 101}, {ReorderEvery: -1}, {FailEvery: 1}, {Encoding: "br"}} {
		if _, err := New(config); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
}

func BenchmarkBody(b *testing.B) {
	for _, kind := range []Kind{Generated, Recorded} {
		g, err := New(Config{Kind: kind})
		if err != nil {
			b.Fatal(err)
		}
		for _, encoding := range []string{"identity", "gzip", "zstd"} {
			b.Run(string(kind)+"/"+encoding, func(b *testing.B) {
				n, samples := uint64(0), 0
				for b.Loop() {
					n++
					body, err := g.source.body(g.targets[0], n, nil, strings.TrimPrefix(encoding, "identity"))
					if err != nil {
						b.Fatal(err)
					}
					samples += body.samples
					body.release()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
			})
		}
	}
}
