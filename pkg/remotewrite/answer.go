package remotewrite

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/storage/remote"

	"github.com/millrace/millrace/pkg/redact"
)

// maxRetryAfter bounds how long an endpoint can make its sender wait.
const maxRetryAfter = 5 * time.Minute

// Outcome is what an answer means for the request's samples.
type Outcome uint8

// The outcomes.
const (
	// Accepted: the endpoint has taken the request (any 2xx). See [Written] for what a 2.0 endpoint says of it.
	Accepted Outcome = iota
	// Retry: the same request may succeed later (5xx, 429, or no answer).
	Retry
	// TooLarge: the request is to be split (413).
	TooLarge
	// Refused: the endpoint will not take this request however often it is sent (all other statuses).
	Refused
)

// String returns the outcome as a word for logs and metrics.
func (o Outcome) String() string {
	switch o {
	case Accepted:
		return "accepted"
	case Retry:
		return "retry"
	case TooLarge:
		return "too_large"
	case Refused:
		return "refused"
	}
	return "outcome " + strconv.Itoa(int(o))
}

// Result is what came of sending one request.
type Result struct {
	Outcome Outcome
	// Status is the HTTP status code, 0 where no answer came.
	Status int
	// RetryAfter is how long a Retry is asked to wait, at most 5 minutes; 0 where the endpoint did not say.
	RetryAfter time.Duration
	// Message is the beginning of the answer's body, at most 1 KiB, or the network's error. It is empty where the
	// request was accepted.
	Message string
	// Written is what the endpoint says it has written.
	Written Written
	// Err tells everything that is not Accepted in one sentence; it wraps the network's error where there is one.
	Err error
}

// Written is what an endpoint of 2.0 says it has written of a request, by the X-Prometheus-Remote-Write-*-Written headers.
type Written struct {
	Samples, Histograms, Exemplars int
	// Known is false where the answer has none of the headers, as from an endpoint that speaks only 1.0, or where one of
	// them is no number.
	Known bool
}

// judge reads what an answer says.
func (c *Client) judge(resp *http.Response) Result {
	r := Result{Status: resp.StatusCode, Written: written(resp)}
	switch status := resp.StatusCode; {
	case status/100 == 2:
		r.Outcome = Accepted
		return r
	case status/100 == 5, status == http.StatusTooManyRequests:
		r.Outcome = Retry
		r.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	case status == http.StatusRequestEntityTooLarge:
		r.Outcome = TooLarge
	default:
		r.Outcome = Refused
	}
	r.Message = message(resp)
	if resp.StatusCode/100 == 3 {
		r.Message = redirected(resp)
	}
	text := fmt.Sprintf("remote_write endpoint %q answered HTTP status %s", c.name, strings.TrimSpace(resp.Status))
	if r.Message != "" {
		text += ": " + r.Message
	}
	r.Err = &sendError{text: text}
	return r
}

// redirected explains a redirect that was not followed.
func redirected(resp *http.Response) string {
	location := resp.Header.Get("Location")
	if location == "" {
		return "the answer is a redirect without a Location: check the endpoint's url"
	}
	if to, err := resp.Location(); err == nil {
		location = to.String()
	}
	return cut(fmt.Sprintf("redirected to %s, which was not followed: if that is the endpoint, set its url to it "+
		"(redirects are followed with follow_redirects: true and only where they are 307 or 308, which keep the request)", redact.URLs(location)))
}

func written(resp *http.Response) Written {
	s, err := remote.ParseWriteResponseStats(resp)
	if err != nil || !s.Confirmed || s.Samples < 0 || s.Histograms < 0 || s.Exemplars < 0 {
		return Written{}
	}
	return Written{Samples: s.Samples, Histograms: s.Histograms, Exemplars: s.Exemplars, Known: true}
}

// retryAfter reads the header of that name, which holds seconds or a date (RFC 9110, 10.2.3).
func retryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	// What is too large for the type comes back as the largest.
	if seconds, err := strconv.ParseUint(header, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(header); err == nil {
		return min(max(date.Sub(now), 0), maxRetryAfter)
	}
	return 0
}
