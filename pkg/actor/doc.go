// Package actor is the kernel of Millrace's services: small things that run by themselves, share nothing, and are started again when they fail.
//
// An [Actor] is a value with its own state and one method, Serve, which runs in its own goroutine. Others reach it only through its
// mailbox. There are two kinds: [Mailbox], in memory and bounded, for what may be lost with the process; and a durable one,
// stream.Mailbox in pkg/stream, whose messages stay in JetStream until the actor has handled them.
//
// A [System] supervises actors. What Serve returns decides what follows: nil ends the actor, an error or a panic starts it again after a
// pause, [ErrFatal] ends the whole system. A restarted actor gets the same value, so Serve sets up its state anew at its
// beginning, and finds in its mailbox what it had not taken. Systems nest: a [System.Group] is stopped as one.
//
// The example in example_test.go is a whole actor; write yours from it.
package actor

import (
	"context"
	"errors"
)

// Actor is supervised by a [System]. Serve runs until ctx ends, and returns soon after with what it holds brought to a safe place.
//
//   - It returns nil: the actor has finished for good.
//   - It returns an error, or panics: it is logged and counted, and Serve is called again after a back-off that grows from 100 ms to 30 s
//     while failures follow each other.
//   - It returns an error that wraps [ErrFatal]: the system ends, and System.Serve returns the error.
type Actor interface {
	Serve(ctx context.Context) error
}

// Func is an actor made of a function.
type Func func(ctx context.Context) error

// Serve calls f.
func (f Func) Serve(ctx context.Context) error { return f(ctx) }

// ErrFatal is wrapped by errors after which going on makes no sense, such as streams that belong to another configuration.
var ErrFatal = errors.New("cannot go on")
