// Package loadgen plays scrape targets whose scrapes are numbered, and remembers what it served.
//
// A [Generator] is an http.Handler that serves N targets at /target/<i>/metrics. The n-th scrape of a target holds values
// that are a pure function of the series and n (see package numbered), so that a receiver can tell from a sample which
// scrape it comes from; [Generator.Log] tells what there was to receive. Only answers with status 200 are numbered.
//
// Three kinds of targets exist: generated (text, of any size), recorded (consecutive scrapes of a real node_exporter, in
// turn) and protobuf (native histograms with exemplars). Generating is made to cost little, because it shares
// the machine with what is measured: lines and their gzip compression are prepared, and only values are written anew. Where
// series churn or change their order, and with zstd, a general compressor does it, which costs more.
//
// The bodies do not name the target: its label comes from service discovery, which [Generator.WriteSDFile] writes.
package loadgen
