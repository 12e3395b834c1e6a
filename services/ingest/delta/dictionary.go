package delta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// errNoDictionary is returned where the stream has lost a dictionary: its points have no labels any more.
var errNoDictionary = errors.New("the stream does not hold the dictionary any more")

// dictionary is what a partition keeps of a dictionary: which series its own ones are.
type dictionary struct {
	keys []key
	sums []*sum // nil until the series has a point
	used int64  // time of the last message that needs it, in milliseconds
	err  error  // why there are no keys
	from time.Time
}

const (
	// goneFor is how long a dictionary that the stream has lost is not looked for again.
	goneFor = time.Minute
	// appearTime is how long a dictionary is looked for: it is stored before the frames that need it, but a server may answer that has not heard of it yet.
	appearTime = 5 * time.Second
	// leastKnown is how many series of dictionaries a partition remembers at least, even where it has few sums.
	leastKnown = 1 << 18
)

// dictionary returns the series of a section.
func (p *partition) dictionary(ctx context.Context, s *frame.Section, at int64) (*dictionary, error) {
	d, ok := p.dicts[s.Dict]
	if ok && d.err != nil && time.Since(d.from) > goneFor {
		ok = false
	}
	if !ok {
		var err error
		d, err = p.learn(ctx, s.Dict)
		if err != nil {
			return nil, err
		}
		if p.listed += len(d.keys); p.listed > max(leastKnown, 4*len(p.sums.byKey)) || len(p.dicts) >= leastKnown {
			clear(p.dicts) // they are learned again as they are met
			p.listed = len(d.keys)
		}
		p.dicts[s.Dict] = d
	}
	d.used = max(d.used, at)
	if d.err != nil {
		return nil, d.err
	}
	if len(d.keys) != s.Series {
		return nil, fmt.Errorf("%w: section of %d series, dictionary %s has %d", frame.ErrCorrupt, s.Series, s.Dict, len(d.keys))
	}
	return d, nil
}

// learn gets a dictionary from the stream. One that is lost or cannot be read is remembered as such.
func (p *partition) learn(ctx context.Context, id frame.DictID) (*dictionary, error) {
	msg, err := p.fetch(ctx, id)
	if errors.Is(err, errNoDictionary) {
		p.log.Error("Dropping points whose dictionary has passed with the stream's retention", "dictionary", id,
			"remedy", "raise max_age or max_bytes of millrace.streams.dictionaries")
		return &dictionary{err: err, from: time.Now()}, nil
	}
	if err != nil {
		return nil, err
	}
	full, err := frame.ReadDictionary(msg.Data, id)
	if errors.Is(err, frame.ErrCorrupt) {
		p.log.Error("Dropping points whose dictionary cannot be read", "dictionary", id, "seq", msg.Seq, "err", err)
		return &dictionary{err: err, from: time.Now()}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("dictionary of partition %d: %w", p.number, err)
	}
	d := &dictionary{keys: make([]key, len(full.Series)), sums: make([]*sum, len(full.Series))}
	for i := range full.Series {
		d.keys[i], p.labels = p.svc.hash.key(full.Series[i].Labels, p.labels)
	}
	return d, p.prolong(ctx, msg)
}

// fetch looks for a dictionary for appearTime. While NATS does not answer, it tries again.
func (p *partition) fetch(ctx context.Context, id frame.DictID) (stream.Message, error) {
	conn := p.svc.cfg.Conn
	missing := time.Time{}
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		msg, err := conn.Last(try, stream.Dicts, conn.Dict(p.number, id))
		cancel()
		switch {
		case err == nil:
			p.setWaiting("")
			return msg, nil
		case ctx.Err() != nil:
			return stream.Message{}, ctx.Err()
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			missing = time.Time{}
		case missing.IsZero():
			missing = time.Now()
		case time.Since(missing) >= appearTime:
			p.setWaiting("")
			return stream.Message{}, errNoDictionary
		}
		p.setWaiting(fmt.Sprintf("waiting for the dictionary %s: %v", id, err))
		select {
		case <-ctx.Done():
			return stream.Message{}, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// prolong stores a dictionary again whose time is half over. Whoever stores frames does so, but deltas may have waited for long, and their sums are to be kept
// as long as other frames.
func (p *partition) prolong(ctx context.Context, msg stream.Message) error {
	if age := p.svc.cfg.DictAge; age == 0 || time.Since(msg.Time) < age/2 {
		return nil
	}
	again := &nats.Msg{Subject: msg.Subject, Data: msg.Data}
	stream.SetFirstAnnounced(again, stream.FirstAnnounced(msg))
	if _, err := p.svc.cfg.Conn.Publish(ctx, again, p.wait); err != nil {
		return fmt.Errorf("publishing a dictionary again: %w", err)
	}
	p.setWaiting("")
	return nil
}

// forget drops the dictionaries that no message has needed for maxStale.
func (p *partition) forget(at int64) {
	for id, d := range p.dicts {
		if at-d.used > p.sums.maxStale {
			p.listed -= len(d.keys)
			delete(p.dicts, id)
		}
	}
}
