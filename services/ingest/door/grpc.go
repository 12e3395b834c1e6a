package door

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	exportPath = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
	grpcType   = "application/grpc"
	// framePrefix are the bytes before each message: whether it is compressed, and its length.
	framePrefix = 5
)

// GRPC is the door of OTLP over gRPC: MetricsService/Export. Its methods are safe for concurrent use.
//
// It speaks gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) over the HTTP/2 of net/http. The
// server of grpc-go reads and decompresses a message before anything can ask how much memory that takes, so that the
// bodies of all requests together could not be bounded there.
type GRPC struct{ listener }

// NewGRPC checks the configuration and the files it names. It does not listen yet.
func NewGRPC(cfg Config) (*GRPC, error) {
	cfg = cfg.withDefaults(OTLPGRPC)
	d := new(GRPC)
	if err := d.init(cfg, "millrace.ingest.otlp.grpc.listen", func(g *gate) protocol { return otlpGRPC{g} }); err != nil {
		return nil, err
	}
	return d, nil
}

type otlpGRPC struct{ *gate }

func (otlpGRPC) route(r *http.Request) *failure {
	switch {
	case !isGRPC(r):
		return fail(unsupported, "this address speaks gRPC alone; OTLP over HTTP has an address of its own (port 4318, where nothing else is configured)")
	case r.URL.Path != exportPath || r.Method != http.MethodPost:
		return fail(unknownPath, "unknown method %s; metrics are taken by %s", clip(r.URL.Path, 200), exportPath)
	}
	return nil
}

// isGRPC knows application/grpc, application/grpc+proto and both with parameters.
func isGRPC(r *http.Request) bool {
	if r.ProtoMajor < 2 {
		return false
	}
	rest, ok := strings.CutPrefix(r.Header.Get("Content-Type"), grpcType)
	if !ok {
		return false
	}
	rest, _, _ = strings.Cut(rest, ";")
	return rest == "" || rest == "+proto"
}

func (otlpGRPC) open(r *http.Request) (parcel, *failure) {
	p := parcel{format: OTLP, framed: true}
	var ok bool
	if p.coding, ok = contentCoding(r.Header.Get("Grpc-Encoding")); !ok {
		return p, fail(unsupported, "the encoding %q is not supported; send gzip, zstd or identity", clip(r.Header.Get("Grpc-Encoding"), 100))
	}
	return p, nil
}

// readFrame reads the one message of a unary call into body, and says whether it is compressed. Its length is no reason
// to take memory: that grows with what arrives.
func readFrame(r *http.Request, body *buffer, how coding, limit int64) (compressed bool, err error) {
	var prefix [framePrefix]byte
	switch _, err := io.ReadFull(r.Body, prefix[:]); {
	case err == io.EOF:
		return false, fail(malformed, "the call has no message")
	case err != nil:
		return false, err
	}
	switch prefix[0] {
	case 0:
	case 1:
		if how == identity {
			return false, fail(malformed, "the message is compressed, but there is no grpc-encoding that says how")
		}
		compressed = true
	default:
		return false, fail(malformed, "the message begins with an unknown flag %d", prefix[0])
	}
	length := int64(binary.BigEndian.Uint32(prefix[1:]))
	if length > limit {
		return false, errTooLarge
	}
	if err := body.fill(r.Context(), io.LimitReader(r.Body, length), limit, length); err != nil {
		return false, err
	}
	if int64(len(body.b)) < length {
		return false, io.ErrUnexpectedEOF
	}
	switch err := atEnd(r.Body); {
	case errors.Is(err, errTooLarge):
		return false, fail(malformed, "the call has more than one message")
	case err != nil:
		return false, err
	}
	return compressed, nil
}

// maxGRPCTimeout is beyond what any sender means by a deadline, and within what a time.Duration holds.
const maxGRPCTimeout = 24 * time.Hour

// withDeadline applies the header grpc-timeout: up to 8 digits and a unit.
func withDeadline(ctx context.Context, timeout string) (context.Context, context.CancelFunc) {
	if len(timeout) < 2 || len(timeout) > 9 {
		return ctx, func() {}
	}
	unit, known := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}[timeout[len(timeout)-1]]
	n, err := strconv.ParseUint(timeout[:len(timeout)-1], 10, 32)
	if !known || err != nil || n > uint64(maxGRPCTimeout/unit) {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, time.Duration(n)*unit)
}

func (otlpGRPC) accept(w http.ResponseWriter, _ parcel, outcome Outcome) string {
	var message []byte
	if response := exportResponse(outcome); response != nil {
		var err error
		if message, err = response.MarshalProto(); err != nil {
			message = nil // what was taken is safe; an empty message is plain success
		}
	}
	frame := make([]byte, framePrefix, framePrefix+len(message))
	binary.BigEndian.PutUint32(frame[1:], uint32(len(message)))
	h := w.Header()
	h["Content-Type"] = []string{grpcType}
	h["Trailer"] = []string{"Grpc-Status"}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(append(frame, message...)) // a sender that has gone needs no answer
	h["Grpc-Status"] = []string{"0"}
	return codes.OK.String()
}

// refuse answers with a status in the trailers. What is not gRPC is answered as HTTP.
func (d otlpGRPC) refuse(w http.ResponseWriter, r *http.Request, _ parcel, f *failure) string {
	if !isGRPC(r) {
		writeText(w, d.setFailureHeaders(w.Header(), f), clip(f.message, maxMessage))
		return f.httpCode()
	}
	status := statusOf(f)
	h := w.Header()
	h["Content-Type"] = []string{grpcType}
	if f.fault == unsupported {
		h["Grpc-Accept-Encoding"] = []string{"identity,gzip,zstd"}
	}
	h["Trailer"] = []string{"Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin"}
	w.WriteHeader(http.StatusOK)
	h["Grpc-Status"] = []string{strconv.Itoa(int(status.Code))}
	h["Grpc-Message"] = []string{percentEncode(status.Message)}
	if len(status.Details) > 0 {
		if details, err := proto.Marshal(status); err == nil {
			h["Grpc-Status-Details-Bin"] = []string{base64.RawStdEncoding.EncodeToString(details)}
		}
	}
	return codes.Code(status.Code).String()
}

// percentEncode is the encoding of grpc-message: all but printable ASCII, and the percent sign.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}
