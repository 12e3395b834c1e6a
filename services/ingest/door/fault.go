package door

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
)

// fault is everything that may be wrong with a request, each with its answers.
type fault int

const (
	malformed fault = iota
	tooLarge
	full
	unavailable
	unauthenticated
	unknownPath
	wrongMethod
	unsupported
	slow
	gone
	internal
)

// faults are the answers by fault; name groups the log lines.
var faults = [...]struct {
	name      string
	status    int
	code      codes.Code
	retryable bool
}{
	malformed:       {"malformed", http.StatusBadRequest, codes.InvalidArgument, false},
	tooLarge:        {"too large", http.StatusRequestEntityTooLarge, codes.ResourceExhausted, false},
	full:            {"full", http.StatusTooManyRequests, codes.ResourceExhausted, true},
	unavailable:     {"unavailable", http.StatusServiceUnavailable, codes.Unavailable, true},
	unauthenticated: {"not authenticated", http.StatusUnauthorized, codes.Unauthenticated, false},
	unknownPath:     {"unknown path", http.StatusNotFound, codes.Unimplemented, false},
	wrongMethod:     {"wrong method", http.StatusMethodNotAllowed, codes.Unimplemented, false},
	unsupported:     {"unsupported encoding", http.StatusUnsupportedMediaType, codes.Unimplemented, false},
	slow:            {"too slow", http.StatusRequestTimeout, codes.DeadlineExceeded, false},
	// What the log of nginx calls 499: nobody reads the answer, but it is counted.
	gone:     {"sender gone", 499, codes.Canceled, false},
	internal: {"internal error", http.StatusInternalServerError, codes.Internal, false},
}

// failure is an answer other than success.
type failure struct {
	fault   fault
	message string        // for the sender
	retry   time.Duration // when to try again, where the fault is retryable
	cause   error         // for the log alone
	seconds int64         // retry in whole seconds, at least 1
}

func (f *failure) Error() string { return f.message }

func fail(kind fault, format string, args ...any) *failure {
	return failLater(kind, 0, format, args...)
}

func failLater(kind fault, retry time.Duration, format string, args ...any) *failure {
	f := &failure{fault: kind, message: fmt.Sprintf(format, args...)}
	if faults[kind].retryable {
		f.retry = max(retry, minRetry)
		if retry == 0 {
			f.retry = time.Second
		}
		f.seconds = int64((f.retry + time.Second - 1) / time.Second)
	}
	return f
}

// minRetry keeps senders from coming back at once where a Taker asks for next to nothing.
const minRetry = 10 * time.Millisecond

// failureOf translates the error of a Taker.
func failureOf(ctx context.Context, err error) *failure {
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		kind := [...]fault{Malformed: malformed, TooLarge: tooLarge, Full: full, Unavailable: unavailable}
		if int(refusal.Kind) < 0 || int(refusal.Kind) >= len(kind) {
			return &failure{fault: internal, message: internalMessage, cause: err}
		}
		return failLater(kind[refusal.Kind], refusal.RetryAfter, "%s", refusal.Message)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &failure{fault: slow, message: "the data could not be made safe before the deadline of the call", cause: err}
	case ctx.Err() != nil:
		return cutOff(ctx, "the request was cancelled", err)
	case errors.Is(err, context.DeadlineExceeded):
		f := fail(unavailable, "the data could not be made safe in time; send it again")
		f.cause = err
		return f
	}
	return &failure{fault: internal, message: internalMessage, cause: err}
}

// errClosing is why the context of a request ends that the door cuts off.
var errClosing = errors.New("the door closes")

// cutOff is the failure of a request whose context has ended: the sender has gone, or the door closes. In that case the
// sender reads the answer, and must learn from it that the data is not unfit.
func cutOff(ctx context.Context, message string, cause error) *failure {
	if errors.Is(context.Cause(ctx), errClosing) {
		return fail(unavailable, "the door closes before the data is safe; send it again")
	}
	return &failure{fault: gone, message: message, cause: cause}
}

const internalMessage = "internal error; the log of Millrace has the cause"

// clip makes a text fit for an answer: valid UTF-8 of at most most bytes.
func clip(s string, most int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= most {
		return s
	}
	cut := most - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
