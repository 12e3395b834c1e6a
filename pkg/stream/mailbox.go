package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MailboxConfig configures a durable mailbox.
type MailboxConfig struct {
	// Stream is the stream's name without the prefix, Filter the subject (wildcards allowed).
	Stream, Filter string
	// Key names the position: letters, digits, -, _, = and dots.
	Key string
	// Generation tells what the reader makes of the messages. A position stored under another one says nothing about what
	// this reader has done: the mailbox begins as if there were none.
	Generation uint64
	// FromEnd makes a mailbox that has no position yet begin behind the newest message. Otherwise it begins at the oldest.
	FromEnd bool
	// After makes a mailbox that has no position yet, and does not begin FromEnd, begin behind the message of this number.
	After uint64
	// ReadAhead is how many messages are fetched before they are asked for; 0 for 4.
	ReadAhead int
	// Unstored makes a mailbox that begins behind After each time and stores no position: its reader keeps it elsewhere. Key is only for the log.
	Unstored bool
}

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
	log  *slog.Logger

	stored *positionEntry

	source   atomic.Pointer[source]
	messages chan delivery // from pump
	closing  chan struct{}
	awaited  atomic.Bool // Next waits for a message
	renewing sync.Mutex  // held while another consumer is made

	mu       sync.Mutex
	pos      Position          // handled
	marks    map[uint64]uint64 // by source
	note     []byte
	consumer string // that delivered the last message which Next returned
	read     uint64 // the message's number among those that this consumer delivered
	last     uint64 // the message's number in the stream, or that of the position

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
	m := &Mailbox{
		cfg: cfg, conn: c, log: c.log.With("mailbox", cfg.Key), stored: newPositionEntry(kv, cfg.Key, cfg.Generation),
		messages: make(chan delivery), closing: make(chan struct{}), done: make(chan struct{}),
	}
	if cfg.Unstored {
		m.stored.kv = nil
	}
	info, err := c.streamInfo(ctx, cfg.Stream)
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx, info.State); err != nil {
		return nil, fmt.Errorf("position of %s: %w", cfg.Key, err)
	}
	m.last = m.pos.Seq
	s, err := m.consume(ctx)
	if err != nil {
		return nil, err
	}
	keep, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.source.Store(s)
	go s.pump(m.messages, m.closing, m.reads)
	var keeping sync.WaitGroup
	keeping.Go(func() { m.guard(keep) })
	keeping.Go(func() { m.keepStored(keep) })
	go func() {
		defer close(m.done)
		keeping.Wait()
	}()
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
	have, found, err := m.stored.load(ctx)
	if err != nil {
		return err
	}
	pos, marks := Position{have.Seq, have.Mark}, unpackMarks(have.Marks)
	if !found {
		pos = Position{Seq: m.cfg.After}
		if m.cfg.FromEnd {
			pos.Seq = state.LastSeq
		}
		if err := m.stored.store(ctx, pos, nil, nil); err != nil {
			return err
		}
	}
	if pos.Seq > state.LastSeq {
		m.log.Error("The stream is shorter than the position, which means that it was made anew; reading from its beginning",
			"stream", m.cfg.Stream, "position", pos.Seq, "last", state.LastSeq)
		pos, marks = Position{}, nil
	}
	if m.pos, m.marks, m.note = pos, marks, have.Note; m.marks == nil {
		m.marks = map[uint64]uint64{}
	}
	return nil
}

// Next waits for the next message. Its data belongs to the caller. [ErrMoved] means that another reader works from the position.
func (m *Mailbox) Next(ctx context.Context) (Message, error) {
	select { // before another message is looked at
	case <-ctx.Done():
		return Message{}, ctx.Err()
	case <-m.stored.lost:
		return Message{}, m.moved()
	default:
	}
	m.awaited.Store(true)
	defer m.awaited.Store(false)
	for {
		select {
		case <-ctx.Done():
			return Message{}, ctx.Err()
		case <-m.stored.lost:
			return Message{}, m.moved()
		case <-m.closing:
			return Message{}, fmt.Errorf("reading %s: %w", m.cfg.Filter, jetstream.ErrMsgIteratorClosed)
		case d := <-m.messages:
			if msg, ok, err := m.take(d); ok || err != nil {
				return msg, err
			}
		}
	}
}

// take returns what was delivered, unless that is from a consumer which was given up.
func (m *Mailbox) take(d delivery) (msg Message, ok bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.from != m.source.Load() {
		return Message{}, false, nil
	}
	if d.err != nil {
		return Message{}, false, fmt.Errorf("reading %s: %w", m.cfg.Filter, d.err)
	}
	msg, meta, err := messageOf(d.msg)
	if err != nil {
		return Message{}, false, fmt.Errorf("reading %s: %w", m.cfg.Filter, err)
	}
	m.consumer, m.read, m.last = meta.Consumer, meta.Sequence.Consumer, msg.Seq
	return msg, true, nil
}

func (m *Mailbox) moved() error { return fmt.Errorf("position of %s: %w", m.cfg.Key, ErrMoved) }

// Handled says that the message with this number, and all before it, are done with, and sets the mark. It only notes: the
// position is stored within a second, by [Mailbox.Flush], or by [Mailbox.Close].
func (m *Mailbox) Handled(seq, mark uint64) {
	m.mu.Lock()
	m.pos = Position{Seq: seq, Mark: mark}
	m.mu.Unlock()
}

// HandledFrom is [Mailbox.Handled] with the reader's counts of some sources of messages, which are kept beside the position.
func (m *Mailbox) HandledFrom(seq, mark uint64, marks map[uint64]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pos = Position{Seq: seq, Mark: mark}
	m.addMarks(marks)
}

func (m *Mailbox) addMarks(marks map[uint64]uint64) {
	maps.Copy(m.marks, marks)
	for len(m.marks) > maxMarks {
		delete(m.marks, slices.Min(slices.Collect(maps.Keys(m.marks)))) // sources are numbered by time
	}
}

// SetNote sets the reader's own words, which are kept beside the position and are stored when it is.
func (m *Mailbox) SetNote(note []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note = note
}

// HandledNoted is [Mailbox.HandledFrom] and [Mailbox.SetNote] at once: the position is never stored without the note.
func (m *Mailbox) HandledNoted(seq, mark uint64, marks map[uint64]uint64, note []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pos, m.note = Position{Seq: seq, Mark: mark}, note
	m.addMarks(marks)
}

// Move sets the position to where the reader has not come by reading, without counts of sources, and with the note that says why: neither is stored without the other.
// [Mailbox.Reread] must follow before the next message is asked for.
func (m *Mailbox) Move(seq uint64, note []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pos, m.note, m.marks = Position{Seq: seq}, note, map[uint64]uint64{}
}

// Reread goes on reading behind the position. After an error the mailbox cannot be used any more, except to be closed, which stores the position.
func (m *Mailbox) Reread(ctx context.Context) error {
	m.mu.Lock()
	m.last = m.pos.Seq
	m.mu.Unlock()
	return m.renew(ctx)
}

// Note returns what was set last, also by an earlier reader.
func (m *Mailbox) Note() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.note
}

// Marks returns the counts that [Mailbox.HandledFrom] has noted, and when the position was made.
func (m *Mailbox) Marks() (marks map[uint64]uint64, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.marks), time.UnixMilli(m.stored.since)
}

// Position returns how far the reader has come.
func (m *Mailbox) Position() Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pos
}

// keepStored stores the position once a second where it has changed.
func (m *Mailbox) keepStored(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err := m.Flush(ctx)
			switch {
			case errors.Is(err, ErrMoved):
				m.log.Error("Another reader has taken the position over; this one stops", "err", err)
				return
			case err != nil && ctx.Err() == nil:
				m.log.Warn("Cannot store the position, trying again", "err", err)
			}
		}
	}
}

// Flush stores the position now. [ErrMoved] means that another reader works from it: this one must stop.
func (m *Mailbox) Flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m.mu.Lock()
	pos, marks, note := m.pos, packMarks(m.marks), m.note
	m.mu.Unlock()
	if err := m.stored.store(ctx, pos, marks, note); err != nil {
		return fmt.Errorf("storing the position of %s: %w", m.cfg.Key, err)
	}
	return nil
}

// Close stores the position and ends the mailbox.
func (m *Mailbox) Close() {
	m.stop()
	<-m.done
	close(m.closing)
	stopped := make(chan struct{})
	go func() {
		m.source.Load().letGo()
		close(stopped)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := m.Flush(ctx); err != nil {
		m.log.Warn("Closing with a position that is not stored; some messages will be handled again", "err", err)
	}
	// While the server is away, the client lets go only after some time.
	select {
	case <-stopped:
	case <-ctx.Done():
	}
}
