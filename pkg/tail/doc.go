// Package tail shows samples as they pass: it reads the stream FRAMES from its end on, and joins what is selected with the labels of the dictionaries, or with what an endpoint gets for them. It has no part in the
// pipeline: nothing waits for it, its memory is bounded, and what it cannot keep up with is left out and counted.
package tail
