package door

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
)

// nothing is a Taker whose work costs nothing, so that what is measured is the door.
type nothing struct{}

func (nothing) Take(context.Context, *Push) (Outcome, error) { return Outcome{Samples: 1}, nil }

// benchWriter takes an answer and forgets it.
type benchWriter struct{ header http.Header }

func (w *benchWriter) Header() http.Header         { return w.header }
func (w *benchWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w *benchWriter) WriteHeader(int)             {}

// reusable is a body that can be sent again.
type reusable struct{ bytes.Reader }

func (*reusable) Close() error { return nil }

// BenchmarkRequest is the door's own cost of a request, besides that of net/http and the network.
func BenchmarkRequest(b *testing.B) {
	small, large := metricsProto(b, 10), metricsProto(b, 2000)
	for _, c := range []struct {
		name, door, coding string
		body               []byte
	}{
		{"http/identity/10", OTLPHTTP, "identity", small},
		{"http/gzip/10", OTLPHTTP, "gzip", zip(b, small)},
		{"http/gzip/2000", OTLPHTTP, "gzip", zip(b, large)},
		{"http/zstd/10", OTLPHTTP, "zstd", zstdOf(b, small)},
		{"http/zstd/2000", OTLPHTTP, "zstd", zstdOf(b, large)},
		{"remote_write/snappy/10", RemoteWrite, "snappy", snap(small)},
		{"grpc/gzip/10", OTLPGRPC, "gzip", framed(1, zip(b, small))},
	} {
		b.Run(c.name, func(b *testing.B) {
			cfg := Config{Taker: nothing{}}.withDefaults(c.door)
			g, err := newGate(cfg, nil)
			if err != nil {
				b.Fatal(err)
			}
			path, contentType, codingHeader, major := metricsPath, protobufType, "Content-Encoding", 1
			switch c.door {
			case OTLPHTTP:
				g.protocol = otlpHTTP{g}
			case RemoteWrite:
				g.protocol = &remoteWrite{g}
			case OTLPGRPC:
				g.protocol = otlpGRPC{g}
				path, contentType, codingHeader, major = exportPath, grpcType, "Grpc-Encoding", 2
			}
			r, err := http.NewRequest(http.MethodPost, "http://localhost"+path, nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Header.Set("Content-Type", contentType)
			r.Header.Set(codingHeader, c.coding)
			r.ContentLength, r.RemoteAddr, r.ProtoMajor = int64(len(c.body)), "127.0.0.1:4711", major
			body, w := new(reusable), &benchWriter{header: http.Header{}}
			r.Body = body
			b.SetBytes(int64(len(c.body)))
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(c.body)
				clear(w.header)
				g.ServeHTTP(w, r)
			}
			if len(g.refusals.reasons) > 0 {
				b.Fatal("the requests were refused")
			}
		})
	}
}

// BenchmarkServer is a request of OTLP/HTTP with gzip through everything, the client's part included.
func BenchmarkServer(b *testing.B) {
	r := start(b, OTLPHTTP, func(c *Config) { c.Taker = nothing{} })
	body := zip(b, metricsProto(b, 10))
	b.ReportAllocs()
	for b.Loop() {
		req, err := http.NewRequest(http.MethodPost, r.base+metricsPath, bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", protobufType)
		req.Header.Set("Content-Encoding", "gzip")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			b.Fatal(res.Status)
		}
	}
}
