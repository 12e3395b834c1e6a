package writer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
)

// part makes a partition one of a replay: it says what is to be sent, and until where, and notes what has become of it.
type part struct {
	rec       *replay.Record
	bounds    replay.Part
	selection replay.Selection
	rules     *rules.Rules // applied here to raw dictionaries; nil where the relabel service does it
	limiter   *rate.Limiter
	replayed  prometheus.Counter

	base    replay.Progress // what earlier readers have done
	flushed uint64          // samples in requests that were handed on
	read    uint64          // messages
	choice  chooser
	scratch frame.Section

	mu    sync.Mutex
	noted replay.Progress // as the mailbox has it
}

// openMailbox opens the mailbox of what is collected now, or that of a replay or a gap. The functions below choose likewise.
func (p *partition) openMailbox(ctx context.Context) (*stream.Mailbox, error) {
	if p.part != nil {
		return p.part.open(ctx, p)
	}
	if p.gap != nil {
		return p.openGap(ctx)
	}
	return p.ep.svc.cfg.Conn.OpenMailbox(ctx, p.mailbox())
}

func (p *partition) readAll(ctx, work context.Context) error {
	if p.part != nil {
		return p.replay(ctx, work)
	}
	if p.gap != nil {
		return p.readGap(ctx, work)
	}
	if p.ep.cfg.FreshFirst == nil && p.back.Load() != nil { // the option was switched off
		if err := p.drain(ctx, false); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return p.read(ctx, work)
}

func (p *partition) bring(ctx context.Context, x *parcel) error {
	if p.part != nil {
		return p.part.bring(ctx, p, x)
	}
	if p.gap != nil {
		return p.bringGap(ctx, x)
	}
	return p.send(ctx, x)
}

func (p *partition) handled(x *parcel) {
	if p.part != nil {
		p.part.handled(p, x)
		return
	}
	if p.gap != nil {
		p.owner.handled(x)
		return
	}
	p.mb.HandledFrom(x.seq, x.mark, x.marks)
}

// mailbox returns the configuration of the durable mailbox of a part.
func (x *part) mailbox(cfg *Config, number int) stream.MailboxConfig {
	m := stream.MailboxConfig{Stream: stream.Frames, Filter: cfg.Conn.Frames(number), Key: x.rec.Position(number), After: x.bounds.After, ReadAhead: cfg.ReadAhead}
	if x.rec.Spec.Rejected {
		m.Stream, m.Filter = stream.Rejected, cfg.Conn.Rejected(x.rec.Spec.Endpoint)
	}
	return m
}

// open opens the mailbox. A dry run counts from the beginning: the series that it has met are only in memory.
func (x *part) open(ctx context.Context, p *partition) (*stream.Mailbox, error) {
	cfg := x.mailbox(&p.ep.svc.cfg, p.number)
	if x.rec.Spec.DryRun {
		pos, _, found, err := p.conn().StoredPosition(ctx, cfg.Key)
		if err != nil {
			return nil, err
		}
		if found && pos.Seq < x.bounds.End {
			if err := p.conn().RemovePosition(ctx, cfg.Key); err != nil {
				return nil, err
			}
		}
	}
	mb, err := p.conn().OpenMailbox(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if x.base, err = replay.ReadProgress(mb.Note()); err != nil {
		mb.Close()
		return nil, err
	}
	x.base.Waiting = ""
	x.flushed, x.read = 0, 0
	x.choice = newChooser(x)
	x.noted = x.base
	p.ep.metrics = unregistered()
	return mb, nil
}

func (p *partition) conn() *stream.Conn { return p.ep.svc.cfg.Conn }

// replay turns messages into requests like read, up to the end of what is to be sent.
func (p *partition) replay(ctx, work context.Context) error {
	return p.readUpToEnd(ctx, work, interval{end: p.part.bounds.End, empty: p.nothingLeft, message: p.replayMessage, finish: p.finish})
}

// interval is what a reader has to read that does not go on for ever.
type interval struct {
	end     uint64                                      // the last message
	empty   func(context.Context) bool                  // asked where none comes, or seems to follow: whether there are no more
	message func(context.Context, stream.Message) error // takes one of them
	finish  func(context.Context) error                 // notes the end with the last request
}

// readUpToEnd turns the messages of an interval into requests until ctx ends; what it has begun then, it finishes before work ends.
func (p *partition) readUpToEnd(ctx, work context.Context, x interval) error {
	if p.mb.Position().Seq >= x.end {
		return nil
	}
	for {
		msg, ok, err := p.nextBefore(ctx)
		switch {
		case ctx.Err() != nil && p.current != nil:
			return p.flush(work)
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !ok && x.empty(ctx):
			return x.finish(work)
		case ok && msg.Seq <= x.end:
			if err := x.message(work, msg); err != nil {
				return fmt.Errorf("message %d of partition %d: %w", msg.Seq, p.number, err)
			}
		}
		if ok && (msg.Seq >= x.end || msg.Pending == 0 && x.empty(ctx)) {
			return x.finish(work)
		}
		if p.current != nil && (!ok || !time.Now().Before(p.deadline())) {
			if err := p.flush(work); err != nil {
				return err
			}
		}
	}
}

// idleTime is how long the reader of an interval waits for a message before it asks whether there are any.
const idleTime = time.Second

// nextBefore waits for the next message for at most idleTime; ok says that it came.
func (p *partition) nextBefore(ctx context.Context) (msg stream.Message, ok bool, err error) {
	wait, cancel := context.WithTimeout(ctx, idleTime)
	defer cancel()
	msg, err = p.mb.Next(wait)
	if err != nil && wait.Err() != nil {
		return msg, false, nil
	}
	return msg, err == nil, err
}

// nothingLeft reports whether the stream has no more messages: they may have gone since the replay was made.
func (p *partition) nothingLeft(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, idleTime)
	defer cancel()
	n, err := p.mb.Pending(ctx)
	return err == nil && n == 0
}

func (p *partition) replayMessage(ctx context.Context, msg stream.Message) error {
	p.part.read++
	if p.part.rec.Spec.Rejected {
		return p.rejection(ctx, msg)
	}
	return p.message(ctx, msg)
}

// finish notes with the last request that all is done.
func (p *partition) finish(ctx context.Context) error {
	if err := p.ended(ctx, stream.Message{Seq: p.part.bounds.End}); err != nil {
		return err
	}
	return p.flush(ctx)
}

// store stores how far the part has come. While NATS does not take that, such as when the node that leads the bucket is lost, it tries again until ctx ends: to begin
// anew would send again what the endpoint has accepted since it was stored last.
func (x *part) store(ctx, work context.Context, mb *stream.Mailbox) error {
	for {
		err := mb.Flush(work)
		if err == nil || errors.Is(err, stream.ErrMoved) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-work.Done():
			return err
		case <-time.After(storeAgain):
		}
	}
}

// storeAgain is the time between two tries to store the end of a part. The mailbox tries as well, and logs why it cannot.
const storeAgain = time.Second

// soFar is what becomes of the samples of all messages that are read, once those of the current request are accepted.
func (x *part) soFar(p *partition) replay.Progress {
	n := x.base
	n.Samples += x.flushed + uint64(p.current.req.Samples())
	n.Messages += x.read
	n.Lost += uint64(counter.Value(p.ep.metrics.lost))
	n.Unsupported += uint64(counter.Value(p.ep.metrics.unsupported))
	n.Series, n.AtLeast = x.choice.series()
	return n
}

// bring brings a request where the replay sends to, when the rate allows it.
func (x *part) bring(ctx context.Context, p *partition, request *parcel) error {
	n := request.req.Samples()
	if x.rec.Spec.DryRun {
		p.ep.metrics.bytes.Add(float64(len(request.req.Body())))
		return nil
	}
	if x.limiter.Limit() != rate.Inf {
		if err := x.limiter.WaitN(p.stopping, min(n, x.limiter.Burst())); err != nil {
			if p.stopping.Err() != nil {
				return p.stopping.Err()
			}
			return err
		}
	}
	if err := p.send(ctx, request); err != nil {
		return err
	}
	x.replayed.Add(float64(n))
	return nil
}

// handled notes how far a request has brought the replay.
func (x *part) handled(p *partition, request *parcel) {
	n := request.progress
	n.Refused += uint64(counter.Value(p.ep.metrics.rejected))
	n.Bytes += uint64(counter.Value(p.ep.metrics.bytes))
	x.mu.Lock()
	defer x.mu.Unlock()
	x.noted = n
	p.mb.HandledNoted(request.seq, request.mark, request.marks, n.Note())
}

// wait notes on what the replay waits, for those who look at it from elsewhere.
func (x *part) wait(p *partition, reason string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.noted.Waiting == reason {
		return
	}
	x.noted.Waiting = reason
	p.mb.SetNote(x.noted.Note())
}

// headSlack is how much later than a sample's own timestamp the time of its frame may be.
const headSlack = time.Hour

// openBatch unpacks a message, but not one that is too late to hold anything of a replay.
func (p *partition) openBatch(data []byte) (frame.Batch, error) {
	if p.part != nil {
		h, err := frame.ReadHeader(data)
		if err == nil && h.MinTime-headSlack.Milliseconds() > p.part.selection.To {
			return frame.Batch{Header: h}, nil
		}
	}
	batch, err := frame.OpenBatch(data, p.buf)
	if err == nil {
		p.buf = batch.Buffer()
	}
	return batch, err
}

// relabel makes what the endpoint gets for a dictionary where no relabel service does, because the endpoint is not in the configuration.
func (x *part) relabel(ctx context.Context, p *partition, id frame.DictID) (*frame.Relabelled, error) {
	conn := p.conn()
	msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(p.number, id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, errNoDictionary
	}
	if err != nil {
		return nil, err
	}
	d, err := frame.ReadDictionary(msg.Data, id)
	if err != nil {
		return nil, err
	}
	series, _ := x.rules.Apply(d.Series)
	packed, err := frame.EncodeRelabelled(id, p.ep.rulesHash, series)
	if err != nil {
		return nil, err
	}
	return frame.ReadRelabelled(packed)
}
