package pusher

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// exportMethod is that of OTLP's MetricsService.
const exportMethod = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"

// grpcTransport pushes by OTLP over gRPC, over a connection of its own.
type grpcTransport struct {
	connection *grpc.ClientConn
	header     metadata.MD
}

func newGRPCTransport(config Config) (*grpcTransport, error) {
	at, err := url.Parse(config.URL)
	if err != nil {
		return nil, fmt.Errorf("parsing the URL %q: %w", config.URL, err)
	}
	secure := insecure.NewCredentials()
	if at.Scheme == "https" {
		secure = credentials.NewTLS(config.TLS)
	}
	connection, err := grpc.NewClient("passthrough:///"+at.Host,
		grpc.WithTransportCredentials(secure), grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithUserAgent("millrace-bench"),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: config.MinBackoff, Multiplier: 2, Jitter: .2, MaxDelay: config.MaxBackoff},
			MinConnectTimeout: config.Timeout,
		}),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.UseCompressor(new(gzipper).Name())))
	if err != nil {
		return nil, fmt.Errorf("making a gRPC client for %s: %w", config.URL, err)
	}
	return &grpcTransport{connection, metadata.New(config.Headers)}, nil
}

func (t *grpcTransport) close() { t.connection.Close() }

func (t *grpcTransport) send(ctx context.Context, body []byte) answer {
	var response []byte
	if err := t.connection.Invoke(metadata.NewOutgoingContext(ctx, t.header), exportMethod, body, &response); err != nil {
		s := status.Convert(err)
		again, after := retryInfo(s)
		return answer{err: fmt.Errorf("pushing to %s: %w", t.connection.Target(), err), class: s.Code().String(), again: again, after: after}
	}
	rejected, err := rejectedPoints(response)
	if err != nil {
		return answer{err: fmt.Errorf("reading the answer of %s: %w", t.connection.Target(), err), class: "answer"}
	}
	return answer{rejected: rejected}
}

// retryInfo tells whether and when the same push may be sent again, as the OTLP specification has it.
func retryInfo(s *status.Status) (again bool, after time.Duration) {
	told := false
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			told, after = true, max(info.GetRetryDelay().AsDuration(), 0)
		}
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return true, after
	case codes.ResourceExhausted:
		return told, after
	default:
		return false, 0
	}
}

// bytesCodec takes messages that are encoded already: []byte to send, *[]byte to receive.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("encoding a %T: want bytes", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("decoding into a %T: want bytes", v)
	}
	*b = data.Materialize()
	return nil
}
