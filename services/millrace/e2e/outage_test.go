package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/receiver"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// refusingAddress returns an address that refuses connections: its port is taken, but nobody listens.
func refusingAddress(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Fatalf("%s takes connections", address)
	}
	return address
}

// answering returns the URL of an endpoint that always gives the same answer.
func answering(t testing.TB, status int, text string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, status) }))
	t.Cleanup(server.Close)
	return server.URL + "/api/v1/write"
}

func TestDeadEndpointsHoldNobodyBack(t *testing.T) {
	r, e := newRig(t, 20, 200), newEndpoint(t)
	var endpoints []string
	for i := range 3 {
		endpoints = append(endpoints,
			remoteWrite(fmt.Sprint("refuses", i), "http://"+refusingAddress(t)+"/write"),
			remoteWrite(fmt.Sprint("hangs", i), "http://"+hangingAddress(t)+"/write"),
			remoteWrite(fmt.Sprint("fails", i), answering(t, http.StatusServiceUnavailable, "down")))
	}
	endpoints = append(endpoints, remoteWrite("main", e.URL))
	p := startMillrace(t, r.config("", endpoints...), inDir(r.dir))
	stop := p.watchRSS()
	r.arrived(e, 30*time.Second)
	e.ResetWindow() // of latencies: without the start
	for range 10 {
		r.arrived(e, 10*time.Second)
	}
	if l := e.Report().Latency; l.Max > 10 {
		t.Errorf("the endpoint that works got samples up to %.2f s late", l.Max)
	}
	r.end(p)
	r.settled(p, 30*time.Second, "main")
	for i := range 3 {
		for _, name := range []string{"refuses", "hangs", "fails"} {
			dead := map[string]string{"endpoint": fmt.Sprint(name, i)}
			if n := p.Metric("millrace_writer_sent_samples_total", dead); n != 0 {
				t.Errorf("%v samples sent to %s", n, dead)
			}
			if lag := p.Metric("millrace_writer_lag_seconds", dead); lag < 5 {
				t.Errorf("%s lags by %v s", dead, lag)
			}
			if n := p.Metric("millrace_writer_lag_messages", dead); n == 0 {
				t.Errorf("%s lags by no message", dead)
			}
		}
	}
	t.Logf("peak of resident memory: %d MiB", stop()>>20)
	stopped := time.Now()
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if took := time.Since(stopped); took > 15*time.Second {
		t.Errorf("stopping took %s", took)
	}
	e.inOrder(t)
	e.whole(t, r.gen.Log())
	delivered(t, r.dir, e)
}

func TestTooManyRequestsAreSentAgain(t *testing.T) {
	r, e := newRig(t, 10, 100), newEndpoint(t)
	p := startMillrace(t, r.config("", remoteWrite("main", e.URL)), inDir(r.dir))
	r.arrived(e, 30*time.Second)
	const pause = 3 * time.Second
	e.control(t, receiver.Control{Mode: receiver.TooManyRequests, RetryAfter: pause})
	start, before := time.Now(), e.Report().Failed
	eventually(t, 30*time.Second, "answers 429", func() error {
		if n := e.Report().Failed - before; n < 8 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	// Two partitions that each wait after an answer: the eighth answer comes after the pause.
	if took := time.Since(start); took < pause {
		t.Errorf("eight requests within %s, though Retry-After is %s", took, pause)
	}
	e.control(t, receiver.Control{Mode: receiver.OK})
	r.arrived(e, 30*time.Second)
	r.end(p)
	r.settled(p, 30*time.Second, "main")
	if n := p.Metric("millrace_writer_rejected_samples_total", nil); n != 0 {
		t.Errorf("%v samples rejected", n)
	}
	if n := p.Metric("millrace_writer_retried_samples_total", nil); n == 0 {
		t.Error("no samples retried")
	}
	p.Stop()
	e.inOrder(t)
	e.whole(t, r.gen.Log())
	delivered(t, r.dir, e)
}

func TestTooLargeRequestsAreSplit(t *testing.T) {
	for _, protocol := range []string{"prometheus.WriteRequest", "io.prometheus.write.v2.Request"} {
		t.Run(protocol, func(t *testing.T) {
			r, e := newRig(t, 10, 200), newEndpoint(t)
			e.control(t, receiver.Control{Mode: receiver.TooLarge, MaxBytes: 3000})
			p := startMillrace(t, r.config("", remoteWrite("main", e.URL, "protobuf_message: "+protocol)), inDir(r.dir))
			r.arrived(e, 30*time.Second)
			r.arrived(e, 30*time.Second)
			r.end(p)
			r.settled(p, 30*time.Second, "main")
			if n := p.Metric("millrace_writer_requests_total", map[string]string{"code": "413"}); n == 0 {
				t.Error("no request was too large")
			}
			if n := p.Metric("millrace_writer_rejected_samples_total", nil); n != 0 {
				t.Errorf("%v samples rejected", n)
			}
			p.Stop()
			e.inOrder(t)
			e.whole(t, r.gen.Log())
			delivered(t, r.dir, e)
		})
	}
}

// rejected returns the samples in the stream REJECTED, and each distinct answer.
func rejected(t testing.TB, conn *stream.Conn, name string) (samples []wireSample, answers map[string]int) {
	t.Helper()
	answers = map[string]int{}
	messages(t, conn, stream.Rejected, func(msg *jetstream.RawStreamMsg) {
		if want := conn.Rejected(name); msg.Subject != want {
			t.Errorf("subject %s, want %s", msg.Subject, want)
		}
		r, err := stream.ReadRejection(msg.Data)
		if err != nil {
			t.Fatalf("message %d: %v", msg.Sequence, err)
		}
		list, err := decodeSamples(r.Body, r.Protocol == 2)
		if err != nil {
			t.Fatalf("message %d: %v", msg.Sequence, err)
		}
		if len(list) != r.Samples || r.Endpoint != name || time.Since(time.UnixMilli(r.Time)) > time.Hour {
			t.Errorf("message %d: %d samples, body has %d; endpoint %q; time %d", msg.Sequence, r.Samples, len(list), r.Endpoint, r.Time)
		}
		answers[fmt.Sprint(r.Status, " ", r.Answer)]++
		samples = append(samples, list...)
	})
	return samples, answers
}

func TestRefusedSamplesAreKept(t *testing.T) {
	for _, tc := range []struct {
		name   string
		more   string
		refuse func(t *testing.T, e *endpoint) (url string) // makes the endpoint refuse
		is     func(labels.Labels) bool                     // which series are to be refused
		answer string                                       // the beginning of what is stored
	}{
		{
			name: "400 for one series, remote write 1.0", more: "protobuf_message: prometheus.WriteRequest",
			refuse: refuseOne, is: isRefusedOne, answer: "400 1 series of the request are refused on purpose",
		},
		{
			name: "400 for one series, remote write 2.0", more: "protobuf_message: io.prometheus.write.v2.Request",
			refuse: refuseOne, is: isRefusedOne, answer: "400 1 series of the request are refused on purpose",
		},
		{
			name: "429 where it is not to be retried",
			more: "queue_config: {min_backoff: 30ms, max_backoff: 1s, retry_on_http_429: false}",
			refuse: func(t *testing.T, e *endpoint) string {
				e.control(t, receiver.Control{Mode: receiver.TooManyRequests})
				return e.URL
			},
			is: anySeries, answer: "429 failing on purpose",
		},
		{
			name:   "401",
			refuse: func(t *testing.T, _ *endpoint) string { return answering(t, http.StatusUnauthorized, "who are you?") },
			is:     anySeries, answer: "401 who are you?",
		},
	} {
		t.Run(tc.name, func(t *testing.T) { refusedSamplesAreKept(t, tc.more, tc.refuse, tc.is, tc.answer) })
	}
}

func anySeries(labels.Labels) bool { return true }

func refuseOne(t *testing.T, e *endpoint) string {
	e.control(t, receiver.Control{Mode: receiver.BadRequest, Match: map[string]string{"__name__": numbered.ScrapeMetric, numbered.TargetLabel: "t3"}})
	return e.URL
}

func isRefusedOne(ls labels.Labels) bool {
	return ls.Get(model.MetricNameLabel) == numbered.ScrapeMetric && ls.Get(numbered.TargetLabel) == "t3"
}

func refusedSamplesAreKept(t *testing.T, more string, refuse func(*testing.T, *endpoint) string, is func(labels.Labels) bool, answer string) {
	r, e := newRig(t, 10, 200), newEndpoint(t)
	url := refuse(t, e)
	var lines []string
	if more != "" {
		lines = append(lines, more)
	}
	// A second endpoint, which takes everything, shows that nobody is held back.
	other := newEndpoint(t)
	p := startMillrace(t, r.config("", remoteWrite("main", url, lines...), remoteWrite("other", other.URL)), inDir(r.dir))
	r.arrived(other, 30*time.Second)
	r.arrived(other, 30*time.Second)
	r.end(p)
	r.settled(p, 30*time.Second, "main", "other")
	counted := p.Metric("millrace_writer_rejected_samples_total", map[string]string{"endpoint": "main"})
	if log := p.Logs(); !strings.Contains(log, "The endpoint refused samples for good; they are kept in the stream REJECTED with its answer") {
		t.Error("the log does not say it")
	}
	p.Stop()
	other.inOrder(t)
	other.whole(t, r.gen.Log())

	conn := storage(t, r.dir)
	refused, answers := rejected(t, conn, "main")
	kept := map[at]uint64{}
	for _, s := range refused {
		if !is(s.labels) {
			t.Fatalf("%s was put among the refused", s.labels)
		}
		kept[at{s.labels.Hash(), s.time}] = s.bits
	}
	for text := range answers {
		if !strings.HasPrefix(text, answer) {
			t.Errorf("answer %q, want %q", text, answer)
		}
	}
	if len(kept) != int(counted) || len(kept) != len(refused) || counted == 0 {
		t.Errorf("%d samples kept, %d of them different ones, %v counted", len(refused), len(kept), counted)
	}
	wrong := 0
	count, _ := storedSamples(t, conn, func(ls labels.Labels, key at, bits uint64) {
		got, arrived := e.value(key)
		aside, ok := kept[key]
		if is(ls) && (!ok || aside != bits || arrived) || !is(ls) && (!arrived || got != bits || ok) {
			if wrong++; wrong <= 5 {
				t.Errorf("%s @%d: arrived %t, among the refused %t", ls, key.time, arrived, ok)
			}
		}
	})
	if wrong > 0 {
		t.Errorf("%d of %d samples went the wrong way", wrong, count)
	}
	t.Logf("%d samples, %d refused, answers %v", count, len(refused), answers)
}

func TestStreamAtItsLimitCountsWhatItLoses(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		fromTheStart, restart bool
	}{
		{"down after a while", false, false},
		{"down from the start", true, false},
		{"down from the start, restarted", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) { streamAtItsLimit(t, tc.fromTheStart, tc.restart) })
	}
}

func streamAtItsLimit(t *testing.T, fromTheStart, restart bool) {
	r, e := newRig(t, 40, 1000), newEndpoint(t)
	if fromTheStart {
		e.control(t, receiver.Control{Mode: receiver.Unavailable})
	}
	other := newEndpoint(t) // takes all of it: its loss is none
	config := r.config("  streams: {frames: {max_bytes: 1MiB}}\n", remoteWrite("main", e.URL), remoteWrite("other", other.URL))
	p := startMillrace(t, config, inDir(r.dir), asShipped())
	r.arrived(other, 30*time.Second)
	if !fromTheStart {
		r.arrived(e, 30*time.Second)
		e.control(t, receiver.Control{Mode: receiver.Unavailable})
	}
	eventually(t, 90*time.Second, "the stream's limit passed for a while", func() error {
		bytes, all := p.Metric("millrace_stream_bytes", map[string]string{"stream": "FRAMES"}), p.Metric("millrace_publisher_batch_bytes_total", nil)
		if bytes > 1<<20 {
			t.Fatalf("the stream holds %v bytes", bytes)
		}
		if all < 2<<20 {
			return fmt.Errorf("%v bytes published", all)
		}
		return nil
	})
	var cut []window
	if restart {
		stopped := time.Now()
		if code := p.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		cut = append(cut, window{stopped.Add(-scrapeTime), time.Now()})
		p = startMillrace(t, config, inDir(r.dir), asShipped())
	}
	e.control(t, receiver.Control{Mode: receiver.OK})
	r.arrived(e, 60*time.Second)
	r.end(p)
	r.settled(p, 60*time.Second, "main", "other")
	if n := p.Metric("millrace_scraper_dropped_samples_total", nil); n != 0 {
		t.Errorf("%v samples dropped before the stream", n)
	}
	lost := map[string]float64{}
	for _, name := range []string{"main", "other"} {
		lost[name] = p.Metric("millrace_writer_lost_samples_total", map[string]string{"endpoint": name})
	}
	log := p.Logs()
	p.Stop()

	taken := takenSamples(t, storage(t, r.dir))
	for name, l := range map[string]*ledger{"main": e.ledger, "other": other.ledger} {
		if missing := taken - len(l.samples); missing != int(lost[name]) {
			t.Errorf("endpoint %s: of %d samples %d are missing, %v are counted as lost", name, taken, missing, lost[name])
		}
	}
	if lost["main"] == 0 || lost["other"] != 0 {
		t.Errorf("lost: %v", lost)
	}
	says(t, log, "Samples are lost for this endpoint", "raise millrace.streams.frames.max_age and max_bytes")
	e.inOrder(t)
	other.inOrder(t)
	other.whole(t, r.gen.Log(), cut...)
	t.Logf("%d samples, lost %v", taken, lost)
}

// takenSamples returns how many samples the stream FRAMES has ever acknowledged, which the last batch of each partition tells.
func takenSamples(t testing.TB, conn *stream.Conn) (n int) {
	t.Helper()
	for partition := range 4 {
		msg, err := conn.Last(t.Context(), stream.Frames, conn.Frames(partition))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h, err := frame.ReadHeader(msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		n += int(h.First) + h.Samples
	}
	return n
}
