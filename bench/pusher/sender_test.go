package pusher

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/prompb"

	"github.com/millrace/millrace/bench/numbered"
)

// attempt is one that arrived at a script.
type attempt struct {
	// After is when it began, since the start of the test; Number is that of the push, At its time since then.
	After  time.Duration
	Number uint64
	At     time.Duration
}

// script is a transport that answers as told, and with success when nothing more is told.
type script struct {
	start   time.Time
	answers []func(context.Context) answer

	mu       sync.Mutex
	attempts []attempt
	bodies   map[uint64][sha256.Size]byte
	changed  bool
}

func (*script) close() {}

func (s *script) send(ctx context.Context, body []byte) answer {
	var request prompb.WriteRequest
	if err := request.Unmarshal(body); err != nil {
		return answer{err: err, class: "test"}
	}
	sample := request.Timeseries[0].Samples[0]
	n := uint64(sample.Value) // the first series is the push's number
	s.mu.Lock()
	s.attempts = append(s.attempts, attempt{time.Since(s.start), n, time.UnixMilli(sample.Timestamp).Sub(s.start)})
	hash := sha256.Sum256(body)
	if before, ok := s.bodies[n]; ok && before != hash {
		s.changed = true
	}
	s.bodies[n] = hash
	var reply func(context.Context) answer
	if len(s.answers) > 0 {
		reply, s.answers = s.answers[0], s.answers[1:]
	}
	s.mu.Unlock()
	if reply == nil {
		return answer{}
	}
	return reply(ctx)
}

// fail is an answer that fails.
func fail(class string, again bool, after time.Duration) func(context.Context) answer {
	return func(context.Context) answer {
		return answer{err: errors.New(class), class: class, again: again, after: after}
	}
}

// late is an answer that takes a time.
func late(d time.Duration) func(context.Context) answer {
	return func(ctx context.Context) answer {
		select {
		case <-time.After(d):
			return answer{}
		case <-ctx.Done():
			return answer{err: ctx.Err(), class: "timeout", again: true}
		}
	}
}

// play runs one sender against a script for a time.
func play(t *testing.T, config Config, duration time.Duration, answers ...func(context.Context) answer) (*script, Stats, []numbered.Served) {
	t.Helper()
	config.URL, config.Protocol, config.Senders, config.Series = "http://127.0.0.1:1", RemoteWrite, 1, 10
	p, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	s := &script{start: time.Now(), answers: answers, bodies: map[uint64][sha256.Size]byte{}}
	p.senders[0].transport = s
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	p.Run(ctx)
	if s.changed {
		t.Error("a push was sent again with other bytes")
	}
	return s, p.Stats(), p.Log()["p0"]
}

func TestWhatIsRetryableIsSentAgainInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stats, log := play(t, Config{}, 5500*time.Millisecond, nil, fail("503", true, 2200*time.Millisecond), nil)
		want := []attempt{
			{0, 1, 0}, {time.Second, 2, time.Second}, {3200 * time.Millisecond, 2, time.Second}, {3200 * time.Millisecond, 3, 2 * time.Second},
			{3200 * time.Millisecond, 4, 3 * time.Second}, {4 * time.Second, 5, 4 * time.Second}, {5 * time.Second, 6, 5 * time.Second},
		}
		if diff := cmp.Diff(want, s.attempts); diff != "" {
			t.Error(diff)
		}
		if stats.Acknowledged != 6 || stats.Samples != 60 || stats.Repeated != 1 || stats.Failures["503"] != 1 || stats.Answer.Max != 2.2 {
			t.Errorf("stats %+v", stats)
		}
		for i, s := range log {
			if s.Samples != 10 || !s.Completed {
				t.Errorf("push %d: %+v", i+1, s)
			}
		}
	})
}

func TestBackOffGrowsUpToItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failing := fail("connection", true, 0)
		s, _, _ := play(t, Config{Interval: time.Hour, MaxBackoff: 400 * time.Millisecond}, time.Minute, failing, failing, failing, failing)
		if len(s.attempts) != 5 {
			t.Fatalf("attempts %+v", s.attempts)
		}
		for i, want := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 400 * time.Millisecond} {
			if got := s.attempts[i+1].After - s.attempts[i].After; got < want*8/10 || got > want*12/10 {
				t.Errorf("waited %s the %d. time, want %s", got, i+1, want)
			}
		}
	})
}

func TestARefusedPushIsGivenUpAndItsNumberIsSpent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stats, log := play(t, Config{}, 1500*time.Millisecond, fail("400", false, 0))
		if diff := cmp.Diff([]attempt{{0, 1, 0}, {time.Second, 2, time.Second}}, s.attempts); diff != "" {
			t.Error(diff)
		}
		if stats.Refused != 1 || stats.Acknowledged != 1 || len(log) != 2 || log[0].Samples != 0 || log[1].Samples != 10 {
			t.Errorf("stats %+v, log %+v", stats, log)
		}
	})
}

func TestWhatIsRejectedIsNotExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, stats, log := play(t, Config{}, 500*time.Millisecond, func(context.Context) answer { return answer{rejected: 3} })
		if stats.Rejected != 3 || stats.Samples != 7 || len(log) != 1 || log[0].Samples != 7 || log[0].Completed {
			t.Errorf("stats %+v, log %+v", stats, log)
		}
	})
}

func TestNoMorePushesWaitThanMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stats, _ := play(t, Config{QueueLimit: 3, Timeout: time.Minute}, 11500*time.Millisecond, nil, late(8500*time.Millisecond))
		var got []attempt
		for _, a := range s.attempts {
			got = append(got, attempt{Number: a.Number, At: a.At})
		}
		want := []attempt{
			// Push 2 waits for its answer from 1 s to 9.5 s, 3 and 4 behind it; those of 4 s to 9 s are not made.
			{Number: 1}, {Number: 2, At: time.Second}, {Number: 3, At: 2 * time.Second}, {Number: 4, At: 3 * time.Second},
			{Number: 5, At: 10 * time.Second}, {Number: 6, At: 11 * time.Second},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if stats.Skipped != 6 {
			t.Errorf("%d skipped, want 6", stats.Skipped)
		}
	})
}

func TestTheEndWaitsForAnswersButNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, stats, log := play(t, Config{Timeout: time.Minute}, 2500*time.Millisecond, late(8*time.Second))
		if stats.Acknowledged != 3 || stats.Unanswered != 0 || len(log) != 3 {
			t.Errorf("stats %+v, %d answered", stats, len(log))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, stats, log := play(t, Config{Timeout: time.Minute, Drain: 3 * time.Second}, 2500*time.Millisecond, late(8*time.Second))
		if stats.Acknowledged != 0 || stats.Unanswered != 3 || len(log) != 0 || time.Since(start) != 5500*time.Millisecond {
			t.Errorf("stats %+v, %d answered after %s", stats, len(log), time.Since(start))
		}
	})
}

func TestAnAnswerThatDoesNotComeIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stats, _ := play(t, Config{Timeout: 2 * time.Second, Interval: time.Hour}, 10*time.Second, late(time.Hour))
		if len(s.attempts) != 2 || s.attempts[1].After < 2*time.Second || stats.Failures["timeout"] != 1 || stats.Acknowledged != 1 {
			t.Errorf("attempts %+v, stats %+v", s.attempts, stats)
		}
	})
}

func TestAnswerTimes(t *testing.T) {
	var c counts
	for i := range 1000 {
		c.acknowledged(1, 0, time.Duration(i+1)*time.Millisecond)
	}
	a := c.snapshot().Answer
	within := func(got, want float64) bool { return got > want*.96 && got < want*1.04 }
	if a.Count != 1000 || !within(a.P50, .5) || !within(a.P90, .9) || !within(a.P99, .99) || a.Max != 1 {
		t.Errorf("%+v", a)
	}
	c.resetWindow()
	if s := c.snapshot(); s.Answer != (Answer{}) || s.Acknowledged != 1000 {
		t.Errorf("after a reset: %+v", s)
	}
	for us := int64(0); us < 1<<40; us += 1 + us/7 {
		if b := bucketOf(us); upperOf(b) < us || b > 0 && upperOf(b-1) >= us {
			t.Fatalf("%d is in bucket %d, which ends at %d", us, b, upperOf(b))
		}
	}
}

func TestBrokenConfigIsRefused(t *testing.T) {
	for _, config := range []Config{
		{}, {URL: "127.0.0.1:4318"}, {URL: "ftp://a"}, {URL: "http://a", Protocol: "x"}, {URL: "http://a", Senders: -1}, {URL: "http://a", Series: -1},
		{URL: "http://a", Series: 26, Histograms: 2}, {URL: "http://a", Histograms: -1}, {URL: "http://a", Interval: 1},
		{URL: "http://a", Protocol: RemoteWrite, Delta: true}, {URL: "http://a", MinBackoff: time.Hour}, {URL: "http://a", Timeout: -1},
		{URL: "http://a", QueueLimit: -1}, {URL: "http://a", Drain: -1}, {URL: "http://a", Protocol: OTLPGRPC, Series: -5},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("%+v was taken", config)
		}
	}
}
