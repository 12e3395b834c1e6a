package actor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestSendWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMailbox[int](2)
		for i := range 2 {
			if err := m.Send(t.Context(), i); err != nil {
				t.Fatal(err)
			}
		}
		sent := make(chan error, 1)
		go func() { sent <- m.Send(t.Context(), 2) }()
		synctest.Wait()
		select {
		case err := <-sent:
			t.Fatalf("a full mailbox took a message, or gave up: %v", err)
		default:
		}
		for i := range 3 {
			if got := <-m.C(); got != i {
				t.Errorf("message %d is %d", i, got)
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

func TestSendEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := NewMailbox[int](1)
	if err := m.Send(ctx, 1); err != nil {
		t.Errorf("there was room, but Send returned %v", err)
	}
	if err := m.Send(ctx, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("a full mailbox, but Send returned %v", err)
	}
	if m.Len() != 1 {
		t.Errorf("%d messages wait", m.Len())
	}
}

func TestOfferNeverWaits(t *testing.T) {
	m := NewMailbox[int](1)
	if !m.Offer(1) || m.Offer(2) {
		t.Error("a mailbox of size 1 does not take just one message")
	}
	if got := <-m.C(); got != 1 || !m.Offer(3) {
		t.Errorf("got %d, or there was no room again", got)
	}
	if NewMailbox[int](0).Offer(1) {
		t.Error("a mailbox without room took a message that nobody receives")
	}
}
