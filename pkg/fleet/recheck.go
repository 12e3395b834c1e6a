package fleet

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// recheck reads again the entries of members whose signs of life have not come for twice the TTL: a watcher that begins anew, as after the loss of its node, can miss that one has
// gone, and a member that is taken for alive for ever keeps its shares. checked notes when each was read.
func (f *Fleet) recheck(ctx context.Context, members jetstream.KeyValue, checked map[string]time.Time) {
	for _, m := range f.silent(checked) {
		checked[m.ID] = time.Now()
		asked, cancel := context.WithTimeout(ctx, requestTime)
		e, err := members.Get(asked, m.ID)
		cancel()
		switch {
		case err == nil && e.Revision() > m.revision:
			f.memberChanged(e)
		case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
			f.forget(m)
		}
	}
}

// silent returns the members whose last sign of life, or last check, is more than twice the TTL ago. There are none while JetStream takes no signs of life.
func (f *Fleet) silent(checked map[string]time.Time) []Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.disturbed() {
		return nil
	}
	var list []Member
	for id, m := range f.members {
		last := m.Seen
		if at := checked[id]; at.After(last) {
			last = at
		}
		if id != f.cfg.Self.ID && time.Since(last) > 2*f.cfg.TTL {
			list = append(list, m)
		}
	}
	for id := range checked {
		if _, ok := f.members[id]; !ok {
			delete(checked, id)
		}
	}
	return list
}

// forget removes a member that has no entry, unless a newer one has come since.
func (f *Fleet) forget(m Member) {
	f.mu.Lock()
	now, ok := f.members[m.ID]
	if !ok || now.revision != m.revision {
		f.mu.Unlock()
		return
	}
	delete(f.members, m.ID)
	delete(f.doubted, m.ID)
	f.mu.Unlock()
	f.log.Warn("A member has gone without word of it", "member", m.ID, "host", m.Host, "services", strings.Join(m.Services, ","))
	f.tell()
}
