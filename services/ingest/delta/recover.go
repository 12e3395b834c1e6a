package delta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// recover reads back the sums as of the last message of DELTAS that FRAMES tells of. What a former owner publishes while this reads, it makes of the
// same messages that this process is about to read.
func (p *partition) recover(ctx context.Context) error {
	began, conn := time.Now(), p.svc.cfg.Conn
	p.setWaiting("reading back the sums")
	next, err := p.peek(ctx)
	if err != nil {
		return err
	}
	since := next.Add(-p.svc.cfg.MaxStale - p.svc.margin)
	messages, applied, failed := 0, 0, 0
	err = conn.Past(ctx, stream.Frames, conn.Frames(p.number), since, func(msg stream.Message) error {
		messages++
		p.setWaiting(fmt.Sprintf("reading back the sums: %d messages of frames since %s are to be looked at", msg.Pending, since.UTC().Format(time.RFC3339)))
		text := msg.Header.Get(Header)
		if text == "" {
			return nil
		}
		steps, err := parseSteps(text)
		if err == nil {
			err = p.apply(ctx, msg, steps)
		}
		if errors.Is(err, frame.ErrCorrupt) || steps == nil {
			failed++
			p.log.Error("Cannot read back sums; their series begin anew", "seq", msg.Seq, "err", err)
			return nil
		}
		applied++
		return err
	})
	if err != nil {
		return err
	}
	p.sums.swept = next.UnixMilli()
	p.series.Store(int64(len(p.sums.byKey)))
	p.setWaiting("")
	p.svc.metrics.recoveries.Inc()
	p.log.Info("The sums have been read back", "since", since.UTC(), "messages", messages, "of_deltas", applied, "unreadable", failed, "series", len(p.sums.byKey),
		"up_to", p.done.seq, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// peekTime is how long the first message may take to come that JetStream says is there.
const peekTime = 5 * time.Second

// peek returns the time of the first message of DELTAS that is not handled, which it keeps for later, or the present time where there is none. Messages that have waited expire
// series by their own time, not by what time it is now.
func (p *partition) peek(ctx context.Context) (time.Time, error) {
	for {
		asked := time.Now()
		if err := p.look(ctx); err != nil {
			return time.Time{}, err
		}
		if p.pending == 0 {
			return asked, nil
		}
		wait, cancel := context.WithTimeout(ctx, peekTime)
		msg, err := p.mb.Next(wait)
		late := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil && msg.Time.Before(asked):
			p.first = &msg
			return msg.Time, nil
		case err == nil:
			p.first = &msg
			return asked, nil
		case !late:
			return time.Time{}, err
		}
	}
}

// apply takes the values of a message of FRAMES as the sums, unless an earlier one tells of the same messages of DELTAS.
func (p *partition) apply(ctx context.Context, msg stream.Message, steps []step) error {
	batch, err := frame.OpenBatch(msg.Data, p.buf)
	if err != nil {
		return err
	}
	p.buf = batch.Buffer()
	for _, s := range steps {
		repeated := p.repeats(s)
		for range s.frames {
			ok, err := batch.Next(&p.in)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("%w: %d frames, the header tells of more", frame.ErrCorrupt, batch.Frames)
			}
			if repeated {
				continue
			}
			if err := p.restore(ctx, &p.in, time.Unix(0, s.time).UnixMilli()); err != nil {
				return err
			}
		}
		if !repeated {
			p.done = s
		}
	}
	return nil
}

// repeats reports whether a step is one that FRAMES has told of before.
func (p *partition) repeats(s step) bool {
	if !p.done.covers(s.seq, time.Unix(0, s.time)) {
		return false
	}
	if s.seq < p.done.seq || p.done.done == 0 {
		return true
	}
	return s.done != 0 && s.done <= p.done.done
}

// restore takes the values of a frame as the sums.
func (p *partition) restore(ctx context.Context, f *frame.Frame, at int64) error {
	for i := range f.Sections {
		s := &f.Sections[i]
		d, err := p.dictionary(ctx, s, at)
		if errors.Is(err, errNoDictionary) || errors.Is(err, frame.ErrCorrupt) {
			continue // it is in the log
		}
		if err != nil {
			return err
		}
		p.restoreSection(d, f, s, at)
	}
	return nil
}

func (p *partition) restoreSection(d *dictionary, f *frame.Frame, s *frame.Section, at int64) {
	for k, v := range s.Values {
		i, t, start := s.At(f, k)
		if value.IsStaleNaN(v) {
			continue
		}
		if x, _ := p.sums.of(d, i, at); x != nil {
			x.float(true, v, t, start, at)
		}
	}
	for k := range s.Histograms {
		h := &s.Histograms[k]
		if isStale(h) {
			continue
		}
		fh, err := floatOf(h)
		if err != nil {
			continue // it was not published by an actor of this kind
		}
		if x, _ := p.sums.of(d, h.Index, at); x != nil {
			_ = x.histogram(true, fh, h.Int != nil, h.Time, h.Start, at) // nothing is added
		}
	}
}
