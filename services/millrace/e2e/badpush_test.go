package e2e_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
)

// mostMemory is what the process may take while one bad push comes after the other, and mostInFlight what its doors may hold besides where
// many come at a time: three times max_in_flight_bytes.
const (
	mostMemory   = 400 << 20
	mostInFlight = 3 * 256 << 20
)

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// packedZeros returns many zeros, compressed.
func packedZeros(t testing.TB, encoding string, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch encoding {
	case "gzip":
		w, err = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	case "snappy":
		return snappy.Encode(nil, make([]byte, size))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, size); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// wanted is the answer to a bad push at one kind of entrance.
type wanted struct {
	code    int
	refused int64
	says    string
}

// badPush is a bad push with its answers by kind. A kind without one does not get it.
type badPush struct {
	name   string
	letter func(t testing.TB, e *entrance) letter
	wants  map[kind]wanted
}

// unreadable is the answer to what is no message of the protocol.
func unreadable() map[kind]wanted {
	want := everywhere(http.StatusBadRequest, grpcInvalidArgument, "the body is not an ExportMetricsServiceRequest")
	alone := want[remoteWriting]
	alone.says = "reading the request"
	want[remoteWriting] = alone
	return want
}

// everywhere is the same text with the codes of HTTP and gRPC.
func everywhere(status, code int, says string) map[kind]wanted {
	return map[kind]wanted{otlpOverHTTP: {code: status, says: says}, otlpOverGRPC: {code: code, says: says}, remoteWriting: {code: status, says: says}}
}

// inPart is how one refused sample is answered: OTLP takes the rest of a request.
func inPart(says string) map[kind]wanted {
	return map[kind]wanted{
		otlpOverHTTP: {code: http.StatusOK, refused: 1, says: says}, otlpOverGRPC: {code: 0, refused: 1, says: says},
		remoteWriting: {code: http.StatusBadRequest, says: says},
	}
}

// taken is how all that is good is answered.
func taken() map[kind]wanted {
	return map[kind]wanted{otlpOverHTTP: {code: http.StatusOK}, otlpOverGRPC: {code: 0}, remoteWriting: {code: http.StatusNoContent}}
}

// Codes of gRPC.
const (
	grpcInvalidArgument   = 3
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcUnauthenticated   = 16
)

// oversized are pushes that are too much. Each is the same for all entrances but for how it is packed.
func oversized(t testing.TB) []badPush {
	gzipped, zstandard, snappied := packedZeros(t, "gzip", gib), packedZeros(t, "zstd", gib), packedZeros(t, "snappy", 80<<20)
	packed := func(encoding string, body []byte) func(t testing.TB, e *entrance) letter {
		return func(t testing.TB, e *entrance) letter {
			return letter{header: map[string]string{"Content-Encoding": encoding, "Grpc-Encoding": encoding}, body: body, packed: true}
		}
	}
	tooMuch := everywhere(http.StatusRequestEntityTooLarge, grpcResourceExhausted, "64 MiB decompressed (max_decompressed_bytes); send smaller batches")
	otlpAlone := map[kind]wanted{otlpOverHTTP: tooMuch[otlpOverHTTP], otlpOverGRPC: tooMuch[otlpOverGRPC]}
	tooLong := everywhere(http.StatusRequestEntityTooLarge, grpcResourceExhausted, "16 MiB as sent (max_body_bytes); send smaller batches")
	return []badPush{
		{"a gzip bomb", packed("gzip", gzipped), otlpAlone},
		{"a zstd bomb", packed("zstd", zstandard), otlpAlone},
		{"a snappy bomb", packed("snappy", snappied), map[kind]wanted{remoteWriting: tooMuch[remoteWriting]}},
		{"a body that says it holds 4 GiB", packed("snappy", binary.AppendUvarint(nil, math.MaxUint32)), map[kind]wanted{remoteWriting: tooMuch[remoteWriting]}},
		{"a body of 1 GiB", func(t testing.TB, e *entrance) letter {
			body := io.LimitReader(zeros{}, gib)
			if e.kind == otlpOverGRPC {
				body = io.MultiReader(bytes.NewReader(binary.BigEndian.AppendUint32([]byte{0}, gib)), body)
				return letter{raw: body, length: gib + 5}
			}
			return letter{raw: body, length: gib, byHand: true}
		}, tooLong},
		{"a body without end", func(t testing.TB, e *entrance) letter {
			var body io.Reader = zeros{}
			if e.kind == otlpOverGRPC {
				body = io.MultiReader(bytes.NewReader(binary.BigEndian.AppendUint32([]byte{0}, math.MaxUint32)), body)
			}
			return letter{raw: body, length: -1, byHand: true}
		}, tooLong},
		{"samples that take gigabytes", func(t testing.TB, e *entrance) letter {
			return swelling(t, e, func(list []byte) []byte {
				return field(1, field(2, field(2, append(field(1, []byte("m")), field(5, list)...))))
			}, 1)
		}, map[kind]wanted{
			otlpOverHTTP: {code: http.StatusRequestEntityTooLarge, says: "more than 200000 points"}, otlpOverGRPC: {code: grpcResourceExhausted, says: "more than 200000 points"},
			remoteWriting: {code: http.StatusRequestEntityTooLarge, says: "more than 400000 samples"},
		}},
		{"metrics that take gigabytes", func(t testing.TB, e *entrance) letter {
			return swelling(t, e, func(list []byte) []byte { return field(1, field(2, list)) }, 2)
		}, map[kind]wanted{
			otlpOverHTTP: {code: http.StatusRequestEntityTooLarge, says: "max_in_flight_bytes"}, otlpOverGRPC: {code: grpcResourceExhausted, says: "max_in_flight_bytes"},
		}},
		{"a label that is long a hundred times", func(t testing.TB, e *entrance) letter {
			long := bytes.Repeat([]byte("x"), 60<<20)
			if e.name == "remote write 2.0" {
				references := bytes.Repeat([]byte{1}, 256)
				return letter{body: snappy.Encode(nil, append(append(field(4, nil), field(4, long)...), field(5, append(field(1, references), field(2, nil)...))...))}
			}
			return letter{body: snappy.Encode(nil, field(1, append(field(1, append(field(1, long), field(2, []byte("v"))...)), field(2, nil)...)))}
		}, map[kind]wanted{remoteWriting: {code: http.StatusBadRequest, says: "labels"}}},
		{"a million labels", func(testing.TB, *entrance) letter {
			list := make([]labels.Label, 0, 1_000_002)
			for i := range 1_000_000 {
				list = append(list, labels.Label{Name: "l" + strconv.FormatInt(int64(i), 36), Value: "v"})
			}
			list = append(list, labels.Label{Name: model.MetricNameLabel, Value: "labelled"}, labels.Label{Name: model.JobLabel, Value: "bad"})
			return letter{samples: []pushed{{labels.New(list...), time.Now().UnixMilli(), 1}}}
		}, inPart("labels")},
		{"200,001 series", func(testing.TB, *entrance) letter {
			list := make([]pushed, 0, 200_001)
			for i := range cap(list) {
				list = append(list, pushed{labels.FromStrings(model.MetricNameLabel, "many", "i", fmt.Sprint(i)), 1, 1})
			}
			return letter{samples: list}
		}, everywhere(http.StatusRequestEntityTooLarge, grpcResourceExhausted, "more than 200000")},
	}
}

// swelling is a push of tens of millions of empty messages: samples for remote_write, and for OTLP what stands within others.
func swelling(t testing.TB, e *entrance, within func(list []byte) []byte, number int) letter {
	const size = 60 << 20
	if e.kind == remoteWriting {
		series := append(field(1, append(field(1, []byte("__name__")), field(2, []byte("m"))...)), bytes.Repeat(field(2, nil), size/2)...)
		if e.name == "remote write 2.0" {
			series = append(field(1, []byte{1, 2}), bytes.Repeat(field(2, nil), size/2)...)
			symbols := append(field(4, nil), append(field(4, []byte("__name__")), field(4, []byte("m"))...)...)
			return letter{body: snappy.Encode(nil, append(symbols, field(5, series)...))}
		}
		return letter{body: snappy.Encode(nil, field(1, series))}
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(within(bytes.Repeat(field(number, nil), size/2))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return letter{header: map[string]string{"Content-Encoding": "gzip", "Grpc-Encoding": "gzip"}, body: packed.Bytes(), packed: true}
}

// field is a field of protobuf that holds bytes.
func field(number int, content []byte) []byte {
	return append(binary.AppendUvarint([]byte{byte(number<<3 | 2)}, uint64(len(content))), content...)
}

// misaddressed are pushes that no entrance can read.
func misaddressed() []badPush {
	with := func(header map[string]string) func(t testing.TB, e *entrance) letter {
		return func(t testing.TB, e *entrance) letter { return letter{header: header, samples: sampleNow("unread", 1)} }
	}
	unauthenticated := everywhere(http.StatusUnauthorized, grpcUnauthenticated, "")
	return []badPush{
		{"no credentials", with(map[string]string{"Authorization": ""}), unauthenticated},
		{"a wrong password", with(map[string]string{"Authorization": "Basic bWU6d3Jvbmc="}), unauthenticated},
		{"a token instead of a password", with(map[string]string{"Authorization": "Bearer secret"}), unauthenticated},
		{"credentials that are none", with(map[string]string{"Authorization": "Basic %%%"}), unauthenticated},
		{"a wrong content type", with(map[string]string{"Content-Type": "text/plain"}), map[kind]wanted{
			otlpOverHTTP: {code: http.StatusUnsupportedMediaType, says: "send application/x-protobuf or application/json"},
			// What is not gRPC is answered as HTTP.
			otlpOverGRPC:  {code: http.StatusUnsupportedMediaType, says: "speaks gRPC alone"},
			remoteWriting: {code: http.StatusUnsupportedMediaType, says: "send application/x-protobuf"},
		}},
		{"an unknown message", with(map[string]string{"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v3.Request"}), map[kind]wanted{
			remoteWriting: {code: http.StatusUnsupportedMediaType, says: "send prometheus.WriteRequest or io.prometheus.write.v2.Request"},
		}},
		{"a wrong encoding", with(map[string]string{"Content-Encoding": "br", "Grpc-Encoding": "br"}), map[kind]wanted{
			otlpOverHTTP:  {code: http.StatusUnsupportedMediaType, says: "send gzip, zstd or identity"},
			otlpOverGRPC:  {code: grpcUnimplemented, says: "send gzip, zstd or identity"},
			remoteWriting: {code: http.StatusUnsupportedMediaType, says: "send snappy"},
		}},
		// Prometheus takes what says nothing for snappy.
		{"no encoding", with(map[string]string{"Content-Encoding": ""}), map[kind]wanted{remoteWriting: taken()[remoteWriting]}},
		{"an unknown path", func(testing.TB, *entrance) letter { return letter{path: "/v1/traces"} }, map[kind]wanted{
			otlpOverHTTP: {code: http.StatusNotFound, says: "POST /v1/metrics"}, otlpOverGRPC: {code: grpcUnimplemented, says: grpcService},
		}},
		{"a wrong method", func(testing.TB, *entrance) letter { return letter{method: http.MethodPut} }, map[kind]wanted{
			otlpOverHTTP: {code: http.StatusMethodNotAllowed, says: "POST"}, remoteWriting: {code: http.StatusMethodNotAllowed, says: "POST"},
		}},
		{"a body that is not compressed as it says", func(testing.TB, *entrance) letter {
			return letter{header: map[string]string{"Content-Encoding": "gzip", "Grpc-Encoding": "gzip"}, body: []byte("plain text"), packed: true}
		}, map[kind]wanted{
			otlpOverHTTP: {code: http.StatusBadRequest, says: "decompressing the body: corrupt gzip data"}, otlpOverGRPC: {code: grpcInvalidArgument, says: "decompressing the body: corrupt gzip data"},
		}},
		{"a body that is not compressed", func(testing.TB, *entrance) letter {
			return letter{body: []byte("plain text, longer than it says at its beginning")}
		}, map[kind]wanted{
			remoteWriting: {code: http.StatusBadRequest, says: "decompressing the body: corrupt snappy data"},
		}},
		{"a body that is no message", func(t testing.TB, e *entrance) letter {
			body := []byte("\xff\xff\xff\xff\xff plain text")
			if e.kind == remoteWriting {
				body = snappy.Encode(nil, body)
			}
			return letter{body: body}
		}, unreadable()},
		{"half a body", func(t testing.TB, e *entrance) letter {
			body := e.encode(t, sampleNow("half", 1))
			if e.kind == remoteWriting {
				whole, _ := snappy.Decode(nil, body)
				return letter{body: snappy.Encode(nil, whole[:len(whole)-3])}
			}
			return letter{body: body[:len(body)-3]}
		}, unreadable()},
	}
}

// sampleNow is one sample of this moment.
func sampleNow(name string, value float64, more ...string) []pushed {
	return sampleAt(time.Now(), name, value, more...)
}

func sampleAt(at time.Time, name string, value float64, more ...string) []pushed {
	list := append([]string{model.MetricNameLabel, name, model.JobLabel, "bad", model.InstanceLabel, "bad-1"}, more...)
	return []pushed{{labels.FromStrings(list...), at.UnixMilli(), value}}
}

// refusable are pushes that can be read, with a sample that must not be taken.
func refusable() []badPush {
	samples := func(make func() []pushed) func(testing.TB, *entrance) letter {
		return func(testing.TB, *entrance) letter { return letter{samples: make()} }
	}
	// OTLP's translation makes underscores of what is no UTF-8 in a name.
	remoteWriteAlone := map[kind]wanted{remoteWriting: inPart("UTF-8")[remoteWriting]}
	longName, longValue := strings.Repeat("n", 1025), strings.Repeat("v", 16<<10+1)
	return []badPush{
		{"a label value that is not UTF-8", samples(func() []pushed { return sampleNow("latin1", 1, "city", "K\xf6ln") }), inPart("UTF-8")},
		{"a label name that is not UTF-8", samples(func() []pushed { return sampleNow("latin1", 1, "stra\xdfe", "x") }), remoteWriteAlone},
		{"a metric name that is not UTF-8", samples(func() []pushed { return sampleNow("gr\xf6\xdfe", 1) }), remoteWriteAlone},
		{"a label name that is too long", samples(func() []pushed { return sampleNow("long", 1, longName, "x") }), inPart("1024")},
		{"a label value that is too long", samples(func() []pushed { return sampleNow("long", 1, "x", longValue) }), inPart("16384")},
		{"a sample from the far future", samples(func() []pushed { return sampleAt(time.Now().Add(11*time.Minute), "future", 1) }), inPart("future")},
		{"a sample without a name", samples(func() []pushed { return sampleNow("", 1) }), inPart("name")},
	}
}

// TestBadPushesAreAnswered sends everything bad to all entrances of a process: each is answered with what is wrong, none takes much memory, and
// what is good is taken as before.
func TestBadPushesAreAnswered(t *testing.T) {
	end, w := newEndpoint(t), newWays(t)
	auth := "basic_auth: {username: me, password: secret}"
	config := fmt.Sprintf(`remote_write:
%smillrace:
  ingest:
    otlp:
      grpc: {listen: %q, %s}
      http: {listen: %q, %s}
    remote_write: {%s}
`, remoteWrite("main", end.URL), w.grpc, auth, w.http, auth, auth)
	p := startMillrace(t, config, append(w.options(), asShipped())...)
	doors := entrances(t, w, "me", "secret")
	goodPushesArrive(t, doors, end)

	peak := p.watchRSS()
	large := oversized(t)
	for _, bad := range slices.Concat(large, misaddressed(), refusable()) {
		t.Run(bad.name, func(t *testing.T) {
			for _, e := range doors {
				if want, ok := bad.wants[e.kind]; ok {
					want.check(t, e, e.send(t, bad.letter(t, e)))
				}
			}
		})
	}
	for _, e := range doors {
		t.Run("what is sent twice, "+e.name, func(t *testing.T) { sentTwice(t, e) })
		t.Run("nothing, "+e.name, func(t *testing.T) {
			good := taken()[e.kind]
			good.check(t, e, e.send(t, letter{}))
			if e.kind != remoteWriting { // an empty body is no snappy
				good.check(t, e, e.send(t, letter{body: []byte{}}))
			}
		})
	}
	atMost(t, peak(), mostMemory)
	t.Run("all at a time", func(t *testing.T) {
		peak := p.watchRSS()
		allAtATime(t, doors, large)
		atMost(t, peak(), mostMemory+mostInFlight)
	})
	goodPushesArrive(t, doors, end)
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// atMost checks a peak of memory, and logs it.
func atMost(t testing.TB, peak, limit int64) {
	t.Helper()
	t.Logf("the process took at most %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("that is more than %d MiB", limit>>20)
	}
}

func (want wanted) check(t testing.TB, e *entrance, got answer) {
	t.Helper()
	if got.code != want.code || got.refused != want.refused || !strings.Contains(got.text, want.says) || want.says == "" && want.refused == 0 && want.code/100 == 2 && got.text != "" {
		t.Errorf("%s answers %s; want code %d, %d refused, %q", e.name, got, want.code, want.refused, want.says)
	}
}

// sentTwice sends a sample again: the same is taken, another value is not.
func sentTwice(t *testing.T, e *entrance) {
	at := time.Now()
	name := "twice_" + strings.NewReplacer(" ", "_", ".", "_").Replace(e.name)
	good := taken()[e.kind]
	good.check(t, e, e.send(t, letter{samples: sampleAt(at, name, 1)}))
	good.check(t, e, e.send(t, letter{samples: sampleAt(at, name, 1)}))
	inPart(name)[e.kind].check(t, e, e.send(t, letter{samples: sampleAt(at, name, 2)}))
	inPart(name)[e.kind].check(t, e, e.send(t, letter{samples: sampleAt(at.Add(-time.Second), name, 1)}))
	good.check(t, e, e.send(t, letter{samples: sampleAt(at.Add(time.Millisecond), name, 2)}))
	// What is good of a request is taken beside what is bad.
	mixed := append(sampleAt(at.Add(2*time.Millisecond), name, 3), sampleAt(at.Add(time.Hour), name+"_future", 1)...)
	inPart("future")[e.kind].check(t, e, e.send(t, letter{samples: mixed}))
	inPart(name)[e.kind].check(t, e, e.send(t, letter{samples: sampleAt(at.Add(2*time.Millisecond), name, 4)}))
}

// allAtATime sends what is too much to all entrances at a time. Every one is refused.
func allAtATime(t *testing.T, doors []*entrance, large []badPush) {
	var running sync.WaitGroup
	for _, bad := range large {
		for _, e := range doors {
			want, ok := bad.wants[e.kind]
			if !ok {
				continue
			}
			l := bad.letter(t, e)
			req := e.request(t, l)
			running.Go(func() {
				got, err := e.try(t, req, l.byHand)
				switch {
				case err != nil:
					t.Errorf("%s, %s: %v", e.name, bad.name, err)
				case got.code == http.StatusTooManyRequests && e.kind != otlpOverGRPC, got.code == grpcResourceExhausted && e.kind == otlpOverGRPC:
					// There is no room for it at the moment.
				default:
					want.check(t, e, got)
				}
			})
		}
	}
	running.Wait()
}

// goodPushesArrive pushes a sample through each entrance and waits for it at the endpoint.
func goodPushesArrive(t *testing.T, doors []*entrance, end *endpoint) {
	t.Helper()
	for i, e := range doors {
		sample := sampleNow("good", float64(i), "entrance", e.name)[0]
		taken()[e.kind].check(t, e, e.send(t, letter{samples: []pushed{sample}}))
		eventually(t, 20*time.Second, "the sample from "+e.name, func() error {
			if bits, ok := end.value(at{sample.labels.Hash(), sample.time}); !ok || bits != math.Float64bits(sample.value) {
				return fmt.Errorf("%s @%d has %s", sample.labels, sample.time, floatText(bits))
			}
			return nil
		})
	}
}
