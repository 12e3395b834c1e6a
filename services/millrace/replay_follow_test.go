package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/web"
)

// script is a Millrace whose replay goes as is written.
type script struct {
	t      *testing.T
	states []replay.Status // one after the other; an empty one stands for a Millrace that is just starting

	mu      sync.Mutex
	starts  []bool // hold
	stopped bool
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[0]
	switch r.Method {
	case http.MethodPost:
		var req web.ReplayRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			s.t.Error(err)
		}
		s.starts = append(s.starts, req.Hold)
		if req.Hold {
			st.State = replay.Stopped
		}
	case http.MethodDelete:
		s.stopped, st.State = true, replay.Stopped
	default:
		if len(s.states) > 1 {
			s.states = s.states[1:]
		}
		st = s.states[0]
	}
	if st.State == "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, `{"status":"error","errorType":"timeout","error":"still starting"}`)
		return
	}
	st.Name = "x"
	if err := json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": st}); err != nil {
		s.t.Error(err)
	}
}

func follow(t *testing.T, ctx context.Context, s *script, terminal bool) (stdout, stderr string, err error) {
	t.Helper()
	s.t = t
	server := httptest.NewServer(s)
	defer server.Close()
	client, err := newReplayClient(server.URL, "")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	o := &replayOptions{stdout: &out, stderr: &errs, terminal: terminal, pollEvery: time.Millisecond}
	err = o.follow(ctx, client, slog.New(slog.NewTextHandler(&errs, nil)))
	return out.String(), errs.String(), err
}

func TestAReplayIsFollowedToItsEnd(t *testing.T) {
	running := func(messages, samples uint64) replay.Status {
		return replay.Status{State: replay.Running, Messages: messages, AllMessages: 10, Samples: samples}
	}
	end := replay.Status{State: replay.Done, Messages: 10, AllMessages: 10, Samples: 2_000_000, Sent: 1_999_000, Refused: 1000, Skipped: 12, Lost: 5, Unsupported: 7}
	begin := running(0, 0)
	begin.FromTime, begin.ToTime = time.Unix(0, 0).UTC(), time.Unix(1200, 0).UTC()
	begin.HeldSince = time.Unix(300, 0).UTC()
	waiting := running(5, 1_000_000)
	waiting.Waiting = "503 Service Unavailable"
	for _, terminal := range []bool{false, true} {
		s := &script{states: []replay.Status{begin, running(3, 500_000), {}, waiting, end}}
		stdout, stderr, err := follow(t, t.Context(), s, terminal)
		if err == nil || !strings.Contains(err.Error(), "refused 1000 samples for good") {
			t.Errorf("it ends with %v", err)
		}
		if fmt.Sprint(s.starts) != "[true false]" {
			t.Errorf("started with hold %v", s.starts)
		}
		for _, want := range []string{"x: done after", "sent     1,999,000 samples", "refused  1,000 samples", "skipped  12 samples: 5 have gone from the stream, or their labels have; 7 histograms"} {
			if !strings.Contains(stdout, want) {
				t.Errorf("%q is not said in:\n%s", want, stdout)
			}
		}
		if !strings.Contains(stderr, "no longer holds") || !strings.Contains(stderr, "held_since=1970-01-01T00:05:00Z") || !strings.Contains(stderr, "of 20m0s, the first 5m0s") {
			t.Errorf("what is missing is not said in:\n%s", stderr)
		}
		if bar := strings.Contains(stderr, "1,000,000 samples, ") && strings.Contains(stderr, "503 Service Unavailable"); bar != terminal {
			t.Errorf("terminal %t: a bar %t:\n%q", terminal, bar, stderr)
		}
	}
}

func TestAnInterruptStopsTheReplay(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s := &script{states: []replay.Status{{State: replay.Running, AllMessages: 10}}}
	_, stderr, err := follow(t, ctx, s, false)
	if err == nil || !s.stopped || !strings.Contains(stderr, "it goes on with: millrace replay --name=x") {
		t.Errorf("stopped %t, %v:\n%s", s.stopped, err, stderr)
	}
}

func TestTheRateIsThatOfTheLastSeconds(t *testing.T) {
	var m rateMeter
	if n, left := m.read(); n != 0 || left != 0 {
		t.Errorf("nothing is known as %v, %v", n, left)
	}
	at := time.Now()
	for i := range 101 { // 1,000 samples/s, then 100
		n := uint64(min(i, 50)*1000 + max(i-50, 0)*100)
		m.add(at.Add(time.Duration(i)*time.Second), n, float64(n)/100_000)
	}
	if n, left := m.read(); n != 100 || left.Round(time.Second) != 450*time.Second {
		t.Errorf("%v samples/s, %v left", n, left)
	}
	if len(m.points) > 12 {
		t.Errorf("%d points are kept", len(m.points))
	}
}

func TestNumbersAreGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
}
