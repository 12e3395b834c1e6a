package pusher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/golang/snappy"
	"google.golang.org/protobuf/encoding/protowire"
)

// answer is what became of one attempt to push.
type answer struct {
	// err is nil if the push was acknowledged.
	err error
	// class is the kind of failure: a status, "timeout" or "connection".
	class string
	// again says that the same push may be sent again; after is how long the receiver wants it to take until then, 0 if it does not say.
	again bool
	after time.Duration
	// rejected is how many points (OTLP) or samples (remote_write 2.0) of an acknowledged push the receiver says it did not take.
	rejected int
}

// transport sends pushes of one sender.
type transport interface {
	// send sends an encoded push that is not compressed yet, and returns when it is answered. It does not keep the body.
	send(ctx context.Context, body []byte) answer
	close()
}

// maxAnswerBytes is how much of an answer is read.
const maxAnswerBytes = 64 << 10

// httpTransport pushes by HTTP.
type httpTransport struct {
	client   *http.Client
	protocol Protocol
	url      string
	header   http.Header
	// samples is how many a push holds.
	samples int
	gzip    *gzipper
}

// newHTTPTransport returns the transport that all senders share. Each of them has one request at a time, and thus a connection.
func newHTTPTransport(config Config) *httpTransport {
	t := &httpTransport{
		client: &http.Client{
			Transport: &http.Transport{
				DialContext:     (&net.Dialer{Timeout: config.Timeout}).DialContext,
				TLSClientConfig: config.TLS, MaxIdleConnsPerHost: config.Senders, IdleConnTimeout: time.Minute, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		protocol: config.Protocol, url: config.URL, header: http.Header{}, samples: config.Series, gzip: new(gzipper),
	}
	t.header.Set("User-Agent", "millrace-bench")
	t.header.Set("Content-Type", "application/x-protobuf")
	switch config.Protocol {
	case OTLPHTTP:
		t.header.Set("Content-Encoding", "gzip")
	case RemoteWrite:
		t.header.Set("Content-Encoding", "snappy")
		t.header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	case RemoteWrite2:
		t.header.Set("Content-Encoding", "snappy")
		t.header.Set("Content-Type", "application/x-protobuf;proto=io.prometheus.write.v2.Request")
		t.header.Set("X-Prometheus-Remote-Write-Version", "2.0.0")
	}
	for name, value := range config.Headers {
		t.header.Set(name, value)
	}
	return t
}

func (t *httpTransport) close() { t.client.CloseIdleConnections() }

func (t *httpTransport) send(ctx context.Context, body []byte) answer {
	encoded, err := t.compress(body)
	if err != nil {
		return answer{err: err, class: "encoding"}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(encoded))
	if err != nil {
		return answer{err: fmt.Errorf("pushing to %s: %w", t.url, err), class: "url"}
	}
	request.Header = t.header.Clone()
	response, err := t.client.Do(request)
	if err != nil {
		return answer{err: fmt.Errorf("pushing: %w", err), class: classOf(err), again: true}
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return answer{err: fmt.Errorf("reading the answer of %s: %w", t.url, err), class: classOf(err), again: true}
	}
	if response.StatusCode/100 == 2 {
		return t.acknowledged(response.Header, data)
	}
	return answer{
		err:   fmt.Errorf("%s answered %s: %s", t.url, response.Status, bytes.TrimSpace(data[:min(len(data), 300)])),
		class: strconv.Itoa(response.StatusCode),
		again: t.retryable(response.StatusCode), after: retryAfter(response.Header.Get("Retry-After"), time.Now()),
	}
}

func (t *httpTransport) compress(body []byte) ([]byte, error) {
	if t.protocol == OTLPHTTP {
		return t.gzip.encode(body)
	}
	return snappy.Encode(nil, body), nil
}

// acknowledged reads what a receiver says of a push that it took.
func (t *httpTransport) acknowledged(header http.Header, body []byte) answer {
	switch t.protocol {
	case OTLPHTTP:
		rejected, err := rejectedPoints(body)
		if err != nil {
			return answer{err: fmt.Errorf("reading the answer of %s: %w", t.url, err), class: "answer"}
		}
		return answer{rejected: rejected}
	case RemoteWrite2:
		// The specification has a sender take an answer without it for that of a receiver that does not know 2.0.
		const name = "X-Prometheus-Remote-Write-Samples-Written"
		written, err := strconv.Atoi(header.Get(name))
		if err != nil {
			return answer{err: fmt.Errorf("the answer of %s has no number in %s: it does not speak remote_write 2.0", t.url, name), class: "answer"}
		}
		return answer{rejected: max(t.samples-written, 0)}
	}
	return answer{}
}

// retryable tells the statuses after which the same push is to be sent again: those that the OTLP specification lists, and
// those that remote_write's does.
func (t *httpTransport) retryable(status int) bool {
	if t.protocol == OTLPHTTP {
		return slices.Contains([]int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, status)
	}
	return status == http.StatusTooManyRequests || status/100 == 5
}

// retryAfter reads a Retry-After header; it is 0 if there is none.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return max(time.Duration(seconds)*time.Second, 0)
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// classOf tells a timeout from other failures of a connection.
func classOf(err error) string {
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return "timeout"
	}
	return "connection"
}

// rejectedPoints reads ExportMetricsServiceResponse.partial_success.rejected_data_points.
func rejectedPoints(response []byte) (int, error) {
	rejected := 0
	err := fields(response, func(number protowire.Number, _ uint64, partial []byte) error {
		if number != 1 {
			return nil
		}
		return fields(partial, func(number protowire.Number, value uint64, _ []byte) error {
			if number == 1 {
				rejected = int(value)
			}
			return nil
		})
	})
	return rejected, err
}

// fields calls f for each field of a message with its value or its bytes.
func fields(message []byte, f func(number protowire.Number, value uint64, data []byte) error) error {
	for len(message) > 0 {
		number, wire, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var value uint64
		var data []byte
		switch wire {
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			data, size = protowire.ConsumeBytes(message)
		default:
			size = protowire.ConsumeFieldValue(number, wire, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if err := f(number, value, data); err != nil {
			return err
		}
	}
	return nil
}
