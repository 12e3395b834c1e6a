// Package stream is Millrace's backbone on NATS JetStream: the names of subjects, streams and buckets, the embedded server, the connection, and
// what services do with streams.
//
//   - [Server] is the NATS server inside the process; [Connect] reaches it or a cluster and returns a [Conn].
//   - [Conn.Ensure] makes the streams and buckets, or updates them, and refuses ones that disagree. [Conn.Check] only looks.
//   - [Conn.Publish] stores one message and returns when JetStream has acknowledged it.
//   - [Mailbox] is a durable mailbox: it delivers a subject's messages in order from the last position that its reader has
//     handled, through restarts and reconnects.
//   - [Conn.Ordered] makes the consumers that all reading goes through.
//   - [Conn.Past] reads what a subject holds since a time, without a position.
//
// # Positions instead of consumer acks
//
// A reader's position is an entry of the bucket `positions`, written at most once a second, and messages come through
// an ordered consumer that starts there. JetStream's own durable consumers were found not to fit: what a killed reader had not acknowledged is delivered
// again only after AckWait, behind newer messages, which breaks the order; and their state files cost more CPU than the samples.
package stream
