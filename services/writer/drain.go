package writer

import (
	"context"
	"fmt"
	"time"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
)

// drainAgain is how long after an error the backlog is tried again.
const drainAgain = 5 * time.Second

// drain sends the partition's gaps, oldest first, until ctx ends, or, where more are not waited for, until there are none.
func (p *partition) drain(ctx context.Context, wait bool) error {
	back := p.back.Load()
	defer p.side.Store(nil)
	for {
		g := back.first()
		switch {
		case ctx.Err() != nil:
			return nil
		case g == nil && !wait:
			return nil
		case g == nil:
			p.side.Store(nil)
			select {
			case <-ctx.Done():
			case <-back.change:
			}
			continue
		}
		side := &partition{ep: p.ep, number: p.number, log: p.log, gap: g, owner: back}
		p.side.Store(side)
		if err := actor.Try(func() error { return side.Serve(ctx) }); err != nil {
			err = fmt.Errorf("sending the backlog of partition %d: %w", p.number, err)
			if !wait {
				return err
			}
			p.log.Error("Cannot send the backlog, trying again; new samples go on", "err", err)
			side.setWaiting("waiting: " + err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(drainAgain):
			}
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		done, lost := back.finish()
		if lost > 0 {
			p.ep.lost(lost, "the stream's retention passed before the endpoint took them", p.number)
		}
		if done {
			p.log.Info("A backlog is sent", "messages_left", back.messages())
		}
	}
}

// openGap opens a mailbox at what is to be sent of a gap. What is done with is stored beside the position of the partition.
func (p *partition) openGap(ctx context.Context) (*stream.Mailbox, error) {
	cfg := p.mailbox()
	cfg.Key += ".backlog"
	cfg.FromEnd, cfg.Unstored, cfg.After = false, true, p.gap.After
	return p.conn().OpenMailbox(ctx, cfg)
}

// readGap turns messages into requests like read, up to the gap's end.
func (p *partition) readGap(ctx, work context.Context) error {
	empty := func(ctx context.Context) bool { return p.conn().IsEmpty(ctx, stream.Frames, p.conn().Frames(p.number)) }
	return p.readUpToEnd(ctx, work, interval{end: p.gap.End, empty: empty, message: p.message, finish: p.finishGap})
}

// finishGap notes with the last request that all is done.
func (p *partition) finishGap(ctx context.Context) error {
	if p.current == nil {
		if err := p.begin(ctx); err != nil {
			return err
		}
	}
	p.current.seq, p.current.mark = p.gap.End, p.readMark
	return p.flush(ctx)
}

// maxBuildTime bounds the time that counts as spent on building a request: the stream may have been waited for.
const maxBuildTime = time.Second

// bringGap brings a request to the endpoint when the backlog's share of the time allows it.
func (p *partition) bringGap(ctx context.Context, x *parcel) error {
	if pause := time.Until(p.nextAt); pause > 0 {
		select {
		case <-p.stopping.Done():
			return p.stopping.Err()
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	building := time.Duration(0)
	if !p.nextAt.IsZero() {
		building = min(max(time.Since(p.nextAt), 0), maxBuildTime)
	}
	if err := p.send(ctx, x); err != nil {
		return err
	}
	p.nextAt = time.Now()
	if f := p.ep.cfg.FreshFirst; f != nil {
		p.nextAt = p.nextAt.Add(time.Duration(float64(building+p.took) * (1 - f.Share) / f.Share))
	}
	return nil
}
