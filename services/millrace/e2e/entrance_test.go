package e2e_test

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
)

// kind is what the answers of an entrance look like.
type kind int

const (
	otlpOverHTTP kind = iota
	otlpOverGRPC
	remoteWriting
)

// entrance is a way in for pushes, as a sender sees it.
type entrance struct {
	name   string
	kind   kind
	url    string
	header map[string]string // of a good push
	encode func(testing.TB, []pushed) []byte
	client *http.Client
}

// entrances returns all of them. Each takes basic authentication by user and password.
func entrances(t testing.TB, w ways, user, password string) []*entrance {
	t.Helper()
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	h1 := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	h2 := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}, Timeout: time.Minute}
	h2.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h1.CloseIdleConnections)
	t.Cleanup(h2.CloseIdleConnections)
	snappied := func(contentType string) map[string]string {
		return map[string]string{"Authorization": basic, "Content-Type": contentType, "Content-Encoding": "snappy"}
	}
	return []*entrance{
		{"OTLP over HTTP", otlpOverHTTP, w.otlpURL(), map[string]string{"Authorization": basic, "Content-Type": otlpType}, otlpBody, h1},
		{"OTLP over gRPC", otlpOverGRPC, "http://" + w.grpc + grpcService, map[string]string{"Authorization": basic, "Content-Type": grpcType, "Te": "trailers"}, otlpBody, h2},
		{"remote write 1.0", remoteWriting, w.remoteWriteURL(), snappied(write1Type), write1Body, h1},
		{"remote write 2.0", remoteWriting, w.remoteWriteURL(), snappied(write2Type), write2Body, h1},
	}
}

// letter is a request to an entrance. The zero value is a good one without samples.
type letter struct {
	method  string
	path    string            // instead of the entrance's
	header  map[string]string // replaces; an empty value takes away
	samples []pushed
	body    []byte    // instead of the samples; for gRPC it is one message
	packed  bool      // the body is compressed as the headers say
	raw     io.Reader // instead of the body, with its frame for gRPC
	length  int64     // of raw; negative: not told
	byHand  bool      // over a connection of its own, whose answer is read while the request is written
}

// answer is what came back.
type answer struct {
	code    int // status of HTTP, or code of gRPC
	text    string
	refused int64 // points, as OTLP tells
}

func (a answer) String() string {
	return fmt.Sprintf("code %d, %d refused, %.300q", a.code, a.refused, a.text)
}

// send sends a letter and returns the answer.
func (e *entrance) send(t testing.TB, l letter) answer {
	t.Helper()
	a, err := e.try(t, e.request(t, l), l.byHand)
	if err != nil {
		t.Fatalf("%s: %v", e.name, err)
	}
	return a
}

// try sends a request.
func (e *entrance) try(t testing.TB, req *http.Request, byHand bool) (answer, error) {
	t.Helper()
	do := e.client.Do
	if byHand && e.kind != otlpOverGRPC {
		do = func(req *http.Request) (*http.Response, error) { return writeWhileReading(t, req) }
	}
	res, err := do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	return e.understand(res, body)
}

func (e *entrance) request(t testing.TB, l letter) *http.Request {
	t.Helper()
	to, err := url.Parse(e.url)
	if err != nil {
		t.Fatal(err)
	}
	if l.path != "" {
		to.Path = l.path
	}
	body, length := l.raw, l.length
	if body == nil {
		content := l.body
		if content == nil {
			content = e.encode(t, l.samples)
		}
		if e.kind == otlpOverGRPC {
			content = grpcFrame(content, l.packed)
		}
		body, length = bytes.NewReader(content), int64(len(content))
	}
	req, err := http.NewRequest(cmp.Or(l.method, http.MethodPost), to.String(), body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = length
	header := maps.Clone(e.header)
	maps.Copy(header, l.header)
	for name, v := range header {
		if v != "" {
			req.Header.Set(name, v)
		}
	}
	return req
}

// grpcFrame returns a message with gRPC's prefix.
func grpcFrame(message []byte, packed bool) []byte {
	frame := make([]byte, 5, 5+len(message))
	if packed {
		frame[0] = 1
	}
	binary.BigEndian.PutUint32(frame[1:], uint32(len(message)))
	return append(frame, message...)
}

// writeWhileReading sends a request over HTTP/1.1 and reads the answer at the same time, since it may come before the end of the body.
func writeWhileReading(t testing.TB, req *http.Request) (*http.Response, error) {
	t.Helper()
	conn, err := net.Dial("tcp", req.URL.Host)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = req.Write(conn) // the server closes the connection when it has answered
	}()
	t.Cleanup(func() { conn.Close(); <-written })
	return http.ReadResponse(bufio.NewReader(conn), req)
}

// understand reads the answer's code and text out of what the protocol wraps them in.
func (e *entrance) understand(res *http.Response, body []byte) (answer, error) {
	a := answer{code: res.StatusCode, text: strings.TrimSpace(string(body))}
	contentType := res.Header.Get("Content-Type")
	switch {
	case e.kind == otlpOverGRPC && strings.HasPrefix(contentType, "application/grpc"):
		return understandGRPC(res, body)
	case e.kind == otlpOverHTTP && res.StatusCode == http.StatusOK:
		return a, a.partial(body)
	case e.kind == otlpOverHTTP && contentType == otlpType:
		var status statuspb.Status
		if err := proto.Unmarshal(body, &status); err != nil {
			return a, fmt.Errorf("status %d with a body that is no google.rpc.Status: %w", res.StatusCode, err)
		}
		a.text = status.Message
	}
	return a, nil
}

func understandGRPC(res *http.Response, body []byte) (answer, error) {
	header := res.Header // of an answer without a message
	if res.Trailer.Get("Grpc-Status") != "" {
		header = res.Trailer
	}
	code, err := strconv.Atoi(header.Get("Grpc-Status"))
	if err != nil || res.StatusCode != http.StatusOK {
		return answer{}, fmt.Errorf("status %d, grpc-status %q", res.StatusCode, header.Get("Grpc-Status"))
	}
	message, err := url.PathUnescape(header.Get("Grpc-Message"))
	if err != nil {
		return answer{}, fmt.Errorf("grpc-message: %w", err)
	}
	a := answer{code: code, text: message}
	if len(body) > 5 {
		return a, a.partial(body[5:])
	}
	return a, nil
}

// partial reads an ExportMetricsServiceResponse.
func (a *answer) partial(body []byte) error {
	response := pmetricotlp.NewExportResponse()
	if err := response.UnmarshalProto(body); err != nil {
		return fmt.Errorf("the answer is no ExportMetricsServiceResponse: %w", err)
	}
	a.refused, a.text = response.PartialSuccess().RejectedDataPoints(), response.PartialSuccess().ErrorMessage()
	return nil
}
