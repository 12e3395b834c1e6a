// Package pusher plays applications that push their metrics by OTLP or remote_write, and remembers what was acknowledged.
//
// A [Pusher] is N senders, each with its own resource, its own connection and M series, that push at a fixed interval, spread
// evenly over it. The n-th push of a sender holds values that are a pure function of the series and n (see package numbered),
// so that a receiver of remote_write behind the receiver of the pushes can tell what became of each sample; [Pusher.Log] tells
// what was acknowledged and so has to arrive there.
//
// A sender behaves as a client that means to lose nothing: its next push waits until the last one is answered. What the protocol
// calls retryable is sent again, the same bytes, after a growing time or that which the answer asks for; meanwhile its later
// pushes wait in order, up to a limit, beyond which the sender does not make them.
//
// Making a push is to cost little, because it shares the machine with what is measured. All senders share one encoded
// push, in which only names, times and values are overwritten, each in place: all of them have the same size whatever they hold.
package pusher
