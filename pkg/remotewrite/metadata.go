package remotewrite

import (
	"github.com/klauspost/compress/s2"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"
)

// Family is a metric family's metadata.
type Family struct {
	// Name is the family's name, which is not always that of its series.
	Name string
	metadata.Metadata
}

// EncodeMetadata returns a V1 body with metadata only, in memory of its own. V1 sends metadata so, from time to time; V2
// sends it with each series.
func EncodeMetadata(families []Family) []byte {
	m := prompb.WriteRequest{Metadata: make([]prompb.MetricMetadata, len(families))}
	for i, f := range families {
		m.Metadata[i] = prompb.MetricMetadata{
			Type:             prompb.FromMetadataType(f.Type),
			MetricFamilyName: f.Name,
			Help:             f.Help,
			Unit:             f.Unit,
		}
	}
	raw, err := m.Marshal()
	if err != nil {
		panic(err) // the generated code returns none for this message
	}
	return s2.EncodeSnappy(nil, raw)
}
