package writer

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/frame"
)

// renewals are the dictionaries of which the endpoint gets something else than before: limits on series change their mind when places become free.
type renewals struct {
	some atomic.Bool // there are any

	mu         sync.Mutex
	contents   map[frame.DictID]frame.DictID // what they are now
	all        bool                          // some may have been missed
	reconnects uint64
}

// followRenewals subscribes to what the relabel service publishes, where there are limits. The function that it returns ends that.
func (p *partition) followRenewals() (stop func(), err error) {
	p.renewed = nil
	if p.ep.cfg.Rules.Limits == "" {
		return func() {}, nil
	}
	conn := p.ep.svc.cfg.Conn
	r := &renewals{contents: map[frame.DictID]frame.DictID{}, reconnects: conn.NC.Stats().Reconnects}
	subject := conn.RelabelledPartition(p.ep.name, p.number)
	sub, err := conn.NC.Subscribe(subject, func(msg *nats.Msg) {
		packed, err := frame.ReadRelabelled(msg.Data)
		if err != nil || packed.Rules != p.ep.rulesHash {
			return // whoever needs it finds out
		}
		r.add(packed.Dict, packed.Content)
	})
	if err != nil {
		return nil, fmt.Errorf("following %s: %w", subject, err)
	}
	p.renewed = r
	return func() { _ = sub.Unsubscribe() }, nil
}

func (r *renewals) add(id, content frame.DictID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.contents) >= maxJoined {
		clear(r.contents)
		r.all = true
	}
	r.contents[id] = content
	r.some.Store(true)
}

// check makes the partition look everything up again where the connection was lost meanwhile, and messages with it.
func (r *renewals) check(nc *nats.Conn) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := nc.Stats().Reconnects; n != r.reconnects {
		r.reconnects, r.all = n, true
		r.some.Store(true)
	}
}

// renew forgets what has stood for dictionaries that are renewed.
func (p *partition) renew() {
	r := p.renewed
	if r == nil || !r.some.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.some.Store(false)
	if r.all {
		clear(p.joined)
		p.lastBlock = nil
	}
	for id, content := range r.contents {
		if j, ok := p.joined[id]; ok && j.content != content {
			delete(p.joined, id)
			if p.lastDict == id {
				p.lastBlock = nil
			}
		}
	}
	clear(r.contents)
	r.all = false
}
