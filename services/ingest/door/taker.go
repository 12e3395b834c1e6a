package door

import (
	"context"
	"fmt"
	"time"
)

// Format says what the body of a [Push] is.
type Format int

const (
	// OTLP is a protobuf ExportMetricsServiceRequest.
	OTLP Format = iota
	// RemoteWriteV1 is a protobuf prometheus.WriteRequest.
	RemoteWriteV1
	// RemoteWriteV2 is a protobuf io.prometheus.write.v2.Request.
	RemoteWriteV2
)

// String is the format as it stands in log lines.
func (f Format) String() string {
	switch f {
	case OTLP:
		return "OTLP"
	case RemoteWriteV1:
		return "remote_write 1.0"
	case RemoteWriteV2:
		return "remote_write 2.0"
	}
	return fmt.Sprintf("Format(%d)", int(f))
}

// Push is one request, authenticated and decompressed.
type Push struct {
	// Format says what Body is.
	Format Format
	// Body is the protobuf message, within Limits.MaxDecompressedBytes and otherwise as it came: it may be malformed.
	// OTLP's JSON has been turned into protobuf, and OTLP's values are nested at most 128 messages deep. It belongs to the door and is valid until Take returns.
	Body []byte
	// Tenant is the value of the tenant header: UTF-8 without control characters, at most 150 bytes. Empty where the
	// header is missing or Config.TenantHeader is empty.
	Tenant string
	// Sender says who pushes, for log lines and rates: the user name, else the common name of the client certificate,
	// else the tenant where the door authenticates, else the remote IP address.
	Sender string
	// Limits are those of the door. They are not to be changed.
	Limits *Limits
	// Hold counts n more bytes of memory that the Taker needs for what it makes of the body, besides the body itself,
	// as in flight until Take returns. It returns a [*Refusal] where they are beyond Limits.MaxInFlightBytes. It is for
	// the goroutine of Take. Nil: nobody counts.
	Hold func(n int64) error
}

// Outcome says what became of a Push that was not refused as a whole.
type Outcome struct {
	// Samples, Histograms and Exemplars are how many were taken, which is: acknowledged by the stream.
	Samples, Histograms, Exemplars int
	// Refused is how many data points (OTLP), or samples and histograms (remote_write), are refused for good: sending
	// them again will not help.
	Refused int
	// Reason says why, naming the first ones. With nothing refused it is a warning, which only OTLP can carry.
	Reason string
}

// Taker makes pushes safe. Its method is called by many requests at once.
type Taker interface {
	// Take returns when everything that its Outcome counts as taken is safe. An error refuses the whole request: a
	// [*Refusal] (or an error that wraps one) says how; any other is logged and answered as an internal error without
	// its text. The context ends when the sender has gone, or the door closes. Neither the Push nor its Body may be
	// kept.
	Take(ctx context.Context, p *Push) (Outcome, error)
}

// Kind says what sort of refusal a [Refusal] is, and with it whether the sender may try again.
type Kind int

const (
	// Malformed is a request that will never be taken (400, INVALID_ARGUMENT).
	Malformed Kind = iota
	// TooLarge is a request that is beyond a limit and will never be taken as it is (413; RESOURCE_EXHAUSTED without
	// RetryInfo, which says to OTLP senders that they shall not retry).
	TooLarge
	// Full is a request that may be taken later (429, RESOURCE_EXHAUSTED with RetryInfo).
	Full
	// Unavailable is a request that could not be made safe now (503, UNAVAILABLE with RetryInfo).
	Unavailable
)

// String is the kind as it stands in log lines.
func (k Kind) String() string {
	switch k {
	case Malformed:
		return "malformed"
	case TooLarge:
		return "too large"
	case Full:
		return "full"
	case Unavailable:
		return "unavailable"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// Refusal refuses a whole request. It is the error of [Taker] that senders are told of.
type Refusal struct {
	// Kind says how.
	Kind Kind
	// RetryAfter is how long the sender shall wait before it tries again, for Full and Unavailable; HTTP rounds it up
	// to whole seconds. Zero means one second.
	RetryAfter time.Duration
	// Message is what the sender reads: what is wrong and what to do about it.
	Message string
}

// Error returns the message.
func (r *Refusal) Error() string { return r.Message }
