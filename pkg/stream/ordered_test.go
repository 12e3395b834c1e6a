package stream

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
)

// TestAnOrderedConsumerHearsItsReader makes consumers at all nodes of a cluster, of which some are another node's than their reader's.
func TestAnOrderedConsumerHearsItsReader(t *testing.T) {
	conns := cluster(t)
	layout := testLayout
	layout.Replicas = len(conns)
	await.True(t, "the streams", func() bool { return conns[0].Ensure(t.Context(), layout) == nil })
	publish(t, conns[0], conns[0].Frames(0), "message 0")
	const consumers = 600
	for n := range consumers {
		c := conns[n%len(conns)]
		oc, err := c.Ordered(t.Context(), Frames, jetstream.OrderedConsumerConfig{FilterSubjects: []string{c.Frames(0)}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.NC.RequestWithContext(patient(t), c.nextSubject(Frames, oc), refused); errors.Is(err, nats.ErrNoResponders) {
			t.Fatalf("consumer %d does not hear requests", n)
		}
		if err := c.JS.DeleteConsumer(t.Context(), c.Stream(Frames), oc.CachedInfo().Name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAskingWhetherAConsumerHearsBringsNothing has the first message come to the reader all the same.
func TestAskingWhetherAConsumerHearsBringsNothing(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), "message 0")
	oc, err := c.Ordered(t.Context(), Frames, jetstream.OrderedConsumerConfig{FilterSubjects: []string{c.Frames(0)}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := oc.Info(t.Context())
	if err != nil || info.NumPending != 1 || info.NumWaiting != 0 || info.Delivered.Consumer != 0 {
		t.Fatalf("the consumer is %+v, error %v", info, err)
	}
	it, err := oc.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Stop()
	if msg, err := it.Next(); err != nil || string(msg.Data()) != "message 0" {
		t.Errorf("the first message is %v, error %v", msg, err)
	}
}

// late is an iterator that brings its message only to who asks again.
type late struct {
	jetstream.MessagesContext
	asked int
}

func (l *late) Next(opts ...jetstream.NextOpt) (jetstream.Msg, error) {
	if l.asked++; len(opts) > 0 {
		return nil, nats.ErrTimeout
	}
	return nil, nil
}

func TestMessagesAreAskedForAgain(t *testing.T) {
	it := &late{}
	if _, err := Next(it); err != nil || it.asked != 2 {
		t.Errorf("asked %d times: %v", it.asked, err)
	}
}
