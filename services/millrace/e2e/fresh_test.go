package e2e_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/receiver"
)

// freshBlock is the content of the millrace block for an endpoint that gets new samples first.
const freshBlock = "  writer: {fresh_first: {endpoints: [main], after: 5s}}\n"

// newCounter is newEndpoint without a ledger of every sample, which would take gigabytes.
func newCounter(t testing.TB) *endpoint {
	t.Helper()
	e := &endpoint{Receiver: receiver.New(receiver.Config{})}
	server := httptest.NewServer(e.Receiver)
	t.Cleanup(server.Close)
	e.URL = server.URL + "/api/v1/write"
	return e
}

// TestNewSamplesDoNotWaitForABacklog lets an endpoint fail for some time, with MILLRACE_TEST_LONG=1 for 10 minutes at 50,000 samples/s, and measures how late samples
// are that are scraped once it is back, while the backlog is sent.
func TestNewSamplesDoNotWaitForABacklog(t *testing.T) {
	targets, outage, makeEndpoint := 20, 35*time.Second, newEndpoint
	if longTest {
		targets, outage, makeEndpoint = 50, 10*time.Minute, newCounter
	}
	r, e := newRig(t, targets, 1000), makeEndpoint(t)
	p := startMillrace(t, r.config(freshBlock, remoteWrite("main", e.URL)), inDir(r.dir))
	r.arrived(e, 90*time.Second)
	e.control(t, receiver.Control{Mode: receiver.Unavailable})
	pause(t, outage)
	main := map[string]string{"endpoint": "main"}
	behind := p.Metric("millrace_writer_lag_messages", main)
	back := time.Now()
	e.ResetWindowFrom(back)
	e.control(t, receiver.Control{Mode: receiver.OK})
	drained := time.Duration(0)
	eventually(t, outage+time.Minute, "the backlog sent", func() error {
		log := p.Logs()
		begun := strings.Count(log, "new samples go out at once") // also where a backlog grows
		left, lag := p.Metric("millrace_writer_backlog_messages", main), p.Metric("millrace_writer_lag_seconds", main)
		if begun == 0 || left > 0 || lag > outage.Seconds()/4 {
			return fmt.Errorf("%d times new samples went first, %v messages left, the oldest of %.0f s before", begun, left, lag)
		}
		drained = time.Since(back)
		return nil
	})
	r.arrived(e, 30*time.Second)
	late := e.Report().Latency
	t.Logf("after %v of outage at %d samples/s, %v messages of backlog were sent within %.1f s; of %d samples scraped meanwhile, latency p50 %.2f s, p99 %.2f s, max %.2f s",
		outage, 1000*targets, behind, drained.Seconds(), late.Count, late.P50, late.P99, late.Max)
	// 3 s is what it is on a machine that does nothing else.
	if late.Count == 0 || late.P99 > 10 {
		t.Errorf("the p99 of %d samples scraped after the outage is %.2f s", late.Count, late.P99)
	}
	r.end(p)
	r.settled(p, 60*time.Second, "main")
	for _, name := range []string{"lost", "rejected"} {
		if n := p.Metric("millrace_writer_"+name+"_samples_total", main); n != 0 {
			t.Errorf("%v samples %s", n, name)
		}
	}
	p.Stop()
	rep, log := e.Report(), r.gen.Log()
	failed := 0
	if longTest { // a machine that others use as well may be too slow for a scrape in 10 minutes
		failed = e.withoutFailed(t, r.dir, log)
	}
	t.Logf("%d samples, %d repeated, %d lost, %d reordered, %d changed; %d scrapes failed", rep.Samples, rep.Repeated, rep.Lost, rep.Reordered, rep.Changed, failed)
	if rep.Lost > 1000*failed || rep.Changed != 0 || rep.Reordered == 0 {
		t.Errorf("lost, changed or in order: %+v", rep.Examples)
	}
	e.whole(t, log)
	if e.ledger != nil {
		delivered(t, r.dir, e)
	}
}

// withoutFailed takes the scrapes out of a log that a stopped process has noted as failed, by a value of up in its streams, and returns how many they were. They were served, but not read in time.
func (e *endpoint) withoutFailed(t *testing.T, dir string, log numbered.Log) (n int) {
	t.Helper()
	failed := map[string][]time.Time{}
	storedSamples(t, storage(t, dir), func(ls labels.Labels, at at, bits uint64) {
		if bits == 0 && ls.Get(model.MetricNameLabel) == "up" {
			target := ls.Get(numbered.TargetLabel)
			failed[target] = append(failed[target], time.UnixMilli(at.time))
		}
	})
	for _, ref := range e.Complete(log).Missing {
		s := &log[ref.Target][ref.Number-1]
		for _, at := range failed[ref.Target] {
			if late := s.At.Sub(at); late > -beat/4 && late < beat { // how long after its time the request came
				s.Samples, s.Completed = 0, false
				n++
				break
			}
		}
	}
	return n
}

// TestABacklogOutlivesKills kills the process while a backlog is sent, and after another outage while two are.
func TestABacklogOutlivesKills(t *testing.T) {
	r, e := newRig(t, 10, 200), newEndpoint(t)
	config := r.config("  writer: {fresh_first: {endpoints: [main], after: 2s, backlog_share: 0.01}}\n", remoteWrite("main", e.URL, "queue_config: {min_backoff: 30ms, max_backoff: 1s, max_samples_per_send: 500}"))
	p := startMillrace(t, config, inDir(r.dir))
	r.arrived(e, 30*time.Second)
	main := map[string]string{"endpoint": "main"}
	var cut []window
	for range 2 {
		e.control(t, receiver.Control{Mode: receiver.Unavailable})
		pause(t, 8*time.Second)
		e.control(t, receiver.Control{Mode: receiver.OK})
		eventually(t, 30*time.Second, "a backlog", func() error {
			if n := p.Metric("millrace_writer_backlog_messages", main); n == 0 {
				return fmt.Errorf("%v messages", n)
			}
			return nil
		})
		killed := time.Now()
		p.Kill9()
		lost := killWindow(killed)
		p = startMillrace(t, config, inDir(r.dir))
		cut = append(cut, lost)
		r.arrived(e, 60*time.Second)
	}
	r.end(p)
	r.settled(p, 120*time.Second, "main")
	p.Stop()
	if rep := e.Report(); rep.Changed != 0 {
		t.Errorf("%d changed: %+v", rep.Changed, rep.Examples)
	}
	e.whole(t, r.gen.Log(), cut...)
	delivered(t, r.dir, e)
}
