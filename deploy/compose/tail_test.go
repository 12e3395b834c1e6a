package compose

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/tail"
)

// TestWriterMayShowSamples has the user of the writer service show samples as they pass, which the command `millrace tail` and a process with that service do.
func TestWriterMayShowSamples(t *testing.T) {
	all := fleet(t)
	series := []frame.Series{{Labels: labels.FromStrings("__name__", "up", "job", "api")}}
	d, msg, err := frame.NewDictionary("api", series)
	if err != nil {
		t.Fatal(err)
	}
	final, err := frame.EncodeRelabelled(d.ID, "rules", series)
	if err != nil {
		t.Fatal(err)
	}
	publish := func(name, subject string, data []byte) {
		t.Helper()
		if _, err := all[name].Publish(t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
			t.Fatal(err)
		}
	}
	publish("scraper", names.Dict(0, d.ID), msg)
	publish("relabel", names.Relabelled("main", 0, d.ID), final)
	for _, endpoint := range []string{"", "main"} {
		u := all["writer"]
		shown, err := tail.Open(t.Context(), u.Conn, tail.Query{Endpoint: endpoint, Limit: 1})
		if err != nil {
			t.Fatalf("%v; refused: %q", err, u.denied.take())
		}
		f := frame.Frame{Source: 1, Epoch: 1, Seq: 1, Time: 1, Sections: []frame.Section{{Dict: d.ID, Series: 1, Values: []float64{1}}}}
		var w frame.BatchWriter
		var enc frame.Encoder
		w.Add(enc.Encode(nil, &f), f.Time, f.Samples())
		publish("scraper", names.Frames(0), w.Seal(0))
		e, err := shown.Next(t.Context())
		shown.Close()
		if refused := u.denied.take(); err != nil || e.Value != "1" || len(refused) > 0 {
			t.Errorf("endpoint %q: %+v, %v; refused: %q", endpoint, e, err, refused)
		}
	}
}
