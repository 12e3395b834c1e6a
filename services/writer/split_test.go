package writer

import (
	"bytes"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
)

// TestTakingApartGivesAPieceForEachSample covers the exemplars of histograms, which have a time series of their own in version 1.0.
func TestTakingApartGivesAPieceForEachSample(t *testing.T) {
	for _, p := range []remotewrite.Protocol{remotewrite.V1, remotewrite.V2} {
		t.Run(p.String(), func(t *testing.T) {
			block := remotewrite.NewBlock(p, []frame.Series{
				{Labels: labels.FromStrings("__name__", "a")}, {Labels: labels.FromStrings("__name__", "b")}, {Labels: labels.FromStrings("__name__", "c")},
			})
			r := remotewrite.NewRequest(p)
			r.AddHistogram(block, &frame.Histogram{Index: 0, Time: 1, Int: &histogram.Histogram{Schema: 1}})
			r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "1"), Value: 1})
			r.AddExemplar(&exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "2"), Value: 2})
			r.Add(block, 1, 1, 0, 5)
			r.AddExemplar(&exemplar.Exemplar{Value: 3})
			r.AddHistogram(block, &frame.Histogram{Index: 2, Time: 1, Int: &histogram.Histogram{Schema: 1}})
			pieces, err := takeApart(p, r.Raw())
			if err != nil {
				t.Fatal(err)
			}
			if len(pieces.series) != r.Samples() {
				t.Errorf("%d pieces for %d samples", len(pieces.series), r.Samples())
			}
			if all := append(pieces.shared, bytes.Join(pieces.series, nil)...); !bytes.Equal(all, r.Raw()) {
				t.Error("the pieces together are not the message")
			}
			if !bytes.Contains(pieces.series[0], []byte("trace_id")) && p == remotewrite.V1 {
				t.Error("the first piece has lost its exemplars")
			}
		})
	}
}
