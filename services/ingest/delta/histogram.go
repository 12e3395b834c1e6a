package delta

import (
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"

	"github.com/millrace/millrace/pkg/frame"
)

// maxBuckets is how many buckets a sum of exponential histograms may have on a side, counted from the first to the last that is not empty.
const maxBuckets = 160

// floatOf returns a histogram sample as a float histogram of its own memory, or why it cannot be added to anything.
func floatOf(s *frame.Histogram) (*histogram.FloatHistogram, error) {
	zero, err := 0.0, error(nil)
	if s.Int != nil {
		zero, err = s.Int.ZeroThreshold, s.Int.Validate()
	} else {
		zero, err = s.Float.ZeroThreshold, s.Float.Validate()
	}
	if err != nil {
		return nil, err
	}
	if math.IsNaN(zero) || math.IsInf(zero, 0) || zero < 0 {
		return nil, fmt.Errorf("zero threshold %v", zero)
	}
	if s.Int != nil {
		return s.Int.ToFloat(nil), nil
	}
	return s.Float.Copy(), nil
}

// addable reports whether two histograms have buckets that can be added.
func addable(a, b *histogram.FloatHistogram) bool {
	if a.UsesCustomBuckets() != b.UsesCustomBuckets() {
		return false
	}
	return !a.UsesCustomBuckets() || histogram.CustomBucketBoundsMatch(a.CustomValues, b.CustomValues)
}

// errBuckets is returned for buckets that no value of a float64 belongs to.
var errBuckets = errors.New("buckets reach further than float64")

// add adds delta to total, and may change delta as well. Exponential histograms are brought to the resolution that deltatocumulativeprocessor gives their
// sum.
func add(total, delta *histogram.FloatHistogram) error {
	if !total.UsesCustomBuckets() {
		schema := sumSchema(total, delta)
		if schema < histogram.ExponentialSchemaMin {
			return errBuckets
		}
		for _, h := range []*histogram.FloatHistogram{total, delta} {
			if h.Schema > schema {
				if err := h.ReduceResolution(schema); err != nil {
					return fmt.Errorf("reducing a histogram to schema %d: %w", schema, err)
				}
			}
		}
	}
	if _, _, _, err := total.Add(delta); err != nil {
		return fmt.Errorf("adding histograms: %w", err)
	}
	total.CounterResetHint = histogram.UnknownCounterReset
	return nil
}

// sumSchema returns the schema for the sum of two exponential histograms: the lower of both, or one that is low enough for [maxBuckets].
func sumSchema(a, b *histogram.FloatHistogram) int32 {
	schema := min(a.Schema, b.Schema)
	positive, negative := reach{}, reach{}
	for _, h := range []*histogram.FloatHistogram{a, b} {
		positive.extend(h.PositiveSpans, h.PositiveBuckets, h.Schema-schema)
		negative.extend(h.NegativeSpans, h.NegativeBuckets, h.Schema-schema)
	}
	return min(positive.schema(schema), negative.schema(schema))
}

// reach is a range of buckets, as OpenTelemetry numbers them: bucket 0 begins at 1.
type reach struct {
	lo, up int64 // up is behind the last
	any    bool
}

// extend makes r reach over all buckets that are not empty, after their resolution is reduced by a number of schemas.
func (r *reach) extend(spans []histogram.Span, buckets []float64, by int32) {
	at, k := int64(-1), 0 // Prometheus's bucket 1 is OpenTelemetry's bucket 0
	for _, s := range spans {
		at += int64(s.Offset)
		for range s.Length {
			if buckets[k] != 0 {
				i := at >> by
				if !r.any {
					r.lo, r.up, r.any = i, i+1, true
				}
				r.lo, r.up = min(r.lo, i), max(r.up, i+1)
			}
			at++
			k++
		}
	}
}

// schema returns the schema at which r is no longer than maxBuckets. It rounds towards 0 as deltatocumulativeprocessor does, so that both always agree, which may leave one bucket more.
func (r reach) schema(from int32) int32 {
	for r.up-r.lo > maxBuckets {
		r.lo /= 2
		r.up /= 2
		from--
	}
	return from
}

// maxWhole is the count of an integer histogram from which on a float64 may not be exact.
const maxWhole = 1 << 53

// integer returns an integer histogram with the counts of h, or nil where they are too large to be exact.
func integer(h *histogram.FloatHistogram) *histogram.Histogram {
	if !(h.Count < maxWhole) {
		return nil
	}
	out := &histogram.Histogram{
		CounterResetHint: h.CounterResetHint, Schema: h.Schema, ZeroThreshold: h.ZeroThreshold, ZeroCount: uint64(h.ZeroCount), Count: uint64(h.Count), Sum: h.Sum,
		PositiveSpans: append([]histogram.Span(nil), h.PositiveSpans...), NegativeSpans: append([]histogram.Span(nil), h.NegativeSpans...),
		PositiveBuckets: differences(h.PositiveBuckets), NegativeBuckets: differences(h.NegativeBuckets), CustomValues: h.CustomValues,
	}
	return out
}

// differences returns each count less the one before, which is how integer histograms hold them.
func differences(counts []float64) []int64 {
	if len(counts) == 0 {
		return nil
	}
	out := make([]int64, len(counts))
	before := int64(0)
	for i, c := range counts {
		out[i] = int64(c) - before
		before = int64(c)
	}
	return out
}
