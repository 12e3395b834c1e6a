package e2e_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// stage is what all targets of a test look at: what they expose depends on nothing but its phase, so that everybody who scrapes during a
// phase gets the same.
type stage struct {
	mu    sync.Mutex
	phase int
	start int64 // of the phase, in milliseconds
}

// next begins the next phase. The first is 1.
func (s *stage) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase++
	s.start = max(time.Now().UnixMilli(), s.start+1)
	return s.phase
}

func (s *stage) now() scene {
	s.mu.Lock()
	defer s.mu.Unlock()
	return scene{s.phase, s.start}
}

// scene is one phase.
type scene struct {
	phase int
	start int64 // in milliseconds
}

func msTime(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// exposition is a target's answer. The zero value is an empty page without a content type.
type exposition struct {
	contentType string
	body        []byte
	gzip        []byte // the body compressed; nil where it is sent as it is
	status      int    // default: 200
	hang        bool   // never answer
}

// Content types of expositions.
const (
	textType        = "text/plain; version=0.0.4; charset=utf-8"
	openMetricsType = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	protobufType    = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

func text(body string) exposition { return exposition{contentType: textType, body: []byte(body)} }
func openMetrics(body string) exposition {
	return exposition{contentType: openMetricsType, body: []byte(body)}
}

// serveTarget serves expositions until the test ends, compressed where the scraper allows it, and returns the target's host:port. Each
// phase's exposition is made only once.
func serveTarget(t testing.TB, s *stage, expose func(scene) exposition) string {
	t.Helper()
	var mu sync.Mutex
	var at scene
	var e *exposition
	current := func() *exposition {
		mu.Lock()
		defer mu.Unlock()
		if now := s.now(); e == nil || now != at {
			made := expose(now)
			made.compress()
			at, e = now, &made
		}
		return e
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e := current()
		if e.hang {
			<-r.Context().Done()
			return
		}
		e.write(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return server.Listener.Addr().String()
}

func (e *exposition) write(w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = nil // no guessing
	if e.contentType != "" {
		w.Header().Set("Content-Type", e.contentType)
	}
	body := e.body
	if e.gzip != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		body = e.gzip
	}
	if e.status != 0 {
		w.WriteHeader(e.status)
	}
	w.Write(body)
}

// compress fills in gzip.
func (e *exposition) compress() {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(e.body)
	z.Close()
	e.gzip = b.Bytes()
}

// serveNothing ends connections without an answer. A port that nobody listens on could become somebody else's.
func serveNothing(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// recordedScrapes returns consecutive scrapes of a real node_exporter.
func recordedScrapes(t testing.TB) [][]byte {
	t.Helper()
	files, err := filepath.Glob("../../../bench/loadgen/testdata/*.txt.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded scrapes: %v", err)
	}
	var scrapes [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		scrapes = append(scrapes, b)
	}
	return scrapes
}
