package pusher

import (
	"maps"
	"math/bits"
	"sync"
	"time"
)

// Stats is what a pusher has done.
type Stats struct {
	// Acknowledged are the pushes that were answered with success, and Samples what they held without what was rejected.
	Acknowledged int `json:"acknowledged"`
	Samples      int `json:"samples"`
	// Rejected are samples of acknowledged pushes that the receiver said it did not take (a partial success).
	Rejected int `json:"rejected"`
	// Refused are pushes that were answered with an error that is not retryable: they are given up.
	Refused int `json:"refused"`
	// Skipped are pushes that were not made, because as many as may wait did. They have no number.
	Skipped int `json:"skipped"`
	// Unanswered are pushes that were made and not answered when the pusher ended.
	Unanswered int `json:"unanswered"`
	// Repeated are attempts beyond the first of each push.
	Repeated int `json:"repeated"`
	// Failures are attempts that failed since the window began, by HTTP status, gRPC code, "timeout" or "connection".
	Failures map[string]int `json:"failures"`
	// LastFailure is the text of the last failure.
	LastFailure string `json:"last_failure,omitempty"`
	// Answer is the time from the first attempt of a push to its acknowledgement, for those acknowledged since the window began.
	Answer Answer `json:"answer"`
}

// Answer are the quantiles of answer times in seconds, exact to 3 %.
type Answer struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// counts is a Stats in the making. It is safe for concurrent use.
type counts struct {
	mu      sync.Mutex
	stats   Stats
	answers answers
}

func (c *counts) change(f func(*Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// failed counts a failed attempt.
func (c *counts) failed(a answer) {
	c.change(func(s *Stats) {
		if s.Failures == nil {
			s.Failures = map[string]int{}
		}
		s.Failures[a.class]++
		s.LastFailure = a.err.Error()
	})
}

// acknowledged counts a push that was taken.
func (c *counts) acknowledged(samples, rejected int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Acknowledged++
	c.stats.Samples += samples
	c.stats.Rejected += rejected
	c.answers.observe(took)
}

func (c *counts) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Failures = map[string]int{}
	maps.Copy(s.Failures, c.stats.Failures)
	s.Answer = c.answers.summary()
	return s
}

// resetWindow begins a new window.
func (c *counts) resetWindow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Failures, c.stats.LastFailure, c.answers = nil, "", answers{}
}

// answers is a histogram of times, in microseconds. Its zero value is empty.
type answers struct {
	count   int
	max     int64
	buckets [64 * answerSteps]int
}

// answerSteps is into how many steps each power of two is divided.
const answerSteps = 32

func (a *answers) observe(took time.Duration) {
	us := max(took.Microseconds(), 0)
	a.count++
	a.max = max(a.max, us)
	a.buckets[bucketOf(us)]++
}

// bucketOf maps the numbers below answerSteps to themselves, and those of each power of two above to answerSteps buckets.
func bucketOf(us int64) int {
	shift := max(bits.Len64(uint64(us))-bits.Len64(answerSteps), 0)
	return shift*answerSteps + int(us>>shift)
}

// upperOf is the largest number in a bucket.
func upperOf(bucket int) int64 {
	if bucket < 2*answerSteps {
		return int64(bucket)
	}
	shift := bucket/answerSteps - 1
	return int64(bucket-shift*answerSteps+1)<<shift - 1
}

func (a *answers) summary() Answer {
	s := Answer{Count: a.count, Max: float64(a.max) / 1e6}
	quantile := func(part float64) float64 {
		rank, seen := int(part*float64(a.count)), 0
		for i, n := range a.buckets {
			if seen += n; seen > rank {
				return float64(min(upperOf(i), a.max)) / 1e6
			}
		}
		return s.Max
	}
	if a.count > 0 {
		s.P50, s.P90, s.P99 = quantile(.5), quantile(.9), quantile(.99)
	}
	return s
}
