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
			p.renewed.check(p.ep.svc.cfg.Conn.NC)
			ask, cancel := context.WithTimeout(ctx, 2*time.Second)
			if n, err := p.mb.Pending(ask); err == nil {
				p.behind.Store(n)
			}
			cancel()
		}
	}
}

// oldest returns the time of the oldest frame that is read or passed over and not accepted, in milliseconds; 0 for none.
func (p *partition) oldest() int64 {
	if t := p.back.Load().oldest(); t != 0 {
		return t // what is read now is newer
	}
	if t := p.sending.Load(); t != 0 {
		return t
	}
	return p.reading.Load()
}

// unhandled returns how many messages the endpoint has not got all of.
func (p *partition) unhandled() uint64 {
	return p.behind.Load() + uint64(max(p.unsent.Load(), 0)) + p.back.Load().messages()
}

func (p *partition) setWaiting(reason string) {
	if p.part != nil {
		p.part.wait(p, reason)
	}
	if reason == "" {
		p.waiting.Store(nil)
		return
	}
	p.waiting.Store(&reason)
}

// waits returns on what the partition waits, with new samples or with a backlog; empty while samples flow.
func (p *partition) waits() string {
	if w := p.waiting.Load(); w != nil {
		return *w
	}
	if side := p.side.Load(); side != nil {
		if w := side.waiting.Load(); w != nil {
			return "backlog " + *w
		}
	}
	return ""
}
