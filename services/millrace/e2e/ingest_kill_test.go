package e2e_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/bench/numbered"
)

// pushSender pushes numbered samples, one push after the other. It sends the same bytes until they are acknowledged.
type pushSender struct {
	t      testing.TB
	ways   ways
	client *http.Client
	name   string
	series []labels.Labels
	codes  []numbered.Code

	served []numbered.Served // acknowledged pushes
	last   int64             // the newest timestamp
	tries  int
	begins chan<- struct{} // told, where somebody waits, when a request begins
}

// pushSeries is how many series a sender pushes.
const pushSeries = 20

func newPushSender(t testing.TB, w ways, number int, begins chan<- struct{}) *pushSender {
	t.Helper()
	s := &pushSender{t: t, ways: w, client: &http.Client{Transport: &http.Transport{}, Timeout: 15 * time.Second}, name: "t" + strconv.Itoa(number), begins: begins}
	t.Cleanup(s.client.CloseIdleConnections)
	for i := range pushSeries {
		list := map[string]string{
			model.MetricNameLabel: "pushed_" + strconv.Itoa(i), model.JobLabel: "push", numbered.TargetLabel: s.name,
			numbered.ShapeLabel: numbered.Shape(numbered.Counter, uint64(i)*7919+2),
		}
		if number%3 > 0 { // every third sender's series go by the name of the metric
			list[model.InstanceLabel] = s.name
		}
		s.series = append(s.series, labels.FromMap(list))
		code, ok := numbered.Of(s.series[i].Get)
		if !ok {
			t.Fatalf("%s carries no number", s.series[i])
		}
		s.codes = append(s.codes, code)
	}
	return s
}

// push makes the next push, and sends it until it is acknowledged. An error is final: an answer that must not be, or the end of the test.
func (s *pushSender) push(ctx context.Context) error {
	number := uint64(len(s.served) + 1)
	s.last = max(time.Now().UnixMilli(), s.last+1)
	var list []pushed
	for i, ls := range s.series {
		list = append(list, pushed{ls, s.last, s.codes[i].Value(number)})
	}
	url, body, header := s.ways.otlpURL(), otlpBody(s.t, list), map[string]string{"Content-Type": otlpType}
	if number%2 == 0 {
		url, body, header = s.ways.remoteWriteURL(), write1Body(s.t, list), map[string]string{"Content-Type": write1Type, "Content-Encoding": "snappy"}
	}
	for {
		select {
		case s.begins <- struct{}{}:
		default:
		}
		s.tries++
		status, answer, err := post(s.client, url, body, header)
		switch {
		case err == nil && (status == http.StatusNoContent || status == http.StatusOK && answer == ""):
			s.served = append(s.served, numbered.Served{At: time.Now(), Samples: len(list), Completed: true})
			return nil
		case err == nil && status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests:
			return fmt.Errorf("push %d of %s: status %d: %q", number, s.name, status, answer)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("push %d of %s is not acknowledged: status %d: %w", number, s.name, status, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// pushUntil pushes until stop is closed. What was begun is pushed to its end.
func (s *pushSender) pushUntil(ctx context.Context, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		if err := s.push(ctx); err != nil {
			s.t.Error(err)
			return
		}
	}
}

// TestAKillOfIngestLosesNothingAcknowledged kills the process that takes pushes again and again, at any moment between a request and its answer.
func TestAKillOfIngestLosesNothingAcknowledged(t *testing.T) {
	random, kills := seeded(t), 100
	if testing.Short() {
		kills = 20
	}
	cluster, end, w := startNATS(t, 1), newEndpoint(t), newWays(t)
	config := fmt.Sprintf("remote_write:\n%smillrace:\n  nats: {url: %q}\n  streams: {replicas: 1, partitions: 4}\n%s", remoteWrite("main", end.URL), cluster.URL, w.config())
	writer := startMillrace(t, config, withArgs("--services=discovery,relabel,writer"))
	// As shipped, since a hundred starts with the race detector take too long.
	ingest := startMillrace(t, config, append(w.options(), withArgs("--services=ingest"), asShipped())...)

	begins, stop := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	var senders []*pushSender
	var running sync.WaitGroup
	for i := range 6 {
		s := newPushSender(t, w, i, begins)
		senders = append(senders, s)
		running.Go(func() { s.pushUntil(ctx, stop) })
	}
	ended := func() { close(stop); running.Wait() }
	began := time.Now()
	for kill := range kills {
		select {
		case <-begins:
		case <-time.After(30 * time.Second):
			ended()
			t.Fatalf("before kill %d: nobody pushes", kill)
		}
		pause(t, time.Duration(random.Int64N(int64(50*time.Millisecond))))
		ingest.Kill9()
		ingest.Again()
	}
	took := time.Since(began)
	ended()

	log, tries, pushes := numbered.Log{}, 0, 0
	for _, s := range senders {
		log[s.name] = s.served
		tries, pushes = tries+s.tries, pushes+len(s.served)
	}
	t.Logf("%d kills within %s, %d pushes acknowledged after %d requests", kills, took.Round(time.Second), pushes, tries)
	if pushes < kills || tries == pushes {
		t.Errorf("%d pushes by %d requests for %d kills", pushes, tries, kills)
	}
	eventually(t, 60*time.Second, "everything sent", func() error {
		if c := end.Complete(log); len(c.Missing)+len(c.Partial) > 0 {
			return fmt.Errorf("%d pushes are missing, %d arrived in part", len(c.Missing), len(c.Partial))
		}
		return nil
	})
	end.whole(t, log)
	end.inOrder(t)
	for _, s := range senders {
		s.arrivedAt(end)
	}
	for _, p := range []*proc{ingest, writer} {
		if code := p.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// arrivedAt checks that the endpoint has each series with every number and no other, by what it noted of the requests.
func (s *pushSender) arrivedAt(e *endpoint) {
	s.t.Helper()
	e.ledger.mu.Lock()
	defer e.ledger.mu.Unlock()
	for i, ls := range s.series {
		hash, numbers := ls.Hash(), map[uint64]bool{}
		for key, bits := range e.samples {
			if key.series != hash {
				continue
			}
			n, ok := s.codes[i].N(math.Float64frombits(bits))
			if !ok || n > uint64(len(s.served)) {
				s.t.Errorf("%s @%d arrived with %s, which was not pushed", ls, key.time, floatText(bits))
			}
			numbers[n] = true
		}
		if len(numbers) != len(s.served) {
			s.t.Errorf("%s: %d of %d acknowledged samples arrived", ls, len(numbers), len(s.served))
		}
	}
}
