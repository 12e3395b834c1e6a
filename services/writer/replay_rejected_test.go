package writer

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/replay"
)

func TestWhatWasRejectedIsSentAgain(t *testing.T) {
	for name, protocols := range map[string][2]func(*Endpoint){
		"1.0": {func(*Endpoint) {}, func(*Endpoint) {}}, "2.0": {v2, v2}, "1.0 as 2.0": {func(*Endpoint) {}, v2}, "2.0 as 1.0": {v2, func(*Endpoint) {}},
	} {
		t.Run(name, func(t *testing.T) { whatWasRejectedIsSentAgain(t, protocols[0], protocols[1]) })
	}
}

func whatWasRejectedIsSentAgain(t *testing.T, before, after func(*Endpoint)) {
	r, e := newRig(t), newRecorder(t)
	all := func(e *Endpoint) { e.SendExemplars, e.SendNativeHistograms = true, true }
	cfg := e.endpoint("prod", before, all)
	e.answers(func(*request) (int, string, map[string]string) { return 401, "who are you?", nil })
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 3)
	r.announce(0, d, cfg)
	h := &histogram.Histogram{Count: 3, Sum: 7, Schema: 1, PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{3}}
	var want []point
	for n := range 5 {
		f := r.floats(d, hourAgo+int64(n), float64(n))
		sec := &f.Sections[0]
		sec.Present, sec.Values = []uint32{0, 1}, sec.Values[:2]
		sec.Histograms = []frame.Histogram{{Index: 2, Time: f.Time, Int: h}}
		for i := range uint32(3) {
			sec.Exemplars = append(sec.Exemplars, frame.Exemplar{Index: i, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("id", "1")}})
		}
		r.send(0, f)
		if n > 0 {
			want = append(want, point{seriesName("x", 1), f.Time, float64(n), false}, point{seriesName("x", 2), f.Time, 7, true})
		}
	}
	await.True(t, "all is rejected", func() bool { return s.value(t, "millrace_writer_rejected_samples_total", "prod") == 15 })
	e.answers(nil)
	cfg = e.endpoint("prod", after, all)
	if err := s.ApplyConfig(t.Context(), []Endpoint{cfg}); err != nil {
		t.Fatal(err)
	}
	asked := len(e.requests())
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", Endpoint: "prod", Rejected: true, From: rfc3339(hourAgo + 1), Match: []string{`{__name__=~"x_000[12]"}`}})
	st := done(t, m, "x")
	if d := gocmp.Diff(sorted(want), sorted(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	exemplars := 0
	for _, req := range e.requests()[asked:] {
		exemplars += req.exemplars
	}
	if st.Sent != 8 || st.Refused != 0 || st.Skipped != 0 || exemplars != 8 {
		t.Errorf("%d exemplars; told as %+v", exemplars, st)
	}

	// What is refused again is kept again, and counted.
	e.answers(func(*request) (int, string, map[string]string) { return 401, "who are you?", nil })
	start(t, m, replay.Spec{Name: "y", Endpoint: "prod", Rejected: true})
	if st := done(t, m, "y"); st.Samples != 15 || st.Refused != 15 || st.Sent != 0 {
		t.Errorf("refused again: %+v", st)
	}
	kept := 0
	for _, rej := range r.rejections("prod") {
		kept += rej.Samples
	}
	if kept != 30 {
		t.Errorf("%d samples are kept", kept)
	}
}
