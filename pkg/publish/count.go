package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// storeEvery is how often the count of samples is stored beside the stream, for the day when the stream holds none of the partition's batches
// any more: readers that have missed them can tell how many they were. A publisher among several begins anew with each process, and stores nothing.
const storeEvery = time.Minute

// storeCount stores the count where it has changed and its time has come.
func (p *publisher) storeCount(ctx context.Context, every time.Duration) {
	if p.cfg.Publisher != 0 || p.next == p.storedCount || time.Since(p.storedAt) < every {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	p.storedAt = time.Now()
	if err := p.cfg.Conn.StoreCount(ctx, p.countKey(), p.next); err != nil {
		p.log.Debug("Storing the count of samples failed; it is tried again", "err", err)
		return
	}
	p.storedCount = p.next
}

// countKey is the key under which the count is stored. That of the stream FRAMES has no name in it: it is older than other streams.
func (p *publisher) countKey() string {
	if p.cfg.Stream == stream.Frames {
		return fmt.Sprintf("published.%d", p.partition)
	}
	return fmt.Sprintf("published.%s.%d", p.cfg.Name, p.partition)
}

// resume continues the count of samples where the last batch of the partition leaves it, or where it was stored last if the stream has
// none of the partition's batches any more.
func (p *publisher) resume(ctx context.Context) error {
	if p.started || p.cfg.Publisher != 0 {
		return nil
	}
	next, err := p.lastCount(ctx)
	if err != nil {
		return err
	}
	p.next, p.started = next, true
	p.waiting.Store(nil)
	return nil
}

func (p *publisher) lastCount(ctx context.Context) (uint64, error) {
	count, err := p.cfg.Conn.Count(ctx, p.countKey())
	if err != nil {
		return 0, err
	}
	msg, err := p.cfg.Conn.Last(ctx, p.cfg.Stream, p.cfg.Subject(p.partition))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return count, nil
	}
	if err != nil {
		return 0, err
	}
	if other, _ := stream.PublisherOf(msg.Header); other != 0 {
		return count, nil
	}
	h, err := frame.ReadHeader(msg.Data)
	if errors.Is(err, frame.ErrCorrupt) {
		p.log.Error("The last batch of the partition cannot be read; counting goes on where the count was stored last", "seq", msg.Seq, "err", err)
		return count, nil
	}
	if err != nil {
		return 0, fmt.Errorf("last batch of partition %d (message %d): %w", p.partition, msg.Seq, err)
	}
	return max(count, h.First+uint64(h.Samples)), nil
}
