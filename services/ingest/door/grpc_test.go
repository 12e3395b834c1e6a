package door

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/millrace/millrace/pkg/await"
)

// init registers what the gRPC clients of these tests compress with; gzip registers itself.
func init() {
	encoding.RegisterCompressor(zstdClient{})
	encoding.RegisterCompressor(deflateClient{})
}

type zstdClient struct{}

func (zstdClient) Name() string { return "zstd" }
func (zstdClient) Compress(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
}
func (zstdClient) Decompress(r io.Reader) (io.Reader, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
}

// deflateClient has a name that the door does not know.
type deflateClient struct{ zstdClient }

func (deflateClient) Name() string { return "deflate" }

// dial connects a real client of grpc-go.
func dial(t testing.TB, addr string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	if len(options) == 0 {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func export(t testing.TB, conn *grpc.ClientConn, request pmetricotlp.ExportRequest, headers []string, options ...grpc.CallOption) (pmetricotlp.ExportResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), await.Patience)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	return pmetricotlp.NewGRPCClient(conn).Export(ctx, request, options...)
}

func TestGRPCTakesEveryEncoding(t *testing.T) {
	for _, points := range []int{1, 100_000} {
		for _, coding := range []string{"", "gzip", "zstd"} {
			r := start(t, OTLPGRPC, func(c *Config) { c.TenantHeader = "X-Scope-OrgID" })
			var options []grpc.CallOption
			if coding != "" {
				options = append(options, grpc.UseCompressor(coding))
			}
			response, err := export(t, dial(t, r.addr), metrics(points), []string{"x-scope-orgid", "blue"}, options...)
			if err != nil {
				t.Fatalf("%q: %v", coding, err)
			}
			if response.PartialSuccess().ErrorMessage() != "" {
				t.Errorf("%q: %v", coding, response.PartialSuccess().ErrorMessage())
			}
			taken := r.recorder.taken()
			if len(taken) != 1 || !bytes.Equal(taken[0].Body, metricsProto(t, points)) || taken[0].Tenant != "blue" || taken[0].Sender != "127.0.0.1" {
				t.Errorf("%q: took %d requests, or other bytes", coding, len(taken))
			}
			r.atRest(t)
		}
	}
}

func TestGRPCSaysWhatTheTakerSays(t *testing.T) {
	for _, c := range outcomes {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, OTLPGRPC, nil)
			r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return c.outcome, c.err }
			_, err := export(t, dial(t, r.addr), metrics(1), nil)
			s := status.Convert(err)
			if s.Code() != c.code || !strings.Contains(s.Message(), c.text) || strings.Contains(s.Message(), "secret") {
				t.Errorf("status %v", s)
			}
			if got := retryDelay(t, s.Proto()); got != c.delay {
				t.Errorf("RetryInfo %v, want %v", got, c.delay)
			}
		})
	}
}

func TestGRPCTellsPartialSuccess(t *testing.T) {
	r := start(t, OTLPGRPC, nil)
	r.recorder.answer = func(context.Context, *Push) (Outcome, error) {
		return Outcome{Samples: 5, Refused: 2, Reason: "too old"}, nil
	}
	response, err := export(t, dial(t, r.addr), metrics(7), nil)
	if err != nil || response.PartialSuccess().RejectedDataPoints() != 2 || response.PartialSuccess().ErrorMessage() != "too old" {
		t.Errorf("%v, %d %q", err, response.PartialSuccess().RejectedDataPoints(), response.PartialSuccess().ErrorMessage())
	}
}

func TestGRPCAnswersEmptyRequests(t *testing.T) {
	r := start(t, OTLPGRPC, nil)
	conn := dial(t, r.addr)
	for _, options := range [][]grpc.CallOption{nil, {grpc.UseCompressor("gzip")}, {grpc.UseCompressor("zstd")}} {
		if _, err := export(t, conn, pmetricotlp.NewExportRequest(), nil, options...); err != nil {
			t.Error(err)
		}
	}
	if n := len(r.recorder.taken()); n > 0 {
		t.Errorf("%d empty requests came to the taker", n)
	}
}

func TestGRPCRefusesWhatIsNotForIt(t *testing.T) {
	r := start(t, OTLPGRPC, nil)
	conn := dial(t, r.addr)
	if _, err := export(t, conn, metrics(1), nil, grpc.UseCompressor("deflate")); status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "gzip, zstd or identity") {
		t.Errorf("unknown encoding: %v", err)
	}
	err := conn.Invoke(context.Background(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export", new(statusMessage), new(statusMessage))
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "MetricsService") {
		t.Errorf("unknown method: %v", err)
	}
	res, answer := do(t, http.DefaultClient, http.MethodPost, r.base+metricsPath, bytes.NewReader(metricsProto(t, 1)), "Content-Type", protobufType)
	if res.StatusCode != http.StatusUnsupportedMediaType || !strings.Contains(answer, "4318") {
		t.Errorf("OTLP/HTTP: %d %s", res.StatusCode, answer)
	}
}

func TestGRPCRefusesMalformedFrames(t *testing.T) {
	r := start(t, OTLPGRPC, func(c *Config) { c.Limits.MaxBodyBytes = 1 << 20 })
	client := h2c(t)
	frame := func(flag byte, length int, body string) string {
		b := binary.BigEndian.AppendUint32([]byte{flag}, uint32(length))
		return string(b) + body
	}
	for _, c := range []struct{ name, body, coding, code, text string }{
		{"nothing", "", "", "3", "no message"},
		{"cut prefix", "\x00\x00", "", "1", "ended early"},
		{"cut message", frame(0, 100, "abc"), "", "1", "ended early"},
		{"unknown flag", frame(7, 1, "a"), "", "3", "unknown flag 7"},
		{"compressed without encoding", frame(1, 1, "a"), "", "3", "no grpc-encoding"},
		{"corrupt gzip", frame(1, 3, "abc"), "gzip", "3", "gzip"},
		{"two messages", frame(0, 1, "a") + frame(0, 1, "b"), "", "3", "more than one"},
		{"announced 4 GiB", frame(0, 1<<32-1, "a"), "", "8", "larger than 1 MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			headers := []string{"Content-Type", "application/grpc+proto", "Te", "trailers"}
			if c.coding != "" {
				headers = append(headers, "Grpc-Encoding", c.coding)
			}
			res, _ := do(t, client, http.MethodPost, r.base+exportPath, io.MultiReader(strings.NewReader(c.body)), headers...)
			message := strings.ReplaceAll(res.Trailer.Get("Grpc-Message"), "%20", " ")
			if res.StatusCode != 200 || res.Trailer.Get("Grpc-Status") != c.code || !strings.Contains(message, c.text) {
				t.Errorf("%d, trailers %v, want %s %q", res.StatusCode, res.Trailer, c.code, c.text)
			}
		})
	}
	if n := len(r.recorder.taken()); n > 0 {
		t.Errorf("%d of them came to the taker", n)
	}
	r.atRest(t)
}

func TestGRPCKeepsTheDeadlineOfTheCall(t *testing.T) {
	r := start(t, OTLPGRPC, nil)
	waited := make(chan error, 1)
	r.recorder.answer = func(ctx context.Context, _ *Push) (Outcome, error) {
		<-ctx.Done()
		waited <- ctx.Err()
		return Outcome{}, ctx.Err()
	}
	// By hand, since a client of grpc-go would end the call itself.
	body := framed(0, metricsProto(t, 1))
	res, _ := do(t, h2c(t), http.MethodPost, r.base+exportPath, bytes.NewReader(body), "Content-Type", grpcType, "Grpc-Timeout", "50m")
	if got := res.Trailer.Get("Grpc-Status"); got != "4" {
		t.Errorf("grpc-status %s, want DEADLINE_EXCEEDED", got)
	}
	select {
	case err := <-waited:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(await.Patience):
		t.Error("the call did not come to the taker")
	}
}

func TestWithDeadline(t *testing.T) {
	for timeout, want := range map[string]time.Duration{"": 0, "S": 0, "5": 0, "5x": 0, "-1S": 0, "123456789S": 0, "99999999H": 0, "10S": 10 * time.Second, "1H": time.Hour, "90000000u": 90 * time.Second, "5M": 5 * time.Minute} {
		ctx, cancel := withDeadline(context.Background(), timeout)
		deadline, ok := ctx.Deadline()
		cancel()
		if left := time.Until(deadline); ok != (want > 0) || ok && (left > want || left < want-time.Second) {
			t.Errorf("%q: deadline %v in %v, want %v", timeout, ok, left, want)
		}
	}
}

// statusMessage is an empty message for methods that do not exist.
type statusMessage struct{}

func (*statusMessage) Reset()         {}
func (*statusMessage) String() string { return "" }
func (*statusMessage) ProtoMessage()  {}

// h2c is a client that speaks HTTP/2 without TLS.
func h2c(t testing.TB) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
