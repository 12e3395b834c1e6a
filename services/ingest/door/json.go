package door

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

const (
	// maxJSONDepth is how deep objects and arrays may be nested. An attribute of a point is at 16; what is beyond are
	// values within values.
	maxJSONDepth = 128
	// objectBytes is at least what the largest object of the metrics model takes as Go values, and itemBytes an item of
	// an array of numbers while it grows.
	objectBytes = 384
	itemBytes   = 32
)

// translateJSON turns an OTLP request from JSON into protobuf. Decoding takes many times the bytes of the JSON: as much
// is reserved as it can be, before it begins.
func (g *gate) translateJSON(body *buffer) *failure {
	weight, depth := weigh(body.b)
	switch {
	case depth > maxJSONDepth:
		return fail(malformed, "the JSON is nested more than %d levels deep", maxJSONDepth)
	case weight > g.memory.limit:
		return fail(tooLarge, "the JSON would take more than the %s that requests may hold (max_in_flight_bytes) to decode; send smaller batches, or protobuf", readable(g.memory.limit))
	}
	message, err := g.decodeJSON(body.b, weight)
	body.b = body.b[:0]
	if err == nil {
		err = body.grow(len(message))
	}
	switch {
	case errors.Is(err, errFull):
		return g.full()
	case err != nil:
		return fail(malformed, "the body is not an ExportMetricsServiceRequest in JSON: %s", err)
	}
	body.b = append(body.b, message...)
	return nil
}

func (g *gate) decodeJSON(body []byte, weight int64) ([]byte, error) {
	if err := g.memory.reserve(weight); err != nil {
		return nil, err
	}
	defer g.memory.free(weight)
	// The decoder of OTLP forgives a lot: it takes an end of input for an empty request, and ignores what follows one.
	if !json.Valid(body) {
		return nil, syntaxError(body)
	}
	if first := bytes.TrimLeft(body, " \t\r\n"); first[0] != '{' {
		return nil, errors.New("expected an object")
	}
	request := pmetricotlp.NewExportRequest()
	if err := request.UnmarshalJSON(body); err != nil {
		return nil, err
	}
	return request.MarshalProto()
}

func syntaxError(body []byte) error {
	var raw json.RawMessage
	err := json.Unmarshal(body, &raw)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("at byte %d: %w", syntax.Offset, err)
	}
	return err
}

// weigh estimates from above what decoding the JSON takes, and how deep it is nested.
func weigh(body []byte) (weight int64, deepest int) {
	var depth int
	var objects, items int64
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '"':
			for i++; i < len(body) && body[i] != '"'; i++ {
				if body[i] == '\\' {
					i++
				}
			}
		case '{':
			objects++
			depth++
			deepest = max(deepest, depth)
		case '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		case ',':
			items++
		}
	}
	// The strings, and the message that is made of it all.
	return objects*objectBytes + items*itemBytes + 2*int64(len(body)), deepest
}
