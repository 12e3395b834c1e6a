package door

import (
	"sync"
	"time"
)

// maxSenders is how many senders a rate table tells apart. Those beyond share one allowance.
const maxSenders = 10_000

// others is the name of the shared allowance; no user, tenant or address is empty.
const others = ""

// rates limits the samples per second of each sender. How many samples a request holds is known only afterwards, so
// they are charged then, and a sender in debt is refused until the debt is paid by time.
type rates struct {
	perSecond float64
	burst     float64 // what a sender that was quiet may have saved
	now       func() time.Time

	mu      sync.Mutex
	senders map[string]*allowance
	swept   time.Time
}

type allowance struct {
	left  float64 // negative: in debt
	since time.Time
}

// newRates returns nil, which limits nothing, where the rate is 0.
func newRates(perSecond float64) *rates {
	if perSecond == 0 {
		return nil
	}
	return &rates{perSecond: perSecond, burst: max(perSecond, 1), now: time.Now, senders: map[string]*allowance{}}
}

// wait returns how long the sender has to wait until it is out of debt; 0 if it may push.
func (r *rates) wait(sender string) time.Duration {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	a := r.senders[sender]
	if a == nil && len(r.senders) >= maxSenders {
		a = r.senders[others]
	}
	if a == nil {
		return 0
	}
	r.refill(a, now)
	if a.left >= 0 {
		return 0
	}
	return min(time.Duration(-a.left/r.perSecond*float64(time.Second)), time.Hour)
}

// charge takes n samples from the sender's allowance.
func (r *rates) charge(sender string, n int) {
	if r == nil || n <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	a := r.senders[sender]
	if a == nil {
		if len(r.senders) >= maxSenders && !r.sweep(now) {
			sender = others
		}
		if a = r.senders[sender]; a == nil {
			a = &allowance{left: r.burst, since: now}
			r.senders[sender] = a
		}
	}
	r.refill(a, now)
	a.left -= float64(n)
}

func (r *rates) refill(a *allowance, now time.Time) {
	a.left = min(a.left+now.Sub(a.since).Seconds()*r.perSecond, r.burst)
	a.since = now
}

// sweep forgets the senders that have all of their allowance, which is what a new one has, and says whether there is
// room now. It looks at most once a second, since it looks at all.
func (r *rates) sweep(now time.Time) bool {
	if now.Sub(r.swept) < time.Second {
		return false
	}
	r.swept = now
	for name, a := range r.senders {
		if r.refill(a, now); a.left >= r.burst {
			delete(r.senders, name)
		}
	}
	return len(r.senders) < maxSenders
}
