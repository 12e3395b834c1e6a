package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// firstUnheard and maxUnheard are the pauses between questions to a consumer that does not hear them yet.
	firstUnheard, maxUnheard = time.Millisecond, 100 * time.Millisecond
	// unheardTime is how long they go on.
	unheardTime = 5 * time.Second
)

// Ordered makes an ordered consumer of a stream, whose name has no prefix, and waits until it hears requests for messages. In a cluster, word of the consumer
// can come to this connection before the server at hand knows where the consumer listens. A request for messages that is sent in between goes nowhere, and the client, which does
// not look at the answer that says so, asks again only when heartbeats are missing, 10 s later.
func (c *Conn) Ordered(ctx context.Context, stream string, cfg jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	oc, err := c.JS.OrderedConsumer(ctx, c.Stream(stream), cfg)
	if err != nil {
		return nil, err
	}
	next := c.nextSubject(stream, oc)
	ctx, cancel := context.WithTimeout(ctx, unheardTime)
	defer cancel()
	for pause := firstUnheard; ; pause = min(2*pause, maxUnheard) {
		if _, err := c.NC.RequestWithContext(ctx, next, refused); !errors.Is(err, nats.ErrNoResponders) {
			return oc, nil // what else may be wrong, its reader meets
		}
		select {
		case <-ctx.Done():
			return oc, nil
		case <-time.After(pause):
		}
	}
}

// askAgain is how long [Next] waits before it makes sure that messages have been asked for.
const askAgain = time.Second

// Next returns the next message of an ordered consumer. The iterator's own Next looks whether to ask for more when it begins and when a message comes, and asks for none while a
// request of before is still being sent. Who takes all messages of that request meanwhile would wait for what nobody has asked for, until heartbeats are missing, 10 s later.
func Next(it jetstream.MessagesContext) (jetstream.Msg, error) {
	msg, err := it.Next(jetstream.NextMaxWait(askAgain))
	if errors.Is(err, nats.ErrTimeout) {
		return it.Next() // which misses heartbeats, unlike one that waits for a shorter time
	}
	return msg, err
}

// refused is a request for messages that a consumer refuses: it brings none.
var refused = []byte("{")

// nextSubject is where a consumer is asked for messages.
func (c *Conn) nextSubject(stream string, consumer jetstream.Consumer) string {
	return fmt.Sprintf("%sCONSUMER.MSG.NEXT.%s.%s", jetstream.DefaultAPIPrefix, c.Stream(stream), consumer.CachedInfo().Name)
}
