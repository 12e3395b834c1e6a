// Package publish gathers the frames of all services of a process into batches and publishes them to a stream: one actor for each partition, one batch
// at a time, the dictionaries first that its frames refer to.
//
// A service makes a [Unit] of what belongs together, a scrape or a request, and offers it to the partition of its source ([Publishers.Offer]). What is offered to a partition
// is in the stream in that order. Each unit says how long it may wait for others; a batch goes when the first of its units may not wait any longer, or when it is full. While the stream
// does not take messages, everything is kept and tried again for ever; what may be held meanwhile is bounded by each service's [Budget].
package publish
