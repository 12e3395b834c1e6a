package receiver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/prompb"

	"github.com/millrace/millrace/bench/numbered"
)

// ignoreRest leaves of a report what verdicts are about.
var ignoreRest = cmpopts.IgnoreFields(Report{}, "Exemplars", "Metadata", "Requests", "WireBytes", "Latency", "Examples", "Series", "Numbered")

func TestVerdicts(t *testing.T) {
	a, b := counter("t1"), counter("t2")
	at := func(n uint64) point { return point{series: a, ts: int64(n) * 1000, v: valueOf(t, a, n)} }
	load := func(ts int64, v float64) point { return point{series: plain, ts: ts, v: v} }
	call := func(ts int64, h *histogram.Histogram) point { return point{series: nativeSeries, ts: ts, h: h} }
	stale := &histogram.Histogram{Sum: staleNaN}
	cases := []struct {
		name   string
		points []point
		want   Report
	}{
		{"all arrived", []point{at(3), at(4), at(5)}, Report{Samples: 3}},
		{"two scrapes lost", []point{at(3), at(6)}, Report{Samples: 2, Lost: 2}},
		{"another target's scrapes do not fill the gap",
			[]point{at(3), at(5), {series: b, ts: 4000, v: valueOf(t, b, 4)}}, Report{Samples: 3, Lost: 1}},
		{"repeated", []point{at(3), at(4), at(3), at(4), at(5)}, Report{Samples: 3, Repeated: 2}},
		{"late, so not lost", []point{at(3), at(5), at(4)}, Report{Samples: 3, Reordered: 1}},
		{"late, repeated", []point{at(3), at(5), at(4), at(4)}, Report{Samples: 3, Reordered: 1, Repeated: 1}},
		{"older than the first", []point{at(130), at(2), at(3)}, Report{Samples: 3, Reordered: 2, Lost: 126}},
		{"value of another scrape", []point{at(3), {series: a, ts: 3000, v: valueOf(t, a, 4)}}, Report{Samples: 1, Changed: 1}},
		{"same scrape at another time", []point{at(3), {series: a, ts: 3001, v: valueOf(t, a, 3)}}, Report{Samples: 1, Changed: 1}},
		{"value of no scrape", []point{{series: a, ts: 3000, v: valueOf(t, a, 3) + 1}}, Report{Changed: 1}},
		{"stale marker", []point{at(3), {series: a, ts: 4000, v: staleNaN}, {series: a, ts: 4000, v: staleNaN}},
			Report{Samples: 1, StaleMarkers: 1, Repeated: 1}},
		{"stale marker instead of a sample", []point{at(3), {series: a, ts: 3000, v: staleNaN}}, Report{Samples: 1, Changed: 1}},
		{"sample instead of a stale marker", []point{at(3), {series: a, ts: 4000, v: staleNaN}, at(4)},
			Report{Samples: 1, StaleMarkers: 1, Changed: 1}},
		{"late stale marker", []point{at(3), at(5), {series: a, ts: 4500, v: staleNaN}}, Report{Samples: 2, Lost: 1, StaleMarkers: 1, Reordered: 1}},
		{"plain: arrived, repeated", []point{load(1, .5), load(2, .5), load(1, .5)}, Report{Samples: 2, Repeated: 1}},
		{"plain: changed", []point{load(1, .5), load(2, .5), load(1, .6), load(2, .6)}, Report{Samples: 2, Changed: 2}},
		{"plain: reordered", []point{load(1, .5), load(3, .5), load(2, .5), load(2, .5)}, Report{Samples: 3, Reordered: 1, Repeated: 1}},
		{"plain: stale", []point{load(1, .5), load(2, staleNaN), load(2, staleNaN), load(2, .5)},
			Report{Samples: 1, StaleMarkers: 1, Repeated: 1, Changed: 1}},
		{"plain: beyond history", []point{load(1, 1), load(2, 1), load(3, 1), load(4, 1), load(5, 1), load(1, 1), load(2, 1)},
			Report{Samples: 5, BeyondHistory: 1, Repeated: 1}},
		{"histograms", []point{call(1, native(t, 1)), call(2, native(t, 2)), call(5, native(t, 5)), call(2, native(t, 2)), call(6, stale)},
			Report{Histograms: 3, Lost: 2, Repeated: 1, StaleMarkers: 1}},
		{"histogram of no scrape", []point{call(1, &histogram.Histogram{Count: 7})}, Report{Changed: 1}},
		{"histogram changed", []point{call(1, native(t, 1)), call(1, native(t, 2))}, Report{Histograms: 1, Changed: 1}},
	}
	for version, v := range versions {
		for _, together := range []bool{true, false} {
			for _, tc := range cases {
				t.Run(fmt.Sprintf("%s/%s/one request %t", v.name, tc.name, together), func(t *testing.T) {
					r := New(Config{History: 4})
					if together {
						if w := push(t, r, version, tc.points...); w.Code != http.StatusNoContent {
							t.Fatalf("status %d: %s", w.Code, w.Body)
						}
					} else {
						for _, p := range tc.points {
							push(t, r, version, p)
						}
					}
					got := r.Report()
					if diff := cmp.Diff(tc.want, got, ignoreRest); diff != "" {
						t.Errorf("report (-want +got):\n%s", diff)
					}
					if got.Changed > 0 != (len(got.Examples.Changed) > 0) || got.Lost > 0 != (len(got.Examples.Lost) > 0) ||
						got.Reordered > 0 != (len(got.Examples.Reordered) > 0) {
						t.Errorf("examples do not fit: %+v", got)
					}
				})
			}
		}
	}
}

func TestBothProtocolsNameTheSameSeries(t *testing.T) {
	r := New(Config{})
	a := counter("t1")
	push(t, r, 0, point{series: a, ts: 1, v: valueOf(t, a, 1)})
	push(t, r, 1, point{series: plain, ts: 1, v: 1}, point{series: a, ts: 1, v: valueOf(t, a, 1)})
	push(t, r, 1, point{series: a, ts: 3, v: valueOf(t, a, 3)}, point{series: plain, ts: 1, v: 1})
	got := r.Report()
	want := Report{Samples: 3, Repeated: 2, Lost: 1, Series: 2, Numbered: 1, Exemplars: 5, Metadata: 5, Requests: 3}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Report{}, "WireBytes", "Latency", "Examples")); diff != "" {
		t.Error(diff)
	}
	if !contains(got.Examples.Lost, `requests_total{job="a",shape="c7340",target="t1"}: 1 scrapes, the first is 2`) {
		t.Errorf("examples: %q", got.Examples.Lost)
	}
}

func TestNumbersAreBoundedInMemory(t *testing.T) {
	var s numbers
	gaps := 0
	for n := uint64(1); n <= 5*maxNumbers; n++ {
		if n%1000 != 0 {
			gaps += s.add(n)
		}
	}
	if want := 5 * maxNumbers / 1000; gaps != want {
		t.Errorf("%d gaps, want %d", gaps, want)
	}
	if len(s.words) > maxNumbers/64+1 {
		t.Errorf("%d words", len(s.words))
	}
	if gaps := s.add(1 << 50); gaps <= 0 || len(s.words) > maxNumbers/64+1 || !s.has(1<<50) || s.has(1<<50-1) {
		t.Errorf("after a jump: %d gaps, %d words", gaps, len(s.words))
	}
}

func TestAnswersOfVersion2TellWhatWasWritten(t *testing.T) {
	r := New(Config{})
	w := push(t, r, 1, point{series: plain, ts: 1, v: 1}, point{series: nativeSeries, ts: 1, h: native(t, 1)})
	for name, want := range map[string]string{"Samples": "1", "Histograms": "1", "Exemplars": "2"} {
		if got := w.Header().Get("X-Prometheus-Remote-Write-" + name + "-Written"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestCompleteComparesWithTheServedLog(t *testing.T) {
	a, r := counter("t1"), New(Config{})
	for _, n := range []uint64{1, 2, 4} {
		push(t, r, 0, point{series: a, ts: int64(n), v: valueOf(t, a, n)})
		push(t, r, 0, point{series: a, ts: int64(n), v: valueOf(t, a, n)})
	}
	got := r.Complete(numbered.Log{
		"t1": {{Samples: 1, Completed: true}, {Samples: 2, Completed: true}, {Samples: 1, Completed: true}, {Samples: 1}},
		"t9": {{Samples: 3}, {}}, // the second was refused: nobody was promised anything
	})
	want := Completeness{
		Scrapes: 5, Samples: 8, ArrivedSamples: 3,
		Missing: []ScrapeRef{{Target: "t1", Number: 3, Served: 1, Completed: true}, {Target: "t9", Number: 1, Served: 3}},
		Partial: []ScrapeRef{{Target: "t1", Number: 2, Served: 2, Arrived: 1, Completed: true}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLatencyAndRate(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	r := New(Config{Now: func() time.Time { return now }})
	for i := range int64(100) {
		push(t, r, 0, point{series: plain, ts: now.UnixMilli() - (100-i)*10, v: 1})
	}
	if l := r.Report().Latency; l.Count != 100 || l.P50 < .49 || l.P50 > .52 || l.P90 < .88 || l.P90 > .93 || l.P99 < .98 || l.P99 > 1 || l.Max != 1 {
		t.Errorf("latency %+v", l)
	}
	r.ResetWindow()
	now = now.Add(3 * time.Second)
	push(t, r, 0, point{series: plain, ts: now.UnixMilli() - 20, v: 1})
	if diff := cmp.Diff(LatencySummary{Count: 1, P50: .02, P90: .02, P99: .02, Max: .02}, r.Report().Latency); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Second{{1000, 100, 1}, {1003, 1, .02}}, r.Rate()); diff != "" {
		t.Error(diff)
	}
	r.Reset()
	if got := r.Report(); got.Samples != 0 || got.Latency.Count != 0 || len(r.Rate()) != 0 {
		t.Errorf("after a reset: %+v", got)
	}
}

func TestGarbageIsRefusedWithAReason(t *testing.T) {
	v1, v2 := versions[0].contentType, versions[1].contentType
	bad := func(pairs ...string) []byte {
		var labels []prompb.Label
		for i := 0; i < len(pairs); i += 2 {
			labels = append(labels, prompb.Label{Name: pairs[i], Value: pairs[i+1]})
		}
		body, err := (&prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{Labels: labels, Samples: []prompb.Sample{{}}}}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	cases := []struct {
		name, contentType string
		body              []byte
		status            int
		reason            string
	}{
		{"other content", "text/plain", nil, 415, "Content-Type"},
		{"other message", "application/x-protobuf;proto=a.B", nil, 415, "a.B"},
		{"truncated 1.0", v1, []byte{0x0a, 5, 1}, 400, "ends within"},
		{"truncated 2.0", v2, []byte{0x2a, 5, 1}, 400, "ends within"},
		{"1.0 sent as 2.0", v2, []byte{0x22, 1, 'a', 0x2a, 0}, 400, "empty string"},
		{"reference too high", v2, []byte{0x22, 0, 0x2a, 4, 0x0a, 2, 1, 1}, 400, "label reference 1"},
		{"odd references", v2, []byte{0x22, 0, 0x2a, 3, 0x0a, 1, 0}, 400, "odd number"},
		{"no name", v1, bad("a", "b"), 400, "__name__"},
		{"unsorted", v1, bad("b", "1", "__name__", "a"), 400, "not sorted"},
		{"empty value", v1, bad("__name__", "a", "b", ""), 400, "empty"},
		{"not UTF-8", v1, bad("__name__", "a", "b", "\xff"), 400, "UTF-8"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r, w := New(Config{}), httptest.NewRecorder()
			r.ServeHTTP(w, request(t, "", tc.contentType, tc.body))
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.reason) {
				t.Errorf("status %d, %q; want %d, %q", w.Code, w.Body, tc.status, tc.reason)
			}
			if report := r.Report(); report.Refused != 1 || report.Requests != 0 {
				t.Errorf("report %+v", report)
			}
		})
	}
	t.Run("not snappy", func(t *testing.T) {
		r, w := New(Config{}), httptest.NewRecorder()
		request := httptest.NewRequest(http.MethodPost, "/write", strings.NewReader("\xff\xff\xff\xff\xff\xff"))
		request.Header.Set("Content-Type", v1)
		request.Header.Set("Content-Encoding", "snappy")
		r.ServeHTTP(w, request)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "snappy") {
			t.Errorf("status %d, %q", w.Code, w.Body)
		}
	})
	t.Run("too large", func(t *testing.T) {
		r, w := New(Config{MaxBodyBytes: 100}), httptest.NewRecorder()
		r.ServeHTTP(w, request(t, "", v1, make([]byte, 1000)))
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d, %q", w.Code, w.Body)
		}
	})
}

func TestReportIsServedAsJSON(t *testing.T) {
	r := New(Config{})
	push(t, r, 0, point{series: plain, ts: 1, v: 1})
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/report", nil))
	var got Report
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Samples != 1 {
		t.Errorf("report %+v", got)
	}
}
