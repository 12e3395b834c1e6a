// Package remotewrite turns frames' samples into remote_write 1.0 and 2.0 requests and sends them.
//
// Labels are encoded once: a [Block] holds the final series of one dictionary, ready for one [Protocol]. A [Request] then builds a
// body sample by sample, which costs copies of a few runs of label bytes (1.0) or of the label references (2.0) and no
// allocation. For 1.0, whole runs of series are kept compressed as well, so that a request is strung together without compressing it anew (run.go). A [Client] sends the body and says what the answer means for it: taken, to be sent again, too large, refused.
//
// The messages are prometheus.WriteRequest and io.prometheus.write.v2.Request as Prometheus v0.315.0 defines them; a body is one of them
// in snappy's block format.
package remotewrite
