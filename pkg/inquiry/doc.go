// Package inquiry has one process find out for another what that one's NATS user has no right to: which batches were rejected, how many series there are, how replays go.
//
// A question goes to a subject that those listen to who can answer it; one of them does. Questions and answers are JSON, which their packages define.
package inquiry
