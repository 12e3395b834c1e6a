package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Count returns a number that [Conn.StoreCount] has stored under a key, or 0.
func (c *Conn) Count(ctx context.Context, key string) (uint64, error) {
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return 0, fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	entry, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("getting %s: %w", key, err)
	}
	if len(entry.Value()) != 8 {
		return 0, fmt.Errorf("%s is %x: want 8 bytes", key, entry.Value())
	}
	return binary.BigEndian.Uint64(entry.Value()), nil
}

// StoreCount stores a number under a key of the bucket of positions.
func (c *Conn) StoreCount(ctx context.Context, key string, n uint64) error {
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	if _, err := kv.Put(ctx, key, binary.BigEndian.AppendUint64(nil, n)); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// MakePosition stores the position at which a mailbox of this configuration begins, where it has none yet: the reader may come
// later and still begin there.
func (c *Conn) MakePosition(ctx context.Context, cfg MailboxConfig) error {
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	info, err := c.streamInfo(ctx, cfg.Stream)
	if err != nil {
		return err
	}
	m := &Mailbox{cfg: cfg, log: c.log.With("mailbox", cfg.Key), stored: newPositionEntry(kv, cfg.Key, cfg.Generation)}
	if err := m.load(ctx, info.State); err != nil && !errors.Is(err, ErrMoved) {
		return fmt.Errorf("position of %s: %w", cfg.Key, err)
	}
	return nil
}
