package pusher

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace/millrace/bench/numbered"
)

// Aggregation temporalities of OTLP.
const (
	temporalityDelta      = 1
	temporalityCumulative = 2
)

// semanticConventions is the schema that attributes' names follow.
const semanticConventions = "https://opentelemetry.io/schemas/1.37.0"

// otlpTemplate encodes an ExportMetricsServiceRequest (opentelemetry/proto/metrics/v1/metrics.proto).
func otlpTemplate(metrics []metric, width int, delta bool) *template {
	b := builder{width: width}
	b.message(1, func(b *builder) { // ResourceMetrics
		b.message(1, func(b *builder) {
			for _, a := range resource {
				appendAttribute(b, 1, a)
			}
		})
		b.message(2, func(b *builder) { // ScopeMetrics
			b.message(1, func(b *builder) {
				b.text(1, "shop.example/checkout/instrumentation")
				b.text(2, "2.14.3")
			})
			for _, m := range metrics {
				b.message(2, func(b *builder) { appendMetric(b, m, delta) })
			}
			b.text(3, semanticConventions)
		})
		b.text(3, semanticConventions)
	})
	return &b.template
}

// appendAttribute appends a KeyValue.
func appendAttribute(b *builder, field protowire.Number, a attribute) {
	b.message(field, func(b *builder) {
		b.text(1, a.key)
		b.message(2, func(b *builder) { // AnyValue
			if a.number != 0 {
				b.varint(3, a.number)
			} else {
				b.text(1, a.value)
			}
		})
	})
}

// appendMetric appends the fields of a Metric.
func appendMetric(b *builder, m metric, delta bool) {
	b.text(1, m.name)
	b.text(2, m.help)
	if m.unit != "" {
		b.text(3, m.unit)
	}
	data := map[kind]protowire.Number{gauge: 5, sum: 7, histogram: 9}[m.kind]
	delta = delta && m.kind != gauge
	b.message(data, func(b *builder) {
		for _, p := range m.points {
			b.message(1, func(b *builder) {
				if m.kind == histogram {
					appendHistogramPoint(b, p, delta)
				} else {
					appendNumberPoint(b, m, p, delta)
				}
			})
		}
		if m.kind == gauge {
			return
		}
		temporality := uint64(temporalityCumulative)
		if delta {
			temporality = temporalityDelta
		}
		b.varint(2, temporality)
		if m.kind == sum {
			b.varint(3, 1) // monotonic
		}
	})
}

// appendTimes appends the times of a point.
func appendTimes(b *builder, started bool) {
	if started {
		b.starts = append(b.starts, b.fixed(2))
	}
	b.times = append(b.times, b.fixed(3))
}

// appendNumberPoint appends the fields of a NumberDataPoint.
func appendNumberPoint(b *builder, m metric, p point, delta bool) {
	appendTimes(b, m.kind == sum)
	field := protowire.Number(4) // as_double
	if m.integer {
		field = 6 // as_int
	}
	b.values = append(b.values, place{b.fixed(field), p.value, m.integer, delta})
	for _, a := range p.attributes {
		appendAttribute(b, 7, a)
	}
}

// appendHistogramPoint appends the fields of a HistogramDataPoint.
func appendHistogramPoint(b *builder, p point, delta bool) {
	appendTimes(b, true)
	b.values = append(b.values, place{b.fixed(4), p.count, true, delta}, place{b.fixed(5), p.sum, false, delta})
	buckets := len(numbered.Bounds) + 1
	b.bytes = protowire.AppendTag(b.bytes, 6, protowire.BytesType)
	b.bytes = protowire.AppendVarint(b.bytes, uint64(8*buckets))
	for range buckets {
		// Each bucket holds as many observations as the first.
		b.values = append(b.values, place{len(b.bytes), p.value, true, delta})
		b.bytes = append(b.bytes, make([]byte, 8)...)
	}
	b.bytes = protowire.AppendTag(b.bytes, 7, protowire.BytesType)
	b.bytes = protowire.AppendVarint(b.bytes, uint64(8*len(numbered.Bounds)))
	for _, bound := range numbered.Bounds {
		b.bytes = binary.LittleEndian.AppendUint64(b.bytes, math.Float64bits(bound))
	}
	for _, a := range p.attributes {
		appendAttribute(b, 9, a)
	}
}
