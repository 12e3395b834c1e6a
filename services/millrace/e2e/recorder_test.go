package e2e_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
)

// recorder is a remote_write endpoint that notes what comes. It may pass it on to another one.
type recorder struct {
	// URL is where to write to.
	URL string

	t    testing.TB
	next http.Handler // nil: every request is accepted

	mu       sync.Mutex
	series   map[string]labels.Labels           // of all requests since the last reset, by their text
	values   map[string]float64                 // the newest of each series
	families map[string]map[familyMetadata]bool // metadata by the name of the family (1.0) or the series (2.0)
	headers  http.Header                        // of the newest request
	requests map[string]int                     // by Content-Type
}

type familyMetadata struct{ Type, Help, Unit string }

// newRecorder returns a recorder that passes requests on to an endpoint's URL, or accepts them itself where that is empty.
func newRecorder(t testing.TB, passTo string) *recorder {
	t.Helper()
	r := recorderHandler(t)
	if passTo != "" {
		to, err := url.Parse(passTo)
		if err != nil {
			t.Fatal(err)
		}
		r.next = &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.Out.URL, p.Out.Host = to, to.Host }}
	}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.URL = server.URL
	return r
}

// recorderHandler returns a recorder that nothing serves yet.
func recorderHandler(t testing.TB) *recorder {
	r := &recorder{t: t, requests: map[string]int{}, families: map[string]map[familyMetadata]bool{}}
	r.reset()
	return r
}

// reset forgets series and values.
func (r *recorder) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.series, r.values = map[string]labels.Labels{}, map[string]float64{}
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost { // another test, whose target had this port before, scrapes
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	compressed, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender has gone
	}
	body, err := snappy.Decode(nil, compressed)
	if err != nil {
		r.t.Errorf("remote_write body: %v", err)
	}
	samples, err := r.note(req.Header, body)
	if err != nil {
		r.t.Errorf("remote_write body: %v", err)
	}
	if r.next != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(compressed)), int64(len(compressed))
		r.next.ServeHTTP(w, req)
		return
	}
	for name, n := range samples {
		w.Header().Set("X-Prometheus-Remote-Write-"+name+"-Written", n)
	}
	w.WriteHeader(http.StatusNoContent)
}

// note reads a body and returns the counts that a 2.0 answer has.
func (r *recorder) note(header http.Header, body []byte) (map[string]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = header.Clone()
	r.requests[header.Get("Content-Type")]++
	if strings.Contains(header.Get("Content-Type"), "proto=io.prometheus.write.v2.Request") {
		return r.noteV2(body)
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(0)
	for i := range req.Timeseries {
		ts := &req.Timeseries[i]
		r.add(ts.ToLabels(&b, nil))
		for _, s := range ts.Samples {
			r.values[ts.ToLabels(&b, nil).String()] = s.Value
		}
	}
	for _, m := range req.Metadata {
		r.learn(m.MetricFamilyName, familyMetadata{strings.ToLower(m.Type.String()), m.Help, m.Unit})
	}
	return nil, nil
}

func (r *recorder) noteV2(body []byte) (map[string]string, error) {
	var req writev2.Request
	if err := req.Unmarshal(body); err != nil {
		return nil, err
	}
	b := labels.NewScratchBuilder(0)
	samples, histograms, exemplars := 0, 0, 0
	for i := range req.Timeseries {
		ts := &req.Timeseries[i]
		ls, err := ts.ToLabels(&b, req.Symbols)
		if err != nil {
			return nil, err
		}
		r.add(ls)
		for _, s := range ts.Samples {
			r.values[ls.String()] = s.Value
		}
		m, err := ts.ToMetadata(req.Symbols)
		if err != nil {
			return nil, err
		}
		r.learn(ls.Get(model.MetricNameLabel), familyMetadata{string(m.Type), m.Help, m.Unit})
		samples, histograms, exemplars = samples+len(ts.Samples), histograms+len(ts.Histograms), exemplars+len(ts.Exemplars)
	}
	return map[string]string{"Samples": strconv.Itoa(samples), "Histograms": strconv.Itoa(histograms), "Exemplars": strconv.Itoa(exemplars)}, nil
}

func (r *recorder) add(ls labels.Labels) { r.series[ls.String()] = ls }

func (r *recorder) learn(name string, m familyMetadata) {
	if r.families[name] == nil {
		r.families[name] = map[familyMetadata]bool{}
	}
	r.families[name][m] = true
}

// got returns the series since the last reset that have a metric name, as text, in order. No name: all.
func (r *recorder) got(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for text, ls := range r.series {
		if name == "" || ls.Get(model.MetricNameLabel) == name {
			list = append(list, text)
		}
	}
	slices.Sort(list)
	return list
}

// count returns how many series got would.
func (r *recorder) count(name string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ls := range r.series {
		if ls.Get(model.MetricNameLabel) == name {
			n++
		}
	}
	return n
}

// hashes returns those of the series that count counts.
func (r *recorder) hashes(name string) map[uint64]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := map[uint64]bool{}
	for _, ls := range r.series {
		if ls.Get(model.MetricNameLabel) == name {
			set[ls.Hash()] = true
		}
	}
	return set
}

// newest returns the last value of each series since the last reset.
func (r *recorder) newest() map[string]float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.values)
}

// metadata returns a copy of what is known by name.
func (r *recorder) metadata() map[string]map[familyMetadata]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := map[string]map[familyMetadata]bool{}
	for name, set := range r.families {
		c[name] = maps.Clone(set)
	}
	return c
}

// header returns a header of the newest request, and how many came.
func (r *recorder) header(name string) (value string, requests int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.requests {
		requests += n
	}
	return r.headers.Get(name), requests
}
