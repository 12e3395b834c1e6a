package status

import (
	"context"
	"sync"
	"time"
)

// Shared collects something once for all who ask at about the same time: a question goes to the whole fleet.
type Shared[T any] struct {
	// Collect finds it.
	Collect func(context.Context) (*T, error)
	// Fresh is how long it is given to others: [DocumentFresh] or [HistoryFresh].
	Fresh time.Duration

	once sync.Once
	turn chan struct{} // holds the lock of what follows
	at   time.Time     // when it was asked for
	last *T
}

// DocumentFresh and HistoryFresh are how old what is shown may be. A history gets a point each [HistoryStep].
const (
	DocumentFresh = time.Second
	HistoryFresh  = 5 * time.Second
)

// collectTime bounds a collection, whose questions have time-outs of their own.
const collectTime = 10 * time.Second

// Get returns what is not older than Fresh.
func (s *Shared[T]) Get(ctx context.Context) (*T, error) {
	s.once.Do(func() { s.turn = make(chan struct{}, 1) })
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.last != nil && time.Since(s.at) < s.Fresh {
		return s.last, nil
	}
	at := time.Now()
	// Others wait for it: who asked first and has gone must not leave them with what could be found until then.
	collecting, cancel := context.WithTimeout(context.WithoutCancel(ctx), collectTime)
	defer cancel()
	found, err := s.Collect(collecting)
	if err != nil {
		return nil, err
	}
	s.last, s.at = found, at
	return found, nil
}
