package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// pastWait is how long [Conn.Past] waits for a message before it asks whether there are any left.
const pastWait = 5 * time.Second

// Past calls f with the messages of a subject that were stored at since or later, in order, up to the newest there is when it begins. The data
// belongs to f. Pending tells f how many follow. It ends with the first error of f.
func (c *Conn) Past(ctx context.Context, stream, subject string, since time.Time, f func(Message) error) error {
	// The leader answers, unlike a request for the last message, which may reach a server that lags behind.
	info, err := c.streamInfo(ctx, stream)
	if err != nil {
		return err
	}
	s, err := c.open(ctx, stream, 16, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject}, DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("reading %s since %s: %w", subject, since.UTC().Format(time.RFC3339), err)
	}
	defer func() { go s.letGo() }() // while the server is away, the client lets go only after some time
	if have := s.oc.CachedInfo(); have != nil && have.NumPending == 0 {
		return nil
	}
	messages, closing := make(chan delivery), make(chan struct{})
	defer close(closing)
	go s.pump(messages, closing, func(*source) bool { return true })
	for {
		var d delivery
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d = <-messages:
		case <-time.After(pastWait):
			if c.IsEmpty(ctx, stream, subject) {
				return nil // what was to come has passed with the stream's retention
			}
			continue
		}
		if d.err != nil {
			return fmt.Errorf("reading %s: %w", subject, d.err)
		}
		msg, _, err := messageOf(d.msg)
		if err != nil {
			return fmt.Errorf("reading %s: %w", subject, err)
		}
		if msg.Seq > info.State.LastSeq {
			return nil
		}
		if err := f(msg); err != nil {
			return err
		}
		if msg.Pending == 0 || msg.Seq == info.State.LastSeq {
			return nil
		}
	}
}

// IsEmpty reports whether the stream's leader knows of no message of the subject.
func (c *Conn) IsEmpty(ctx context.Context, stream, subject string) bool {
	ctx, cancel := context.WithTimeout(ctx, pastWait)
	defer cancel()
	s, err := c.handle(ctx, stream)
	if err != nil {
		return false
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(subject))
	return err == nil && len(info.State.Subjects) == 0 // by subjects without wildcards, which this one may have
}

var errFound = errors.New("found")

// Cut is where a time divides the messages of a subject.
type Cut struct {
	// Later is how many messages were stored at that time or later. Where there are some, they are those behind the sequence number Before.
	Before, Later uint64
}

// CutAt finds where a time divides the messages of a subject.
func (c *Conn) CutAt(ctx context.Context, stream, subject string, t time.Time) (cut Cut, err error) {
	err = c.Past(ctx, stream, subject, t, func(first Message) error {
		cut = Cut{Before: first.Seq - 1, Later: 1 + first.Pending}
		return errFound
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return cut, err
}
