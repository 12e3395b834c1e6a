package delta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// partition is the actor that makes the points of one partition cumulative. Its durable mailbox is the partition's subject of the stream DELTAS; its state is in the
// messages of FRAMES that it has published.
type partition struct {
	svc    *Service
	number int
	log    *slog.Logger

	mb     *stream.Mailbox
	sums   *sums
	dicts  map[frame.DictID]*dictionary
	listed int  // series of dicts
	done   step // the last that FRAMES tells of
	buf    []byte
	in     frame.Frame
	enc    frame.Encoder
	data   []byte
	labels []byte

	// What is gathered for the next message of FRAMES.
	batch frame.BatchWriter
	steps []step

	first *stream.Message // read before its turn

	marks   map[uint64]uint64 // points of the partition by who published them, up to the last message read
	moved   map[uint64]uint64 // those of marks that the position does not have yet
	mark    uint64            // the same for the only publisher
	since   time.Time         // when the position was made
	known   bool              // mark is known
	pending uint64            // messages behind the last one read

	// What others read.
	waiting atomic.Pointer[string] // on what, for people; nil while all is well
	behind  atomic.Uint64          // messages behind the last one that is published
	series  atomic.Int64
}

const (
	// maxBatchBytes is the raw bytes of frames that make a message of FRAMES.
	maxBatchBytes = 256 << 10
	// maxGathered is how many messages of DELTAS make a message of FRAMES at most, where many wait.
	maxGathered = 64
	// gatherTime is how long a message waits for the next, where there is one.
	gatherTime = 20 * time.Millisecond
	// idleTime is how long no message comes before series are swept without one.
	idleTime = 30 * time.Second
	// maxFrame is the largest frame that fits into a batch, in bytes.
	maxFrame = frame.MaxBatchBytes - 16
)

// Serve reads back the sums, and then makes points cumulative until ctx ends.
func (p *partition) Serve(ctx context.Context) error {
	mb, err := p.svc.cfg.Conn.OpenMailbox(ctx, stream.MailboxConfig{
		Stream: stream.Deltas, Filter: p.svc.cfg.Conn.Deltas(p.number), Key: fmt.Sprintf("delta.%d", p.number), ReadAhead: 8,
	})
	if err != nil {
		return err
	}
	defer mb.Close()
	p.mb = mb
	p.sums, p.dicts, p.listed = newSums(p.svc.cfg.MaxStale.Milliseconds(), p.svc.budget), map[frame.DictID]*dictionary{}, 0
	p.batch, p.steps, p.done, p.first = frame.BatchWriter{}, nil, step{}, nil
	pos := mb.Position()
	p.mark, p.known = pos.Mark, pos.Mark != 0 || pos.Seq == 0
	p.marks, p.since = mb.Marks()
	p.moved = map[uint64]uint64{}
	defer func() {
		p.sums.release()
		p.dicts = nil
		p.series.Store(0)
	}()
	if err := p.recover(ctx); err != nil {
		return p.ended(fmt.Errorf("reading back the sums of partition %d: %w", p.number, err))
	}
	return p.ended(p.follow(ctx))
}

// ended says on what the actor waits that starts again after a failure.
func (p *partition) ended(err error) error {
	if err != nil {
		p.setWaiting(err.Error())
	}
	return err
}

// look asks how many messages wait.
func (p *partition) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	behind, err := p.mb.Pending(ctx)
	if err != nil {
		return err
	}
	p.pending = behind
	p.behind.Store(behind)
	return nil
}

// follow makes messages cumulative as they come. Where many wait, several make one.
func (p *partition) follow(ctx context.Context) error {
	for {
		msg, late, err := p.next(ctx)
		if err != nil {
			return err
		}
		if late {
			if err := p.flush(ctx); err != nil {
				return err
			}
			continue
		}
		p.pending = msg.Pending
		p.behind.Store(msg.Pending + uint64(len(p.steps)) + 1)
		if err := p.message(ctx, msg); err != nil {
			return fmt.Errorf("message %d of the deltas of partition %d: %w", msg.Seq, p.number, err)
		}
		if msg.Pending == 0 || p.batch.Size() >= maxBatchBytes || len(p.steps) >= maxGathered {
			if err := p.flush(ctx); err != nil {
				return err
			}
		}
		if at := msg.Time.UnixMilli(); at-p.sums.swept >= p.svc.sweepEvery {
			p.sweep(at)
		}
		p.series.Store(int64(len(p.sums.byKey)))
	}
}

// next waits for the next message; late means that what is gathered does not wait for it any longer.
func (p *partition) next(ctx context.Context) (msg stream.Message, late bool, err error) {
	if p.first != nil {
		msg, p.first = *p.first, nil
		return msg, false, nil
	}
	for {
		patience := idleTime
		if len(p.steps) > 0 {
			patience = gatherTime
		}
		wait, cancel := context.WithTimeout(ctx, patience)
		msg, err = p.mb.Next(wait)
		over := wait.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil || !over:
			return msg, false, err
		case len(p.steps) > 0:
			return msg, true, nil
		}
		p.idle(ctx)
	}
}

// idle sweeps where no message has come for a while. If none waits, the next one will be stored later than now.
func (p *partition) idle(ctx context.Context) {
	if p.look(ctx) == nil && p.pending == 0 {
		p.sweep(time.Now().Add(-p.svc.margin).UnixMilli())
	}
}

func (p *partition) sweep(at int64) {
	p.sums.sweep(at)
	p.forget(at)
	p.series.Store(int64(len(p.sums.byKey)))
}

// message makes one message of delta values cumulative. What comes of it is gathered; flush publishes it.
func (p *partition) message(ctx context.Context, msg stream.Message) error {
	s := step{seq: msg.Seq, time: msg.Time.UnixNano()}
	from := 0 // frames that are done with
	if p.done.covers(msg.Seq, msg.Time) {
		from = p.done.done
		if msg.Seq < p.done.seq || from == 0 {
			return p.pass(msg)
		}
	}
	batch, err := frame.OpenBatch(msg.Data, p.buf)
	if errors.Is(err, frame.ErrCorrupt) {
		p.skip(msg, err)
		p.steps = append(p.steps, s)
		return nil
	}
	if err != nil {
		return err
	}
	p.buf = batch.Buffer()
	p.count(msg, batch.Header)
	read, damage, err := batch.Each(&p.in, func(n int) error {
		if n < from {
			return nil
		}
		return p.gather(ctx, &s, n)
	})
	if err != nil {
		return err
	}
	if damage != nil {
		p.drop(unreadable, max(batch.Samples-read, 0))
		p.skip(msg, damage)
	}
	p.steps = append(p.steps, s)
	p.svc.metrics.messages.Inc()
	return nil
}

// gather makes p.in, which is frame n of a message, cumulative and adds it to the batch, which it publishes first where it is full.
func (p *partition) gather(ctx context.Context, s *step, n int) error {
	if err := p.accumulate(ctx, &p.in, time.Unix(0, s.time).UnixMilli()); err != nil {
		return err
	}
	if len(p.in.Sections) == 0 {
		return nil
	}
	samples := p.in.Samples()
	p.data = p.enc.Encode(p.data[:0], &p.in)
	if len(p.data) > maxFrame {
		p.log.Error("Dropping a frame of sums that no reader takes", "seq", s.seq, "bytes", len(p.data), "limit_bytes", maxFrame, "samples", samples)
		p.drop(tooLarge, samples)
		return nil
	}
	if p.batch.Size() > 0 && p.batch.Size()+len(p.data) > maxBatchBytes {
		if n > 0 {
			s.done = n
			p.steps = append(p.steps, *s)
			s.done, s.frames = 0, 0
		}
		if err := p.flush(ctx); err != nil {
			return err
		}
	}
	p.batch.Add(p.data, p.in.Time, samples)
	s.frames++
	return nil
}

// skip names a message that cannot be read, at least in part: what stands behind it must not wait for ever. It stays in the stream. A message of a newer version is another
// matter: it waits for an upgrade.
func (p *partition) skip(msg stream.Message, cause error) {
	p.svc.metrics.skipped.Inc()
	p.log.Error("Points of delta temporality are lost: their message cannot be read", "seq", msg.Seq, "err", cause)
}

// pass passes over a message that FRAMES tells of.
func (p *partition) pass(msg stream.Message) error {
	h, err := frame.ReadHeader(msg.Data)
	if err == nil {
		p.count(msg, h)
	} else if !errors.Is(err, frame.ErrCorrupt) {
		return err
	}
	p.handled(msg.Seq)
	return nil
}

// count finds what the stream has dropped before it was read.
func (p *partition) count(msg stream.Message, h frame.Header) {
	publisher, began := stream.PublisherOf(msg.Header)
	before, known := p.mark, p.known
	if publisher != 0 {
		// One that began after the position was made has published nothing before its first message.
		if before, known = p.marks[publisher]; !known {
			known = began.After(p.since)
		}
	}
	if known && h.First > before {
		p.svc.metrics.lost.Add(float64(h.First - before))
		p.log.Error("Points of delta temporality are lost: the stream's retention passed before they were made cumulative, or their message cannot be read",
			"points", h.First-before, "remedy", "raise max_age or max_bytes of millrace.streams.deltas")
	}
	if publisher == 0 {
		p.mark, p.known = h.First+uint64(h.Samples), true
		return
	}
	p.marks[publisher] = h.First + uint64(h.Samples)
	p.moved[publisher] = p.marks[publisher]
}

// flush publishes what is gathered, and moves the position.
func (p *partition) flush(ctx context.Context) error {
	if len(p.steps) == 0 {
		return nil
	}
	if p.batch.Size() > 0 {
		h := p.batch.Header()
		counted := &p.svc.published[p.number]
		msg := &nats.Msg{
			Subject: p.svc.cfg.Conn.Frames(p.number), Data: p.batch.Seal(counted.Load()),
			Header: nats.Header{stream.PublisherHeader: {fmt.Sprintf("%016x", p.svc.cfg.Publisher)}, Header: {formatSteps(p.steps)}},
		}
		_, err := p.svc.cfg.Conn.Publish(ctx, msg, p.wait)
		switch {
		case errors.Is(err, stream.ErrTooLarge):
			p.log.Error("Dropping sums that NATS does not take; the next points of their series have them in", "samples", h.Samples, "err", err)
			p.drop(tooLarge, h.Samples)
		case err != nil:
			return err
		default:
			counted.Add(uint64(h.Samples))
		}
		p.setWaiting("")
	}
	for i := len(p.steps) - 1; i >= 0; i-- {
		if p.steps[i].done == 0 {
			p.handled(p.steps[i].seq)
			break
		}
	}
	p.steps = p.steps[:0]
	p.behind.Store(p.pending)
	return nil
}

// handled moves the position behind a message.
func (p *partition) handled(seq uint64) {
	p.mb.HandledFrom(seq, p.mark, p.moved)
	clear(p.moved)
}

// wait notes what the stream said to a failed try.
func (p *partition) wait(err error) {
	reason := fmt.Sprintf("waiting for the stream: %v", err)
	if p.waiting.Swap(&reason) == nil {
		p.log.Warn("The stream does not take sums, trying again", "err", err)
	}
}

func (p *partition) setWaiting(reason string) {
	if reason == "" {
		p.waiting.Store(nil)
		return
	}
	p.waiting.Store(&reason)
}
