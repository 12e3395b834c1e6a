package writer

import (
	"context"
	"time"
)

// watch asks now and then how many messages wait, also while the reading side stands still.
func (p *partition) watch(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			ask, cancel := context.WithTimeout(ctx, 2*time.Second)
			if n, err := p.mb.Pending(ask); err == nil {
				p.behind.Store(n)
			}
			cancel()
		}
	}
}

// oldest returns the time of the oldest frame that is read and not accepted, in milliseconds; 0 for none.
func (p *partition) oldest() int64 {
	if t := p.sending.Load(); t != 0 {
		return t
	}
	return p.reading.Load()
}

// unhandled returns how many messages the endpoint has not got all of.
func (p *partition) unhandled() uint64 {
	return p.behind.Load() + uint64(max(p.unsent.Load(), 0))
}

func (p *partition) setWaiting(reason string) {
	if reason == "" {
		p.waiting.Store(nil)
		return
	}
	p.waiting.Store(&reason)
}
