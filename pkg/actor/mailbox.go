package actor

import "context"

// Mailbox is a bounded queue in memory, the way into an actor. Any number of goroutines may send; the actor receives.
type Mailbox[T any] struct {
	ch chan T
}

// NewMailbox returns a mailbox that holds up to size messages. With size 0 a send waits for the actor to receive.
func NewMailbox[T any](size int) *Mailbox[T] { return &Mailbox[T]{ch: make(chan T, size)} }

// Send puts v into the mailbox and waits for room until ctx ends, whose error it returns then.
func (m *Mailbox[T]) Send(ctx context.Context, v T) error {
	select {
	case m.ch <- v:
		return nil
	default:
	}
	select {
	case m.ch <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Offer puts v into the mailbox where there is room, and reports whether there was.
func (m *Mailbox[T]) Offer(v T) bool {
	select {
	case m.ch <- v:
		return true
	default:
		return false
	}
}

// C is the channel from which the actor receives. It is never closed.
func (m *Mailbox[T]) C() <-chan T { return m.ch }

// Len returns the number of messages that wait.
func (m *Mailbox[T]) Len() int { return len(m.ch) }
