package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/vmihailenco/msgpack/v5"
)

// ErrMoved is returned where another reader has taken over a mailbox's position.
var ErrMoved = errors.New("another reader has taken the position over")

// MailboxConfig configures a durable mailbox.
type MailboxConfig struct {
	// Stream is the stream's name without the prefix, Filter the subject (wildcards allowed).
	Stream, Filter string
	// Key names the position: letters, digits, -, _, = and dots.
	Key string
	// FromEnd makes a mailbox that has no position yet begin behind the newest message. Otherwise it begins at the oldest.
	FromEnd bool
	// ReadAhead is how many messages are fetched before they are asked for; 0 for 4.
	ReadAhead int
}

// Position is how far a reader has come.
type Position struct {
	// Seq is the sequence number of the last message handled.
	Seq uint64 `msgpack:"seq"`
	// Mark is the reader's own count, kept with Seq.
	Mark uint64 `msgpack:"mark"`
}

const positionVersion = 1

// Message is a stored message.
type Message struct {
	Subject string
	Header  nats.Header
	Data    []byte
	// Seq is the sequence number in the stream; Time is when it was stored.
	Seq  uint64
	Time time.Time
	// Pending is how many more messages a mailbox had for its reader when this one was delivered.
	Pending uint64
}

// Mailbox delivers the messages of a subject in the order of the stream, from the position on that its reader has reached. It
// survives restarts of both sides: what was not marked as handled comes again.
//
// Next and Handled belong to one goroutine; the other methods may be called from any.
type Mailbox struct {
	cfg  MailboxConfig
	conn *Conn
	kv   jetstream.KeyValue
	oc   jetstream.Consumer
	it   jetstream.MessagesContext
	log  *slog.Logger

	mu       sync.Mutex
	pos      Position // handled
	read     uint64   // sequence number of the last message that Next returned
	stored   Position // in the bucket
	revision uint64
	err      error // why the position cannot be stored any more

	stop context.CancelFunc
	done chan struct{}
}

// OpenMailbox opens the mailbox at its stored position. Where there is none, it stores one first, so that the beginning does not depend
// on when the reader first finishes something.
func (c *Conn) OpenMailbox(ctx context.Context, cfg MailboxConfig) (*Mailbox, error) {
	if cfg.ReadAhead == 0 {
		cfg.ReadAhead = 4
	}
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return nil, fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	m := &Mailbox{cfg: cfg, conn: c, kv: kv, log: c.log.With("mailbox", cfg.Key), done: make(chan struct{})}
	info, err := c.streamInfo(ctx, cfg.Stream)
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx, info.State); err != nil {
		return nil, fmt.Errorf("position of %s: %w", cfg.Key, err)
	}
	m.oc, err = c.JS.OrderedConsumer(ctx, c.Stream(cfg.Stream), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{cfg.Filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: m.pos.Seq + 1,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s from %d: %w", cfg.Filter, m.pos.Seq+1, err)
	}
	m.it, err = m.oc.Messages(jetstream.PullMaxMessages(cfg.ReadAhead))
	if err != nil {
		return nil, fmt.Errorf("reading %s from %d: %w", cfg.Filter, m.pos.Seq+1, err)
	}
	keep, stop := context.WithCancel(context.Background())
	m.stop = stop
	go m.keepStored(keep)
	return m, nil
}

func (c *Conn) streamInfo(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	s, err := c.JS.Stream(ctx, c.Stream(name))
	if err != nil {
		return nil, fmt.Errorf("looking up the stream %s: %w", c.Stream(name), err)
	}
	return s.CachedInfo(), nil
}

// load reads the position, or makes it.
func (m *Mailbox) load(ctx context.Context, state jetstream.StreamState) error {
	entry, err := m.kv.Get(ctx, m.cfg.Key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		if m.cfg.FromEnd {
			m.pos.Seq = state.LastSeq
		}
		m.revision, err = m.kv.Create(ctx, m.cfg.Key, encodePosition(m.pos))
		m.stored, m.read = m.pos, m.pos.Seq
		return err
	}
	if err != nil {
		return err
	}
	if m.pos, err = decodePosition(entry.Value()); err != nil {
		return err
	}
	if m.pos.Seq > state.LastSeq {
		m.log.Error("The stream is shorter than the position, which means that it was made anew; reading from its beginning",
			"stream", m.cfg.Stream, "position", m.pos.Seq, "last", state.LastSeq)
		m.pos = Position{}
	}
	m.stored, m.revision, m.read = m.pos, entry.Revision(), m.pos.Seq
	return nil
}

func encodePosition(p Position) []byte {
	b, err := msgpack.Marshal(&p)
	if err != nil {
		panic(err) // two integers
	}
	return append([]byte{positionVersion}, b...)
}

func decodePosition(b []byte) (p Position, err error) {
	if len(b) == 0 || b[0] != positionVersion {
		return p, fmt.Errorf("entry %x is not of version %d; it was written by a newer Millrace: upgrade this one", b, positionVersion)
	}
	if err := msgpack.Unmarshal(b[1:], &p); err != nil {
		return p, fmt.Errorf("entry %x: %w", b, err)
	}
	return p, nil
}

// Next waits for the next message. Its data belongs to the caller.
func (m *Mailbox) Next(ctx context.Context) (Message, error) {
	m.mu.Lock()
	err := m.err
	m.mu.Unlock()
	if err != nil {
		return Message{}, err
	}
	msg, err := m.it.Next(jetstream.NextContext(ctx))
	if err != nil {
		if ctx.Err() != nil {
			return Message{}, ctx.Err()
		}
		return Message{}, fmt.Errorf("reading %s: %w", m.cfg.Filter, err)
	}
	meta, err := msg.Metadata()
	if err != nil {
		return Message{}, fmt.Errorf("reading %s: %w", m.cfg.Filter, err)
	}
	m.mu.Lock()
	m.read = meta.Sequence.Stream
	m.mu.Unlock()
	return Message{Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(), Seq: meta.Sequence.Stream, Time: meta.Timestamp, Pending: meta.NumPending}, nil
}

// Handled says that the message with this number, and all before it, are done with, and sets the mark. It only notes: the
// position is stored within a second, by [Mailbox.Flush], or by [Mailbox.Close].
func (m *Mailbox) Handled(seq, mark uint64) {
	m.mu.Lock()
	m.pos = Position{Seq: seq, Mark: mark}
	m.mu.Unlock()
}

// Position returns how far the reader has come.
func (m *Mailbox) Position() Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pos
}

// Pending asks JetStream how many messages of the filter are behind the last one that Next returned.
func (m *Mailbox) Pending(ctx context.Context) (uint64, error) {
	m.mu.Lock()
	read := m.read
	m.mu.Unlock()
	info, err := m.oc.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("asking how much of %s is unread: %w", m.cfg.Filter, err)
	}
	n := info.NumPending
	if info.Delivered.Stream > read {
		n++ // fetched ahead; their number is not told, only that there are some
	}
	return n, nil
}

// keepStored stores the position once a second where it has changed.
func (m *Mailbox) keepStored(ctx context.Context) {
	defer close(m.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := m.Flush(ctx); err != nil && ctx.Err() == nil {
				m.log.Warn("Cannot store the position, trying again", "err", err)
			}
		}
	}
}

// Flush stores the position now. [ErrMoved] means that another reader works from it: this one must stop.
func (m *Mailbox) Flush(ctx context.Context) error {
	m.mu.Lock()
	pos, revision, changed := m.pos, m.revision, m.pos != m.stored
	m.mu.Unlock()
	if !changed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	next, err := m.kv.Update(ctx, m.cfg.Key, encodePosition(pos), revision)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.stored, m.revision = pos, next
		return nil
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
		// The entry may be this reader's own, written by a try whose answer was lost.
		entry, gerr := m.kv.Get(ctx, m.cfg.Key)
		if gerr == nil {
			if have, derr := decodePosition(entry.Value()); derr == nil && have == pos {
				m.stored, m.revision = pos, entry.Revision()
				return nil
			}
			m.err = fmt.Errorf("position of %s: %w", m.cfg.Key, ErrMoved)
			return m.err
		}
	}
	return fmt.Errorf("storing the position of %s: %w", m.cfg.Key, err)
}

// Close stores the position and ends the mailbox.
func (m *Mailbox) Close() {
	m.stop()
	<-m.done
	m.it.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := m.Flush(ctx); err != nil {
		m.log.Warn("Closing with a position that is not stored; some messages will be handled again", "err", err)
	}
}
