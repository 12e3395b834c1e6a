// Package door holds the listeners through which applications push: OTLP over HTTP and over gRPC, and remote_write.
//
// A door authenticates the sender before it reads a body, keeps what it reads and decompresses within its limits, hands
// the body to a [Taker], and answers in the words of its protocol. It knows nothing of what the bodies mean. All doors
// answer success only after the Taker said that everything it counts as taken is safe.
package door
