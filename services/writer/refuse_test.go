package writer

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
)

// script answers the requests in turn, and takes all that come behind.
func script(answers ...func() (int, string, map[string]string)) func(*request) (int, string, map[string]string) {
	turn := make(chan func() (int, string, map[string]string), len(answers))
	for _, a := range answers {
		turn <- a
	}
	return func(*request) (int, string, map[string]string) {
		select {
		case a := <-turn:
			return a()
		default:
			return 200, "", nil
		}
	}
}

func status(code int, header ...string) func() (int, string, map[string]string) {
	return func() (int, string, map[string]string) {
		h := map[string]string{}
		for i := 0; i < len(header); i += 2 {
			h[header[i]] = header[i+1]
		}
		return code, fmt.Sprint("answer ", code), h
	}
}

func TestFailuresAreTriedAgainInOrder(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 3)
	r.announce(0, d, cfg)
	e.answers(script(status(503), status(500), status(429), status(502), status(503)))
	r.send(0, r.floats(d, 1000, 1))
	e.wait(3)
	for i := range 5 {
		r.send(0, r.floats(d, int64(1001+i), 1))
	}
	var got []int64
	for _, x := range e.wait(18) {
		got = append(got, x.T)
	}
	if !slices.IsSorted(got) {
		t.Errorf("samples of %v", got)
	}
	asked := e.requests()
	for i := range 6 {
		attempt := ""
		if i > 0 {
			attempt = fmt.Sprint(i)
		}
		if h := asked[i].header.Get("Retry-Attempt"); h != attempt || !slices.Equal(asked[i].body, asked[0].body) {
			t.Errorf("request %d says that it is try %q, want %q, or is another one", i, h, attempt)
		}
	}
	if n := s.value(t, "millrace_writer_retried_samples_total", "prod"); n != 15 {
		t.Errorf("%v samples are counted as tried again, want 15", n)
	}
	if len(r.rejections("prod")) > 0 {
		t.Error("samples that were taken in the end are in REJECTED")
	}
}

func TestRetryAfterIsHeeded(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	refused := make(chan time.Time, 1)
	e.answers(script(func() (int, string, map[string]string) {
		refused <- time.Now()
		return 503, "", map[string]string{"Retry-After": "1"}
	}))
	r.send(0, r.floats(d, 1000, 1))
	e.wait(1)
	if waited := time.Since(<-refused); waited < time.Second {
		t.Errorf("tried again after %v, though the endpoint had asked for 1 s", waited)
	}
}

func TestABackoffWithoutALeastIsNoBusyLoop(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.MinBackoff = 0 })
	r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	start := time.Now()
	e.answers(func(*request) (int, string, map[string]string) { return 503, "", nil })
	r.send(0, r.floats(d, 1000, 1))
	await.True(t, "some tries", func() bool { return len(e.requests()) > 8 })
	// The pauses double: at least half of 1, 2, 4, 8, 16, 20, 20 ms have passed.
	if n, spent := len(e.requests()), time.Since(start); n > 9 && spent < time.Duration(n-7)*10*time.Millisecond {
		t.Errorf("%d tries in %v", n, spent)
	}
}

func Test429IsARefusalWhereItIsNotToBeTriedAgain(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.RetryOn429 = false })
	r.start([]Endpoint{cfg})
	d := r.named("x", 2)
	r.announce(0, d, cfg)
	e.answers(script(status(429)))
	r.send(0, r.floats(d, 1000, 1))
	r.send(0, r.floats(d, 1001, 1))
	await.True(t, "a rejection", func() bool { return len(r.rejections("prod")) == 1 })
	if got := r.rejections("prod")[0]; got.Status != 429 || got.Samples < 2 {
		t.Errorf("rejection %+v", got)
	}
}

func TestRequestsThatAreTooLargeAreSplit(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){"1.0": func(*Endpoint) {}, "2.0": v2} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", change)
			s := r.start([]Endpoint{cfg})
			d := r.named("x", 500)
			r.announce(0, d, cfg)
			e.answers(func(r *request) (int, string, map[string]string) {
				if len(r.points) > 7 {
					return http.StatusRequestEntityTooLarge, "too large", nil
				}
				return 200, "", nil
			})
			r.send(0, r.floats(d, 1000, 1))
			got := e.wait(500)
			for i, x := range got {
				if want := (point{seriesName("x", i), 1000, 1, false}); x != want {
					t.Fatalf("sample %d is %v, want %v", i, x, want)
				}
			}
			await.True(t, "the count", func() bool { return s.value(t, "millrace_writer_sent_samples_total", "prod") == 500 })
			if len(r.rejections("prod")) > 0 {
				t.Error("samples are in REJECTED")
			}
			// An endpoint that takes nothing at all gets nothing, and does not stop the rest.
			e.answers(func(r *request) (int, string, map[string]string) {
				if r.points[0].T == 2000 {
					return http.StatusRequestEntityTooLarge, "too large", nil
				}
				return 200, "", nil
			})
			r.send(0, r.floats(d, 2000, 1))
			await.True(t, "the rejections", func() bool { return s.value(t, "millrace_writer_rejected_samples_total", "prod") == 500 })
			r.send(0, r.floats(d, 3000, 1))
			e.wait(1000)
		})
	}
}

// refuseSeries answers 400 where a request has one of the series.
func refuseSeries(bad ...string) func(*request) (int, string, map[string]string) {
	return func(r *request) (int, string, map[string]string) {
		for _, x := range r.points {
			if slices.Contains(bad, x.Series) {
				return 400, "bad series " + x.Series, nil
			}
		}
		return 200, "", nil
	}
}

func TestARefusedPartIsKeptAndTheRestGoesOn(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){"1.0": func(*Endpoint) {}, "2.0": v2} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", change)
			s := r.start([]Endpoint{cfg})
			const n = 1000
			d := r.named("x", n)
			r.announce(0, d, cfg)
			bad := []string{seriesName("x", 3), seriesName("x", 700)}
			e.answers(refuseSeries(bad...))
			before := time.Now()
			r.send(0, r.floats(d, 1000, 1))
			got := e.wait(n - len(bad))
			last := -1
			for _, x := range got {
				var i int
				if _, err := fmt.Sscanf(x.Series, `{__name__="x_%d"}`, &i); err != nil || i <= last {
					t.Fatalf("series %s after %d: %v", x.Series, last, err)
				}
				last = i
			}
			await.True(t, "the rejections", func() bool { return len(r.rejections("prod")) == len(bad) })
			for i, rej := range r.rejections("prod") {
				protocol := map[string]int{"1.0": 1, "2.0": 2}[name]
				if rej.Endpoint != "prod" || rej.Protocol != protocol || rej.Status != 400 || rej.Samples != 1 || !strings.Contains(rej.Answer, "bad series "+bad[i]) ||
					rej.Time < before.UnixMilli() || rej.Time > time.Now().UnixMilli() {
					t.Errorf("rejection %+v", rej)
				}
				req, err := decodeBody(protocol, rej.Body)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff([]point{{bad[i], 1000, 1, false}}, req.points); d != "" {
					t.Errorf("what is kept (-want +got):\n%s", d)
				}
			}
			if sent, rejected := s.value(t, "millrace_writer_sent_samples_total", "prod"), s.value(t, "millrace_writer_rejected_samples_total", "prod"); sent != n-2 || rejected != 2 {
				t.Errorf("%v samples are counted as sent, %v as rejected", sent, rejected)
			}
		})
	}
}

func TestTheSearchForARefusedPartHasABudget(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	const n = 1000
	d := r.named("x", n)
	r.announce(0, d, cfg)
	e.answers(func(*request) (int, string, map[string]string) { return 400, "no", nil })
	r.send(0, r.floats(d, 1000, 1))
	await.True(t, "the count of rejected samples", func() bool { return s.value(t, "millrace_writer_rejected_samples_total", "prod") == n })
	// On the way back, the search tries one more half on each level.
	if asked := len(e.requests()); asked > firstBudget+bits.Len(n)+1 {
		t.Errorf("%d requests for %d samples of which none is taken", asked, n)
	}
	kept := 0
	for _, rej := range r.rejections("prod") {
		kept += rej.Samples
	}
	if kept != n {
		t.Errorf("%d samples are kept, want %d", kept, n)
	}
	e.answers(nil)
	r.send(0, r.floats(d, 2000, 1))
	e.wait(n)
}

func TestAnAnswerAboutTheSenderIsAboutAll(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	r.start([]Endpoint{cfg})
	d := r.named("x", 100)
	r.announce(0, d, cfg)
	e.answers(script(status(401), status(404), status(403)))
	for i := range 3 {
		r.send(0, r.floats(d, int64(1000+i), 1))
		await.True(t, "a rejection", func() bool { return len(r.rejections("prod")) == i+1 })
	}
	r.send(0, r.floats(d, 2000, 1))
	e.wait(100)
	if n := len(e.requests()); n != 4 {
		t.Errorf("%d requests, want 4", n)
	}
	for i, code := range []int{401, 404, 403} {
		if rej := r.rejections("prod")[i]; rej.Status != code || rej.Samples != 100 || !strings.Contains(rej.Answer, fmt.Sprint("answer ", code)) {
			t.Errorf("rejection %+v, want status %d", rej, code)
		}
	}
}

func TestRejectionsThatAreLargerThanAMessageAreKeptInPieces(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	const n, size = 60, 40_000 // random, so that they do not get smaller
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	rnd := rand.New(rand.NewPCG(1, 1))
	e.answers(script(status(401)))
	// As a request of many dictionaries that had filled while the endpoint was away.
	var frames []*frame.Frame
	for i := range n {
		text := make([]byte, size)
		for k := range text {
			text[k] = 'a' + byte(rnd.IntN(26))
		}
		d := r.dict(frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprintf("x_%04d", i), "long", string(text))})
		r.announce(0, d, cfg)
		f := r.floats(d, 1000, 1)
		f.Source = uint64(i)
		frames = append(frames, f)
	}
	r.send(0, frames...)
	await.True(t, "the count of rejected samples", func() bool { return s.value(t, "millrace_writer_rejected_samples_total", "prod") == n })
	kept := 0
	for _, rej := range r.rejections("prod") {
		req, err := decodeBody(1, rej.Body)
		if err != nil || len(req.points) != rej.Samples {
			t.Errorf("%d samples are kept as %d: %v", rej.Samples, len(req.points), err)
		}
		kept += rej.Samples
	}
	if kept != n || len(r.rejections("prod")) < 2 {
		t.Errorf("%d samples are kept in %d pieces", kept, len(r.rejections("prod")))
	}
}
