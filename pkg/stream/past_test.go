package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
)

func TestPastReadsUpToTheNewest(t *testing.T) {
	c := newConn(t)
	ensure(t, c)
	read := func(since time.Time) (texts []string) {
		t.Helper()
		err := c.Past(t.Context(), Frames, c.Frames(1), since, func(m Message) error {
			texts = append(texts, string(m.Data))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return texts
	}
	if got := read(time.Unix(0, 0)); len(got) != 0 {
		t.Errorf("an empty stream gives %q", got)
	}
	var want []string
	for i := range 100 {
		publish(t, c, c.Frames(0), "other")
		publish(t, c, c.Frames(1), fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
	}
	publish(t, c, c.Frames(0), "other")
	if got := read(time.Unix(0, 0)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	msg, err := c.Next(t.Context(), Frames, c.Frames(1), 121)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(msg.Time); !slices.Equal(got, want[60:]) {
		t.Errorf("since message 60: got %q, want %q", got, want[60:])
	}
	if got := read(time.Now().Add(time.Hour)); len(got) != 0 {
		t.Errorf("since the future: got %q", got)
	}
}

func TestPastEndsWithAnError(t *testing.T) {
	c := newConn(t)
	ensure(t, c)
	publish(t, c, c.Frames(1), "x")
	publish(t, c, c.Frames(1), "y")
	failure := errors.New("enough")
	n := 0
	err := c.Past(t.Context(), Frames, c.Frames(1), time.Unix(0, 0), func(Message) error { n++; return failure })
	if !errors.Is(err, failure) || n != 1 {
		t.Errorf("%v after %d messages", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = c.Past(ctx, Frames, c.Frames(1), time.Unix(0, 0), func(Message) error { cancel(); return ctx.Err() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("after its context has ended: %v", err)
	}
}

func TestPastEndsWhereTheRestIsPurged(t *testing.T) {
	c := newConn(t)
	ensure(t, c)
	for range 100 { // more than are read ahead
		publish(t, c, c.Frames(1), "x")
	}
	n := 0
	err := c.Past(t.Context(), Frames, c.Frames(1), time.Unix(0, 0), func(Message) error {
		if n++; n == 1 {
			s, err := c.JS.Stream(t.Context(), c.Stream(Frames))
			if err != nil {
				return err
			}
			return s.Purge(t.Context(), jetstream.WithPurgeSubject(c.Frames(1)))
		}
		return nil
	})
	if err != nil || n == 100 {
		t.Errorf("%d messages were read: %v", n, err)
	}
}

func TestAPatternIsEmptyOnlyWithoutMessages(t *testing.T) {
	c := newConn(t)
	check := func(subject string, empty bool) {
		t.Helper()
		if got := c.IsEmpty(t.Context(), Dicts, subject); got != empty {
			t.Errorf("%s is empty: %t", subject, got)
		}
	}
	dict := c.Dict(1, frame.DictID{1})
	check(dict, true)
	check(c.DictPartition(1), true)
	publish(t, c, dict, "x")
	check(dict, false)
	check(c.DictPartition(1), false)
	check(c.DictPartition(0), true)
}

// TestPastReadsAll has readers take messages faster than the client asks for them.
func TestPastReadsAll(t *testing.T) {
	c := newConn(t)
	for i := range 60 {
		publish(t, c, c.Dict(1, frame.DictID{byte(i % 40)}), "x")
	}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 50 {
				n := 0
				if err := c.Past(t.Context(), Dicts, c.DictPartition(1), time.Unix(1, 0), func(Message) error { n++; return nil }); err != nil || n != 40 {
					t.Errorf("%d of 40 messages were read: %v", n, err)
				}
			}
		})
	}
	readers.Wait()
}
