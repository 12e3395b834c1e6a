package writer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/stream"
)

// partition is the actor that brings one partition's samples to one endpoint, in order. Its durable mailbox is the partition's subject of
// the stream FRAMES. While one request is in flight, the next is built.
type partition struct {
	ep     *endpoint
	number int
	log    *slog.Logger
	part   *part    // of a replay; nil for what is collected now
	gap    *gap     // that is drained beside what is collected now; nil otherwise
	owner  *backlog // of gap

	mb       *stream.Mailbox
	stopping context.Context // ends when no other message is to be begun
	joined   map[frame.DictID]joined
	seen     map[uint64]place
	free     chan *remotewrite.Request
	out      chan *parcel
	current  *parcel
	began    time.Time // of current
	buf      []byte
	frame    frame.Frame
	nframes  int
	readMark uint64            // samples of the partition up to the last message read
	marked   bool              // readMark is known
	marks    map[uint64]uint64 // the same by publisher, where there are several
	since    time.Time         // when the position was made

	renewed *renewals // nil where there are no limits on series

	gone map[frame.DictID]time.Time // dictionaries that the stream has lost, and when that was found

	lastDict    frame.DictID
	lastBlock   *remotewrite.Block
	lastLearned uint64

	back atomic.Pointer[backlog]   // what was passed over and is not sent; nil where that cannot be
	side atomic.Pointer[partition] // the reader of a gap of it

	notBefore time.Time // a backlog is not passed over earlier, since where it ends could not be found out

	took   time.Duration // that the endpoint took for the present request
	nextAt time.Time     // when the next request of a gap may go out, and its share begins

	// What others read.
	waiting atomic.Pointer[string]
	reading atomic.Int64  // time of the oldest frame that is read and not yet handed to the sending side, in milliseconds; 0 for none
	sending atomic.Int64  // time of the oldest frame of the request in flight, likewise
	behind  atomic.Uint64 // messages behind the last one that is read
	unsent  atomic.Int64  // messages that are read, and whose samples are not all accepted
	// readMessages and readSamples count what was read since the process started: how many samples a message has, for an estimate.
	readMessages, readSamples atomic.Uint64
}

// place is the last frame of a source that was taken.
type place struct {
	epoch, seq uint64
	time       int64
}

// requests is how many requests a partition builds and sends at a time: one in flight, one being built.
const requests = 2

// mailbox returns the configuration of the partition's durable mailbox.
func (p *partition) mailbox() stream.MailboxConfig {
	cfg := p.ep.svc.cfg
	return stream.MailboxConfig{
		Stream: stream.Frames, Filter: cfg.Conn.Frames(p.number), Key: fmt.Sprintf("writer.%s.%d", p.ep.name, p.number), FromEnd: true,
		ReadAhead: cfg.ReadAhead,
	}
}

// Serve reads frames and sends them until ctx ends. What the endpoint had not taken then is read again by whoever comes next.
func (p *partition) Serve(ctx context.Context) error {
	mb, err := p.openMailbox(ctx)
	if err != nil {
		return err
	}
	defer mb.Close()
	p.mb = mb
	p.joined, p.seen, p.gone = map[frame.DictID]joined{}, map[uint64]place{}, map[frame.DictID]time.Time{}
	if p.gap != nil {
		maps.Copy(p.seen, p.gap.seen)
	}
	p.lastBlock, p.current = nil, nil
	stopRenewals, err := p.followRenewals()
	if err != nil {
		return err
	}
	defer stopRenewals()
	p.unsent.Store(0)
	p.free, p.out = make(chan *remotewrite.Request, requests), make(chan *parcel)
	for range requests {
		p.free <- remotewrite.NewRequest(p.ep.protocol)
	}
	p.marks, p.since = mb.Marks()
	if err := p.openBacklog(); err != nil {
		return err
	}
	defer p.back.Store(nil)
	if err := p.mark(ctx); err != nil {
		return err
	}
	p.setWaiting("")
	// When ctx ends, no other message is begun, but what is begun is finished where the endpoint takes it, so that a planned stop
	// repeats nothing.
	p.stopping = ctx
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() {
		select {
		case <-work.Done():
		case <-time.After(stopTime):
			stop(context.Canceled)
		}
	})()
	reading, stopReading := context.WithCancel(ctx)
	defer context.AfterFunc(work, stopReading)()
	var shipping, watching, draining sync.WaitGroup
	shipping.Go(func() {
		if err := actor.Try(func() error { return p.ship(work) }); err != nil {
			stop(err)
		}
	})
	watching.Go(func() { p.watch(work) })
	if p.ep.cfg.FreshFirst != nil && p.back.Load() != nil {
		draining.Go(func() {
			if err := actor.Try(func() error { return p.drain(reading, true) }); err != nil {
				stop(err)
			}
		})
	}
	if err := actor.Try(func() error { return p.readAll(reading, work) }); err != nil {
		stop(err)
	}
	close(p.out)
	shipping.Wait()
	draining.Wait()
	if p.part != nil {
		if err := p.part.store(ctx, work, mb); err != nil { // without it, nobody would know that all is done
			stop(err)
		}
	}
	stop(context.Canceled)
	watching.Wait()
	p.reading.Store(0)
	p.sending.Store(0)
	p.behind.Store(0)
	p.unsent.Store(0)
	if cause := context.Cause(work); !errors.Is(cause, context.Canceled) {
		p.setWaiting("waiting: " + cause.Error()) // it is tried again
		return cause
	}
	p.setWaiting("") // whoever has the partition next says on what it waits
	return nil
}

// mark finds how many samples the partition had at the position, so that those which the stream drops before they are read can be
// counted. A position behind messages that it has not read itself, which is where a new endpoint begins, gets its mark here.
func (p *partition) mark(ctx context.Context) error {
	if p.gap != nil {
		return nil // it has brought its mark
	}
	pos, conn := p.mb.Position(), p.ep.svc.cfg.Conn
	p.readMark, p.marked = pos.Mark, pos.Mark != 0 || pos.Seq == 0
	if n, ok := p.tail(0); ok && pos.Mark == 0 {
		p.readMark, p.marked = n, true
	}
	if p.marked || p.part != nil && p.part.rec.Spec.Rejected {
		return nil
	}
	msg, err := conn.Last(ctx, stream.Frames, conn.Frames(p.number))
	if err == nil && msg.Seq > pos.Seq {
		msg, err = conn.Next(ctx, stream.Frames, conn.Frames(p.number), pos.Seq+1)
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil // nothing tells; the first message that comes will
	}
	if err != nil {
		return err
	}
	h, err := frame.ReadHeader(msg.Data)
	if errors.Is(err, frame.ErrCorrupt) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("message %d of partition %d: %w", msg.Seq, p.number, err)
	}
	p.readMark, p.marked = h.First, true
	if msg.Seq <= pos.Seq {
		p.readMark += uint64(h.Samples)
	}
	if p.part == nil {
		p.mb.Handled(pos.Seq, p.readMark)
	}
	return nil
}

// read turns messages into requests, in order, until ctx ends; what it has begun then, it finishes before work ends.
func (p *partition) read(ctx, work context.Context) error {
	for {
		msg, late, err := p.next(ctx)
		if err != nil {
			if ctx.Err() != nil && p.current != nil {
				return p.flush(work)
			}
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !late && p.stale(msg) {
			switch jumped, err := p.jump(ctx, work, msg); {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				return err
			case jumped:
				continue
			}
		}
		if !late {
			p.behind.Store(msg.Pending)
			if err := p.message(work, msg); err != nil {
				return fmt.Errorf("message %d of partition %d: %w", msg.Seq, p.number, err)
			}
		}
		if late || p.current != nil && p.due(msg) {
			if err := p.flush(work); err != nil {
				return err
			}
			p.reading.Store(0)
		}
	}
}

// A request that is not full waits for more for fillTime, where it has less than enough samples or more are in the stream: pushes come in small messages, and a request
// costs as much as several hundred samples.
const (
	fillTime = 200 * time.Millisecond
	enough   = 2000
)

// due reports whether the current request is sent as it is after a message.
func (p *partition) due(msg stream.Message) bool {
	return msg.Pending == 0 && p.current.req.Samples() >= enough || !time.Now().Before(p.deadline())
}

// deadline is when the current request is to be sent, however little it holds.
func (p *partition) deadline() time.Time {
	return p.began.Add(min(time.Duration(p.ep.cfg.QueueConfig.BatchSendDeadline), fillTime))
}

// next waits for the next message; late means that the current request does not wait for it any longer.
func (p *partition) next(ctx context.Context) (msg stream.Message, late bool, err error) {
	if p.current == nil {
		msg, err = p.mb.Next(ctx)
		return msg, false, err
	}
	wait, cancel := context.WithDeadline(ctx, p.deadline())
	defer cancel()
	msg, err = p.mb.Next(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return msg, true, nil
	}
	return msg, false, err
}

// message adds the frames of one message to requests.
func (p *partition) message(ctx context.Context, msg stream.Message) error {
	batch, err := p.openBatch(msg.Data)
	if errors.Is(err, frame.ErrCorrupt) {
		return p.skip(ctx, msg, err)
	}
	if err != nil {
		return err
	}
	p.reading.Store(batch.MinTime)
	p.unsent.Add(1)
	p.readMessages.Add(1)
	p.readSamples.Add(uint64(max(batch.Samples, 0)))
	publisher, began := stream.PublisherOf(msg.Header)
	if back := p.back.Load(); back != nil {
		back.heard(publisher, began, batch.First)
	}
	if before, known := p.readUpTo(publisher, began); known && batch.First > before {
		p.ep.lost(batch.First-before, "the stream's retention passed before the endpoint took them, or their message cannot be read", p.number)
	}
	read, damage, err := batch.Each(&p.frame, func(int) error { return p.sections(ctx) })
	if err != nil {
		return err
	}
	if damage != nil {
		p.ep.lost(uint64(max(batch.Samples-read, 0)), fmt.Sprintf("frames in message %d cannot be read: %v", msg.Seq, damage), p.number)
	}
	if publisher == 0 {
		p.readMark, p.marked = batch.First+uint64(batch.Samples), true
		return p.ended(ctx, msg)
	}
	p.marks[publisher] = batch.First + uint64(batch.Samples)
	if err := p.ended(ctx, msg); err != nil {
		return err
	}
	if p.current.marks == nil {
		p.current.marks = map[uint64]uint64{}
	}
	p.current.marks[publisher] = p.marks[publisher]
	return nil
}

// sections adds those of the frame that was read to requests.
func (p *partition) sections(ctx context.Context) error {
	if !p.fresh(&p.frame) {
		return nil
	}
	for i := range p.frame.Sections {
		s := &p.frame.Sections[i]
		if p.part != nil {
			var err error
			if s, err = p.part.cut(ctx, p, &p.frame, s); err != nil {
				return err
			}
		}
		if s == nil {
			continue
		}
		switch err := p.section(ctx, &p.frame, s); {
		case errors.Is(err, frame.ErrCorrupt): // what stands behind it must not wait for ever
			p.ep.lost(uint64(len(s.Values)+len(s.Histograms)), fmt.Sprintf("they do not fit their dictionary: %v", err), p.number)
		case err != nil:
			return err
		}
	}
	return nil
}

// readUpTo returns how many samples a publisher had published up to its last message that was read. One that began after the position was made has published nothing before
// its first message.
func (p *partition) readUpTo(publisher uint64, began time.Time) (samples uint64, known bool) {
	if publisher == 0 && p.marked {
		return p.readMark, true
	}
	if n, ok := p.marks[publisher]; ok {
		return n, true
	}
	if n, ok := p.tail(publisher); ok || publisher == 0 {
		return n, ok
	}
	return 0, began.After(p.since)
}

// skip passes over a message that cannot be read: what stands behind it must not wait for ever. It stays in the stream for whoever wants
// to look at it. A message of a newer version is another matter: it waits for an upgrade.
func (p *partition) skip(ctx context.Context, msg stream.Message, cause error) error {
	p.unsent.Add(1)
	// How many samples it held is told by the next message's count; its own header may be wrong as well.
	p.ep.lost(0, fmt.Sprintf("message %d cannot be read: %v", msg.Seq, cause), p.number)
	return p.ended(ctx, msg)
}

// ended notes the position behind a message in the current request. Where everything went out in earlier requests, or there was nothing to
// send, the position moves with an empty parcel behind them.
func (p *partition) ended(ctx context.Context, msg stream.Message) error {
	if p.current == nil {
		if err := p.begin(ctx); err != nil {
			return err
		}
	}
	p.current.seq, p.current.mark = msg.Seq, p.readMark
	p.current.messages++
	if p.part != nil {
		p.current.progress = p.part.soFar(p)
	}
	return nil
}

// fresh reports whether a frame is to be sent, and notes it: not one of an owner before the present one, and not one a second time.
func (p *partition) fresh(f *frame.Frame) bool {
	last, ok := p.seen[f.Source]
	if ok && (f.Epoch < last.epoch || f.Epoch == last.epoch && f.Seq <= last.seq) {
		p.ep.metrics.repeated.Inc()
		return false
	}
	p.seen[f.Source] = place{f.Epoch, f.Seq, f.Time}
	if p.nframes++; p.nframes&0xffff == 0 {
		for source, at := range p.seen {
			if f.Time-at.time > forgetSource.Milliseconds() {
				delete(p.seen, source)
			}
		}
	}
	return true
}

// forgetSource is how long after its last frame a source's place is remembered.
const forgetSource = 6 * time.Hour

// begin starts a request; it waits for one that is free.
func (p *partition) begin(ctx context.Context) error {
	select {
	case req := <-p.free:
		req.Reset()
		p.current = &parcel{req: req}
		p.began = time.Now()
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush hands the current request to the sending side.
func (p *partition) flush(ctx context.Context) error {
	if p.part != nil {
		p.part.flushed += uint64(p.current.req.Samples())
	}
	select {
	case p.out <- p.current:
		p.current = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ship sends requests one after the other, and notes the position that each brings, until no more come or ctx ends.
func (p *partition) ship(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case x, ok := <-p.out:
			if !ok {
				return nil
			}
			p.sending.Store(x.oldest)
			p.took = 0
			if x.req.Samples() > 0 {
				if err := p.bring(ctx, x); err != nil {
					return err
				}
			}
			if x.seq != 0 {
				p.handled(x)
				p.unsent.Add(-x.messages)
			}
			p.sending.Store(0)
			p.free <- x.req
		}
	}
}
