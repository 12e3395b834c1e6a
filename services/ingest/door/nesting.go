package door

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// maxMessageDepth is how deep messages may be nested in a request of OTLP. Those of the metrics model itself end at 9;
// what is beyond are values within values. Decoders of OTLP follow these by recursion without a bound: some dozen
// megabytes of them are more than a stack may hold, which ends the process.
const maxMessageDepth = 128

// message is a type of OTLP's metrics model that attributes can be in.
type message uint8

const (
	leaf message = iota // anything else
	exportRequest
	resourceMetrics
	resource
	scopeMetrics
	scope
	metric
	numbers
	histogram
	exponential
	summary
	numberPoint
	histogramPoint
	exponentialPoint
	summaryPoint
	exemplar
	keyValue
	anyValue
	values // ArrayValue
	pairs  // KeyValueList
)

// within are the fields that lead to attributes, by type and number.
// See https://github.com/open-telemetry/opentelemetry-proto, metrics/v1, common/v1 and resource/v1.
var within = [...][16]message{
	leaf:             {},
	exportRequest:    {1: resourceMetrics},
	resourceMetrics:  {1: resource, 2: scopeMetrics},
	resource:         {1: keyValue},
	scopeMetrics:     {1: scope, 2: metric},
	scope:            {3: keyValue},
	metric:           {5: numbers, 7: numbers, 9: histogram, 10: exponential, 11: summary, 12: keyValue},
	numbers:          {1: numberPoint},
	histogram:        {1: histogramPoint},
	exponential:      {1: exponentialPoint},
	summary:          {1: summaryPoint},
	numberPoint:      {5: exemplar, 7: keyValue},
	histogramPoint:   {8: exemplar, 9: keyValue},
	exponentialPoint: {1: keyValue, 11: exemplar},
	summaryPoint:     {7: keyValue},
	exemplar:         {7: keyValue},
	keyValue:         {2: anyValue},
	anyValue:         {5: values, 6: pairs},
	values:           {1: anyValue},
	pairs:            {1: keyValue},
}

// checkNesting refuses a request of OTLP that is nested too deep, or seen to be malformed on the way.
func checkNesting(body []byte) *failure {
	if tooDeep, ok := walk(body, exportRequest, 1); tooDeep {
		return fail(malformed, "the values of attributes are nested more than %d messages deep", maxMessageDepth)
	} else if !ok {
		return fail(malformed, "the body is not an ExportMetricsServiceRequest in protobuf")
	}
	return nil
}

func walk(b []byte, is message, depth int) (tooDeep, ok bool) {
	if depth > maxMessageDepth {
		return true, true
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		// OTLP has no groups, and skipping one is another recursion.
		if n < 0 || kind == protowire.StartGroupType || kind == protowire.EndGroupType {
			return false, false
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return false, false
			}
			b = b[n:]
			continue
		}
		field, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return false, false
		}
		b = b[n:]
		// A level takes two bytes at least: most points are too short to be too deep, and need no look inside.
		if int(number) >= len(within[is]) || within[is][number] == leaf || depth+1+len(field)/2 <= maxMessageDepth {
			continue
		}
		if tooDeep, ok = walk(field, within[is][number], depth+1); tooDeep || !ok {
			return tooDeep, ok
		}
	}
	return false, true
}
