package ingest

import (
	"fmt"

	"github.com/millrace/millrace/services/ingest/door"
)

// What a request is read into may take many times its bytes: an empty sample has two of them, and a label of remote_write 2.0 is the number of a symbol
// of any length. So it is weighed before it is made, and what it weighs counts as in flight at the request's door. The weights are from above.
const (
	// unweighed is what each request has without being counted, in bytes, so that small ones cost no more for it.
	unweighed = 1 << 20
	// weighSample is a sample in a list that grows.
	weighSample = 200
	// weighPart is where a message stands, in a list that grows.
	weighPart = 64
	// weighSymbol is an entry of the table of symbols.
	weighSymbol = 64
	// weighExemplar is an exemplar with its labels, and weighHistogram a native histogram besides its buckets.
	weighExemplar, weighHistogram = 1 << 10, 512
	// weighSeries is a new series besides its labels.
	weighSeries = 128
)

const (
	// samplesPerSeries is how many samples, histograms and exemplars a request of remote_write may hold, as a multiple of max_series_per_request.
	samplesPerSeries = 2
	// maxExemplarBytes is the size of the largest message of an exemplar with labels of 128 characters, rather more than less.
	maxExemplarBytes = 4 << 10
	// maxHistogramBytes is the largest message of a native histogram.
	maxHistogramBytes = 256 << 10
	// maxTranslated is how much of one kind is translated at a time: a resource, a scope, the head of a metric, its points. What of it is larger alone is refused.
	maxTranslated = 256 << 10
	// maxTranslations is how much a request may have translated, in bytes: each new metric is translated with its resource and scope.
	maxTranslations = 256 << 20
	// maxApart is how often a message may have something else between its attributes or labels, and maxQuantiles how many of them a point of a summary has.
	maxApart, maxQuantiles = 1 << 12, 1 << 14
	// keptItems is how long a list may be whose memory is used again.
	keptItems = 1 << 14
)

// weigh notes n more bytes of memory, before they are taken. Where they are too many, or nobody waits for the answer any more, it says so, now and from then on.
func (r *request) weigh(n int) error {
	if r.weight += int64(n); r.weight <= r.room {
		return nil
	}
	return r.widen()
}

// widen has the door hold what the request weighs, and some more.
func (r *request) widen() error {
	if r.failed != nil {
		return r.failed
	}
	if r.cancelled != nil {
		if r.failed = r.cancelled(); r.failed != nil {
			return r.failed
		}
	}
	n := r.weight - r.room + unweighed
	if r.hold != nil {
		if r.failed = r.hold(n); r.failed != nil {
			return r.failed
		}
	}
	r.room += n
	return nil
}

// count notes one more time series of the request.
func (r *request) count() error {
	if r.points++; r.points > r.limits.MaxSeriesPerRequest {
		return tooMany(r.limits.MaxSeriesPerRequest, "time series")
	}
	return nil
}

// value notes one more sample, histogram or exemplar of a time series.
func (r *request) value() error {
	if r.values++; r.values > samplesPerSeries*r.limits.MaxSeriesPerRequest {
		return tooMany(samplesPerSeries*r.limits.MaxSeriesPerRequest, "samples, histograms and exemplars")
	}
	return r.weigh(2 * weighSample) // in the list of its time series, and in that of its source
}

func tooMany(most int, what string) error {
	return &door.Refusal{Kind: door.TooLarge, Message: fmt.Sprintf("the request has more than %d %s; send fewer at a time", most, what)}
}

// emptied returns a list without its items, whose memory is used again where it is not large.
func emptied[T any](list []T) []T {
	if cap(list) > keptItems {
		return nil
	}
	clear(list)
	return list[:0]
}
