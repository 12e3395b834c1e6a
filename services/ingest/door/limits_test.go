package door

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/await"
)

// everyDoor runs a test for each of the doors.
func everyDoor(t *testing.T, test func(t *testing.T, name string)) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC, RemoteWrite} {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// send pushes raw bytes to any door, and returns the code that its metrics have for the answer, and the text.
func (r *rig) send(t testing.TB, client *http.Client, body io.Reader, how coding) (code, text string) {
	t.Helper()
	path, headers := metricsPath, []string{"Content-Type", protobufType}
	switch r.name {
	case RemoteWrite:
		headers = append(headers, "Content-Encoding", "snappy")
	case OTLPHTTP:
		headers = append(headers, "Content-Encoding", how.String())
	case OTLPGRPC:
		path, headers = exportPath, []string{"Content-Type", grpcType, "Grpc-Encoding", how.String()}
	}
	res, answer := do(t, client, http.MethodPost, r.base+path, body, headers...)
	if r.name == OTLPGRPC {
		return res.Trailer.Get("Grpc-Status"), strings.ReplaceAll(res.Trailer.Get("Grpc-Message"), "%20", " ")
	}
	return fmt.Sprint(res.StatusCode), answer
}

// client speaks what the door understands.
func (r *rig) client(t testing.TB) *http.Client {
	if r.name == OTLPGRPC {
		return h2c(t)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 100}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// good is a push that the door takes.
func (r *rig) good(t testing.TB) []byte {
	switch r.name {
	case RemoteWrite:
		return snap(writeV1(t))
	case OTLPGRPC:
		return framed(0, metricsProto(t, 1))
	}
	return metricsProto(t, 1)
}

func framed(flag byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(body))), body...)
}

// codes of the same fault at the doors.
var faultCodes = map[string]map[fault]string{
	OTLPHTTP:    {tooLarge: "413", full: "429", slow: "408", internal: "500", unauthenticated: "401"},
	RemoteWrite: {tooLarge: "413", full: "429", slow: "408", internal: "500", unauthenticated: "401"},
	OTLPGRPC:    {tooLarge: "8", full: "8", slow: "4", internal: "13", unauthenticated: "16"},
}

var success = map[string]string{OTLPHTTP: "200", RemoteWrite: "204", OTLPGRPC: "0"}

// stillGood checks that the door takes a good push after what was done to it.
func (r *rig) stillGood(t *testing.T) {
	t.Helper()
	r.atRest(t)
	if code, text := r.send(t, r.client(t), bytes.NewReader(r.good(t)), identity); code != success[r.name] {
		t.Errorf("a good push afterwards: %s %s", code, text)
	}
}

func TestBombsTakeNoMoreMemoryThanTheLimit(t *testing.T) {
	const limit = 8 << 20
	for _, how := range []coding{gzipped, zstandard} {
		bomb := zeros(t, how, 1<<30)
		for _, name := range []string{OTLPHTTP, OTLPGRPC} {
			t.Run(fmt.Sprint(name, " ", how), func(t *testing.T) {
				r := start(t, name, func(c *Config) { c.Limits.MaxDecompressedBytes = limit })
				body := bomb
				if name == OTLPGRPC {
					body = framed(1, bomb)
				}
				client := r.client(t)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				code, text := r.send(t, client, bytes.NewReader(body), how)
				runtime.ReadMemStats(&after)
				if code != faultCodes[name][tooLarge] || !strings.Contains(text, "max_decompressed_bytes") {
					t.Errorf("%s %s", code, text)
				}
				// All buffers on the way to the limit, those of the compressed bytes, and a window of zstd.
				if took := after.TotalAlloc - before.TotalAlloc; took > 4*limit+uint64(8*len(bomb)) && !raceDetector {
					t.Errorf("it took %d MiB", took>>20)
				}
				r.stillGood(t)
			})
		}
	}
}

func TestManyBombsStayWithinTheBudget(t *testing.T) {
	bomb := zeros(t, gzipped, 64<<20)
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		r := start(t, name, func(c *Config) { c.Limits.MaxInFlightBytes = 40 << 20 })
		body := bomb
		if name == OTLPGRPC {
			body = framed(1, bomb)
		}
		client := r.client(t)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				// 64 MiB are allowed, but not together with what it takes to get there.
				if code, text := r.send(t, client, bytes.NewReader(body), gzipped); code != faultCodes[name][full] || !strings.Contains(text, "max_in_flight_bytes") {
					t.Errorf("%s: %s %s", name, code, text)
				}
			})
		}
		wg.Wait()
		r.stillGood(t)
	}
}

func TestJSONThatGrowsIsRefusedBeforeItIsDecoded(t *testing.T) {
	r := start(t, OTLPHTTP, func(c *Config) { c.Limits.MaxInFlightBytes = 64 << 20 })
	text := `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"exponentialHistogram":{"dataPoints":[` + strings.Repeat("{},", 1<<20) + `{}]}}]}]}]}`
	res, answer := r.post(t, strings.NewReader(text), "Content-Type", jsonType)
	if res.StatusCode != 413 || !strings.Contains(answer, "max_in_flight_bytes") {
		t.Errorf("%d %s", res.StatusCode, answer)
	}
	r.stillGood(t)
}

// The reservation for decoding JSON is only worth something if it is not less than what decoding takes.
func TestWeighIsAnUpperBound(t *testing.T) {
	points := func(kind, point string) string {
		return `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"` + kind + `":{"dataPoints":[` + strings.Repeat(point+",", 20_000) + point + `]}}]}]}]}`
	}
	for name, text := range map[string]string{
		"gauge":                 points("gauge", `{}`),
		"histogram":             points("histogram", `{}`),
		"exponential histogram": points("exponentialHistogram", `{}`),
		"summary":               points("summary", `{"quantileValues":[{},{}]}`),
		"exemplars":             points("gauge", `{"exemplars":[{},{},{}]}`),
		"attributes":            points("gauge", `{"attributes":[{"key":"a","value":{"intValue":"1"}},{},{}]}`),
		"nested values":         points("gauge", `{"attributes":[{"value":{"arrayValue":{"values":[{},{},{"kvlistValue":{"values":[{}]}}]}}}]}`),
		"buckets":               points("histogram", `{"bucketCounts":["1"`+strings.Repeat(`,1`, 100)+`],"explicitBounds":[1`+strings.Repeat(`,1`, 100)+`]}`),
		"metrics":               `{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{}` + strings.Repeat(`,{}`, 20_000) + `]}]}]}`,
		"scopes":                `{"resourceMetrics":[{"scopeMetrics":[{"scope":{}}` + strings.Repeat(`,{"scope":{}}`, 20_000) + `]}]}`,
		"resources":             `{"resourceMetrics":[{"resource":{}}` + strings.Repeat(`,{"resource":{}}`, 20_000) + `]}`,
		"bare resources":        `{"resourceMetrics":[{}` + strings.Repeat(`,{}`, 20_000) + `]}`,
	} {
		r := start(t, OTLPHTTP, nil)
		weight, _ := weigh([]byte(text))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := r.gate.decodeJSON([]byte(text), weight); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if took := int64(after.TotalAlloc - before.TotalAlloc); took > weight && !raceDetector {
			t.Errorf("%s: decoding %d bytes took %d, more than the %d reserved", name, len(text), took, weight)
		}
	}
}

func TestBodiesBeyondTheLimitAreCut(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) { c.Limits.MaxBodyBytes = 1 << 20 })
		var body io.Reader = endless{}
		if name == OTLPGRPC {
			body = io.MultiReader(bytes.NewReader([]byte{0, 0, 0x20, 0, 0}), endless{})
		}
		code, text := r.send(t, r.client(t), body, identity)
		if code != faultCodes[name][tooLarge] || !strings.Contains(text, "larger than 1 MiB as sent (max_body_bytes)") {
			t.Errorf("%s %s", code, text)
		}
		r.stillGood(t)
	})
}

func TestAContentLengthBeyondTheLimitIsRefusedUnread(t *testing.T) {
	for _, name := range []string{OTLPHTTP, RemoteWrite} {
		r := start(t, name, nil)
		conn := connect(t, r.addr)
		_, _ = fmt.Fprintf(conn, "POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Encoding: %s\r\nContent-Length: 1073741824\r\n\r\n",
			map[string]string{OTLPHTTP: "gzip", RemoteWrite: "snappy"}[name])
		// The server reads on for a while in case that the sender only then looks for the answer.
		go func() { _, _ = conn.Write(make([]byte, 1<<20)) }()
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 413 {
			t.Errorf("%s: status %d", name, res.StatusCode)
		}
		_ = res.Body.Close()
		r.stillGood(t)
	}
}

func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(await.Patience))
	return conn
}

func TestSlowHeadersEndTheConnection(t *testing.T) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		r := start(t, name, func(c *Config) { c.Limits.ReadTimeout = 50 * time.Millisecond })
		conn := connect(t, r.addr)
		_, _ = fmt.Fprint(conn, "POST /v1/metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%s: the connection stayed: %v", name, err)
		}
	}
}

func TestSlowBodiesAreGivenUp(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) { c.Limits.ReadTimeout = 100 * time.Millisecond })
		body, stuck := io.Pipe()
		go func() { _, _ = stuck.Write([]byte{0, 0, 0}) }()
		t.Cleanup(func() { _ = stuck.Close() })
		code, text := r.send(t, r.client(t), body, identity)
		if code != faultCodes[name][slow] || !strings.Contains(text, "read_timeout") {
			t.Errorf("%s %s", code, text)
		}
		_ = stuck.Close()
		r.stillGood(t)
	})
}

// The time to read is not the time to make safe.
func TestTheTakerMayTakeLongerThanReading(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) { c.Limits.ReadTimeout = 100 * time.Millisecond })
		r.recorder.answer = func(ctx context.Context, _ *Push) (Outcome, error) {
			select {
			case <-ctx.Done():
				return Outcome{}, ctx.Err()
			case <-time.After(400 * time.Millisecond):
				return Outcome{Samples: 1}, nil
			}
		}
		client := r.client(t)
		for range 2 { // the second one on the same connection
			if code, text := r.send(t, client, bytes.NewReader(r.good(t)), identity); code != success[name] {
				t.Errorf("%s %s", code, text)
			}
		}
	})
}

// held makes the Taker wait until the test lets it go, and starts n requests that do.
func (r *rig) held(t *testing.T, n int) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	r.recorder.answer = func(context.Context, *Push) (Outcome, error) { <-gate; return Outcome{Samples: 1}, nil }
	client := r.client(t)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if code, text := r.send(t, client, bytes.NewReader(r.good(t)), identity); code != success[r.name] {
				t.Errorf("a held request: %s %s", code, text)
			}
		})
	}
	await.True(t, "the requests are held", func() bool { return len(r.recorder.taken()) == n })
	return func() { close(gate); wg.Wait() }
}

func TestConcurrentRequestsAreLimited(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) { c.Limits.MaxConcurrentRequests = 3 })
		release := r.held(t, 3)
		code, text := r.send(t, r.client(t), bytes.NewReader(r.good(t)), identity)
		if code != faultCodes[name][full] || !strings.Contains(text, "max_concurrent_requests") {
			t.Errorf("%s %s", code, text)
		}
		release()
		r.stillGood(t)
	})
}

func TestBytesInFlightAreLimited(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, func(c *Config) { c.Limits.MaxInFlightBytes = 4 * smallestBuffer })
		release := r.held(t, 3)
		big := bytes.Repeat([]byte{0}, 2*smallestBuffer)
		body := big
		switch name {
		case OTLPGRPC:
			body = framed(0, big)
		case RemoteWrite:
			body = snap(big) // few bytes, which become many
		}
		code, text := r.send(t, r.client(t), bytes.NewReader(body), identity)
		if code != faultCodes[name][full] || !strings.Contains(text, "max_in_flight_bytes") {
			t.Errorf("%s %s", code, text)
		}
		release()
		r.stillGood(t)
	})
}

func TestASenderThatGoesIsNotWaitedFor(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, nil)
		begun, ended := make(chan struct{}), make(chan error, 1)
		r.recorder.answer = func(ctx context.Context, _ *Push) (Outcome, error) {
			close(begun)
			<-ctx.Done()
			ended <- ctx.Err()
			return Outcome{}, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		path, contentType, coding := metricsPath, protobufType, "identity"
		switch name {
		case OTLPGRPC:
			path, contentType = exportPath, grpcType
		case RemoteWrite:
			coding = "snappy"
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+path, bytes.NewReader(r.good(t)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		req.Header.Set("Content-Encoding", coding)
		go func() { <-begun; cancel() }()
		if res, err := r.client(t).Do(req); err == nil {
			_ = res.Body.Close()
			t.Error("there was an answer")
		}
		select {
		case <-ended:
		case <-time.After(await.Patience):
			t.Fatal("the taker still waits")
		}
		r.atRest(t)
	})
}

func TestAPanicOfTheTakerIsOneRequestsError(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, nil)
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) { panic("secret cause") }
		code, text := r.send(t, r.client(t), bytes.NewReader(r.good(t)), identity)
		if code != faultCodes[name][internal] || strings.Contains(text, "secret") {
			t.Errorf("%s %s", code, text)
		}
		if !strings.Contains(r.logs.String(), "secret cause") {
			t.Errorf("the cause is not in the log: %s", r.logs)
		}
		r.recorder.answer = nil
		r.stillGood(t)
	})
}

func TestAThousandSenders(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		r := start(t, name, nil)
		body := r.good(t)
		transport := &http.Transport{MaxIdleConnsPerHost: 1000}
		if name == OTLPGRPC {
			transport.Protocols = new(http.Protocols)
			transport.Protocols.SetUnencryptedHTTP2(true)
		}
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				for range 3 {
					if code, text := r.send(t, client, bytes.NewReader(body), identity); code != success[name] {
						t.Errorf("%s %s", code, text)
					}
				}
			})
		}
		wg.Wait()
		if n := len(r.recorder.taken()); n != 3000 {
			t.Errorf("%d came to the taker", n)
		}
		r.atRest(t)
	})
}

// What a Taker needs besides the body counts as in flight until it returns.
func TestWhatTheTakerHoldsIsWithinTheBudget(t *testing.T) {
	everyDoor(t, func(t *testing.T, name string) {
		const limit = 1 << 20
		r := start(t, name, func(c *Config) { c.Limits.MaxInFlightBytes = limit })
		for want, others := range map[fault]int64{tooLarge: 0, full: limit / 2} {
			r.recorder.answer = func(_ context.Context, p *Push) (Outcome, error) {
				if err := p.Hold(limit / 4); err != nil {
					t.Errorf("%s: a quarter: %v", name, err)
				}
				if n := r.gate.memory.used.Load(); n < limit/4+others {
					t.Errorf("%s: %d bytes are in flight", name, n)
				}
				more := int64(limit)
				if others > 0 {
					more = limit / 2
				}
				return Outcome{}, p.Hold(more)
			}
			r.gate.memory.used.Add(others)
			code, text := r.send(t, r.client(t), bytes.NewReader(r.good(t)), identity)
			if code != faultCodes[name][want] || !strings.Contains(text, "max_in_flight_bytes") {
				t.Errorf("%s %s", code, text)
			}
			r.gate.memory.used.Add(-others)
			r.atRest(t)
		}
		r.recorder.answer = nil
		r.stillGood(t)
	})
}
