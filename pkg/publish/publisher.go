package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// queueLength is how many units a publisher's mailbox takes; the bytes are bounded by the units' budgets before that.
const queueLength = 1 << 14

// publisher is the actor that writes one partition: it gathers frames into batches and publishes one batch after the other, the dictionaries
// first that they refer to. What it has taken and not got acknowledged stays in its state and is published first after a restart.
type publisher struct {
	*Publishers
	partition int
	log       *slog.Logger
	mailbox   *actor.Mailbox[*Unit]
	bytes     atomic.Int64  // of the units that are not done
	drops     atomic.Uint64 // units that were told that they are dropped
	waiting   atomic.Pointer[string]
	ended     chan struct{} // closed when nothing is published any more
	rests     atomic.Int64  // until when the actor does not look into its mailbox, since began; 0 while it does
	wake      chan struct{} // ends its rest

	offering sync.RWMutex // held for reading by those who offer
	stopped  bool         // nothing is taken any more

	unit     *Unit // what was taken last and is not in batch as a whole yet
	batch    frame.BatchWriter
	deadline time.Time // of the batch, where it has frames
	held     []*Unit   // they are done when batch and sealed are, the oldest first
	sealed   []byte    // a message that is not acknowledged yet; batch is empty meanwhile
	header   frame.Header
	next     uint64 // samples published to the partition so far
	known    map[frame.DictID]announced
	started  bool // next is known
	drained  bool

	storedCount uint64 // next as it was stored last
	storedAt    time.Time
}

func newPublisher(p *Publishers, partition int) *publisher {
	return &publisher{
		Publishers: p, partition: partition, log: p.cfg.Logger.With("partition", partition), mailbox: actor.NewMailbox[*Unit](queueLength),
		ended: make(chan struct{}), wake: make(chan struct{}, 1), known: map[frame.DictID]announced{}, storedAt: time.Now(),
	}
}

// offer is [Publishers.Offer].
func (p *publisher) offer(u *Unit) bool {
	bytes := int64(u.Bytes)
	if u.Budget != nil && !u.Budget.Take(bytes) {
		return false
	}
	p.prepare(u)
	p.offering.RLock()
	taken := !p.stopped && p.mailbox.Offer(u)
	p.offering.RUnlock()
	if !taken {
		p.giveBack(u)
		return false
	}
	if rests := p.rests.Load(); rests != 0 && (u.deadline.Sub(p.began) < time.Duration(rests) || p.bytes.Load() >= int64(p.cfg.MaxBatchBytes)) {
		p.rouse()
	}
	return true
}

// rouse ends the actor's rest.
func (p *publisher) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// prepare makes a unit ready for the mailbox.
func (p *publisher) prepare(u *Unit) {
	u.deadline, u.barrier, u.drops = p.deadlineOf(u.Linger), u.Waits || len(u.Frames) == 0, p.drops.Load()
	p.bytes.Add(int64(u.Bytes))
}

func (p *publisher) giveBack(u *Unit) {
	p.bytes.Add(-int64(u.Bytes))
	if u.Budget != nil {
		u.Budget.Give(int64(u.Bytes))
	}
}

// flush is [Publishers.Flush].
func (p *publisher) flush(ctx context.Context) {
	flushed := make(chan struct{})
	u := &Unit{flush: true, Done: func(error) { close(flushed) }}
	p.prepare(u)
	if p.mailbox.Send(ctx, u) != nil {
		return
	}
	p.rouse()
	select {
	case <-flushed:
	case <-ctx.Done():
	case <-p.ended:
	}
}

// serve publishes until ctx ends, and then what it still holds until work ends.
func (p *publisher) serve(ctx, work context.Context) error {
	linger := time.NewTimer(time.Hour)
	defer linger.Stop()
	for {
		err := p.proceed(work)
		if ctx.Err() != nil {
			p.drain(work)
			return nil
		}
		if err != nil {
			reason := err.Error()
			p.waiting.Store(&reason)
			return err
		}
		// What has come while a batch was on its way goes with the next one.
		if p.batch.Size() > 0 && p.mailbox.Len() == 0 || len(p.held) >= queueLength {
			wait := time.Until(p.deadline)
			if wait <= 0 || len(p.held) >= queueLength {
				p.seal()
				continue
			}
			linger.Reset(wait)
			p.rest(ctx, linger.C)
			continue
		}
		select {
		case <-ctx.Done():
		case u := <-p.mailbox.C():
			p.take(u)
		}
	}
}

// rest waits until the batch is due, or its mailbox has something that is due earlier or fills the batch. Other units that come do not wake the actor up: to take each
// at once would cost more than to publish it.
func (p *publisher) rest(ctx context.Context, due <-chan time.Time) {
	p.rests.Store(max(int64(p.deadline.Sub(p.began)), 1))
	defer p.rests.Store(0)
	if p.mailbox.Len() > 0 { // it came before rests was there to be seen
		return
	}
	select {
	case <-ctx.Done():
	case <-due:
	case <-p.wake:
	}
}

// take accepts a unit; proceed brings it on its way.
func (p *publisher) take(u *Unit) { p.unit = u }

// proceed publishes what is sealed, and then adds the unit at hand to the batch, which it publishes as it fills. After an error, a further
// call goes on where this one has ended.
func (p *publisher) proceed(ctx context.Context) error {
	if err := p.resume(ctx); err != nil {
		return err
	}
	if err := p.publish(ctx); err != nil {
		return err
	}
	if p.unit != nil {
		if err := p.pack(ctx, p.unit); err != nil {
			return err
		}
	}
	if p.batch.Size() == 0 {
		p.settle()
	}
	return nil
}

// maxFrame is the largest frame that fits into a batch, in bytes.
const maxFrame = frame.MaxBatchBytes - 16

// pack adds a unit to the batch.
func (p *publisher) pack(ctx context.Context, u *Unit) error {
	if err := p.announceAll(ctx, u); err != nil {
		return err
	}
	for len(u.Frames) > 0 {
		f := &u.Frames[0]
		if p.batch.Size() > 0 && p.batch.Size()+len(f.Data) > p.cfg.MaxBatchBytes {
			p.seal()
			if err := p.publish(ctx); err != nil {
				return err
			}
		}
		if len(f.Data) > maxFrame {
			p.log.Error("Dropping a frame that no reader takes", "job", u.Job, "bytes", len(f.Data), "limit_bytes", maxFrame, "samples", f.Samples)
			u.drop(f.Samples, fmt.Errorf("frame of %d bytes, readers take %d: %w", len(f.Data), maxFrame, stream.ErrTooLarge))
		} else {
			p.add(u, f)
		}
		*f = Frame{} // the batch has its own copy
		u.Frames = u.Frames[1:]
	}
	if u.flush || p.batch.Size() >= p.cfg.MaxBatchBytes {
		p.seal()
		if err := p.publish(ctx); err != nil {
			return err
		}
	}
	p.unit = nil
	p.held = append(p.held, u)
	return nil
}

// add adds a frame to the batch, which waits no longer than its unit may.
func (p *publisher) add(u *Unit, f *Frame) {
	if p.batch.Size() == 0 || u.deadline.Before(p.deadline) {
		p.deadline = u.deadline
	}
	p.batch.Add(f.Data, f.Time, f.Samples)
	u.batched += f.Samples
	u.batchedFrames++
}

// seal makes the batch a message.
func (p *publisher) seal() {
	if p.batch.Size() == 0 {
		return
	}
	p.header = p.batch.Header()
	p.sealed = p.batch.Seal(p.next)
}

// publish stores the sealed message. It is taken, in the sense of the promises, when this returns nil.
func (p *publisher) publish(ctx context.Context) error {
	if p.sealed == nil {
		return nil
	}
	msg := &nats.Msg{Subject: p.cfg.Subject(p.partition), Data: p.sealed}
	if id := p.cfg.Publisher; id != 0 {
		msg.Header = nats.Header{stream.PublisherHeader: {fmt.Sprintf("%016x", id)}}
	}
	_, err := p.cfg.Conn.Publish(ctx, msg, p.wait)
	switch {
	case errors.Is(err, stream.ErrTooLarge):
		p.log.Error("Dropping a batch that NATS does not take; raise max_payload of the NATS server", "frames", p.header.Frames, "samples", p.header.Samples, "err", err)
		for _, u := range p.held {
			p.unbatch(u, err)
		}
	case err != nil:
		return err
	default:
		p.next += uint64(p.header.Samples)
		p.metrics.batches.Inc()
		p.metrics.batchBytes.Add(float64(len(p.sealed)))
		err = nil
	}
	if p.unit != nil {
		p.unbatch(p.unit, err)
	}
	p.waiting.Store(nil)
	p.sealed = nil
	p.settle()
	p.storeCount(ctx, storeEvery)
	return nil
}

// unbatch notes how a batch has ended for what it had of a unit; err is nil where it was acknowledged.
func (p *publisher) unbatch(u *Unit, err error) {
	if err != nil && u.batchedFrames > 0 {
		u.drop(u.batched, err)
	}
	u.batched, u.batchedFrames = 0, 0
}

// settle ends the units that nothing is left of to publish.
func (p *publisher) settle() {
	for i, u := range p.held {
		p.held[i] = nil
		p.finish(u)
	}
	p.held = p.held[:0]
}

// finish tells a unit how it has ended.
func (p *publisher) finish(u *Unit) {
	p.giveBack(u)
	var err error
	switch {
	case u.reason != nil:
		err = &DroppedError{Samples: u.lost, Reason: u.reason}
		// Not before the unit is told: a barrier that is offered meanwhile may still wait for it.
		defer p.drops.Add(1)
	case u.barrier && u.drops != p.drops.Load():
		err = &DroppedError{Reason: errBefore}
	}
	if u.Done == nil {
		return
	}
	if err := actor.Try(func() error { u.Done(err); return nil }); err != nil {
		p.log.Error("Telling a unit how it has ended failed", "job", u.Job, "err", err) // others' units are not to suffer from it
	}
}

// errBefore is the reason of a barrier.
var errBefore = errors.New("frames that were to be waited for are not in the stream")

// wait notes what the stream said to a failed try.
func (p *publisher) wait(err error) {
	p.metrics.retries.Inc()
	reason := err.Error()
	if p.waiting.Swap(&reason) == nil {
		p.log.Warn("The stream does not take messages; holding frames in memory and trying again", "err", err, "pending_bytes", p.bytes.Load())
	}
}

// drain publishes what is held when the process stops, until ctx ends. Nothing more is taken from here on.
func (p *publisher) drain(ctx context.Context) {
	p.offering.Lock()
	p.stopped = true
	p.offering.Unlock()
	for {
		if err := p.proceed(ctx); err != nil {
			p.abandon(err)
			break
		}
		select {
		case u := <-p.mailbox.C():
			p.take(u)
			continue
		default:
		}
		if p.batch.Size() == 0 {
			p.storeCount(ctx, 0)
			break
		}
		p.seal()
	}
	p.drained = true
}

// end drains a publisher whose actor did not run when it was to stop, because it had just failed.
func (p *publisher) end(work context.Context) {
	defer close(p.ended)
	if p.drained {
		return
	}
	err := actor.Try(func() error {
		p.drain(work)
		return nil
	})
	if err != nil {
		p.log.Error("Publishing what was held at the end failed", "err", err)
		p.abandon(err)
	}
}

// abandon tells everybody that waits that it was in vain.
func (p *publisher) abandon(err error) {
	list := p.held
	if p.unit != nil {
		list = append(list, p.unit)
	}
	for n := p.mailbox.Len(); n > 0; n-- {
		list = append(list, <-p.mailbox.C())
	}
	samples, bytes := 0, p.bytes.Load()
	p.unit, p.held, p.sealed, p.batch = nil, nil, nil, frame.BatchWriter{}
	for _, u := range list {
		if u.batchedFrames+len(u.Frames)+len(u.Dicts) > 0 {
			samples += u.batched + u.left()
			u.drop(u.batched+u.left(), err)
		}
		p.finish(u)
	}
	if samples > 0 {
		p.log.Error("Stopping with frames that the stream did not take; they are lost", "bytes", bytes, "samples", samples, "err", err)
	}
}
