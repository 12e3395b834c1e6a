package actor_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
)

// tally is an actor: it counts words. Its state belongs to its goroutine alone; others reach it through its mailbox.
type tally struct {
	mailbox *actor.Mailbox[string]
	report  *actor.Mailbox[map[string]int] // another actor's mailbox
}

// Serve sets up its state at its beginning, since it is called again after a failure, and runs until ctx ends.
func (t *tally) Serve(ctx context.Context) error {
	counts := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case word := <-t.mailbox.C():
			if word == "" {
				// Send waits where the other one is busy: work piles up in the mailboxes, which are bounded, and nowhere else.
				if err := t.report.Send(ctx, counts); err != nil {
					return nil
				}
				counts = map[string]int{} // what was sent is the other one's
				continue
			}
			counts[word]++
		}
	}
}

// An actor with a mailbox in memory.
func Example() {
	system := actor.NewSystem("example", slog.New(slog.NewTextHandler(io.Discard, nil)), prometheus.NewRegistry())
	t := &tally{mailbox: actor.NewMailbox[string](16), report: actor.NewMailbox[map[string]int](1)}
	system.Spawn("tally", t)

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- system.Serve(ctx) }()

	for _, word := range []string{"wheel", "water", "wheel", ""} {
		if err := t.mailbox.Send(ctx, word); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(<-t.report.C())

	stop()
	fmt.Println("ended with", <-ended)
	// Output:
	// map[water:1 wheel:2]
	// ended with <nil>
}

// keeper is an actor whose mailbox is durable: a message stays in the stream until the actor says that it has handled it.
type keeper struct {
	conn    *stream.Conn
	handled chan<- string
	failed  bool // outlives a failure, as all fields do
}

func (k *keeper) Serve(ctx context.Context) error {
	mailbox, err := k.conn.OpenMailbox(ctx, stream.MailboxConfig{
		Stream: stream.Frames, Filter: k.conn.Frames(0), Key: "keeper.0",
	})
	if err != nil {
		return err // it is logged and counted, and Serve is called again after a pause
	}
	defer mailbox.Close()
	for {
		msg, err := mailbox.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !k.failed {
			k.failed = true
			panic("something is wrong with the first message") // a panic is a failure like any other
		}
		k.handled <- string(msg.Data)
		// All before and this are done with. What is not marked so comes again, after a crash of the actor and of the process.
		mailbox.Handled(msg.Seq, 0)
	}
}

// An actor with a durable mailbox. It fails at its first message, is started again, and finds the message still there.
func Example_durable() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	server, err := stream.StartServer(stream.ServerConfig{
		Dir: dir, MaxMemory: 64 << 20, MaxStorage: 1 << 30, SyncInterval: time.Minute, Logger: logger,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Shutdown()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	conn, err := stream.Connect(ctx, stream.Config{Names: stream.Names{Prefix: "example"}, Server: server, Logger: logger})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	if err := conn.Ensure(ctx, stream.Layout{Partitions: 1, Replicas: 1}); err != nil {
		fmt.Println(err)
		return
	}

	system := actor.NewSystem("example", logger, prometheus.NewRegistry())
	handled := make(chan string, 3)
	system.Spawn("keeper 0", &keeper{conn: conn, handled: handled})
	ended := make(chan error, 1)
	go func() { ended <- system.Serve(ctx) }()

	for _, text := range []string{"first", "second", "third"} {
		if _, err := conn.Publish(ctx, &nats.Msg{Subject: conn.Frames(0), Data: []byte(text)}, nil); err != nil {
			fmt.Println(err)
		}
	}
	for range 3 {
		fmt.Println(<-handled)
	}
	stop()
	<-ended
	fmt.Println("restarts:", system.Restarts("keeper"))
	// Output:
	// first
	// second
	// third
	// restarts: 1
}
