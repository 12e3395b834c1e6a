package stream

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
)

func TestPublishReturnsOnceTheMessageIsStored(t *testing.T) {
	c := newConn(t)
	for want := uint64(1); want <= 3; want++ {
		seq, err := c.Publish(t.Context(), &nats.Msg{Subject: c.Frames(0), Header: nats.Header{"K": {"v"}}, Data: []byte("text")}, nil)
		if err != nil || seq != want {
			t.Fatalf("message %d has the number %d: %v", want, seq, err)
		}
	}
	msg, err := c.Last(t.Context(), Frames, c.Frames(0))
	if err != nil || msg.Seq != 3 || string(msg.Data) != "text" || msg.Header.Get("K") != "v" || msg.Subject != c.Frames(0) || time.Since(msg.Time) > await.Patience {
		t.Errorf("stored message %+v: %v", msg, err)
	}
	if _, err := c.Last(t.Context(), Frames, c.Frames(1)); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("the last message of a subject without any: %v", err)
	}
}

func TestPublishTriesUntilTheServerIsBack(t *testing.T) {
	o := newOutside(t)
	c := connect(t, Config{URL: o.url()})
	ensure(t, c)
	publish(t, c, c.Frames(0), "before")
	o.stop()
	var failures atomic.Int64
	published := make(chan error, 1)
	go func() {
		_, err := c.Publish(t.Context(), &nats.Msg{Subject: c.Frames(0), Data: []byte("meanwhile")}, func(error) { failures.Add(1) })
		published <- err
	}()
	await.True(t, "a failed try", func() bool { return failures.Load() > 0 })
	o.start()
	select {
	case err := <-published:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(await.Patience):
		t.Fatal("not published though the server is back")
	}
	// Tries that were under way when the server came back may have been stored as well.
	if msg, err := c.Last(t.Context(), Frames, c.Frames(0)); err != nil || string(msg.Data) != "meanwhile" || msg.Seq < 2 {
		t.Errorf("last message %q: %v", msg.Data, err)
	}
}

func TestPublishEndsWithItsContext(t *testing.T) {
	c := newConn(t)
	why := errors.New("stopped by the test")
	ctx, stop := context.WithCancelCause(t.Context())
	// A subject of no stream: nobody ever answers.
	_, err := c.Publish(ctx, &nats.Msg{Subject: "nowhere", Data: []byte("x")}, func(error) { stop(why) })
	if !errors.Is(err, why) || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("error %v, want one about the subject that wraps the cause", err)
	}
}

func TestPublishRefusesWhatNATSNeverTakes(t *testing.T) {
	c := newConn(t)
	tries := 0
	_, err := c.Publish(t.Context(), &nats.Msg{Subject: c.Frames(0), Data: make([]byte, c.MaxMessage()+1)}, func(error) { tries++ })
	if !errors.Is(err, ErrTooLarge) || tries > 0 || !strings.Contains(err.Error(), "max_payload") {
		t.Errorf("error %v after %d tries", err, tries)
	}
	if _, err := c.Publish(t.Context(), &nats.Msg{Subject: c.Frames(0), Data: make([]byte, c.MaxMessage())}, nil); err != nil {
		t.Errorf("a message of just the size: %v", err)
	}
}

func TestNextFindsTheOldestMessageFromANumberOn(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), "a")
	publish(t, c, c.Frames(1), "b", "c")
	publish(t, c, c.Frames(0), "d")
	for seq, want := range map[uint64]string{1: "a", 2: "d", 4: "d"} {
		if msg, err := c.Next(t.Context(), Frames, c.Frames(0), seq); err != nil || string(msg.Data) != want {
			t.Errorf("from %d on: %q, want %q: %v", seq, msg.Data, want, err)
		}
	}
	if _, err := c.Next(t.Context(), Frames, c.Frames(0), 5); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("behind the last message: %v", err)
	}
}
