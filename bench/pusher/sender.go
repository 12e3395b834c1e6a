package pusher

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/numbered"
)

// sender makes and sends the pushes of one application.
type sender struct {
	config *Config
	// name is the target label, of which digits are the last; seed is that of its values.
	name, digits string
	seed         uint64
	template     *template
	transport    transport
	counts       *counts
	bodies       *sync.Pool

	// next is when the next push is due, made the number of the last one that was made, since the time of that one.
	next  time.Time
	made  uint64
	since int64
	queue []push

	// acked is what became of each push that was answered, by its number less 1: they are answered in order.
	mu    sync.Mutex
	acked []numbered.Served
}

// ending is when senders are to make no more pushes.
type ending struct {
	done chan struct{}
	// at is the time; it is set before done is closed.
	at time.Time
}

// over reports whether the end has come, and otherwise the time.
func (e *ending) over() (bool, time.Time) {
	select {
	case <-e.done:
		return true, e.at
	default:
		return false, time.Now()
	}
}

// run pushes, the first time at the given one, until the end. What waits then is sent as long as ctx is not done.
func (s *sender) run(ctx context.Context, end *ending, first time.Time) {
	defer s.transport.close()
	s.next, s.since = first, first.Add(-s.config.Interval).UnixMilli()
	due := time.NewTimer(time.Until(first))
	defer due.Stop()
	for {
		over, now := end.over()
		s.makeDue(now)
		if len(s.queue) > 0 {
			answered := s.push(ctx, s.queue[0])
			// What was due meanwhile found the queue with this push.
			_, now = end.over()
			s.makeDue(now)
			if !answered {
				s.counts.change(func(c *Stats) { c.Unanswered += len(s.queue) })
				return
			}
			s.queue = append(s.queue[:0], s.queue[1:]...)
			continue
		}
		if over {
			return
		}
		due.Reset(time.Until(s.next))
		select {
		case <-due.C:
		case <-end.done:
		}
	}
}

// makeDue makes the pushes that are due. Nothing is encoded yet: a number and a time are all that a push consists of.
func (s *sender) makeDue(now time.Time) {
	for ; !s.next.After(now); s.next = s.next.Add(s.config.Interval) {
		if len(s.queue) == s.config.QueueLimit {
			s.counts.change(func(c *Stats) { c.Skipped++ })
			continue
		}
		s.made++
		p := push{n: s.made, at: s.next.UnixMilli(), since: s.since}
		if s.config.Delta {
			s.since = p.at
		}
		s.queue = append(s.queue, p)
	}
}

// push sends a push until it is answered for good. It returns false if ctx was done before.
func (s *sender) push(ctx context.Context, p push) bool {
	began := time.Now()
	backoff := s.config.MinBackoff
	for attempt := 1; ; attempt++ {
		a := s.attempt(ctx, p)
		if a.err == nil {
			// A rejected histogram is all its samples, and the answer does not tell which points were rejected.
			rejected := a.rejected
			if s.config.Histograms > 0 && s.config.Protocol.isOTLP() {
				rejected *= samplesOf
			}
			rejected = min(rejected, s.config.Series)
			s.counts.acknowledged(s.config.Series-rejected, rejected, time.Since(began))
			s.answered(s.config.Series - rejected)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.counts.failed(a)
		if !a.again {
			s.counts.change(func(c *Stats) { c.Refused++ })
			s.answered(0)
			return true
		}
		wait := a.after
		if wait == 0 {
			wait = time.Duration(float64(backoff) * (.8 + .4*rand.Float64()))
			backoff = min(2*backoff, s.config.MaxBackoff)
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return false
		}
		s.counts.change(func(c *Stats) { c.Repeated++ })
	}
}

// attempt encodes a push, each time to the same bytes, and sends it.
func (s *sender) attempt(ctx context.Context, p push) answer {
	buffer := s.bodies.Get().(*[]byte)
	defer s.bodies.Put(buffer)
	*buffer = s.template.append((*buffer)[:0], s.digits, s.seed, p)
	ctx, cancel := context.WithTimeout(ctx, s.config.Timeout)
	defer cancel()
	return s.transport.send(ctx, *buffer)
}

// answered notes how many samples of the next push have to arrive.
func (s *sender) answered(samples int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = append(s.acked, numbered.Served{At: time.Now(), Samples: samples, Completed: samples == s.config.Series})
}

// log returns a copy of what became of the sender's pushes.
func (s *sender) log() []numbered.Served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]numbered.Served(nil), s.acked...)
}

// answeredCount is the number of pushes that were answered.
func (s *sender) answeredCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}
