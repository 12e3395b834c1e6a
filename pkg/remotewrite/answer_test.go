package remotewrite

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-7": 0, "1.5": 0, "soon": 0,
		"301": maxRetryAfter, "99999999999": maxRetryAfter, "99999999999999999999999": maxRetryAfter,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
		now.Add(24 * time.Hour).Format(http.TimeFormat):   maxRetryAfter,
		now.Add(time.Minute).Format(time.RFC850):          time.Minute,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("Retry-After: %s gives %s, want %s", header, got, want)
		}
	}
}

func TestRetryAfterIsReadFromRetriedAnswers(t *testing.T) {
	var status atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "12")
		w.WriteHeader(int(status.Load()))
	})
	c := newClient(t, endpoint(t, s.URL, ""))
	for code, want := range map[int]time.Duration{429: 12 * time.Second, 503: 12 * time.Second, 500: 12 * time.Second, 400: 0, 200: 0} {
		status.Store(int64(code))
		if r := c.Send(t.Context(), V1, nil, 0); r.RetryAfter != want {
			t.Errorf("%d: %s", code, r.RetryAfter)
		}
	}
}

func TestWrittenIsWhatTheHeadersSay(t *testing.T) {
	const samples, histograms, exemplars = "X-Prometheus-Remote-Write-Samples-Written",
		"X-Prometheus-Remote-Write-Histograms-Written", "X-Prometheus-Remote-Write-Exemplars-Written"
	var headers atomic.Value
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for name, v := range headers.Load().(map[string]string) {
			w.Header().Set(name, v)
		}
		w.WriteHeader(http.StatusBadRequest)
	})
	c := newClient(t, endpoint(t, s.URL, ""))
	for _, test := range []struct {
		headers map[string]string
		want    Written
	}{
		{map[string]string{}, Written{}},
		{map[string]string{samples: "3"}, Written{Samples: 3, Known: true}},
		{map[string]string{samples: "0"}, Written{Known: true}},
		{map[string]string{samples: "3", histograms: "4", exemplars: "5"}, Written{3, 4, 5, true}},
		{map[string]string{samples: "3", histograms: "many"}, Written{}},
		{map[string]string{samples: "-3"}, Written{}},
	} {
		headers.Store(test.headers)
		if r := c.Send(t.Context(), V2, nil, 0); r.Written != test.want {
			t.Errorf("%v give %+v, want %+v", test.headers, r.Written, test.want)
		}
	}
}
