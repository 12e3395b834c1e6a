package receiver

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Mode is how a receiver answers.
type Mode string

// The modes. Except in those that say so, nothing of the request is taken.
const (
	// OK takes requests.
	OK Mode = "ok"
	// Unavailable answers 503, with Retry-After if Control.RetryAfter is set.
	Unavailable Mode = "503"
	// TooManyRequests answers 429, with Retry-After if Control.RetryAfter is set.
	TooManyRequests Mode = "429"
	// BadRequest answers 400 to requests with a series that Control.Match selects; others are taken.
	BadRequest Mode = "400"
	// TooLarge answers 413 to requests whose compressed body is larger than Control.MaxBytes; others are taken.
	TooLarge Mode = "413"
	// Hang does not answer until the client gives up or the mode changes; then the connection is closed.
	Hang Mode = "hang"
	// ResetConnection resets the connection instead of answering.
	ResetConnection Mode = "reset"
	// Slow waits for Control.Delay and then takes the request.
	Slow Mode = "slow"
	// AnswerLost takes the request and then resets the connection.
	AnswerLost Mode = "answer-lost"
)

// Control tells a receiver how to answer, until another Control comes. As JSON, its durations are texts like "1m30s".
type Control struct {
	// Mode is how to answer.
	Mode Mode
	// RetryAfter is what Unavailable and TooManyRequests ask for, rounded up to seconds. Default 0: nothing.
	RetryAfter time.Duration
	// Match selects series for BadRequest: those with all of these label values. Default: every series.
	Match map[string]string
	// Partial makes BadRequest take the series that are not selected, though it answers 400.
	Partial bool
	// MaxBytes is the limit of TooLarge, in compressed bytes.
	MaxBytes int
	// Delay is how long Slow waits.
	Delay time.Duration
	// Duration is after how long the mode turns to OK. Default 0: never.
	Duration time.Duration
	// Requests is after how many requests the mode turns to OK; all that come count. Default 0: never.
	Requests int
}

// controlJSON is a Control as JSON has it.
type controlJSON struct {
	Mode       Mode              `json:"mode"`
	RetryAfter string            `json:"retry_after,omitempty"`
	Match      map[string]string `json:"match,omitempty"`
	Partial    bool              `json:"partial,omitempty"`
	MaxBytes   int               `json:"max_bytes,omitempty"`
	Delay      string            `json:"delay,omitempty"`
	Duration   string            `json:"duration,omitempty"`
	Requests   int               `json:"requests,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (c Control) MarshalJSON() ([]byte, error) {
	text := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return d.String()
	}
	return json.Marshal(controlJSON{
		Mode: c.Mode, RetryAfter: text(c.RetryAfter), Match: c.Match, Partial: c.Partial, MaxBytes: c.MaxBytes,
		Delay: text(c.Delay), Duration: text(c.Duration), Requests: c.Requests,
	})
}

// UnmarshalJSON implements json.Unmarshaler. Unknown keys are an error.
func (c *Control) UnmarshalJSON(data []byte) error {
	var in controlJSON
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&in); err != nil {
		return err
	}
	*c = Control{Mode: in.Mode, Match: in.Match, Partial: in.Partial, MaxBytes: in.MaxBytes, Requests: in.Requests}
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"retry_after", in.RetryAfter, &c.RetryAfter}, {"delay", in.Delay, &c.Delay}, {"duration", in.Duration, &c.Duration},
	} {
		if d.text == "" {
			continue
		}
		var err error
		if *d.to, err = time.ParseDuration(d.text); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (c Control) validate() error {
	switch c.Mode {
	case OK, Unavailable, TooManyRequests, BadRequest, Hang, ResetConnection, AnswerLost:
	case TooLarge:
		if c.MaxBytes <= 0 {
			return errors.New("mode 413 needs max_bytes")
		}
	case Slow:
		if c.Delay <= 0 {
			return errors.New("mode slow needs a delay")
		}
	default:
		return fmt.Errorf("mode %q is none of ok, 503, 429, 400, 413, hang, reset, slow and answer-lost", c.Mode)
	}
	if c.RetryAfter < 0 || c.Duration < 0 || c.Requests < 0 {
		return errors.New("retry_after, duration and requests must not be negative")
	}
	return nil
}

func (c *Control) matches(s *series) bool {
	for name, value := range c.Match {
		if name == "__name__" {
			if !strings.HasPrefix(s.text, value+"{") {
				return false
			}
			continue
		}
		pair := name + "=" + strconv.Quote(value)
		if !strings.Contains(s.text, "{"+pair) && !strings.Contains(s.text, ","+pair) {
			return false
		}
	}
	return true
}

// controls holds the current Control.
type controls struct {
	mu      sync.Mutex
	current Control
	since   time.Time
	taken   int
	// changed is closed when another Control comes.
	changed chan struct{}
	failed  atomic.Int64
}

// Control makes the receiver answer as c says from the next request on. Requests that hang are let go.
func (r *Receiver) Control(c Control) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("controlling the receiver: %w", err)
	}
	r.control.mu.Lock()
	defer r.control.mu.Unlock()
	r.control.current, r.control.since, r.control.taken = c, time.Now(), 0
	close(r.control.changed)
	r.control.changed = make(chan struct{})
	return nil
}

func (r *Receiver) serveControl(w http.ResponseWriter, request *http.Request) {
	var c Control
	err := json.NewDecoder(request.Body).Decode(&c)
	if err == nil {
		err = r.Control(c)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// take returns the Control for a request with a body of the given size, nil if it is simply to be taken.
func (c *controls) take(size int) *Control {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.current
	if now.Mode == "" || now.Mode == OK {
		return nil
	}
	if now.Duration > 0 && time.Since(c.since) >= now.Duration || now.Requests > 0 && c.taken >= now.Requests {
		c.current = Control{}
		return nil
	}
	c.taken++
	if now.Mode == TooLarge && size <= now.MaxBytes {
		return nil
	}
	return &now
}

// beforeDecoding does what a mode does before a request is taken. It reports true if that was the answer.
func (c *Control) beforeDecoding(r *Receiver, w http.ResponseWriter, request *http.Request) bool {
	if c == nil {
		return false
	}
	switch c.Mode {
	case Unavailable, TooManyRequests, TooLarge:
		r.control.failed.Add(1)
		status, _ := strconv.Atoi(string(c.Mode))
		if c.RetryAfter > 0 && c.Mode != TooLarge {
			w.Header().Set("Retry-After", strconv.Itoa(int((c.RetryAfter+time.Second-1)/time.Second)))
		}
		http.Error(w, "failing on purpose", status)
		return true
	case ResetConnection:
		r.control.failed.Add(1)
		reset(w)
	case Hang:
		r.control.failed.Add(1)
		r.control.wait(request, c.Duration)
		panic(http.ErrAbortHandler)
	case Slow:
		select {
		case <-time.After(c.Delay):
		case <-request.Context().Done():
			r.control.failed.Add(1)
			panic(http.ErrAbortHandler)
		}
	}
	return false
}

// wait returns when the client gives up, another Control comes, or the mode's duration is over (0: never).
func (c *controls) wait(request *http.Request, duration time.Duration) {
	c.mu.Lock()
	changed := c.changed
	left := duration - time.Since(c.since)
	c.mu.Unlock()
	var over <-chan time.Time
	if duration > 0 {
		over = time.After(left)
	}
	select {
	case <-request.Context().Done():
	case <-changed:
	case <-over:
	}
}

// reset cuts the connection so that the client gets a reset rather than an orderly end. It does not return.
func reset(w http.ResponseWriter) {
	if connection, _, err := http.NewResponseController(w).Hijack(); err == nil {
		if tcp, ok := connection.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		connection.Close()
	}
	panic(http.ErrAbortHandler)
}

func sortRefs(refs []ScrapeRef) {
	slices.SortFunc(refs, func(a, b ScrapeRef) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Number, b.Number))
	})
}
