package e2e_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const gib = 1 << 30

// badTarget is a target that does something which it should not.
type badTarget struct {
	name  string
	serve http.HandlerFunc
	// up says whether the scrape counts as successful, as in Prometheus.
	up float64
	// says is in the target's last error.
	says string
	// takes is what the endpoint gets for the series of this name: a substring of its text for each. nil for nothing at all.
	takes map[string][]string
}

// endless writes a chunk until the body has a size, or the client has gone.
func endless(w http.ResponseWriter, r *http.Request, size int64, chunk []byte) {
	for n := int64(0); n < size && r.Context().Err() == nil; n += int64(len(chunk)) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// lines returns about a MiB of exposition.
func lines() []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < 1<<20; i++ {
		fmt.Fprintf(&b, "big_metric_total{number=\"%d\"} %d\n", i, i)
	}
	return b.Bytes()
}

// bomb returns a gzip body of a GiB of one byte.
func bomb(t testing.TB) []byte {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("#"), 1<<20)
	for range gib / len(chunk) {
		if _, err := z.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// exposes returns a handler that exposes a text.
func exposes(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", textType)
		w.Write([]byte(body))
	}
}

func TestTargetsOfAGiBAreCutOff(t *testing.T) {
	packed, chunk := bomb(t), lines()
	// The time is what a slow machine takes for two times 100 MiB with the race detector.
	badTargets(t, 600<<20, 20*time.Second, []badTarget{
		{
			name: "a GiB", says: "body size limit exceeded",
			serve: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", textType)
				endless(w, r, gib, chunk)
			},
		},
		{
			name: "a GiB in a gzip bomb", says: "body size limit exceeded",
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", textType)
				w.Header().Set("Content-Encoding", "gzip")
				w.Write(packed)
			},
		},
	})
}

func TestBadTargetsHarmNobodyElse(t *testing.T) {
	huge := strings.Repeat("x", 1<<20)
	var many strings.Builder
	many.WriteString("many{")
	for i := range 1_000_000 {
		fmt.Fprintf(&many, "l%d=\"\",", i)
	}
	many.WriteString("a=\"b\"} 1\n")
	var full strings.Builder
	full.WriteString("full{")
	for i := range 1_000_000 {
		fmt.Fprintf(&full, "l%d=\"1\",", i)
	}
	full.WriteString("} 1\n")
	packed := func(s string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write([]byte(s))
		z.Close()
		return b.Bytes()
	}
	badTargets(t, 600<<20, 3*time.Second, []badTarget{
		{
			name: "never ends", says: "context deadline exceeded",
			serve: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", textType)
				tick := time.NewTicker(50 * time.Millisecond)
				defer tick.Stop()
				for i := 0; ; i++ {
					fmt.Fprintf(w, "endless{i=\"%d\"} 1\n", i)
					w.(http.Flusher).Flush()
					select {
					case <-r.Context().Done():
						return
					case <-tick.C:
					}
				}
			},
		},
		{
			name: "lies about gzip", says: "gzip: invalid header",
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", textType)
				w.Header().Set("Content-Encoding", "gzip")
				w.Write([]byte("lying_about_gzip 1\n"))
			},
		},
		{
			name: "broken gzip", says: "unexpected EOF",
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", textType)
				w.Header().Set("Content-Encoding", "gzip")
				body := packed(strings.Repeat("broken 1\n", 1000))
				w.Write(body[:len(body)/2])
			},
		},
		{name: "invalid UTF-8", serve: exposes("good_before 1\nbad{a=\"\xff\xfe\"} 1\n"), says: "invalid UTF-8"},
		{name: "duplicate series, one value", serve: exposes("twice{a=\"b\"} 1\ntwice{a=\"b\"} 1\nbeside 5\n"), up: 1, takes: map[string][]string{"twice": {`a="b"`}, "beside": {""}}},
		{name: "duplicate series, two values", serve: exposes("two{a=\"b\"} 1\ntwo{a=\"b\"} 2\nbeside_two 5\n"), up: 1, takes: map[string][]string{"two": {`a="b"`}, "beside_two": {""}}},
		{
			name: "an hour ahead", up: 1, takes: map[string][]string{"beside_future": {""}},
			serve: func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, "future 1 %d\nbeside_future 1\n", time.Now().Add(time.Hour).UnixMilli())
			},
		},
		{name: "a million empty labels", serve: exposes(many.String()), up: 1, takes: map[string][]string{"many": {`a="b"`}}},
		{name: "a million labels", serve: exposes(full.String()), says: "label"},
		{name: "a label of a MiB", serve: exposes("wide{a=\"" + huge + "\"} 1\n"), says: "label"},
		{name: "a name of a MiB", serve: exposes(huge + " 1\n"), says: "label"},
		{
			name: "wrong content type", says: "Content-Type",
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				w.Write([]byte("<html>not metrics</html>\n"))
			},
		},
		{name: "no metrics", serve: exposes("<html>not metrics</html>\n"), says: "expected"},
		{name: "an error page", serve: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) }, says: "418"},
		{
			name: "hangs up", says: "EOF",
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "1000")
				w.Write([]byte("half 1\n"))
				panic(http.ErrAbortHandler)
			},
		},
		{name: "nothing at all", serve: exposes(""), up: 1},
	})
}

// badTargets scrapes bad targets and a good one at an interval, which is the timeout too, and checks what becomes of each. The process stays below a
// limit of resident memory.
func badTargets(t *testing.T, limit int64, interval time.Duration, bad []badTarget) {
	rec := newRecorder(t, "")
	var good atomic.Int64
	var jobs strings.Builder
	add := func(name string, serve http.HandlerFunc) {
		server := httptest.NewServer(serve)
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		fmt.Fprintf(&jobs, "- job_name: %q\n  static_configs: [{targets: [%q]}]\n", name, server.Listener.Addr())
	}
	scrapes := make([]atomic.Int64, len(bad))
	for i := range bad {
		add(bad[i].name, func(w http.ResponseWriter, r *http.Request) {
			scrapes[i].Add(1)
			bad[i].serve(w, r)
		})
	}
	add("good", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "good_scrapes_total %d\n", good.Add(1)) })
	p := startMillrace(t, fmt.Sprintf("global: {scrape_interval: %v, scrape_timeout: %[1]v}\nscrape_configs:\n", interval)+jobs.String()+"remote_write:\n"+remoteWrite("main", rec.URL), asShipped())
	stop := p.watchRSS()
	eventually(t, 60*time.Second+4*interval, "three scrapes of each target", func() error {
		for i := range bad {
			if n := scrapes[i].Load(); n < 3 {
				return fmt.Errorf("%s: %d", bad[i].name, n)
			}
		}
		if n := good.Load(); n < 3 {
			return fmt.Errorf("good: %d", n)
		}
		return nil
	})
	for i := range bad {
		t.Run(bad[i].name, func(t *testing.T) { bad[i].check(t, p, rec, 30*time.Second+interval) })
	}
	goods := good.Load()
	eventually(t, 30*time.Second+interval, "samples of the good target", func() error {
		for text, v := range rec.newest() {
			if strings.Contains(text, "good_scrapes_total") && v > float64(goods) {
				return nil
			}
		}
		return fmt.Errorf("nothing newer than scrape %d", goods)
	})
	if n := rec.newest()[`{__name__="up", instance="`+p.instance("good")+`", job="good"}`]; n != 1 {
		t.Errorf("up of the good target is %v", n)
	}
	peak := stop()
	t.Logf("peak of resident memory: %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("the process took %d MiB, the limit is %d MiB", peak>>20, limit>>20)
	}
	if n := p.Metric("millrace_actor_restarts_total", nil); n != 0 {
		t.Errorf("%v actors failed", n)
	}
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// check waits for what is to become of the target.
func (b *badTarget) check(t *testing.T, p *proc, rec *recorder, wait time.Duration) {
	eventually(t, wait, "what Prometheus says of such a target", func() error {
		target := p.target(b.name)
		if (target.Health == "up") != (b.up == 1) || b.says != "" && !strings.Contains(target.LastError, b.says) {
			return fmt.Errorf("health %s, error %.300q", target.Health, target.LastError)
		}
		up, ok := 0.0, false
		for text, v := range rec.newest() {
			if strings.HasPrefix(text, `{__name__="up"`) && strings.Contains(text, fmt.Sprintf("job=%q", b.name)) {
				up, ok = v, true
			}
		}
		if !ok || up != b.up {
			return fmt.Errorf("up is %v (sent: %t), want %v", up, ok, b.up)
		}
		return nil
	})
	got := map[string][]string{}
	for _, text := range rec.got("") {
		if !strings.Contains(text, fmt.Sprintf("job=%q", b.name)) {
			continue
		}
		name := strings.TrimPrefix(text[:strings.Index(text, ",")], `{__name__=`)
		name = strings.Trim(name, `"`)
		if name == "up" || strings.HasPrefix(name, "scrape_") {
			continue
		}
		got[name] = append(got[name], text)
	}
	for name, wants := range b.takes {
		if len(got[name]) != len(wants) {
			t.Errorf("%d series of %s: %.300q", len(got[name]), name, got[name])
			continue
		}
		for i, want := range wants {
			if !strings.Contains(got[name][i], want) {
				t.Errorf("series %.300s does not have %s", got[name][i], want)
			}
		}
	}
	for name := range got {
		if b.takes[name] == nil {
			t.Errorf("the endpoint got %.100q: %.300q", name, got[name])
		}
	}
}

// shownTarget is what /api/v1/targets says of a target.
type shownTarget struct {
	ScrapePool, Health, LastError string
	Labels                        map[string]string
}

func (p *proc) target(job string) shownTarget {
	p.t.Helper()
	_, body := p.Get("/api/v1/targets?state=active")
	var answer struct {
		Data struct{ ActiveTargets []shownTarget }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		p.t.Fatalf("/api/v1/targets: %v", err)
	}
	for _, target := range answer.Data.ActiveTargets {
		if target.ScrapePool == job {
			return target
		}
	}
	return shownTarget{}
}

func (p *proc) instance(job string) string { return p.target(job).Labels["instance"] }
