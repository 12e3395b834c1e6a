// Package delta makes the pushed points of delta temporality cumulative, which is what every remote_write endpoint wants.
//
// # The mechanism
//
// Doors store batches of delta values on `deltas.<partition>` of the stream DELTAS and answer the sender once they are stored. One actor a partition, whose process owns it by
// lease (service "ingest"), reads them in order, keeps one sum for each series, and stores the same frames with the sums for values on `frames.<partition>`: same
// source, epoch, number, time, dictionaries and timestamps; start timestamps are those of the sums. From there on they are frames like any other.
//
// What becomes of a point is the OpenTelemetry Collector's deltatocumulativeprocessor, which Prometheus uses as well:
//
//   - The first point of a series is its sum. So is one whose series had no point for MaxStale.
//   - A point that starts before the sum does is dropped (older_start): two processes send the same series.
//   - A point that is not newer than the last is dropped (out_of_order). So is what a sender sends again because it did not hear the answer.
//   - Every other is added; the start stays.
//   - A staleness marker goes through and changes nothing.
//
// Exponential histograms are added at the lower of both resolutions, and at a lower one still where the sum would have more than about 160 buckets a side. Custom
// buckets are added where their bounds are the same. Where they are not, or where a series turns from floats to histograms, the sum begins anew.
//
// # Where the sums are kept
//
// In memory, and nowhere else but in FRAMES: a frame of sums is the state after it. Each message of sums says in the header [Header] which messages of DELTAS it was made of. Who
// takes a partition reads the messages of FRAMES of the last MaxStale before the first message of DELTAS that is not handled, takes their values as the sums, and goes on behind
// the last message of DELTAS that they name. Nothing is stored beside, nothing has to be written in step with something else, and a crash
// between any two steps loses nothing and adds nothing twice.
//
// Nothing depends on the clock of who works: a message's time is when DELTAS stored it, and series expire by the times of messages. The same messages make
// the same frames, whoever makes them. A former owner that does not know yet that it is one publishes what the present one publishes, under
// the same source, epoch and number, and writers drop the second.
//
// # Limits
//
//   - Points of one series must be stored in the order of their timestamps. Where a sender's requests overtake each other, on several connections or through several replicas
//     of ingest, the older point is dropped and its increment lost, as in the Collector.
//   - Timestamps are milliseconds: of two points of a series within one, the second is dropped.
//   - A classic histogram is one series for each bucket, its count and its sum. Where its bounds change, the series of bounds that are new begin at 0 while `_count`, `_sum` and
//     the bounds that stay go on, so that cumulative buckets may decrease from one bound to the next until the series are MaxStale old. The Collector begins the
//     whole histogram anew.
//   - Sums are float64: beyond 2^53 (nine thousand million millions) increments are rounded. An integer histogram whose count passes that becomes a float histogram.
//   - A NaN makes the sum NaN, an infinity infinite, until the series begins anew.
//   - MaxStreams bounds the series of the process, and is met by whoever owns the partition at the time; of what follows from that, and from frames that no
//     message can hold, two owners may make something different. Writers take the first.
//   - Who takes a partition reads about MaxStale of all its frames before it goes on. The points wait in DELTAS, not in the senders.
package delta
