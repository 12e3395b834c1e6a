package door

import (
	"net/http"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

// maxMessage is how long the text of an answer may be, in bytes: senders log it, and those of gRPC take it in headers.
const maxMessage = 1024

// statusOf is the failure as google.rpc.Status, which OTLP's errors are in, with when to try again where that may help.
func statusOf(f *failure) *statuspb.Status {
	s := &statuspb.Status{Code: int32(faults[f.fault].code), Message: clip(f.message, maxMessage)}
	if f.retry > 0 {
		if info, err := anypb.New(&errdetails.RetryInfo{RetryDelay: durationpb.New(f.retry)}); err == nil {
			s.Details = append(s.Details, info)
		}
	}
	return s
}

// exportResponse is OTLP's answer to a request that was taken, maybe in part. Nil is the encoding of plain success in
// protobuf.
func exportResponse(outcome Outcome) *pmetricotlp.ExportResponse {
	if outcome.Refused == 0 && outcome.Reason == "" {
		return nil
	}
	response := pmetricotlp.NewExportResponse()
	partial := response.PartialSuccess()
	partial.SetRejectedDataPoints(int64(outcome.Refused))
	partial.SetErrorMessage(clip(outcome.Reason, maxMessage))
	return &response
}

// writeText answers in plain text.
func writeText(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h["Content-Type"] = []string{"text/plain; charset=utf-8"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	w.WriteHeader(status)
	_, _ = w.Write(append([]byte(text), '\n')) // a sender that has gone needs no answer
}

// writeBody answers with a body of the content type.
func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a sender that has gone needs no answer
}

// setFailureHeaders sets the headers that belong to a failure in HTTP, and returns the status to write.
func (g *gate) setFailureHeaders(h http.Header, f *failure) int {
	status := faults[f.fault].status
	switch f.fault {
	case unauthenticated:
		h["Www-Authenticate"] = g.credentials.schemes
	case wrongMethod:
		h.Set("Allow", http.MethodPost)
	case gone:
		status = http.StatusBadRequest // in case that somebody reads it: 499 is no status of HTTP
	}
	if f.seconds > 0 {
		h.Set("Retry-After", strconv.FormatInt(f.seconds, 10))
	}
	return status
}

func (f *failure) httpCode() string { return strconv.Itoa(faults[f.fault].status) }

func marshalStatus(f *failure, json bool) []byte {
	var body []byte
	var err error
	if json {
		body, err = protojson.Marshal(statusOf(f))
	} else {
		body, err = proto.Marshal(statusOf(f))
	}
	if err != nil {
		return nil // the status line says enough; a Status of a clipped text and a duration always encodes
	}
	return body
}
