package door

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/protobuf/encoding/protowire"
)

// attributePlaces puts attributes at every place of the model that has them.
var attributePlaces = map[string]func(rm pmetric.ResourceMetrics) pcommon.Map{
	"resource": func(rm pmetric.ResourceMetrics) pcommon.Map { return rm.Resource().Attributes() },
	"scope": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return rm.ScopeMetrics().AppendEmpty().Scope().Attributes()
	},
	"metadata": func(rm pmetric.ResourceMetrics) pcommon.Map { return newMetric(rm).Metadata() },
	"gauge": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptyGauge().DataPoints().AppendEmpty().Attributes()
	},
	"sum": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptySum().DataPoints().AppendEmpty().Attributes()
	},
	"sum exemplar": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptySum().DataPoints().AppendEmpty().Exemplars().AppendEmpty().FilteredAttributes()
	},
	"histogram": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptyHistogram().DataPoints().AppendEmpty().Attributes()
	},
	"histogram exemplar": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptyHistogram().DataPoints().AppendEmpty().Exemplars().AppendEmpty().FilteredAttributes()
	},
	"exponential": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptyExponentialHistogram().DataPoints().AppendEmpty().Attributes()
	},
	"exponential exemplar": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptyExponentialHistogram().DataPoints().AppendEmpty().Exemplars().AppendEmpty().FilteredAttributes()
	},
	"summary": func(rm pmetric.ResourceMetrics) pcommon.Map {
		return newMetric(rm).SetEmptySummary().DataPoints().AppendEmpty().Attributes()
	},
}

func newMetric(rm pmetric.ResourceMetrics) pmetric.Metric {
	return rm.ScopeMetrics().AppendEmpty().Metrics().AppendEmpty()
}

func nested(t *testing.T, place func(pmetric.ResourceMetrics) pcommon.Map, levels int, maps bool) []byte {
	t.Helper()
	md := pmetric.NewMetrics()
	v := place(md.ResourceMetrics().AppendEmpty()).PutEmpty("key")
	for range levels {
		if maps {
			v = v.SetEmptyMap().PutEmpty("key")
		} else {
			v = v.SetEmptySlice().AppendEmpty()
		}
	}
	b, err := pmetricotlp.NewExportRequestFromMetrics(md).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNestingIsBoundedWhereverAttributesAre(t *testing.T) {
	for name, place := range attributePlaces {
		for _, maps := range []bool{false, true} {
			if f := checkNesting(nested(t, place, 30, maps)); f != nil {
				t.Errorf("%s (maps: %v): %v", name, maps, f)
			}
			if f := checkNesting(nested(t, place, 1000, maps)); f == nil || !strings.Contains(f.message, "nested more than 128") {
				t.Errorf("%s (maps: %v) is nested 1000 values deep: %v", name, maps, f)
			}
		}
	}
}

// deepest nests as many values as fit the bytes, which no decoder that recurses survives.
func deepest(size int) []byte {
	b := make([]byte, 0, size+100)
	// From the innermost outwards, turned around in the end.
	wrap := func(number protowire.Number) {
		header := protowire.AppendVarint(protowire.AppendTag(nil, number, protowire.BytesType), uint64(len(b)))
		slices.Reverse(header)
		b = append(b, header...)
	}
	for len(b) < size {
		wrap(1) // ArrayValue.values
		wrap(5) // AnyValue.array_value
	}
	wrap(2) // KeyValue.value
	wrap(1) // Resource.attributes
	wrap(1) // ResourceMetrics.resource
	wrap(1) // ExportMetricsServiceRequest.resource_metrics
	slices.Reverse(b)
	return b
}

func TestDeepAndCutBodiesAreRefused(t *testing.T) {
	deep := deepest(15 << 20)
	cut := metricsProto(t, 2)
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		r := start(t, name, nil)
		client := r.client(t)
		code := map[string]string{OTLPHTTP: "400", OTLPGRPC: "3"}[name]
		for text, body := range map[string][]byte{
			"nested more than 128":              deep,
			"is not an ExportMetricsServiceReq": cut[:len(cut)-1],
		} {
			if name == OTLPGRPC {
				body = framed(0, body)
			}
			got, answer := r.send(t, client, bytes.NewReader(body), identity)
			if got != code || !strings.Contains(answer, text) {
				t.Errorf("%s: %s %s", name, got, answer)
			}
		}
		if n := len(r.recorder.taken()); n > 0 {
			t.Errorf("%s: %d of them came to the taker", name, n)
		}
		r.stillGood(t)
	}
	if f := checkNesting([]byte{0x0b, 0x0c}); f == nil {
		t.Error("a group is accepted")
	}
}
