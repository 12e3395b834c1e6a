package scraper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// queueLength is how many scrapes a publisher's mailbox takes; the bytes are bounded by Config.MaxPendingBytes before that.
const queueLength = 1 << 14

// publisher is the actor that writes one partition: it gathers frames into batches and publishes one batch after the other, the dictionaries
// first that they refer to. What it has taken and not got acknowledged stays in its state and is published first after a restart.
type publisher struct {
	svc       *Service
	partition int
	log       *slog.Logger
	mailbox   *actor.Mailbox[*unit]
	full      atomic.Int64 // scrapes dropped since the last log line

	unit    *unit // what of the scrape taken last is not in batch yet
	batch   frame.BatchWriter
	bytes   int64  // of the scrapes in unit, batch and sealed, as counted in Service.pending
	sealed  []byte // a message that is not acknowledged yet
	header  frame.Header
	next    uint64 // samples published to the partition so far
	known   map[frame.DictID]time.Time
	started bool // next is known

	storedCount uint64 // next as it was stored last
	storedAt    time.Time

	waiting atomic.Pointer[string] // on what, for people; nil while all is well
}

func newPublisher(svc *Service, partition int) *publisher {
	return &publisher{
		svc: svc, partition: partition, log: svc.cfg.Logger.With("partition", partition),
		mailbox: actor.NewMailbox[*unit](queueLength), known: map[frame.DictID]time.Time{}, storedAt: time.Now(),
	}
}

// offer takes a scrape, or refuses it where as much is held already as may be.
func (p *publisher) offer(u *unit) bool {
	size := int64(u.bytes)
	if p.svc.pending.Add(size) <= p.svc.cfg.MaxPendingBytes && p.mailbox.Offer(u) {
		return true
	}
	p.svc.pending.Add(-size)
	p.full.Add(1)
	return false
}

// flush makes the publisher publish all that it was offered before, without waiting for more, and waits for that until ctx ends.
func (p *publisher) flush(ctx context.Context) {
	u := &unit{flushed: make(chan struct{})}
	if p.mailbox.Send(ctx, u) != nil {
		return
	}
	select {
	case <-u.flushed:
	case <-ctx.Done():
	}
}

// Serve publishes until ctx ends, and then what it still holds, if the stream takes it within drainTime. What is on its way then is waited for, so that a planned stop repeats
// nothing.
func (p *publisher) Serve(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(drainTime):
			cancel()
		case <-work.Done():
		}
	})()
	linger := time.NewTimer(p.svc.cfg.Linger)
	defer linger.Stop()
	for {
		empty := p.batch.Size() == 0
		if err := p.proceed(work); err != nil {
			return p.ended(ctx, work, err)
		}
		if empty && p.batch.Size() > 0 {
			linger.Reset(p.svc.cfg.Linger)
		}
		if p.full.Load() > 0 {
			p.reportDrops()
		}
		select {
		case <-ctx.Done():
			return p.drain(work)
		case u := <-p.mailbox.C():
			p.take(u)
		case <-linger.C:
			p.seal()
		}
	}
}

// ended says what Serve returns: a stopping actor still tries to publish what it holds.
func (p *publisher) ended(ctx, work context.Context, err error) error {
	if ctx.Err() != nil {
		return p.drain(work)
	}
	return err
}

// storeEvery is how often the count of samples is stored beside the stream, for the day when the stream holds none of the partition's batches
// any more: readers that have missed them can tell how many they were. A publisher among several begins anew with each process, and stores nothing.
const storeEvery = time.Minute

// storeCount stores the count where it has changed and its time has come.
func (p *publisher) storeCount(ctx context.Context, every time.Duration) {
	if p.svc.cfg.Publisher != 0 || p.next == p.storedCount || time.Since(p.storedAt) < every {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	p.storedAt = time.Now()
	if err := p.svc.cfg.Conn.StoreCount(ctx, p.countKey(), p.next); err != nil {
		p.log.Debug("Storing the count of samples failed; it is tried again", "err", err)
		return
	}
	p.storedCount = p.next
}

func (p *publisher) countKey() string { return fmt.Sprintf("published.%d", p.partition) }

// resume continues the count of samples where the last batch of the partition leaves it, or where it was stored last if the stream has
// none of the partition's batches any more.
func (p *publisher) resume(ctx context.Context) error {
	if p.started || p.svc.cfg.Publisher != 0 {
		return nil
	}
	count, err := p.svc.cfg.Conn.Count(ctx, p.countKey())
	if err != nil {
		return err
	}
	msg, err := p.svc.cfg.Conn.Last(ctx, stream.Frames, p.svc.cfg.Conn.Frames(p.partition))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		p.next, p.started = count, true
		return nil
	}
	if err != nil {
		return err
	}
	if other, _ := stream.PublisherOf(msg.Header); other != 0 {
		p.next, p.started = count, true
		return nil
	}
	h, err := frame.ReadHeader(msg.Data)
	if errors.Is(err, frame.ErrCorrupt) {
		p.log.Error("The last batch of the partition cannot be read; counting goes on where the count was stored last", "seq", msg.Seq, "err", err)
		p.next, p.started = count, true
		return nil
	}
	if err != nil {
		return fmt.Errorf("last batch of partition %d (message %d): %w", p.partition, msg.Seq, err)
	}
	p.next, p.started = max(count, h.First+uint64(h.Samples)), true
	return nil
}

// take accepts a scrape; proceed brings it on its way.
func (p *publisher) take(u *unit) {
	p.unit = u
	p.bytes += int64(u.bytes)
}

// proceed publishes what is sealed, and then adds the scrape at hand to the batch, which it publishes as it fills. After an error, a further
// call goes on where this one has ended.
func (p *publisher) proceed(ctx context.Context) error {
	if err := p.resume(ctx); err != nil {
		return err
	}
	if err := p.publish(ctx); err != nil || p.unit == nil {
		return err
	}
	u := p.unit
	for len(u.dicts) > 0 {
		err := p.announce(ctx, &u.dicts[0])
		if errors.Is(err, stream.ErrTooLarge) {
			p.log.Error("Dropping a scrape whose dictionary NATS does not take; raise max_payload of the NATS server", "job", u.job, "samples", u.left(), "err", err)
			p.drop(1, u.left())
			u.dicts, u.frames = nil, nil
			break
		}
		if err != nil {
			return err
		}
		u.dicts = u.dicts[1:]
	}
	for len(u.frames) > 0 {
		f := &u.frames[0]
		if p.batch.Size() > 0 && p.batch.Size()+len(f.data) > p.svc.cfg.MaxBatchBytes {
			p.seal()
			if err := p.publish(ctx); err != nil {
				return err
			}
		}
		if len(f.data) > maxFrame {
			p.log.Error("Dropping a frame that no reader takes", "job", u.job, "bytes", len(f.data), "limit_bytes", maxFrame, "samples", f.samples)
			p.drop(1, f.samples)
		} else {
			p.batch.Add(f.data, f.time, f.samples)
		}
		u.frames = u.frames[1:]
	}
	if u.flushed != nil || p.batch.Size() >= p.svc.cfg.MaxBatchBytes {
		p.seal()
		if err := p.publish(ctx); err != nil {
			return err
		}
	}
	p.unit = nil
	if p.batch.Size() == 0 {
		p.settle()
	}
	if u.flushed != nil {
		close(u.flushed)
	}
	return nil
}

// maxFrame is the largest frame that fits into a batch, in bytes.
const maxFrame = frame.MaxBatchBytes - 16

// drop counts what the stream will not get.
func (p *publisher) drop(scrapes, samples int) {
	p.svc.metrics.droppedScrapes.Add(float64(scrapes))
	p.svc.metrics.droppedSamples.Add(float64(samples))
}

// settle gives back the memory of scrapes that are done with.
func (p *publisher) settle() {
	p.svc.pending.Add(-p.bytes)
	p.bytes = 0
}

// announce makes sure that the stream holds a dictionary, and will for longer than the frames that refer to it: it is published when the
// stream does not have it, and again when half of its time is over.
func (p *publisher) announce(ctx context.Context, d *dict) error {
	at, ok := p.known[d.id]
	if ok && time.Since(at) < p.svc.cfg.DictAge/2 {
		return nil
	}
	conn := p.svc.cfg.Conn
	subject := conn.Dict(p.partition, d.id)
	if !ok {
		msg, err := conn.Last(ctx, stream.Dicts, subject)
		if err == nil && time.Since(msg.Time) < p.svc.cfg.DictAge/2 {
			p.known[d.id] = msg.Time
			return nil
		}
	}
	if _, err := conn.Publish(ctx, &nats.Msg{Subject: subject, Data: d.msg}, p.wait); err != nil {
		return fmt.Errorf("publishing a dictionary: %w", err)
	}
	p.waiting.Store(nil)
	p.svc.metrics.dictionaries.Inc()
	p.known[d.id] = time.Now()
	p.forget()
	return nil
}

// forget drops dictionaries from known that would be announced again anyway. The map stays as small as what is in use.
func (p *publisher) forget() {
	if len(p.known) < 1024 || len(p.known)&(len(p.known)-1) != 0 {
		return
	}
	for id, at := range p.known {
		if time.Since(at) >= p.svc.cfg.DictAge/2 {
			delete(p.known, id)
		}
	}
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
	conn := p.svc.cfg.Conn
	msg := &nats.Msg{Subject: conn.Frames(p.partition), Data: p.sealed}
	if id := p.svc.cfg.Publisher; id != 0 {
		msg.Header = nats.Header{stream.PublisherHeader: {fmt.Sprintf("%016x", id)}}
	}
	_, err := conn.Publish(ctx, msg, p.wait)
	switch {
	case errors.Is(err, stream.ErrTooLarge):
		p.log.Error("Dropping a batch that NATS does not take; raise max_payload of the NATS server", "frames", p.header.Frames, "samples", p.header.Samples, "err", err)
		p.drop(p.header.Frames, p.header.Samples)
	case err != nil:
		return err
	default:
		p.next += uint64(p.header.Samples)
		p.svc.metrics.batches.Inc()
		p.svc.metrics.batchBytes.Add(float64(len(p.sealed)))
	}
	p.waiting.Store(nil)
	p.sealed = nil
	p.settle()
	p.storeCount(ctx, storeEvery)
	return nil
}

// wait notes what the stream said to a failed try.
func (p *publisher) wait(err error) {
	p.svc.metrics.retries.Inc()
	reason := err.Error()
	if p.waiting.Swap(&reason) == nil {
		p.log.Warn("The stream does not take messages; holding frames in memory and trying again", "err", err, "pending_bytes", p.svc.pending.Load())
	}
	p.reportDrops()
}

func (p *publisher) reportDrops() {
	if n := p.full.Swap(0); n > 0 {
		p.log.Error("Dropped whole scrapes because the stream does not take them and memory for waiting ones is full", "scrapes", n,
			"limit_bytes", p.svc.cfg.MaxPendingBytes, "remedy", "mend the stream, or raise millrace.scraper.max_pending_bytes")
	}
}

// drain publishes what is held when the service stops, until ctx ends.
func (p *publisher) drain(ctx context.Context) error {
	for {
		if err := p.proceed(ctx); err != nil {
			return p.lost(err)
		}
		select {
		case u := <-p.mailbox.C():
			p.take(u)
			continue
		default:
		}
		p.seal()
		if err := p.publish(ctx); err != nil {
			return p.lost(err)
		}
		p.storeCount(ctx, 0)
		return nil
	}
}

func (p *publisher) lost(err error) error {
	p.log.Error("Stopping with frames that the stream did not take; they are lost", "bytes", p.svc.pending.Load(), "err", err)
	return nil
}
