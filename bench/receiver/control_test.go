package receiver

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace/millrace/pkg/await"
)

// serve starts a receiver and returns how to push to it over a connection.
func serve(t *testing.T) (*Receiver, string, func(context.Context, ...point) (*http.Response, error)) {
	t.Helper()
	r := New(Config{})
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return r, server.URL, func(ctx context.Context, points ...point) (*http.Response, error) {
		t.Helper()
		response, err := client.Do(request(t, server.URL, versions[0].contentType, encodeV1(points...)).WithContext(ctx))
		if err == nil {
			response.Body.Close()
		}
		return response, err
	}
}

func TestModesThatAnswer(t *testing.T) {
	a, b := counter("t1"), counter("t2")
	first := []point{{series: a, ts: 1, v: valueOf(t, a, 1)}, {series: b, ts: 1, v: valueOf(t, b, 1)}}
	cases := []struct {
		name, control string
		status        int
		retryAfter    string
		samples       int
	}{
		{"ok", `{"mode":"ok"}`, 204, "", 2},
		{"503", `{"mode":"503"}`, 503, "", 0},
		{"429", `{"mode":"429","retry_after":"1500ms"}`, 429, "2", 0},
		{"400 for all", `{"mode":"400"}`, 400, "", 0},
		{"400 for a target", `{"mode":"400","match":{"target":"t1"}}`, 400, "", 0},
		{"400 for a target, the rest taken", `{"mode":"400","match":{"target":"t1","__name__":"requests_total"},"partial":true}`, 400, "", 1},
		{"400 for another target", `{"mode":"400","match":{"target":"t"}}`, 204, "", 2},
		{"413", `{"mode":"413","max_bytes":10}`, 413, "", 0},
		{"413 for larger ones", `{"mode":"413","max_bytes":10000}`, 204, "", 2},
		{"slow", `{"mode":"slow","delay":"1ms"}`, 204, "", 2},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r, url, push := serve(t)
			response, err := http.Post(url+"/control", "application/json", strings.NewReader(tc.control))
			if err != nil || response.StatusCode != http.StatusNoContent {
				t.Fatalf("control: %v, %v", response, err)
			}
			response.Body.Close()
			answer, err := push(t.Context(), first...)
			if err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != tc.status || answer.Header.Get("Retry-After") != tc.retryAfter {
				t.Errorf("status %d, Retry-After %q", answer.StatusCode, answer.Header.Get("Retry-After"))
			}
			if got := r.Report().Samples; got != tc.samples {
				t.Errorf("%d samples taken, want %d", got, tc.samples)
			}
		})
	}
}

func TestModesThatCutTheConnection(t *testing.T) {
	for mode, samples := range map[Mode]int{ResetConnection: 0, AnswerLost: 1} {
		t.Run(string(mode), func(t *testing.T) {
			r, _, push := serve(t)
			if err := r.Control(Control{Mode: mode, Requests: 1}); err != nil {
				t.Fatal(err)
			}
			p := point{series: plain, ts: 1, v: 1}
			if _, err := push(t.Context(), p); !errors.Is(err, syscall.ECONNRESET) && !strings.Contains(errText(err), "EOF") {
				t.Errorf("error %v, want a reset connection", err)
			}
			if got := r.Report(); got.Samples != samples || got.Failed != 1 {
				t.Errorf("report %+v, want %d samples", got, samples)
			}
			if answer, err := push(t.Context(), p); err != nil || answer.StatusCode != http.StatusNoContent {
				t.Errorf("after one request: %v, %v", answer, err)
			}
			if got := r.Report(); got.Samples != 1 || got.Repeated != samples {
				t.Errorf("after sending again: %+v", got)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestHangEndsWithTheClientOrTheMode(t *testing.T) {
	r, _, push := serve(t)
	p := point{series: plain, ts: 1, v: 1}
	if err := r.Control(Control{Mode: Hang}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := push(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client that gives up: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := push(t.Context(), p)
		done <- err
	}()
	await.True(t, "both hang", func() bool { return r.Report().Failed == 2 })
	select {
	case err := <-done:
		t.Fatalf("answered while hanging: %v", err)
	default:
	}
	if err := r.Control(Control{Mode: OK}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("a hanging request was answered")
	}
	if got := r.Report().Samples; got != 0 {
		t.Errorf("%d samples taken", got)
	}
}

func TestModeEndsAfterItsDuration(t *testing.T) {
	r, _, push := serve(t)
	if err := r.Control(Control{Mode: Unavailable, Duration: 30 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		answer, err := push(t.Context(), point{series: plain, ts: 1, v: 1})
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode == http.StatusNoContent {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the mode did not end")
		}
	}
}

func TestSenselessControlsAreRefused(t *testing.T) {
	_, url, _ := serve(t)
	for _, control := range []string{
		``, `{}`, `{"mode":"teapot"}`, `{"mode":"413"}`, `{"mode":"slow"}`, `{"mode":"503","retry":"1s"}`, `{"mode":"503","duration":"soon"}`,
		`{"mode":"503","requests":-1}`,
	} {
		response, err := http.Post(url+"/control", "application/json", strings.NewReader(control))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d", control, response.StatusCode)
		}
	}
}

func TestControlSurvivesJSON(t *testing.T) {
	want := Control{
		Mode: BadRequest, RetryAfter: time.Second, Match: map[string]string{"a": "b"}, Partial: true, MaxBytes: 3,
		Delay: time.Minute, Duration: time.Hour, Requests: 4,
	}
	data, err := want.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var got Control
	if err := got.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
