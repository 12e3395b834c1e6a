package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/receiver"
	"github.com/millrace/millrace/pkg/replay"
)

// TestWhatWasRefusedIsReplayed has an endpoint refuse everything, and mends it.
func TestWhatWasRefusedIsReplayed(t *testing.T) {
	r, e := newRig(t, 4, 20), newEndpoint(t)
	p := startMillrace(t, r.config("", remoteWrite("main", e.URL)))
	r.arrived(e, 30*time.Second)
	e.control(t, receiver.Control{Mode: receiver.BadRequest})
	eventually(t, 30*time.Second, "refusals", func() error {
		if n := p.Metric("millrace_writer_rejected_samples_total", nil); n < 4*20 {
			return fmt.Errorf("%v samples", n)
		}
		return nil
	})
	r.end(p)
	r.settled(p, 60*time.Second, "main")
	refused := uint64(p.Metric("millrace_writer_rejected_samples_total", nil))
	if missing := len(e.Complete(r.gen.Log()).Missing); missing == 0 {
		t.Fatal("nothing is missing")
	}
	run := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := runMillrace(t, append([]string{"replay", "--web.url=" + p.URL, "--endpoint=main", "--rejected"}, args...)...)
		if code != 0 {
			t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
		}
		return stdout
	}
	says(t, run("--dry-run"), fmt.Sprintf("samples  %d", refused))
	e.control(t, receiver.Control{Mode: receiver.OK})
	says(t, run(), fmt.Sprintf("sent     %d samples", refused), "refused  0 samples", "skipped  0 samples")
	if missing := e.Complete(r.gen.Log()).Missing; len(missing) > 0 {
		t.Errorf("%d samples are missing still", len(missing))
	}
	e.inOrder(t)
}

// TestReplaysAreRunByHTTP starts, watches, stops and goes on with one.
func TestReplaysAreRunByHTTP(t *testing.T) {
	const seconds = 100
	dir, rcv := newHour(t), receiver.New(receiver.Config{})
	server := httptest.NewServer(rcv)
	t.Cleanup(server.Close)
	p := startMillrace(t, replayConfig(remoteWrite("bench", server.URL+"/api/v1/write")), inDir(dir))
	ask := func(method, path, body string) (st replay.Status) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, p.URL+"/api/v1/replays"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var answer struct {
			Error string
			Data  *replay.Status
		}
		answer.Data = &st
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%s %s is answered %s: %v %s", method, path, res.Status, err, answer.Error)
		}
		return st
	}
	spec := fmt.Sprintf(`{"name": "incident", "from": %q, "to": %q, "endpoint": "bench", "rate": 20000, "hold": true}`, secondOf(0), secondOf(seconds-1))
	if st := ask("POST", "", spec); st.State != replay.Stopped || st.AllMessages == 0 || !st.HeldSince.IsZero() || rcv.Report().Samples != 0 {
		t.Errorf("held, it is told as %+v", st)
	}
	if st := ask("POST", "", strings.Replace(spec, "true", "false", 1)); st.State != replay.Running {
		t.Errorf("started, it is told as %+v", st)
	}
	beyond(t, p, "incident", 20_000)
	if st := ask("DELETE", "/incident", ""); st.State != replay.Stopped {
		t.Errorf("stopped, it is told as %+v", st)
	}
	shown := func() (replay.Status, error) {
		d := statusOf(t, "--web.url="+p.URL)
		if len(d.Replays) != 1 || d.Replays[0].Name != "incident" || len(d.Problems) > 0 {
			return replay.Status{}, fmt.Errorf("replays %+v, problems %q", d.Replays, d.Problems)
		}
		return d.Replays[0], nil
	}
	if st, err := shown(); err != nil || st.State != replay.Stopped || st.Endpoint != "bench" || st.Sent < 20_000 || st.AllMessages == 0 {
		t.Errorf("the status of the fleet has %+v, %v", st, err)
	}
	stands := 0
	eventually(t, 30*time.Second, "nothing more is sent", func() error {
		before := stands
		if stands = rcv.Report().Samples; stands != before {
			return fmt.Errorf("%d samples", stands)
		}
		time.Sleep(500 * time.Millisecond)
		if n := rcv.Report().Samples; n != stands {
			return fmt.Errorf("%d samples", n)
		}
		return nil
	})
	if stands >= seconds*2*hourJob {
		t.Error("it was not stopped")
	}
	ask("POST", "", `{"name": "incident", "rate": 1000000}`)
	eventually(t, time.Minute, "the end", func() error {
		if st := ask("GET", "/incident", ""); st.State != replay.Done || st.Sent != seconds*2*hourJob {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	eventually(t, startTimeout, "the end in the status of the fleet", func() error {
		st, err := shown()
		if err == nil && (st.State != replay.Done || st.Sent != seconds*2*hourJob) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
	stdout, stderr, code := runMillrace(t, "status", "--web.url="+p.URL)
	if code != 0 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	says(t, stdout, "REPLAY", "incident", "100 %")
	if rep := rcv.Report(); rep.Samples != seconds*2*hourJob || rep.Reordered+rep.Changed != 0 {
		t.Errorf("%d samples arrived, want %d; %d reordered, %d changed", rep.Samples, seconds*2*hourJob, rep.Reordered, rep.Changed)
	}
	if st := ask("DELETE", "/incident", ""); st.State != replay.Removed {
		t.Errorf("removed, it is told as %+v", st)
	}
}
