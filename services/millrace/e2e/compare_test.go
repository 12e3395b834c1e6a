package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
)

// api asks Prometheus's API and decodes what the answer has as its data.
func api(t testing.TB, p *proc, path string, params url.Values, data any) {
	t.Helper()
	code, body := get(t, p.URL+path+"?"+params.Encode())
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s%s: status %d: %v: %.500s", p.URL, path, code, err, body)
	}
	if err := json.Unmarshal(answer.Data, data); err != nil {
		t.Fatalf("%s%s: %v", p.URL, path, err)
	}
}

// instant returns the value of every series of an instant query, as text.
func instant(t testing.TB, p *proc, query string, at time.Time) map[string]string {
	t.Helper()
	var data struct {
		Result []struct {
			Metric    labels.Labels
			Value     []any
			Histogram []json.RawMessage
		}
	}
	api(t, p, "/api/v1/query", url.Values{"query": {query}, "time": {seconds(at.UnixMilli())}}, &data)
	m := make(map[string]string, len(data.Result))
	for _, s := range data.Result {
		if len(s.Histogram) > 1 {
			m[s.Metric.String()] = string(s.Histogram[1])
		} else {
			m[s.Metric.String()] = s.Value[1].(string)
		}
	}
	return m
}

// byTarget replaces the label sets of an answer by their label "target".
func byTarget(answer map[string]string) map[string]string {
	m := make(map[string]string, len(answer))
	for series, v := range answer {
		_, rest, _ := strings.Cut(series, `target="`)
		name, _, _ := strings.Cut(rest, `"`)
		m[name] = v
	}
	return m
}

// point is a stored sample: its time in milliseconds and its value, which tells all bits of a float.
type point struct {
	t int64
	v string
}

// readAll returns what a Prometheus has stored of the series that a matcher selects, as its remote read has it.
func readAll(t testing.TB, p *proc, from, to time.Time, matcher *prompb.LabelMatcher) []*prompb.TimeSeries {
	t.Helper()
	req := prompb.ReadRequest{Queries: []*prompb.Query{{
		StartTimestampMs: from.UnixMilli(), EndTimestampMs: to.UnixMilli(), Matchers: []*prompb.LabelMatcher{matcher},
	}}}
	body, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(p.URL+"/api/v1/read", "application/x-protobuf", bytes.NewReader(snappy.Encode(nil, body)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s/api/v1/read: status %d: %v: %.500s", p.URL, res.StatusCode, err, answer)
	}
	if answer, err = snappy.Decode(nil, answer); err != nil {
		t.Fatalf("%s/api/v1/read: %v", p.URL, err)
	}
	var read prompb.ReadResponse
	if err := read.Unmarshal(answer); err != nil {
		t.Fatalf("%s/api/v1/read: %v", p.URL, err)
	}
	return read.Results[0].Timeseries
}

// stored returns everything that a Prometheus has stored: staleness markers too.
func stored(t testing.TB, p *proc, from, to time.Time) map[string][]point {
	t.Helper()
	read := readAll(t, p, from, to, &prompb.LabelMatcher{Type: prompb.LabelMatcher_RE, Name: model.MetricNameLabel, Value: ".+"})
	series := map[string][]point{}
	b := labels.NewScratchBuilder(0)
	for _, ts := range read {
		var points []point
		for _, s := range ts.Samples {
			points = append(points, point{s.Timestamp, fmt.Sprintf("%x (%g)", math.Float64bits(s.Value), s.Value)})
		}
		for i := range ts.Histograms {
			points = append(points, point{ts.Histograms[i].Timestamp, histogramText(&ts.Histograms[i])})
		}
		slices.SortStableFunc(points, func(a, b point) int { return int(a.t - b.t) })
		series[ts.ToLabels(&b, nil).String()] = points
	}
	return series
}

// histogramText tells everything about a histogram but how its buckets are laid out, and whether storage has seen a counter reset: both
// depend on its neighbours in storage.
func histogramText(h *prompb.Histogram) string {
	if h.IsFloatHistogram() {
		f := h.ToFloatHistogram().Compact(0)
		f.CounterResetHint = gaugeOnly(f.CounterResetHint)
		return fmt.Sprintf("float %+v sum %x", *f, math.Float64bits(f.Sum))
	}
	i := h.ToIntHistogram().Compact(0)
	i.CounterResetHint = gaugeOnly(i.CounterResetHint)
	return fmt.Sprintf("int %+v sum %x", *i, math.Float64bits(i.Sum))
}

func gaugeOnly(h histogram.CounterResetHint) histogram.CounterResetHint {
	if h == histogram.GaugeType {
		return h
	}
	return histogram.UnknownCounterReset
}

// runs returns the values without those that only repeat the one before.
func runs(points []point) string {
	var list []string
	for _, p := range points {
		if len(list) == 0 || list[len(list)-1] != p.v {
			list = append(list, p.v)
		}
	}
	return strings.Join(list, " | ")
}

// exemplars returns the exemplars of each series, as text. Times are those of the scrape where the target has given none, and are left
// out then: timed tells by the exemplar's labels.
func exemplars(t testing.TB, p *proc, from, to time.Time, timed func(labels.Labels) bool) map[string]string {
	t.Helper()
	var data []struct {
		SeriesLabels labels.Labels
		Exemplars    []struct {
			Labels    labels.Labels
			Value     string
			Timestamp float64
		}
	}
	api(t, p, "/api/v1/query_exemplars", url.Values{"query": {`{__name__=~".+"}`}, "start": {seconds(from.UnixMilli())}, "end": {seconds(to.UnixMilli())}}, &data)
	m := map[string]string{}
	for _, s := range data {
		var list []string
		for _, e := range s.Exemplars {
			text := e.Labels.String() + " " + e.Value
			if timed(e.Labels) {
				text += fmt.Sprintf(" @%.3f", e.Timestamp)
			}
			list = append(list, text)
		}
		m[s.SeriesLabels.String()] = strings.Join(list, ", ")
	}
	return m
}

// difference returns nil where two maps are equal, and otherwise an error that names some keys which are not.
func difference(want, got map[string]string) error {
	var lines []string
	count := 0
	say := func(format string, args ...any) {
		if count++; count <= 12 {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[k]
		switch {
		case !ok:
			say("- %s\n    is missing; want %.300s", k, want[k])
		case g != want[k]:
			say("! %s\n    got  %.300s\n    want %.300s", k, g, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			say("+ %s\n    is too many: %.300s", k, got[k])
		}
	}
	if count == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d differ:\n%s", count, len(want), strings.Join(lines, "\n"))
}
