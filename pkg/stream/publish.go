package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrTooLarge is returned by [Conn.Publish] for a message that NATS never takes because of its size.
var ErrTooLarge = errors.New("message is larger than NATS takes")

// MaxMessage returns the largest message in bytes that [Conn.Publish] takes.
func (c *Conn) MaxMessage() int { return int(c.NC.MaxPayload()) - 4096 }

// Publish stores one message and returns its sequence number once JetStream has acknowledged it: with `sync: always` it is on disk then.
// It tries again with back-off until that is so or ctx ends; waiting, which may be nil, is told of every failed try.
// A retry whose first try was stored after all leaves the message twice: readers drop the repetition.
func (c *Conn) Publish(ctx context.Context, msg *nats.Msg, waiting func(error)) (uint64, error) {
	if len(msg.Data) > c.MaxMessage() {
		return 0, fmt.Errorf("publishing %d bytes to %s: %w: at most %d bytes; raise max_payload of the NATS server", len(msg.Data), msg.Subject, ErrTooLarge, c.MaxMessage())
	}
	const firstWait, maxWait, tryTime = 50 * time.Millisecond, 2 * time.Second, 10 * time.Second
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		try, cancel := context.WithTimeout(ctx, tryTime)
		ack, err := c.JS.PublishMsg(try, msg, jetstream.WithRetryAttempts(0))
		cancel()
		if err == nil {
			return ack.Sequence, nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("publishing to %s: %w", msg.Subject, context.Cause(ctx))
		}
		err = c.server.because(err)
		if waiting != nil {
			waiting(err)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("publishing to %s: %w (last error: %w)", msg.Subject, context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}

// handle returns the handle of a stream, which is looked up once: its state is not current, but getting messages with it does not need it.
func (c *Conn) handle(ctx context.Context, stream string) (jetstream.Stream, error) {
	if s, ok := c.handles.Load(stream); ok {
		return s.(jetstream.Stream), nil
	}
	s, err := c.JS.Stream(ctx, c.Stream(stream))
	if err != nil {
		return nil, fmt.Errorf("looking up the stream %s: %w", c.Stream(stream), err)
	}
	c.handles.Store(stream, s)
	return s, nil
}

// Last returns the newest message of a subject, or [jetstream.ErrMsgNotFound].
func (c *Conn) Last(ctx context.Context, stream, subject string) (Message, error) {
	s, err := c.handle(ctx, stream)
	if err != nil {
		return Message{}, err
	}
	raw, err := s.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return Message{}, fmt.Errorf("getting the last message of %s: %w", subject, err)
	}
	return Message{Subject: raw.Subject, Header: raw.Header, Data: raw.Data, Seq: raw.Sequence, Time: raw.Time}, nil
}

// Next returns the oldest message of a subject whose sequence number is at least seq, or [jetstream.ErrMsgNotFound].
func (c *Conn) Next(ctx context.Context, stream, subject string, seq uint64) (Message, error) {
	s, err := c.handle(ctx, stream)
	if err != nil {
		return Message{}, err
	}
	raw, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
	if err != nil {
		return Message{}, fmt.Errorf("getting the message of %s from %d on: %w", subject, seq, err)
	}
	return Message{Subject: raw.Subject, Header: raw.Header, Data: raw.Data, Seq: raw.Sequence, Time: raw.Time}, nil
}

// Get returns the message of a stream that has a number, or [jetstream.ErrMsgNotFound].
func (c *Conn) Get(ctx context.Context, stream string, seq uint64) (Message, error) {
	s, err := c.handle(ctx, stream)
	if err != nil {
		return Message{}, err
	}
	raw, err := s.GetMsg(ctx, seq)
	if err != nil {
		return Message{}, fmt.Errorf("getting message %d of %s: %w", seq, c.Stream(stream), err)
	}
	return Message{Subject: raw.Subject, Header: raw.Header, Data: raw.Data, Seq: raw.Sequence, Time: raw.Time}, nil
}

// firstHeader tells when a dictionary that is published again was published for the first time, in milliseconds since 1970.
const firstHeader = "Millrace-First"

// SetFirstAnnounced notes in a dictionary's message when the dictionary was published for the first time; the zero time: now.
func SetFirstAnnounced(msg *nats.Msg, first time.Time) {
	if !first.IsZero() {
		msg.Header = nats.Header{firstHeader: {strconv.FormatInt(first.UnixMilli(), 10)}}
	}
}

// FirstAnnounced returns when the dictionary of a message was published for the first time.
func FirstAnnounced(msg Message) time.Time {
	if ms, err := strconv.ParseInt(msg.Header.Get(firstHeader), 10, 64); err == nil {
		return time.UnixMilli(ms)
	}
	return msg.Time
}

// PublisherHeader names the publisher of a batch where there may be several for a partition: 16 hexadecimal digits. Each counts the samples that it has published.
const PublisherHeader = "Millrace-Publisher"

// NewPublisher returns a number for a publisher that begins now.
func NewPublisher() uint64 { return uint64(time.Now().UnixMilli())<<16 | rand.Uint64()&0xffff }

// PublisherOf returns the publisher of a batch and when it began; 0 stands for the only one.
func PublisherOf(h nats.Header) (publisher uint64, began time.Time) {
	publisher, err := strconv.ParseUint(h.Get(PublisherHeader), 16, 64)
	if err != nil {
		return 0, time.Time{}
	}
	return publisher, time.UnixMilli(int64(publisher >> 16))
}
