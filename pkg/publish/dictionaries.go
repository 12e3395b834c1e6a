package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/stream"
)

// announceAll makes sure that the stream holds the dictionaries of a unit. Frames of others that wait in the batch meanwhile go when their time is over.
func (p *publisher) announceAll(ctx context.Context, u *Unit) error {
	now := time.Now()
	for len(u.Dicts) > 0 {
		d := &u.Dicts[0]
		err := p.announce(ctx, d, now)
		switch {
		case err == nil:
			u.Dicts = u.Dicts[1:]
		case errors.Is(err, stream.ErrTooLarge):
			p.log.Error("Dropping frames whose dictionary NATS does not take; raise max_payload of the NATS server", "job", u.Job, "samples", u.left(), "err", err)
			u.drop(u.left(), err)
			u.Dicts, u.Frames = nil, nil
		case ctx.Err() == nil && p.batch.Size() > 0:
			p.seal()
			if err := p.publish(ctx); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

// announce makes sure that the stream holds a dictionary, and will for longer than the frames that refer to it: it is published when the
// stream does not have it, and again when half of its time is over or whoever limits series wants to hear of it. Where the batch has frames, it fails when they may not wait any longer.
func (p *publisher) announce(ctx context.Context, d *Dict, now time.Time) error {
	have, ok := p.known[d.ID]
	if ok && now.Sub(have.at) < p.cfg.AnnounceEvery {
		return nil
	}
	if p.batch.Size() > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, p.deadline)
		defer cancel()
	}
	conn := p.cfg.Conn
	subject := conn.Dict(p.partition, d.ID)
	if !ok {
		msg, err := conn.Last(ctx, stream.Dicts, subject)
		if err == nil {
			have.first = stream.FirstAnnounced(msg)
		}
		if err == nil && time.Since(msg.Time) < p.cfg.AnnounceEvery {
			p.known[d.ID] = announced{msg.Time, have.first}
			return nil
		}
	}
	msg := &nats.Msg{Subject: subject, Data: d.Msg}
	stream.SetFirstAnnounced(msg, have.first)
	if _, err := conn.Publish(ctx, msg, p.wait); err != nil {
		return fmt.Errorf("publishing a dictionary: %w", err)
	}
	p.waiting.Store(nil)
	p.metrics.dictionaries.Inc()
	if have.at = time.Now(); have.first.IsZero() {
		have.first = have.at
	}
	p.known[d.ID] = have
	p.forget()
	return nil
}

// announced says when a dictionary was published last, and when for the first time.
type announced struct{ at, first time.Time }

// forget drops dictionaries from known that would be announced again anyway. The map stays as small as what is in use.
func (p *publisher) forget() {
	if len(p.known) < 1024 || len(p.known)&(len(p.known)-1) != 0 {
		return
	}
	for id, have := range p.known {
		if time.Since(have.at) >= p.cfg.AnnounceEvery {
			delete(p.known, id)
		}
	}
}
