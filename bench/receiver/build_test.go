package receiver

import (
	"bytes"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/bench/numbered"
)

var staleNaN = math.Float64frombits(value.StaleNaN)

// point is a sample of a test, or a histogram if h is set.
type point struct {
	series labels.Labels
	ts     int64
	v      float64
	h      *histogram.Histogram
}

// versions are both protocols, each with its Content-Type and how it writes points.
var versions = []struct {
	name, contentType string
	encode            func(...point) []byte
}{
	{"1.0", "application/x-protobuf", encodeV1},
	{"2.0", "application/x-protobuf;proto=io.prometheus.write.v2.Request", encodeV2},
}

func encodeV1(points ...point) []byte {
	var request prompb.WriteRequest
	for _, p := range points {
		ts := prompb.TimeSeries{Labels: prompb.FromLabels(p.series, nil)}
		if p.h != nil {
			ts.Histograms = []prompb.Histogram{prompb.FromIntHistogram(p.ts, p.h)}
		} else {
			ts.Samples = []prompb.Sample{{Value: p.v, Timestamp: p.ts}}
		}
		ts.Exemplars = []prompb.Exemplar{{Value: 1, Timestamp: p.ts, Labels: []prompb.Label{{Name: "trace_id", Value: "1"}}}}
		request.Timeseries = append(request.Timeseries, ts)
	}
	request.Metadata = []prompb.MetricMetadata{{Type: prompb.MetricMetadata_COUNTER, MetricFamilyName: "a", Help: "b"}}
	body, err := request.Marshal()
	if err != nil {
		panic(err)
	}
	return body
}

func encodeV2(points ...point) []byte {
	symbols := writev2.NewSymbolTable()
	var request writev2.Request
	for i := range points {
		p := points[len(points)-1-i] // another order of symbols than that of other requests
		symbols.SymbolizeLabels(p.series, nil)
	}
	for _, p := range points {
		ts := writev2.TimeSeries{LabelsRefs: symbols.SymbolizeLabels(p.series, nil)}
		if p.h != nil {
			ts.Histograms = []writev2.Histogram{writev2.FromIntHistogram(0, p.ts, p.h)}
		} else {
			ts.Samples = []writev2.Sample{{Value: p.v, Timestamp: p.ts}}
		}
		ts.Exemplars = []writev2.Exemplar{{Value: 1, Timestamp: p.ts, LabelsRefs: ts.LabelsRefs}}
		ts.Metadata = writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_COUNTER}
		request.Timeseries = append(request.Timeseries, ts)
	}
	request.Symbols = symbols.Symbols()
	body, err := request.Marshal()
	if err != nil {
		panic(err)
	}
	return body
}

// request makes a remote_write request of an uncompressed body.
func request(t testing.TB, url, contentType string, body []byte) *http.Request {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url+"/api/v1/write", bytes.NewReader(snappy.Encode(nil, body)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Content-Encoding", "snappy")
	return r
}

// push sends points in one request and returns the answer.
func push(t testing.TB, r *Receiver, version int, points ...point) *httptest.ResponseRecorder {
	t.Helper()
	v := versions[version]
	w := httptest.NewRecorder()
	r.ServeHTTP(w, request(t, "", v.contentType, v.encode(points...)))
	return w
}

// counter is a series with a scrape number; plain is one without.
func counter(target string) labels.Labels {
	return labels.FromStrings("__name__", "requests_total", "job", "a", "shape", "c7340", "target", target)
}

var plain = labels.FromStrings("__name__", "node_load1", "instance", "a:1")

// valueOf is the value of a numbered series in scrape n.
func valueOf(t testing.TB, series labels.Labels, n uint64) float64 {
	t.Helper()
	code, ok := numbered.Of(series.Get)
	if !ok {
		t.Fatalf("%s has no code", series)
	}
	return code.Value(n)
}

// nativeSeries has native histograms; native is that of scrape n.
var nativeSeries = labels.FromStrings("__name__", "rpc_seconds", "shape", "h5", "target", "t1")

func native(t testing.TB, n uint64) *histogram.Histogram {
	count := uint64(valueOf(t, nativeSeries, n))
	return &histogram.Histogram{
		Schema: 3, Count: count, Sum: 1, PositiveSpans: []histogram.Span{{Offset: 1, Length: 1}}, PositiveBuckets: []int64{int64(count)},
	}
}

func contains(list []string, part string) bool {
	return strings.Contains(strings.Join(list, "\n"), part)
}
