package ingest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"

	"github.com/millrace/millrace/services/ingest/door"
)

// randomSeries makes time series; those of one seed are the same in each round, with other samples.
func randomSeries(seed uint64, round int, starts bool) []translated {
	r := rand.New(rand.NewPCG(seed, 3))
	now := time.Now().UnixMilli() + int64(round)*60_000 - 600_000
	var list []translated
	for i := range 1 + r.IntN(30) {
		b := labels.NewScratchBuilder(8)
		b.Add(model.MetricNameLabel, fmt.Sprintf("metric_%d", i))
		for k := range r.IntN(6) {
			b.Add(fmt.Sprintf("label_%d", k), fmt.Sprintf("Wert %d", r.IntN(10)))
		}
		if r.IntN(2) == 0 {
			b.Add("job", "api")
			b.Add("instance", fmt.Sprint(r.IntN(3)))
		}
		b.Sort()
		ls := b.Labels()
		for k := range 1 + r.IntN(3) {
			x := translated{labels: ls, t: now + int64(k)*1000, v: float64(r.IntN(100) + round)}
			if starts && r.IntN(2) == 0 {
				x.st = now - 5000
			}
			switch r.IntN(8) {
			case 0:
				x.v = math.Float64frombits(value.StaleNaN)
			case 1:
				x.v, x.h = 0, tsdbutil.GenerateTestHistogram(int64(round))
			case 2:
				x.v, x.fh = 0, tsdbutil.GenerateTestCustomBucketsFloatHistogram(int64(round))
			}
			list = append(list, x)
		}
		if r.IntN(4) == 0 {
			list[len(list)-1].exs = []exemplar.Exemplar{{Labels: labels.FromStrings("trace_id", fmt.Sprint(i)), Value: 3, Ts: now, HasTs: true}}
		}
	}
	return list
}

// bySeries splits a list into those of one series.
func bySeries(list []translated) (runs [][]translated) {
	for i := 0; i < len(list); {
		n := i + 1
		for n < len(list) && labels.Equal(list[n].labels, list[i].labels) {
			n++
		}
		runs = append(runs, list[i:n])
		i = n
	}
	return runs
}

func encodeV1(t testing.TB, list []translated) []byte {
	var req prompb.WriteRequest
	for _, run := range bySeries(list) {
		ts := prompb.TimeSeries{Labels: prompb.FromLabels(run[0].labels, nil)}
		for _, x := range run {
			switch {
			case x.h != nil:
				ts.Histograms = append(ts.Histograms, prompb.FromIntHistogram(x.t, x.h))
			case x.fh != nil:
				ts.Histograms = append(ts.Histograms, prompb.FromFloatHistogram(x.t, x.fh))
			default:
				ts.Samples = append(ts.Samples, prompb.Sample{Timestamp: x.t, Value: x.v})
			}
			for _, e := range x.exs {
				ts.Exemplars = append(ts.Exemplars, prompb.Exemplar{Labels: prompb.FromLabels(e.Labels, nil), Value: e.Value, Timestamp: e.Ts})
			}
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	b, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encodeV2(t testing.TB, list []translated) []byte {
	symbols := writev2.NewSymbolTable()
	var req writev2.Request
	for _, run := range bySeries(list) {
		m := run[0].meta
		ts := writev2.TimeSeries{
			LabelsRefs: symbols.SymbolizeLabels(run[0].labels, nil),
			Metadata:   writev2.Metadata{Type: writev2.FromMetadataType(m.Type), HelpRef: symbols.Symbolize(m.Help), UnitRef: symbols.Symbolize(m.Unit)},
		}
		for _, x := range run {
			switch {
			case x.h != nil:
				h := writev2.FromIntHistogram(x.st, x.t, x.h)
				ts.Histograms = append(ts.Histograms, h)
			case x.fh != nil:
				ts.Histograms = append(ts.Histograms, writev2.FromFloatHistogram(x.st, x.t, x.fh))
			default:
				ts.Samples = append(ts.Samples, writev2.Sample{Timestamp: x.t, Value: x.v, StartTimestamp: x.st})
			}
			for _, e := range x.exs {
				ts.Exemplars = append(ts.Exemplars, writev2.Exemplar{LabelsRefs: symbols.SymbolizeLabels(e.Labels, nil), Value: e.Value, Timestamp: e.Ts})
			}
		}
		req.Timeseries = append(req.Timeseries, ts)
	}
	req.Symbols = symbols.Symbols()
	b, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lines are what a list of samples is to come out as. Exemplars belong to the last sample of a request's series, floats before histograms.
func lines(list []translated) []string {
	got := []string{}
	for _, run := range bySeries(list) {
		run = slices.Clone(run)
		slices.SortStableFunc(run, func(a, b translated) int {
			isHistogram := func(x translated) int {
				if x.h != nil || x.fh != nil {
					return 1
				}
				return 0
			}
			return isHistogram(a) - isHistogram(b)
		})
		var exs []exemplar.Exemplar
		for i := range run {
			exs = append(exs, run[i].exs...)
			run[i].exs, run[i].family = nil, run[i].meta.Unit // no family; see below
			run[i].family = ""
			if run[i].meta != (metadata.Metadata{}) {
				run[i].family = run[i].labels.Get(model.MetricNameLabel)
			}
		}
		run[len(run)-1].exs = exs
		for i := range run {
			got = append(got, run[i].line())
		}
	}
	slices.Sort(got)
	return got
}

// onlyHint makes the reset hints equal that the wire cannot tell apart.
func onlyHint(list []translated) {
	for i := range list {
		if list[i].h != nil {
			list[i].h.CounterResetHint = histogram.UnknownCounterReset
		}
		if list[i].fh != nil {
			list[i].fh.CounterResetHint = histogram.UnknownCounterReset
		}
	}
}

func TestRemoteWriteIsReadAsItIsWritten(t *testing.T) {
	for _, version := range []door.Format{door.RemoteWriteV1, door.RemoteWriteV2} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			s := newTranslating(promconfig.DefaultOTLPConfig)
			for seed := range uint64(40) {
				for round := range 3 {
					list := randomSeries(seed, round, version == door.RemoteWriteV2)
					onlyHint(list)
					encode := encodeV1
					if version == door.RemoteWriteV2 {
						encode = encodeV2
						for i := range list {
							list[i].meta = metadata.Metadata{Type: model.MetricTypeGauge, Help: "About " + list[i].labels.Get(model.MetricNameLabel)}
						}
					}
					want, got := lines(list), gathered(t, s, version, encode(t, list))
					if !slices.Equal(want, got) {
						t.Fatalf("seed %d, round %d:\n%s", seed, round, diff(want, got))
					}
				}
			}
		})
	}
}

// BenchmarkRemoteWrite reads requests of 2000 known series.
func BenchmarkRemoteWrite(b *testing.B) {
	var list []translated
	for i := range 2000 {
		list = append(list, translated{t: time.Now().UnixMilli(), v: float64(i), labels: labels.FromStrings(model.MetricNameLabel, fmt.Sprintf("node_cpu_seconds_total_%d", i%100),
			"job", "node", "instance", fmt.Sprintf("10.0.0.%d:9100", i%4), "cpu", fmt.Sprint(i), "mode", "idle", "cluster", "eu-1")})
	}
	for name, c := range map[string]struct {
		format door.Format
		body   []byte
	}{"1.0": {door.RemoteWriteV1, encodeV1(b, list)}, "2.0": {door.RemoteWriteV2, encodeV2(b, list)}} {
		b.Run(name, func(b *testing.B) {
			s := newTranslating(promconfig.DefaultOTLPConfig)
			b.ReportAllocs()
			for b.Loop() {
				r := s.begin(&door.Push{Format: c.format, Limits: testLimits})
				read := r.readV1
				if c.format == door.RemoteWriteV2 {
					read = r.readV2
				}
				if err := read(c.body); err != nil {
					b.Fatal(err)
				}
				r.release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2000, "ns/sample")
		})
	}
}

// withoutSamples takes the samples out of a request.
func withoutSamples(t *testing.T, format door.Format, body []byte) []byte {
	var one prompb.WriteRequest
	var two writev2.Request
	read, write := one.Unmarshal, one.Marshal
	if format == door.RemoteWriteV2 {
		read, write = two.Unmarshal, two.Marshal
	}
	if err := read(body); err != nil {
		t.Fatal(err)
	}
	for i := range one.Timeseries {
		one.Timeseries[i].Samples = nil
	}
	for i := range two.Timeseries {
		two.Timeseries[i].Samples = nil
	}
	b, err := write()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
