package scraper

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/millrace/millrace/bench/loadgen"
)

// answers returns what a target of the load generator answers, scrape after scrape.
func answers(b testing.TB, config loadgen.Config, accept string, n int) (list []step) {
	b.Helper()
	g, err := loadgen.New(config)
	if err != nil {
		b.Fatal(err)
	}
	for range n {
		request := httptest.NewRequest(http.MethodGet, "/target/0/metrics", nil)
		request.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, request)
		list = append(list, step{body: w.Body.String(), contentType: w.Header().Get("Content-Type"), status: w.Code})
	}
	return list
}

// openMetricsAnswers returns the text of the load generator as OpenMetrics: counters have start timestamps, every bucket an exemplar where
// asked for, and each tenth gauge a timestamp.
func openMetricsAnswers(b testing.TB, exemplars bool, n int) (list []step) {
	for k, s := range answers(b, loadgen.Config{}, "", n) {
		var w strings.Builder
		counter, line := "", 0
		for text := range strings.Lines(s.body) {
			text = strings.TrimSuffix(text, "\n")
			name, _, _ := strings.Cut(text, "{")
			switch line++; {
			case strings.HasPrefix(text, "# TYPE ") && strings.HasSuffix(text, " counter"):
				counter = strings.TrimSuffix(strings.Fields(text)[2], "_total")
				text = "# TYPE " + counter + " counter"
			case strings.HasPrefix(text, "# TYPE "):
				counter = ""
			case strings.HasPrefix(text, "# HELP "):
				text = strings.Replace(text, "_total ", " ", 1)
			case exemplars && strings.HasSuffix(name, "_bucket"):
				text += fmt.Sprintf(" # {trace_id=\"%032x\"} 0.25", (k+line)/4)
			case exemplars && counter == "" && line%10 == 0:
				text += " 1700000000.250"
			}
			w.WriteString(text + "\n")
			if i := strings.LastIndexByte(text, ' '); exemplars && counter != "" && !strings.HasPrefix(text, "#") {
				w.WriteString(strings.Replace(text[:i], "_total", "_created", 1) + " 1700000000.5\n")
			}
		}
		list = append(list, step{body: w.String() + "# EOF\n", contentType: openMetrics})
	}
	return list
}

// benchmarkScrapes measures what it takes from a body in memory to frames at the publishers.
func benchmarkScrapes(b *testing.B, list []step, change ...func(*Config)) {
	benchmarkRig(b, newRig(b, change...), list)
}

// packing returns a rig whose loops all keep their templates packed.
func packing(t testing.TB) *rig {
	r := newRig(t)
	r.packFrom = 0
	return r
}

// benchmarkRig is benchmarkScrapes with a service.
func benchmarkRig(b *testing.B, r *rig, list []step) {
	l := r.plainLoop(1)
	bodies, now := make([]*exposition, len(list)), int64(1_750_000_000_000)
	scrape := func(k int) (samples int) {
		now += 1000
		o := outcome{}
		l.deliver(time.Now(), now, bodies[k], &o)
		u := r.unitOf(l.source)
		if u == nil || o.err != nil {
			b.Fatalf("scrape %d: %v", k, o.err)
		}
		return u.Samples
	}
	samples := 0
	for k, s := range list {
		bodies[k] = &exposition{}
		if err := r.answer(bodies[k], s, math.MaxInt64); err != nil {
			b.Fatal(err)
		}
		samples = max(samples, scrape(k))
	}
	samples, k := 0, 0
	b.ReportAllocs()
	before := processorTime()
	for b.Loop() {
		samples += scrape(k % len(list))
		k++
	}
	b.ReportMetric(float64(processorTime()-before)/float64(samples), "cpu-ns/sample")
}

// processorTime is what the process has used of the processors so far, in nanoseconds. A busy machine changes it less than it does the time by the clock.
func processorTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err) // the arguments are constants
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func BenchmarkScrape(b *testing.B) {
	startTimestamps := func(c *Config) { c.StartTimestamps = true }
	b.Run("unchanged", func(b *testing.B) { benchmarkScrapes(b, answers(b, loadgen.Config{}, "", 16)) })
	b.Run("5%changed", func(b *testing.B) { benchmarkScrapes(b, alternating(answers(b, loadgen.Config{}, "", 16), 20)) })
	b.Run("5%new", func(b *testing.B) { benchmarkScrapes(b, answers(b, loadgen.Config{ChurnPercent: 5}, "", 256)) })
	b.Run("allnew", func(b *testing.B) { benchmarkScrapes(b, answers(b, loadgen.Config{ChurnPercent: 100}, "", 64)) })
	b.Run("reordered", func(b *testing.B) { benchmarkScrapes(b, answers(b, loadgen.Config{ReorderEvery: 1}, "", 16)) })
	b.Run("packed", func(b *testing.B) { benchmarkRig(b, packing(b), answers(b, loadgen.Config{}, "", 16)) })
	b.Run("packed/5%new", func(b *testing.B) { benchmarkRig(b, packing(b), answers(b, loadgen.Config{ChurnPercent: 5}, "", 256)) })
	b.Run("recorded", func(b *testing.B) {
		var list []step
		for n := range 3 {
			list = append(list, step{body: recordedExposition(b, n+1).text(), contentType: plainText})
		}
		benchmarkScrapes(b, list)
	})
	b.Run("openmetrics", func(b *testing.B) { benchmarkScrapes(b, openMetricsAnswers(b, false, 16)) })
	b.Run("openmetrics/5%changed", func(b *testing.B) { benchmarkScrapes(b, alternating(openMetricsAnswers(b, false, 16), 20)) })
	b.Run("openmetrics/exemplars", func(b *testing.B) { benchmarkScrapes(b, openMetricsAnswers(b, true, 16)) })
	b.Run("openmetrics/starts", func(b *testing.B) { benchmarkScrapes(b, openMetricsAnswers(b, true, 16), startTimestamps) })
	b.Run("protobuf", func(b *testing.B) {
		benchmarkScrapes(b, answers(b, loadgen.Config{Kind: loadgen.Protobuf, Series: 100}, protobuf, 16))
	})
}

// BenchmarkFetch is a whole scrape over HTTP, of a target that always answers the same and costs little itself.
func BenchmarkFetch(b *testing.B) {
	for _, encoding := range []string{"identity", "gzip", "zstd"} {
		b.Run(encoding, func(b *testing.B) {
			r := newRig(b)
			l := r.newLoopTo(differentialConfig(b).ScrapeConfigs[0], ready(b, encoding, answers(b, loadgen.Config{}, "", 1)), 1)
			defer l.fetch.client.CloseIdleConnections()
			samples, at := 0, int64(1_750_000_000_000)
			for range 2 {
				r.visit(l, at)
				at += 1000
			}
			b.ReportAllocs()
			before := processorTime()
			for b.Loop() {
				samples += r.visit(l, at).Samples
				at += 1000
			}
			b.ReportMetric(float64(processorTime()-before)/float64(samples), "cpu-ns/sample")
		})
	}
}

// ready serves the bodies, one after the other, as answers that are ready: it costs little itself.
func ready(t testing.TB, encoding string, list []step) (address string) {
	var texts [][]byte
	for _, s := range list {
		var body bytes.Buffer
		switch encoding {
		case "gzip":
			z := gzip.NewWriter(&body)
			_, _ = io.WriteString(z, s.body)
			_ = z.Close()
		case "zstd":
			z, err := zstd.NewWriter(&body, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(z, s.body)
			_ = z.Close()
		default:
			body.WriteString(s.body)
		}
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n", s.contentType, encoding, body.Len())
		texts = append(texts, append([]byte(head), body.Bytes()...))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	connections := []io.Closer{listener}
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range connections {
			c.Close()
		}
	})
	var served atomic.Int64
	serve := func(c net.Conn) {
		defer c.Close()
		for in := bufio.NewReader(c); ; {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) > 2 {
				continue
			}
			if _, err := c.Write(texts[int(served.Add(1)-1)%len(texts)]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			connections = append(connections, c)
			mu.Unlock()
			go serve(c)
		}
	}()
	return listener.Addr().String()
}

// BenchmarkMemory is what 100 targets of 1,000 series take: where they expose the same series, or each its own, and where templates are kept as they are or packed.
func BenchmarkMemory(b *testing.B) {
	const targets = 100
	for _, own := range []bool{false, true} {
		for _, from := range []time.Duration{packFrom, 0} {
			b.Run(map[bool]string{false: "alike", true: "own"}[own]+map[bool]string{false: "", true: "/packed"}[from == 0], func(b *testing.B) {
				for b.Loop() {
					list := answers(b, loadgen.Config{}, "", 3)
					r := newRig(b)
					r.packFrom = from
					before := liveHeap()
					loops, series := r.fill(list, targets, own)
					b.ReportMetric(float64(liveHeap()-before)/float64(series), "B/series")
					runtime.KeepAlive(loops)
				}
			})
		}
	}
}

// fill scrapes targets with the same answers, or with ones in which each has a label of its own, and returns how many series the service knows.
func (r *rig) fill(list []step, targets int, own bool) (loops []*loop, series int) {
	for i := range targets {
		l := r.plainLoop(i)
		for k, s := range list {
			if own {
				s.body = strings.ReplaceAll(s.body, "\"} ", fmt.Sprintf("\",shop=\"shop-%d\"} ", i))
			}
			r.give(l, s, 1_750_000_000_000+int64(k)*1000)
		}
		loops = append(loops, l)
		series += len(l.source.series)
	}
	return loops, series
}

// liveHeap returns the bytes of what is in use, without what is pooled.
func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// alternating has every second body lack each n-th line but comments: those lines come and go.
func alternating(list []step, n int) []step {
	for k := 1; k < len(list); k += 2 {
		var b strings.Builder
		for i, line := range strings.SplitAfter(list[k].body, "\n") {
			if i%n != 0 || strings.HasPrefix(line, "#") {
				b.WriteString(line)
			}
		}
		list[k].body = b.String()
	}
	return list
}

// BenchmarkGunzip is what a scrape of the same target costs before it is read.
func BenchmarkGunzip(b *testing.B) {
	text := answers(b, loadgen.Config{}, "", 1)[0].body
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := io.WriteString(w, text); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	samples := 0
	for line := range strings.Lines(text) {
		if line[0] != '#' {
			samples++
		}
	}
	to := make([]byte, len(text)+1)
	b.ReportAllocs()
	before := processorTime()
	for b.Loop() {
		z := gzips.Get().(*gunzip)
		if err := z.start(bytes.NewReader(packed.Bytes())); err != nil {
			b.Fatal(err)
		}
		if n, err := io.ReadFull(z, to); n != len(text) {
			b.Fatal(n, err)
		}
		z.free()
	}
	b.ReportMetric(float64(processorTime()-before)/float64(b.N)/float64(samples), "cpu-ns/sample")
}
