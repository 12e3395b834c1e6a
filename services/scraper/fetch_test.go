package scraper

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
)

// visit scrapes a target over HTTP and returns what would be published.
func (r *rig) visit(l *loop, at int64) *publish.Unit {
	r.t.Helper()
	l.scrape(context.Background(), time.UnixMilli(at))
	u := r.unitOf(l.source)
	if u == nil {
		r.t.Fatal("a scrape left nothing")
	}
	return u
}

func targetAt(t testing.TB, h http.HandlerFunc) (address string) {
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		server.CloseClientConnections()
		server.Close()
	})
	return strings.TrimPrefix(server.URL, "http://")
}

// TestEncodingsOfBodies has a target answer in each encoding that it is offered, with bodies that are fetched as a whole and in pieces.
func TestEncodingsOfBodies(t *testing.T) {
	var long strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&long, "metric{n=\"%d\"} %d\n", i, i)
	}
	encoders := map[string]func(io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			return z
		},
	}
	for _, encoding := range []string{"", "gzip", "zstd"} {
		for _, n := range []int{piece, 5000} {
			t.Run(fmt.Sprint(encoding, n), func(t *testing.T) {
				r := newRig(t)
				r.piece = n
				var mu sync.Mutex
				connections := map[string]bool{}
				l := r.newLoopTo(differentialConfig(t).ScrapeConfigs[0], targetAt(t, func(w http.ResponseWriter, req *http.Request) {
					mu.Lock()
					connections[req.RemoteAddr] = true
					mu.Unlock()
					if got := req.Header.Get("Accept-Encoding"); got != "zstd,gzip" {
						t.Errorf("the target is offered %q", got)
					}
					w.Header().Set("Content-Type", plainText)
					if encoding == "" {
						_, _ = io.WriteString(w, long.String())
						return
					}
					w.Header().Set("Content-Encoding", encoding)
					z := encoders[encoding](w)
					_, _ = io.WriteString(z, long.String())
					_ = z.Close()
				}), 1)
				defer l.fetch.client.CloseIdleConnections()
				for k := range 4 {
					if u := r.visit(l, int64(1000*(k+1))); u.Samples != 3005 {
						t.Fatalf("scrape %d has %d samples: %v", k+1, u.Samples, l.target.LastError())
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if len(connections) != 1 {
					t.Errorf("%d connections for 4 scrapes", len(connections))
				}
			})
		}
	}
}

// TestTargetsOnTheMachineAreAskedForPlainBodies follows the option for it.
func TestTargetsOnTheMachineAreAskedForPlainBodies(t *testing.T) {
	for _, c := range []struct {
		option  bool
		address string
		want    string
	}{
		{false, "127.0.0.1:80", "zstd,gzip"}, {true, "127.0.0.1:80", "identity"}, {true, "[::1]:80", "identity"}, {true, "localhost:80", "identity"}, {true, "127.1.2.3", "identity"},
		{true, "10.0.0.1:80", "zstd,gzip"}, {true, "localhost.example:80", "zstd,gzip"},
	} {
		r := newRig(t, func(cfg *Config) { cfg.LoopbackIdentity = c.option })
		l := r.newLoopTo(differentialConfig(t).ScrapeConfigs[0], c.address, 1)
		if got := l.fetch.request.Header.Get("Accept-Encoding"); got != c.want {
			t.Errorf("%s is offered %q, want %q (option %t)", c.address, got, c.want, c.option)
		}
	}
}

// TestVisitsAllocateLittle bounds the garbage of a whole scrape, from the request to the frame, of a target whose series are known.
func TestVisitsAllocateLittle(t *testing.T) {
	if raceDetector {
		t.Skip("it drops a part of what is pooled")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which empties the pools
	for _, encoding := range []string{"identity", "gzip", "zstd"} {
		t.Run(encoding, func(t *testing.T) {
			r := newRig(t)
			l := r.newLoopTo(differentialConfig(t).ScrapeConfigs[0], ready(t, encoding, answers(t, loadgen.Config{}, "", 4)), 1)
			defer l.fetch.client.CloseIdleConnections()
			samples, at := 0, int64(1000)
			visit := func() {
				samples = r.visit(l, at).Samples
				at += 1000
			}
			const rounds, visits = 8, 10
			objects, size := math.Inf(1), math.Inf(1) // of the best round: each processor fills its pools once
			for range rounds {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				for range visits {
					visit()
				}
				runtime.ReadMemStats(&after)
				objects = min(objects, float64(after.Mallocs-before.Mallocs)/float64(visits*samples))
				size = min(size, float64(after.TotalAlloc-before.TotalAlloc)/float64(visits*samples))
			}
			t.Logf("%d samples, %.3f objects and %.1f bytes are allocated for each", samples, objects, size)
			if samples < 1000 || objects > 0.1 || size > 15 {
				t.Errorf("of %d samples, each has %.3f objects and %.1f bytes allocated, want at most 0.1 and 15", samples, objects, size)
			}
		})
	}
}

const (
	hugeSeries = 500_000
	hugeLine   = "kube_pod_status_phase{namespace=\"namespace-%d\",pod=\"deployment-%d-5d7f9c7b8-x2x4q\",uid=\"0f2d6b1e-7c1d-4e8a-9a55-%012d\",phase=\"Running\",node=\"ip-10-0-%d-%d.eu-central-1.compute.internal\"} "
)

func hugeValue(i, scrape int) float64 { return float64(i%1000*7 + scrape*i%13) }

// hugeTarget answers with half a million series. Where every is above 0, each scrape has one of so many series replaced by another one. size is of the last body, in bytes.
func hugeTarget(t testing.TB, every int) (address string, size *atomic.Int64) {
	var scrapes atomic.Int64
	size = &atomic.Int64{}
	return targetAt(t, func(w http.ResponseWriter, _ *http.Request) {
		n := int(scrapes.Add(1))
		w.Header().Set("Content-Type", plainText)
		w.Header().Set("Content-Encoding", "gzip")
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
		b := bufio.NewWriterSize(z, 1<<16)
		fmt.Fprint(b, "# HELP kube_pod_status_phase The pods current phase.\n# TYPE kube_pod_status_phase gauge\n")
		line, total := []byte(nil), 0
		for i := range hugeSeries {
			pod := i / 10
			if every > 0 && i%every == 0 {
				pod += n * hugeSeries
			}
			line = fmt.Appendf(line[:0], hugeLine, i/5000, pod, i, i/256%256, i%256)
			line = append(strconv.AppendFloat(line, hugeValue(i, n), 'f', -1, 64), '\n')
			total += len(line)
			_, _ = b.Write(line)
		}
		size.Store(int64(total))
		_ = b.Flush()
		_ = z.Close()
	}), size
}

// TestHugeTargetsStreamThrough scrapes a target of half a million series. Once they are known no copy is made of what repeats them, and one where some are new.
func TestHugeTargetsStreamThrough(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	for _, c := range []struct {
		name   string
		every  int     // one of so many series is replaced; 0 for none
		copies float64 // of the body that a scrape may allocate
		live   uint64  // bytes a series, at the end
	}{
		{"unchanged", 0, 1. / 3, 380},
		{"1% replaced", 100, 2.1, 380},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, size := hugeTarget(t, c.every)
			r := newRig(t)
			l := r.newLoopTo(differentialConfig(t).ScrapeConfigs[0], address, 1)
			l.timeout = 10 * time.Minute // the race detector makes it slow
			defer l.fetch.client.CloseIdleConnections()
			numbers := map[frame.DictID][]int{}
			var before, after runtime.MemStats
			for n := 1; n <= 4; n++ {
				runtime.GC()
				runtime.ReadMemStats(&before)
				u := r.visit(l, int64(1000*n))
				runtime.ReadMemStats(&after)
				allocated := int64(after.TotalAlloc - before.TotalAlloc)
				t.Logf("scrape %d: %d samples, body %d MB, %d MB live before, %d MB allocated, %d MB from the system", n, u.Samples, size.Load()>>20, before.HeapAlloc>>20, allocated>>20, after.Sys>>20)
				if most := int64(c.copies * float64(size.Load())); n > 1 && allocated > most && !raceDetector {
					t.Errorf("scrape %d of a body of %d bytes allocates %d", n, size.Load(), allocated)
				}
				ended := 0
				if n > 1 && c.every > 0 {
					ended = hugeSeries / c.every
				}
				checkHuge(t, u, n, ended, numbers)
			}
			runtime.GC()
			runtime.GC() // what is pooled goes with the second
			runtime.ReadMemStats(&after)
			t.Logf("%d MB live, %d bytes a series", after.HeapAlloc>>20, after.HeapAlloc/hugeSeries)
			if after.HeapAlloc > c.live*hugeSeries && !raceDetector {
				t.Errorf("%d bytes a series are live, want at most %d", after.HeapAlloc/hugeSeries, c.live)
			}
			if l.size < 50<<20 {
				t.Errorf("the body has %d bytes", l.size)
			}
			runtime.KeepAlive(l)
		})
	}
}

// checkHuge compares all samples of a scrape in which so many series have ended. numbers remembers what the series of dictionaries are.
func checkHuge(t *testing.T, u *publish.Unit, scrape, ended int, numbers map[frame.DictID][]int) {
	t.Helper()
	for _, d := range u.Dicts {
		if numbers[d.ID] != nil {
			continue
		}
		read, err := frame.ReadDictionary(d.Msg, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		list := make([]int, len(read.Series))
		for k := range read.Series {
			list[k] = -1 // a report
			if uid := read.Series[k].Labels.Get("uid"); uid != "" {
				if list[k], err = strconv.Atoi(uid[strings.LastIndexByte(uid, '-')+1:]); err != nil {
					t.Fatal(err)
				}
			}
		}
		numbers[d.ID] = list
	}
	var w frame.BatchWriter
	seen := make([]bool, hugeSeries)
	for _, f := range u.Frames {
		w.Add(f.Data, f.Time, f.Samples)
		for _, f := range openBatch(t, w.Seal(0)) {
			for _, s := range f.Sections {
				for k, v := range s.Values {
					if s.Present != nil {
						k = int(s.Present[k])
					}
					i := numbers[s.Dict][k]
					if i < 0 {
						continue
					}
					if value.IsStaleNaN(v) {
						ended--
						continue
					}
					if want := hugeValue(i, scrape); seen[i] || math.Float64bits(v) != math.Float64bits(want) {
						t.Fatalf("scrape %d: series %d is %v, want %v; seen before: %t", scrape, i, v, want, seen[i])
					}
					seen[i] = true
				}
			}
		}
	}
	for i, ok := range seen {
		if !ok {
			t.Fatalf("scrape %d lacks series %d", scrape, i)
		}
	}
	if ended != 0 {
		t.Fatalf("scrape %d lacks %d staleness markers", scrape, ended)
	}
}
