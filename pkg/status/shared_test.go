package status

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// TestManyWhoAskAtOnceShareADocument counts how often the fleet is asked.
func TestManyWhoAskAtOnceShareADocument(t *testing.T) {
	var asked atomic.Int32
	s := Shared[Document]{Fresh: DocumentFresh, Collect: func(context.Context) (*Document, error) {
		asked.Add(1)
		return &Document{}, nil
	}}
	first, err := s.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		d, err := s.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d == first && asked.Load() > 1 {
			t.Fatal("the fleet was asked again for the same document")
		}
		if d != first {
			return // more than a second has passed
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the fleet was asked %d times", n)
	}
}

// TestWhoGoesLeavesAWholeDocument has the one who asked first go while the fleet is asked.
func TestWhoGoesLeavesAWholeDocument(t *testing.T) {
	ctx, gone := context.WithCancel(t.Context())
	s := Shared[Document]{Fresh: time.Hour, Collect: func(ctx context.Context) (*Document, error) {
		gone()
		if _, ends := ctx.Deadline(); !ends {
			t.Error("the collection may last for ever")
		}
		return &Document{Reached: ctx.Err() == nil}, nil
	}}
	if _, err := s.Get(ctx); err != nil {
		t.Error(err)
	}
	if d, err := s.Get(t.Context()); err != nil || !d.Reached {
		t.Errorf("the next one gets %+v, %v", d, err)
	}
}

// TestWhoDoesNotWaitIsLetGo has somebody ask while another is at it, and give up.
func TestWhoDoesNotWaitIsLetGo(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := Shared[Document]{Collect: func(context.Context) (*Document, error) {
		close(entered)
		<-leave
		return &Document{}, nil
	}}
	done := make(chan error)
	go func() {
		_, err := s.Get(t.Context())
		done <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
