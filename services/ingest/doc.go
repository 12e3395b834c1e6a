// Package ingest is the service that takes what is pushed, by OTLP and by remote_write, and turns it into frames. Its README says which subjects and metrics it has.
//
// A push is read from its bytes. A point, or series, that is known by the bytes of its identity costs its value and no more; what is new is translated by Prometheus's own
// packages (learn.go). The samples of a push are gathered by source (request.go), made into frames (build.go) and handed to the publishers; the sender is answered when
// JetStream has acknowledged all of them.
package ingest
