package door

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func TestHTTPTakesEveryEncoding(t *testing.T) {
	body, text := metricsProto(t, 3), metricsJSON(t, 3)
	for _, c := range []struct {
		name, contentType, coding string
		body                      []byte
	}{
		{"protobuf", "application/x-protobuf", "", body},
		{"protobuf identity", "application/x-protobuf", "identity", body},
		{"protobuf gzip", "application/x-protobuf", "gzip", zip(t, body)},
		{"protobuf zstd", "application/x-protobuf", "zstd", zstdOf(t, body)},
		{"protobuf with parameter", "application/x-protobuf; charset=utf-8", "", body},
		{"json", "application/json", "", text},
		{"json with charset", "application/json; charset=utf-8", "", text},
		{"json gzip", "application/json", "gzip", zip(t, text)},
		{"json zstd", "application/json", "zstd", zstdOf(t, text)},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := start(t, OTLPHTTP, nil)
			headers := []string{"Content-Type", c.contentType}
			if c.coding != "" {
				headers = append(headers, "Content-Encoding", c.coding)
			}
			res, answer := r.post(t, bytes.NewReader(c.body), headers...)
			if res.StatusCode != http.StatusOK {
				t.Fatalf("status %d: %s", res.StatusCode, answer)
			}
			wantType, want := "application/x-protobuf", ""
			if strings.HasPrefix(c.name, "json") {
				wantType, want = "application/json", "{}"
			}
			if got := res.Header.Get("Content-Type"); got != wantType || answer != want {
				t.Errorf("answer %q of type %q, want %q of %q", answer, got, want, wantType)
			}
			taken := r.recorder.taken()
			if len(taken) != 1 || !bytes.Equal(taken[0].Body, body) || taken[0].Format != OTLP || taken[0].Sender != "127.0.0.1" || taken[0].Limits.MaxLabelNames != 128 {
				t.Errorf("took %+v", taken)
			}
			r.atRest(t)
		})
	}
}

func TestHTTPTakesALargeBody(t *testing.T) {
	r := start(t, OTLPHTTP, nil)
	body := metricsProto(t, 200_000)
	for _, chunked := range []bool{false, true} {
		var reader io.Reader = bytes.NewReader(body)
		if chunked {
			reader = io.MultiReader(reader)
		}
		if res, answer := r.post(t, reader, "Content-Type", protobufType); res.StatusCode != 200 {
			t.Fatalf("status %d: %s", res.StatusCode, answer)
		}
	}
	for _, p := range r.recorder.taken() {
		if !bytes.Equal(p.Body, body) {
			t.Error("the body was changed on its way")
		}
	}
	r.atRest(t)
}

func TestHTTPAnswersEmptyRequests(t *testing.T) {
	r := start(t, OTLPHTTP, nil)
	for _, c := range []struct{ contentType, coding, body string }{
		{protobufType, "", ""},
		{protobufType, "gzip", ""},
		{protobufType, "gzip", string(zip(t, nil))},
		{protobufType, "zstd", string(zstdOf(t, nil))},
		{jsonType, "", "{}"},
		{jsonType, "gzip", string(zip(t, []byte(" {} ")))},
	} {
		res, answer := r.post(t, strings.NewReader(c.body), "Content-Type", c.contentType, "Content-Encoding", c.coding)
		if res.StatusCode != 200 {
			t.Errorf("%+v: status %d: %s", c, res.StatusCode, answer)
		}
	}
	if n := len(r.recorder.taken()); n > 0 {
		t.Errorf("%d empty requests came to the taker", n)
	}
}

// outcomes are answers of a Taker, with those of the three protocols.
var outcomes = []struct {
	name    string
	outcome Outcome
	err     error
	status  int
	code    codes.Code
	retry   string        // Retry-After
	delay   time.Duration // RetryInfo
	text    string        // what the sender reads
}{
	{name: "malformed", err: &Refusal{Kind: Malformed, Message: "no metric name"}, status: 400, code: codes.InvalidArgument, text: "no metric name"},
	{name: "too large", err: &Refusal{Kind: TooLarge, RetryAfter: time.Hour, Message: "300000 points"}, status: 413, code: codes.ResourceExhausted, text: "300000 points"},
	{name: "full", err: &Refusal{Kind: Full, RetryAfter: 1500 * time.Millisecond, Message: "64 MiB wait"}, status: 429, code: codes.ResourceExhausted, retry: "2", delay: 1500 * time.Millisecond, text: "64 MiB wait"},
	{name: "full without time", err: &Refusal{Kind: Full, Message: "full"}, status: 429, code: codes.ResourceExhausted, retry: "1", delay: time.Second, text: "full"},
	{name: "unavailable", err: &Refusal{Kind: Unavailable, RetryAfter: 10 * time.Millisecond, Message: "no stream"}, status: 503, code: codes.Unavailable, retry: "1", delay: 10 * time.Millisecond, text: "no stream"},
	{name: "wrapped", err: errors.Join(errors.New("taking"), &Refusal{Kind: Unavailable, Message: "no stream"}), status: 503, code: codes.Unavailable, retry: "1", delay: time.Second, text: "no stream"},
	{name: "deadline", err: context.DeadlineExceeded, status: 503, code: codes.Unavailable, retry: "1", delay: time.Second, text: "in time"},
	{name: "internal", err: errors.New("secret cause"), status: 500, code: codes.Internal, text: "internal error"},
	{name: "invalid UTF-8", err: &Refusal{Kind: Malformed, Message: "label \xff and % ü\n"}, status: 400, code: codes.InvalidArgument, text: "label \uFFFD and % ü\n"},
	{name: "long", err: &Refusal{Kind: Malformed, Message: strings.Repeat("ü", 4000)}, status: 400, code: codes.InvalidArgument, text: "üüü…"},
}

func TestHTTPSaysWhatTheTakerSays(t *testing.T) {
	for _, c := range outcomes {
		for _, contentType := range []string{protobufType, jsonType} {
			t.Run(c.name+" "+contentType, func(t *testing.T) {
				r := start(t, OTLPHTTP, nil)
				r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return c.outcome, c.err }
				body := metricsProto(t, 1)
				if contentType == jsonType {
					body = metricsJSON(t, 1)
				}
				res, answer := r.post(t, bytes.NewReader(body), "Content-Type", contentType)
				status := checkStatus(t, res, answer, c.status, contentType)
				if codes.Code(status.Code) != c.code || !strings.Contains(status.Message, c.text) || strings.Contains(status.Message, "secret") || len(status.Message) > maxMessage {
					t.Errorf("status %v", status)
				}
				if got := res.Header.Get("Retry-After"); got != c.retry {
					t.Errorf("Retry-After %q, want %q", got, c.retry)
				}
				if got := retryDelay(t, status); got != c.delay {
					t.Errorf("RetryInfo %v, want %v", got, c.delay)
				}
				if c.name == "internal" && !strings.Contains(r.logs.String(), "secret cause") {
					t.Errorf("the cause is not in the log: %s", r.logs)
				}
			})
		}
	}
}

func checkStatus(t *testing.T, res *http.Response, answer string, want int, contentType string) *statuspb.Status {
	t.Helper()
	if res.StatusCode != want || res.Header.Get("Content-Type") != contentType {
		t.Fatalf("status %d of type %s, want %d of %s: %s", res.StatusCode, res.Header.Get("Content-Type"), want, contentType, answer)
	}
	status := new(statuspb.Status)
	var err error
	if contentType == jsonType {
		err = protojson.Unmarshal([]byte(answer), status)
	} else {
		err = proto.Unmarshal([]byte(answer), status)
	}
	if err != nil {
		t.Fatalf("the answer is no google.rpc.Status: %v: %q", err, answer)
	}
	return status
}

func retryDelay(t *testing.T, status *statuspb.Status) time.Duration {
	t.Helper()
	var delay time.Duration
	for _, d := range status.Details {
		info := new(errdetails.RetryInfo)
		if err := d.UnmarshalTo(info); err != nil {
			t.Fatal(err)
		}
		delay = info.RetryDelay.AsDuration()
	}
	return delay
}

func TestHTTPTellsPartialSuccess(t *testing.T) {
	for _, outcome := range []Outcome{{Samples: 5, Refused: 2, Reason: "too old: temperature"}, {Samples: 5, Reason: "deprecated unit"}} {
		r := start(t, OTLPHTTP, nil)
		r.recorder.answer = func(context.Context, *Push) (Outcome, error) { return outcome, nil }
		for contentType, body := range map[string][]byte{protobufType: metricsProto(t, 7), jsonType: metricsJSON(t, 7)} {
			res, answer := r.post(t, bytes.NewReader(body), "Content-Type", contentType)
			response := pmetricotlp.NewExportResponse()
			unmarshal := response.UnmarshalProto
			if contentType == jsonType {
				unmarshal = response.UnmarshalJSON
			}
			if err := unmarshal([]byte(answer)); err != nil || res.StatusCode != 200 || res.Header.Get("Content-Type") != contentType {
				t.Fatalf("%d %s %v: %q", res.StatusCode, res.Header.Get("Content-Type"), err, answer)
			}
			partial := response.PartialSuccess()
			if partial.RejectedDataPoints() != int64(outcome.Refused) || partial.ErrorMessage() != outcome.Reason {
				t.Errorf("partial success %d %q, want %+v", partial.RejectedDataPoints(), partial.ErrorMessage(), outcome)
			}
		}
	}
}

func TestHTTPRefusesWhatIsNotForIt(t *testing.T) {
	r := start(t, OTLPHTTP, func(c *Config) { c.TenantHeader = "X-Scope-OrgID" })
	good := string(metricsProto(t, 1))
	for _, c := range []struct {
		name, method, path string
		headers            []string
		body               string
		status             int
		text               string
	}{
		{"path", "POST", "/v1/traces", []string{"Content-Type", protobufType}, good, 404, "POST /v1/metrics"},
		{"method", "GET", metricsPath, nil, "", 405, "POST"},
		{"type", "POST", metricsPath, []string{"Content-Type", "text/plain"}, good, 415, "send application/x-protobuf or application/json"},
		{"no type", "POST", metricsPath, nil, good, 415, "send application/x-protobuf or application/json"},
		{"two types", "POST", metricsPath, []string{"Content-Type", protobufType, "Content-Type", jsonType}, good, 415, "send application/x-protobuf or application/json"},
		{"coding", "POST", metricsPath, []string{"Content-Type", protobufType, "Content-Encoding", "deflate"}, good, 415, "gzip, zstd or identity"},
		{"no gzip", "POST", metricsPath, []string{"Content-Type", protobufType, "Content-Encoding", "gzip"}, good, 400, "gzip"},
		{"cut gzip", "POST", metricsPath, []string{"Content-Type", protobufType, "Content-Encoding", "gzip"}, string(zip(t, []byte(good)))[:30], 400, "gzip"},
		{"no zstd", "POST", metricsPath, []string{"Content-Type", protobufType, "Content-Encoding", "zstd"}, good, 400, "zstd"},
		{"no JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, `{"resourceMetrics":[}`, 400, "at byte 21"},
		{"nothing for JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, ``, 400, "unexpected end"},
		{"array for JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, `[]`, 400, "expected an object"},
		{"wrong JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, `{"resourceMetrics":7}`, 400, "ExportMetricsServiceRequest"},
		{"two of JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, `{}{}`, 400, "at byte 3"},
		{"deep JSON", "POST", metricsPath, []string{"Content-Type", jsonType}, `{"a":` + strings.Repeat("[", 1_000_000), 400, "nested more than 128"},
		{"long tenant", "POST", metricsPath, []string{"Content-Type", protobufType, "X-Scope-OrgID", strings.Repeat("a", 151)}, good, 400, "at most 150"},
		{"tenant not UTF-8", "POST", metricsPath, []string{"Content-Type", protobufType, "X-Scope-OrgID", "a\xffb"}, good, 400, "not UTF-8"},
		{"tenant with control", "POST", metricsPath, []string{"Content-Type", protobufType, "X-Scope-OrgID", "a\u0085b"}, good, 400, "U+0085"},
		{"two tenants", "POST", metricsPath, []string{"Content-Type", protobufType, "X-Scope-OrgID", "a", "X-Scope-OrgID", "b"}, good, 400, "one tenant"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, answer := do(t, http.DefaultClient, c.method, r.base+c.path, strings.NewReader(c.body), c.headers...)
			if res.StatusCode != c.status || !strings.Contains(answer, c.text) {
				t.Errorf("status %d: %q, want %d with %q", res.StatusCode, answer, c.status, c.text)
			}
			if c.status == 405 && res.Header.Get("Allow") != "POST" {
				t.Errorf("Allow %q", res.Header.Get("Allow"))
			}
		})
	}
	if n := len(r.recorder.taken()); n > 0 {
		t.Errorf("%d of them came to the taker", n)
	}
	r.atRest(t)
}

func TestTenantAndSender(t *testing.T) {
	r := start(t, OTLPHTTP, func(c *Config) {
		c.TenantHeader = "x-scope-orgid"
		c.Auth = Auth{Username: "ann", Password: "secret", BearerToken: "t0ken"}
	})
	body := metricsProto(t, 1)
	for _, c := range []struct{ authorization, tenant, sender string }{
		{"Basic YW5uOnNlY3JldA==", "blue", "ann"},
		{"Bearer t0ken", "blue", "blue"},
		{"Bearer t0ken", "", "127.0.0.1"},
	} {
		headers := []string{"Content-Type", protobufType, "Authorization", c.authorization}
		if c.tenant != "" {
			headers = append(headers, "X-Scope-OrgID", c.tenant)
		}
		if res, answer := r.post(t, bytes.NewReader(body), headers...); res.StatusCode != 200 {
			t.Fatalf("status %d: %s", res.StatusCode, answer)
		}
		taken := r.recorder.taken()
		if last := taken[len(taken)-1]; last.Tenant != c.tenant || last.Sender != c.sender {
			t.Errorf("%+v: tenant %q, sender %q", c, last.Tenant, last.Sender)
		}
	}
}
