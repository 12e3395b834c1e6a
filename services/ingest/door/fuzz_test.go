package door

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

// fuzzLimits are small, so that a fuzzer comes to them.
func fuzzLimits() Limits {
	l := DefaultLimits()
	l.MaxBodyBytes, l.MaxDecompressedBytes, l.MaxInFlightBytes = 1<<16, 1<<17, 1<<22
	return l
}

// FuzzHTTPJSON looks for JSON that makes the door panic, answer with an error of its own, lose memory, or hand over
// what is no message of OTLP.
func FuzzHTTPJSON(f *testing.F) {
	f.Add(metricsJSON(f, 2))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"resourceMetrics":[{"resource":{"attributes":[{"key":"a","value":{"arrayValue":{"values":[{"bytesValue":"AA=="}]}}}]},"scopeMetrics":[{"metrics":[{"name":"h","histogram":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA","dataPoints":[{"timeUnixNano":"1","count":"2","bucketCounts":["1",1],"explicitBounds":[1.5],"exemplars":[{"traceId":"00000000000000000000000000000001","asInt":"3"}]}]}}]}]}]}`))
	f.Add([]byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"exponentialHistogram":{"dataPoints":[{"scale":1,"positive":{"offset":-1,"bucketCounts":["NaN"]}}]}}]}]}]}`))
	f.Add([]byte(`{"a":` + strings.Repeat("[", 200)))
	taker := new(recorder)
	cfg := Config{Name: OTLPHTTP, Taker: taker, Limits: fuzzLimits()}.withDefaults(OTLPHTTP)
	g, err := newGate(cfg, nil)
	if err != nil {
		f.Fatal(err)
	}
	g.protocol = otlpHTTP{g}
	f.Fuzz(func(t *testing.T, body []byte) {
		taker.pushes = nil
		r := httptest.NewRequest(http.MethodPost, metricsPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", jsonType)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		checkFuzzed(t, g, w.Code, 200, 400, 413)
		for _, p := range taker.pushes {
			if err := pmetricotlp.NewExportRequest().UnmarshalProto(p.Body); err != nil {
				t.Errorf("the message cannot be read: %v", err)
			}
		}
	})
}

// FuzzRemoteWrite looks for headers and bodies that make the door panic, answer with an error of its own or lose memory.
func FuzzRemoteWrite(f *testing.F) {
	f.Add("POST", protobufType, "snappy", "blue", snap(writeV1(f)))
	f.Add("POST", v2Type, "snappy", "", snap(writeV1(f)))
	f.Add("GET", "application/x-protobuf; proto", "gzip", "\xff", []byte("\xff\xff\xff\xff\x0f"))
	f.Add("POST", "application/x-protobuf;proto=x;proto=y", "snappy", "a\x00", bytes.Repeat([]byte{0xfe, 1, 0}, 100))
	taker := new(recorder)
	h, err := NewRemoteWrite(Config{Taker: taker, Limits: fuzzLimits(), TenantHeader: "X-Scope-OrgID"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, contentType, coding, tenant string, body []byte) {
		taker.pushes = nil
		r := httptest.NewRequest(http.MethodPost, "/api/v1/write", bytes.NewReader(body))
		r.Method = method
		r.Header["Content-Type"], r.Header["Content-Encoding"], r.Header["X-Scope-Orgid"] = []string{contentType}, []string{coding}, []string{tenant}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		checkFuzzed(t, h.(*gate), w.Code, 204, 400, 405, 413, 415)
		for _, p := range taker.pushes {
			if int64(len(p.Body)) > p.Limits.MaxDecompressedBytes || len(p.Tenant) > maxTenantBytes {
				t.Errorf("%d bytes of tenant %q", len(p.Body), p.Tenant)
			}
		}
	})
}

func checkFuzzed(t *testing.T, g *gate, status int, allowed ...int) {
	t.Helper()
	known := false
	for _, s := range allowed {
		known = known || s == status
	}
	if !known {
		t.Errorf("status %d", status)
	}
	if held := g.memory.used.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
}
