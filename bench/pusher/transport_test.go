package pusher

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// transportTo returns the transport of a protocol to a URL, with a header.
func transportTo(t *testing.T, protocol Protocol, url string) transport {
	t.Helper()
	config := Config{URL: url, Protocol: protocol, Series: 10, Timeout: 10 * time.Second, Headers: map[string]string{"X-Scope-OrgID": "team-a"}}
	if err := config.validate(); err != nil {
		t.Fatal(err)
	}
	if protocol != OTLPGRPC {
		transport := newHTTPTransport(config)
		t.Cleanup(transport.close)
		return transport
	}
	transport, err := newGRPCTransport(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.close)
	return transport
}

// partial is a response that says that points were rejected.
func partial(t *testing.T, rejected int64) pmetricotlp.ExportResponse {
	t.Helper()
	response := pmetricotlp.NewExportResponse()
	response.PartialSuccess().SetRejectedDataPoints(rejected)
	response.PartialSuccess().SetErrorMessage("too old")
	return response
}

func TestAnswersOverHTTP(t *testing.T) {
	rejected, err := partial(t, 4).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]string{"X-Prometheus-Remote-Write-Samples-Written": "7"}
	for _, tc := range []struct {
		name     string
		protocol Protocol
		status   int
		header   map[string]string
		body     string
		want     answer
	}{
		{"taken", OTLPHTTP, 200, nil, "", answer{}},
		{"taken in part", OTLPHTTP, 200, nil, string(rejected), answer{rejected: 4}},
		{"garbage", OTLPHTTP, 200, nil, "\xff", answer{class: "answer"}},
		{"bad", OTLPHTTP, 400, nil, "why", answer{class: "400"}},
		{"not retryable in OTLP", OTLPHTTP, 500, nil, "", answer{class: "500"}},
		{"busy", OTLPHTTP, 503, map[string]string{"Retry-After": "3"}, "", answer{class: "503", again: true, after: 3 * time.Second}},
		{"gateways", OTLPHTTP, 502, nil, "", answer{class: "502", again: true}},
		{"too many", OTLPHTTP, 429, map[string]string{"Retry-After": "x"}, "", answer{class: "429", again: true}},
		{"redirected", OTLPHTTP, 302, map[string]string{"Location": "/"}, "", answer{class: "302"}},
		{"taken", RemoteWrite, 204, nil, "", answer{}},
		{"retryable in remote_write", RemoteWrite, 500, nil, "", answer{class: "500", again: true}},
		{"too many", RemoteWrite, 429, nil, "", answer{class: "429", again: true}},
		{"too large", RemoteWrite, 413, nil, "", answer{class: "413"}},
		{"taken in part", RemoteWrite2, 204, written, "", answer{rejected: 3}},
		{"not 2.0", RemoteWrite2, 204, nil, "", answer{class: "answer"}},
	} {
		t.Run(string(tc.protocol)+" "+tc.name, func(t *testing.T) {
			tenant := ""
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tenant = r.Header.Get("X-Scope-OrgID")
				for name, value := range tc.header {
					w.Header().Set(name, value)
				}
				w.WriteHeader(tc.status)
				if tc.status != http.StatusNoContent {
					w.Write([]byte(tc.body))
				}
			}))
			defer server.Close()
			got := transportTo(t, tc.protocol, server.URL).send(t.Context(), []byte("body"))
			if (got.err != nil) != (tc.want.class != "") {
				t.Errorf("error %v", got.err)
			}
			got.err = nil
			if got != tc.want || tenant != "team-a" {
				t.Errorf("got %+v, want %+v; tenant %q", got, tc.want, tenant)
			}
		})
	}
}

func TestRetryAfterMayBeADate(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "-3": 0, "120": 2 * time.Minute, "Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second, "Sun, 01 Mar 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q is %s, want %s", value, got, want)
		}
	}
}

func TestConnectionsThatFail(t *testing.T) {
	release := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer hanging.Close()
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if a := transportTo(t, OTLPHTTP, hanging.URL).send(ctx, nil); a.class != "timeout" || !a.again {
		t.Errorf("got %+v from a server that hangs", a)
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	if a := transportTo(t, OTLPHTTP, closed.URL).send(t.Context(), nil); a.class != "connection" || !a.again {
		t.Errorf("got %+v from nobody", a)
	}
	if a := transportTo(t, OTLPGRPC, closed.URL).send(t.Context(), nil); a.class != "Unavailable" || !a.again {
		t.Errorf("got %+v from nobody", a)
	}
}

// scripted answers each request of OTLP's gRPC service with the next answer.
type scripted struct {
	pmetricotlp.UnimplementedGRPCServer
	answers chan func(context.Context) (pmetricotlp.ExportResponse, error)
}

func (s *scripted) Export(ctx context.Context, _ pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	return (<-s.answers)(ctx)
}

// serveScript serves a script and returns its URL.
func serveScript(t *testing.T) (*scripted, string) {
	t.Helper()
	s := &scripted{answers: make(chan func(context.Context) (pmetricotlp.ExportResponse, error), 1)}
	server := grpc.NewServer()
	pmetricotlp.RegisterGRPCServer(server, s)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, "http://" + listener.Addr().String()
}

func TestAnswersOverGRPC(t *testing.T) {
	s, url := serveScript(t)
	transport := transportTo(t, OTLPGRPC, url)
	refusal := func(code codes.Code, details ...protoadapt.MessageV1) error {
		withDetails, err := status.New(code, "no").WithDetails(details...)
		if err != nil {
			t.Fatal(err)
		}
		return withDetails.Err()
	}
	retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)}
	for _, tc := range []struct {
		name     string
		response pmetricotlp.ExportResponse
		err      error
		want     answer
	}{
		{"taken", pmetricotlp.NewExportResponse(), nil, answer{}},
		{"taken in part", partial(t, 4), nil, answer{rejected: 4}},
		{"bad", pmetricotlp.NewExportResponse(), refusal(codes.InvalidArgument), answer{class: "InvalidArgument"}},
		{"away", pmetricotlp.NewExportResponse(), refusal(codes.Unavailable), answer{class: "Unavailable", again: true}},
		{"away for a while", pmetricotlp.NewExportResponse(), refusal(codes.Unavailable, retry), answer{class: "Unavailable", again: true, after: 1500 * time.Millisecond}},
		{"full", pmetricotlp.NewExportResponse(), refusal(codes.ResourceExhausted), answer{class: "ResourceExhausted"}},
		{"full for a while", pmetricotlp.NewExportResponse(), refusal(codes.ResourceExhausted, retry),
			answer{class: "ResourceExhausted", again: true, after: 1500 * time.Millisecond}},
		{"no right", pmetricotlp.NewExportResponse(), refusal(codes.Unauthenticated, retry), answer{class: "Unauthenticated"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tenant := make(chan []string, 1)
			s.answers <- func(ctx context.Context) (pmetricotlp.ExportResponse, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				tenant <- md.Get("x-scope-orgid")
				return tc.response, tc.err
			}
			got := transport.send(t.Context(), encode(t, Config{Series: 20}))
			if (got.err != nil) != (tc.want.class != "") {
				t.Errorf("error %v", got.err)
			}
			got.err = nil
			if values := <-tenant; got != tc.want || len(values) != 1 || values[0] != "team-a" {
				t.Errorf("got %+v, want %+v; tenant %q", got, tc.want, values)
			}
		})
	}
}

func TestARepeatedPushOverGRPCIsTheSame(t *testing.T) {
	a, b := encode(t, Config{Protocol: OTLPGRPC, Series: 50}), encode(t, Config{Protocol: OTLPGRPC, Series: 50})
	g := new(gzipper)
	x, errX := g.encode(a)
	y, errY := g.encode(b)
	if errX != nil || errY != nil || string(x) != string(y) {
		t.Errorf("the same push is encoded to other bytes: %v, %v", errX, errY)
	}
}
