package door

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a Taker that keeps copies of what it took, and answers what it is told to.
type recorder struct {
	answer func(ctx context.Context, p *Push) (Outcome, error) // nil: one sample taken

	mu     sync.Mutex
	pushes []Push
}

func (r *recorder) Take(ctx context.Context, p *Push) (Outcome, error) {
	kept := *p
	kept.Body = bytes.Clone(p.Body)
	r.mu.Lock()
	r.pushes = append(r.pushes, kept)
	r.mu.Unlock()
	if r.answer == nil {
		return Outcome{Samples: 1}, nil
	}
	return r.answer(ctx, p)
}

func (r *recorder) taken() []Push {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pushes)
}

// logs is the lines that were logged.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rig is one door that runs, with what it recorded.
type rig struct {
	name     string
	addr     string // host:port
	base     string // http://host:port
	recorder *recorder
	registry *prometheus.Registry
	logs     *logs
	gate     *gate
}

type server interface {
	Listen() error
	Addr() net.Addr
	Serve(ctx context.Context) error
}

// start runs a door of the name until the test ends.
func start(t testing.TB, name string, change func(*Config)) *rig {
	t.Helper()
	r := &rig{name: name, recorder: new(recorder), registry: prometheus.NewPedanticRegistry(), logs: new(logs)}
	metrics, err := NewMetrics(r.registry)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Listen: "127.0.0.1:0", Taker: r.recorder, Metrics: metrics, Logger: slog.New(slog.NewTextHandler(r.logs, nil))}
	if change != nil {
		change(&cfg)
	}
	scheme := "http://"
	if cfg.TLS.Cert != "" {
		scheme = "https://"
	}
	var s server
	switch name {
	case OTLPHTTP:
		d, err := NewHTTP(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s, r.gate = d, d.gate
	case OTLPGRPC:
		d, err := NewGRPC(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s, r.gate = d, d.gate
	case RemoteWrite:
		h, err := NewRemoteWrite(cfg)
		if err != nil {
			t.Fatal(err)
		}
		web := httptest.NewServer(h)
		t.Cleanup(web.Close)
		r.addr, r.base, r.gate = web.Listener.Addr().String(), web.URL, h.(*gate)
		return r
	}
	serve(t, s)
	r.addr = s.Addr().String()
	r.base = scheme + r.addr
	return r
}

func serve(t testing.TB, s server) {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve returned %v", err)
			}
		case <-time.After(await.Patience):
			t.Error("Serve did not end")
		}
	})
}

// post sends a body with headers (name, value, …) and returns the answer with its body read.
func (r *rig) post(t testing.TB, body io.Reader, headers ...string) (*http.Response, string) {
	t.Helper()
	path := metricsPath
	if r.name == RemoteWrite {
		path = "/api/v1/write"
	}
	return do(t, http.DefaultClient, http.MethodPost, r.base+path, body, headers...)
}

func do(t testing.TB, client *http.Client, method, url string, body io.Reader, headers ...string) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	return res, string(answer)
}

// metrics is a request with n gauge points, and metricsProto and metricsJSON are its encodings.
func metrics(n int) pmetricotlp.ExportRequest {
	md := pmetric.NewMetrics()
	m := md.ResourceMetrics().AppendEmpty().ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
	m.SetName("temperature")
	points := m.SetEmptyGauge().DataPoints()
	for i := range n {
		p := points.AppendEmpty()
		p.SetDoubleValue(float64(i))
		p.SetTimestamp(1)
		p.Attributes().PutStr("room", "kitchen")
	}
	return pmetricotlp.NewExportRequestFromMetrics(md)
}

func metricsProto(t testing.TB, n int) []byte {
	t.Helper()
	b, err := metrics(n).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func metricsJSON(t testing.TB, n int) []byte {
	t.Helper()
	b, err := metrics(n).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// zeros is n zero bytes, compressed as they come.
func zeros(t testing.TB, how coding, n int64) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&out)
	if how == zstandard {
		var err error
		if w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.CopyN(w, endless{}, n); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdOf(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func snap(b []byte) []byte { return snappy.Encode(nil, b) }

// endless is zero bytes without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// atRest checks that all requests gave back what they held.
func (r *rig) atRest(t testing.TB) {
	t.Helper()
	await.True(t, "memory and slots are given back", func() bool { return r.gate.memory.used.Load() == 0 && r.gate.requests.Load() == 0 })
}
