// Package receiver receives remote_write 1.0 and 2.0, and proves what became of every sample.
//
// A [Receiver] is an http.Handler. For each series it tells what was lost, repeated, reordered or changed; where the samples
// come from the load generator (package loadgen), it does so for each scrape, because values tell the scrape's number
// (package numbered). [Receiver.Complete] compares with the generator's log. It fails on command, see [Control].
//
// The words of a verdict on a sample:
//
//   - lost: a number between the first and the newest of a series that did not arrive;
//   - repeated: it arrived before with the same timestamp and value, which is harmless;
//   - reordered: it is older than the newest of its series, and did not arrive before;
//   - changed: the series had another value for the timestamp or another timestamp for the scrape, or no scrape ever had
//     that value.
//
// Decoding and verifying is made to cost little, because it shares the machine with what is measured: bodies are scanned
// without building objects, and a series is found by the hash of its encoded labels. Memory grows with the number of series
// and, slowly, with that of scrapes; see [Receiver.Reset].
package receiver
