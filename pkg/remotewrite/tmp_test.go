package remotewrite

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"
	"fmt"
	"time"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/common/model"
	"github.com/millrace/millrace/pkg/frame"
)

func cpu() time.Duration {
	var ru syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func minCPU(rounds, n int, f func()) time.Duration {
	best := time.Hour
	for range rounds {
		s := cpu()
		for range n { f() }
		best = min(best, (cpu()-s)/time.Duration(n))
	}
	return best
}

func TestTmpSnappy(t *testing.T) {
	for _, p := range []Protocol{V1, V2} {
		for _, per := range []int{1000, 50, 0} {
			r := NewRequest(p)
			var blocks []*Block
			var vals [][]float64
			if per > 0 {
				for i := range 2000/per { blocks = append(blocks, NewBlock(p, targetSeries(i, per))); vals = append(vals, scrape(per)) }
			} else {
				for i := 1; r.Samples() < 2000 && i < 34; i++ {
					b, err := os.ReadFile(fmt.Sprintf("/work/shared/recorded/%02d.txt", i))
					if err != nil { t.Fatal(err) }
					ps, err := textparse.New(b, "text/plain", labels.NewSymbolTable(), textparse.ParserOptions{})
					if ps == nil { t.Fatal(err) }
					var ser []frame.Series
					var vs []float64
					for {
						e, err := ps.Next()
						if errors.Is(err, io.EOF) || err != nil { break }
						if e != textparse.EntrySeries { continue }
						_, _, v := ps.Series()
						var l labels.Labels
						ps.Labels(&l)
						lb := labels.NewBuilder(l)
						lb.Set("instance", fmt.Sprintf("host-%d.example.com:9100", i)); lb.Set("job", "node"); lb.Set("cluster", "eu1")
						ser = append(ser, frame.Series{Labels: lb.Labels()}); vs = append(vs, v)
						if len(ser) == 1000 { break }
					}
					blocks = append(blocks, NewBlock(p, ser)); vals = append(vals, vs)
					n := 0
					for _, x := range vals { n += len(x) }
					if n > 2000 { break }
				}
			}
			run := func() {
				r.Reset()
				for j, b := range blocks { for i, v := range vals[j] { r.Add(b, uint32(i), benchTime, 0, v) } }
			}
			run()
			n := r.Samples()
			add := minCPU(7, 300, run)
			raw := bytes.Clone(r.Raw())
			t.Logf("v%s per=%d n=%d raw %.1f B/sample block %.0f B/series add %.1f ns/sample", p, per, n, float64(len(raw))/float64(n), float64(blocks[0].Bytes())/float64(blocks[0].Series()), float64(add.Nanoseconds())/float64(n))
			for name, enc := range map[string]func(a, b []byte) []byte{"golang": snappy.Encode, "s2": s2.EncodeSnappy, "better": s2.EncodeSnappyBetter} {
				dst := make([]byte, s2.MaxEncodedLen(len(raw)))
				sz := 0
				d := minCPU(7, 200, func() { sz = len(enc(dst, raw)) })
				t.Logf("   %s %.1f ns/sample %.2f B/sample", name, float64(d.Nanoseconds())/float64(n), float64(sz)/float64(n))
			}
		}
	}
}

func TestTmpOtel(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); w.WriteHeader(204) }))
	defer s.Close()
	rw := endpoint(t, s.URL, "")
	c := newClient(t, rw)
	wc, err := remote.NewWriteClient("x", &remote.ClientConfig{URL: rw.URL, Timeout: model.Duration(time.Second*30), HTTPClientConfig: rw.HTTPClientConfig})
	if err != nil { t.Fatal(err) }
	plain := c.client
	body := make([]byte, 30000)
	for range 3 {
		for name, cl := range map[string]*http.Client{"plain": plain, "otel": wc.(*remote.Client).Client} {
			c.client = cl
			d := minCPU(7, 1000, func() { if r := c.Send(t.Context(), V1, body, 0); r.Outcome != Accepted { t.Fatal(r.Err) } })
			a := testing.AllocsPerRun(200, func() { c.Send(t.Context(), V1, body, 0) })
			t.Logf("%s %v CPU/request (incl. server) %v allocs", name, d, a)
		}
	}
}
