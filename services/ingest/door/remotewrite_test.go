package door

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
)

const v2Type = "application/x-protobuf;proto=io.prometheus.write.v2.Request"

func writeV1(t testing.TB) []byte {
	t.Helper()
	b, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels:  []prompb.Label{{Name: "__name__", Value: "up"}},
		Samples: []prompb.Sample{{Value: 1, Timestamp: 1000}},
	}}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeV2() *writev2.Request {
	return &writev2.Request{
		Symbols:    []string{"", "__name__", "up"},
		Timeseries: []writev2.TimeSeries{{LabelsRefs: []uint32{1, 2}, Samples: []writev2.Sample{{Value: 1, Timestamp: 1000}}}},
	}
}

func TestRemoteWriteTakesBothVersions(t *testing.T) {
	v1 := writeV1(t)
	// A push without Content-Encoding is taken for snappy, as by Prometheus.
	bare := start(t, RemoteWrite, nil)
	if res, answer := bare.post(t, bytes.NewReader(snap(v1)), "Content-Type", protobufType); res.StatusCode != http.StatusNoContent {
		t.Errorf("without an encoding: status %d: %s", res.StatusCode, answer)
	}
	if taken := bare.recorder.taken(); len(taken) != 1 || !bytes.Equal(taken[0].Body, v1) {
		t.Errorf("without an encoding: took %+v", taken)
	}
	v2, err := writeV2().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		contentType string
		body        []byte
		format      Format
	}{
		{"", v1, RemoteWriteV1},
		{"application/x-protobuf", v1, RemoteWriteV1},
		{"application/x-protobuf;proto=prometheus.WriteRequest", v1, RemoteWriteV1},
		{"application/x-protobuf; charset=utf-8", v1, RemoteWriteV1},
		{v2Type, v2, RemoteWriteV2},
		{`application/x-protobuf; proto="io.prometheus.write.v2.Request"`, v2, RemoteWriteV2},
	} {
		r := start(t, RemoteWrite, nil)
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) {
			return Outcome{Samples: 11, Histograms: 12, Exemplars: 13}, nil
		}
		res, answer := r.post(t, bytes.NewReader(snap(c.body)), "Content-Type", c.contentType, "Content-Encoding", "snappy")
		if res.StatusCode != http.StatusNoContent || answer != "" {
			t.Fatalf("%q: status %d: %s", c.contentType, res.StatusCode, answer)
		}
		checkWritten(t, res, c.format, Outcome{Samples: 11, Histograms: 12, Exemplars: 13})
		taken := r.recorder.taken()
		if len(taken) != 1 || taken[0].Format != c.format || !bytes.Equal(taken[0].Body, c.body) {
			t.Errorf("%q: took %+v", c.contentType, taken)
		}
		r.atRest(t)
	}
}

func checkWritten(t *testing.T, res *http.Response, format Format, want Outcome) {
	t.Helper()
	for name, n := range map[string]int{"Samples": want.Samples, "Histograms": want.Histograms, "Exemplars": want.Exemplars} {
		expected := strconv.Itoa(n)
		if format == RemoteWriteV1 {
			expected = ""
		}
		if got := res.Header.Get("X-Prometheus-Remote-Write-" + name + "-Written"); got != expected {
			t.Errorf("%v: %s written %q, want %q", format, name, got, expected)
		}
	}
}

// A real client of remote_write 2.0 understands the answers.
func TestRemoteWriteServesTheClientOfPrometheus(t *testing.T) {
	r := start(t, RemoteWrite, nil)
	calls := 0
	r.recorder.answer = func(context.Context, *Push) (Outcome, error) {
		if calls++; calls == 1 {
			return Outcome{}, &Refusal{Kind: Unavailable, RetryAfter: time.Millisecond, Message: "no stream"}
		}
		return Outcome{Samples: 1}, nil
	}
	api, err := remote.NewAPI(r.base)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := api.Write(t.Context(), remote.WriteV2MessageType, writeV2())
	if err != nil || stats.Samples != 1 || calls != 2 {
		t.Errorf("%v, %+v after %d calls", err, stats, calls)
	}
}

func TestRemoteWriteSaysWhatTheTakerSays(t *testing.T) {
	for _, c := range outcomes {
		for _, contentType := range []string{protobufType, v2Type} {
			t.Run(c.name+" "+contentType, func(t *testing.T) {
				r := start(t, RemoteWrite, nil)
				r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return c.outcome, c.err }
				res, answer := r.post(t, bytes.NewReader(snap(writeV1(t))), "Content-Type", contentType, "Content-Encoding", "snappy")
				if res.StatusCode != c.status || !strings.Contains(answer, c.text) || strings.Contains(answer, "secret") {
					t.Errorf("status %d: %q, want %d with %q", res.StatusCode, answer, c.status, c.text)
				}
				if got := res.Header.Get("Retry-After"); got != c.retry {
					t.Errorf("Retry-After %q, want %q", got, c.retry)
				}
				format := RemoteWriteV1
				if contentType == v2Type {
					format = RemoteWriteV2
				}
				checkWritten(t, res, format, Outcome{})
			})
		}
	}
}

func TestRemoteWriteTellsPartialWrites(t *testing.T) {
	for contentType, format := range map[string]Format{protobufType: RemoteWriteV1, v2Type: RemoteWriteV2} {
		r := start(t, RemoteWrite, nil)
		outcome := Outcome{Samples: 4, Histograms: 1, Refused: 2, Reason: "too old: up"}
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return outcome, nil }
		res, answer := r.post(t, bytes.NewReader(snap(writeV1(t))), "Content-Type", contentType, "Content-Encoding", "snappy")
		if res.StatusCode != 400 || !strings.Contains(answer, "too old: up") {
			t.Errorf("status %d: %q", res.StatusCode, answer)
		}
		checkWritten(t, res, format, outcome)
		outcome.Reason = ""
		if res, answer = r.post(t, bytes.NewReader(snap(writeV1(t))), "Content-Type", contentType, "Content-Encoding", "snappy"); res.StatusCode != 400 || !strings.Contains(answer, "2 samples") {
			t.Errorf("status %d: %q", res.StatusCode, answer)
		}
	}
}

func TestRemoteWriteRefusesWhatIsNotForIt(t *testing.T) {
	r := start(t, RemoteWrite, func(c *Config) { c.Limits.MaxDecompressedBytes = 1 << 20 })
	good := string(snap(writeV1(t)))
	for _, c := range []struct {
		name, method, contentType, coding, body string
		status                                  int
		text                                    string
	}{
		{"method", "GET", "", "", "", 405, "POST"},
		{"type", "POST", "application/json", "snappy", good, 415, "application/x-protobuf"},
		{"message", "POST", "application/x-protobuf;proto=io.prometheus.write.v3.Request", "snappy", good, 415, "io.prometheus.write.v2.Request"},
		{"broken type", "POST", "application/x-protobuf;proto", "snappy", good, 415, "application/x-protobuf"},
		{"coding", "POST", protobufType, "gzip", good, 415, "snappy (block format)"},
		{"no coding, not compressed", "POST", protobufType, "", strings.Repeat("plain", 100), 400, "corrupt snappy data"},
		{"nothing", "POST", protobufType, "snappy", "", 400, "snappy"},
		{"corrupt", "POST", protobufType, "snappy", "\x05\x00\x00\x00\x00", 400, "snappy"},
		{"framed format", "POST", protobufType, "snappy", "\xff\x06\x00\x00sNaPpY", 400, "snappy"},
		{"claims more than its bytes can hold", "POST", protobufType, "snappy", "\x80\x80\x20abc", 400, "cannot hold"},
		{"claims 4 GiB", "POST", protobufType, "snappy", "\xff\xff\xff\xff\x0fabc", 413, "larger than 1 MiB decompressed"},
		{"claims more than 4 GiB", "POST", protobufType, "snappy", "\xff\xff\xff\xff\xff\x0fabc", 400, "corrupt"},
		{"too large", "POST", protobufType, "snappy", string(snappy.Encode(nil, make([]byte, 2<<20))), 413, "max_decompressed_bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			headers := []string{"Content-Type", c.contentType}
			if c.coding != "" {
				headers = append(headers, "Content-Encoding", c.coding)
			}
			res, answer := do(t, http.DefaultClient, c.method, r.base, strings.NewReader(c.body), headers...)
			if res.StatusCode != c.status || !strings.Contains(answer, c.text) {
				t.Errorf("status %d: %q, want %d with %q", res.StatusCode, answer, c.status, c.text)
			}
		})
	}
	if res, answer := r.post(t, bytes.NewReader(snap(nil)), "Content-Type", protobufType, "Content-Encoding", "snappy"); res.StatusCode != 204 {
		t.Errorf("empty request: %d %s", res.StatusCode, answer)
	}
	if n := len(r.recorder.taken()); n > 0 {
		t.Errorf("%d of them came to the taker", n)
	}
	r.atRest(t)
}
