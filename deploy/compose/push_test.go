package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/prompb"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/receiver"
)

const (
	// pushJob is the job of what is pushed, which the receiver gets too.
	pushJob = "push"
	// deltas is a counter that OTLP pushes have beside the number: in deltas of 1, so that the sum is the number of pushes.
	deltas = "millrace_compose_pushes"
	// pushPace is the time between an answer and the next push or try.
	pushPace = 250 * time.Millisecond
	// pushTime is how long a push waits for its answer before it is tried at another container.
	pushTime = 5 * time.Second
)

// errRefused is wrapped by answers after which trying again makes no sense.
var errRefused = errors.New("the push is refused for good")

// try sends a push, the same bytes each time, to an address. It returns nil where the push is acknowledged.
type try func(ctx context.Context, address string) error

// pusher is an application that pushes numbers, one after the other, through one door of ingest: each until it is acknowledged, to whichever container answers.
type pusher struct {
	name       string // the label "target" of its series
	port       int    // of the door, in the container
	push       func(name string, n uint64, at time.Time) (try, error)
	containers []string

	mu      sync.Mutex
	acked   []numbered.Served // number n is at n-1
	failure error             // of the last try that failed
}

// pushers push until verify, or until the test ends.
type pushers struct {
	s    *stack
	all  []*pusher
	quit chan struct{} // closed when no further numbers are to be pushed
	done sync.WaitGroup
}

// startPushers starts an application for each door.
func (s *stack) startPushers() *pushers {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &pushers{s: s, quit: make(chan struct{}), all: []*pusher{
		{name: "otlp_grpc", port: 4317, push: pushGRPC}, {name: "otlp_http", port: 4318, push: pushHTTP}, {name: "remote_write", port: 9474, push: pushRemoteWrite},
	}}
	for _, one := range p.all {
		one.containers = s.containers("ingest")
		p.done.Go(func() { one.run(ctx, p.quit) })
	}
	s.t.Cleanup(func() {
		cancel()
		p.done.Wait()
	})
	return p
}

// run pushes until quit is closed and the last push is acknowledged, until ctx ends, or until a push is refused.
func (p *pusher) run(ctx context.Context, quit <-chan struct{}) {
	for n := uint64(1); ; n++ {
		at := time.Now()
		send, err := p.push(p.name, n, at)
		for err == nil {
			if err = p.try(ctx, send); err == nil {
				break
			}
			p.mu.Lock()
			p.failure = fmt.Errorf("push %d by %s: %w", n, p.name, err)
			p.mu.Unlock()
			if ctx.Err() != nil || errors.Is(err, errRefused) {
				return
			}
			p.containers = append(p.containers[1:], p.containers[0]) // another may be alive
			err = pace(ctx, nil)
		}
		p.mu.Lock()
		if err == nil {
			p.acked = append(p.acked, numbered.Served{At: at, Samples: 1, Completed: true})
		} else if p.failure == nil {
			p.failure = err
		}
		p.mu.Unlock()
		if err != nil || pace(ctx, quit) != nil {
			return
		}
	}
}

// try sends a push to the container at hand, whose ports are others each time that it is started.
func (p *pusher) try(ctx context.Context, send try) error {
	ctx, cancel := context.WithTimeout(ctx, pushTime)
	defer cancel()
	address, err := command(ctx, "docker", "port", p.containers[0], fmt.Sprintf("%d/tcp", p.port))
	if err != nil {
		return err
	}
	if address = strings.TrimSpace(address); address == "" {
		return errors.New("the container does not run")
	}
	return send(ctx, address)
}

// pace waits until the next push, or fails where there is to be none.
func pace(ctx context.Context, quit <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-quit:
		return context.Canceled
	case <-time.After(pushPace):
		return nil
	}
}

// state returns what was acknowledged, and ends the test where a push was refused.
func (p *pusher) state(t *recorder) ([]numbered.Served, error) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.failure, errRefused) {
		t.Fatal(p.failure)
	}
	return slices.Clone(p.acked), p.failure
}

// more waits until each application has two more pushes acknowledged: the answer to one may have been on its way before.
func (p *pushers) more(when string) {
	p.s.t.Helper()
	const more = 2
	for _, one := range p.all {
		before, _ := one.state(p.s.t)
		p.s.eventually("pushes by "+one.name+" are acknowledged "+when, func() error {
			now, err := one.state(p.s.t)
			if len(now) < len(before)+more {
				return fmt.Errorf("%d are, and %d were; the last failure: %w", len(now), len(before), err)
			}
			return nil
		})
	}
}

// verify ends the pushes and waits until all that was acknowledged is at the receiver and at the Prometheus, and the sums of the deltas too.
func (p *pushers) verify() {
	t := p.s.t
	t.Helper()
	p.more("in the end")
	close(p.quit)
	p.done.Wait() // in time, since every push was acknowledged just now
	log := numbered.Log{}
	want, wantSums := map[string]float64{}, map[string]float64{}
	for _, one := range p.all {
		log[one.name], _ = one.state(t)
		want[one.name] = float64(len(log[one.name]))
		if one.name != "remote_write" {
			wantSums[one.name] = want[one.name]
		}
	}
	t.Logf("pushes that were acknowledged: %v", want)
	body, err := json.Marshal(log)
	if err != nil {
		t.Fatal(err)
	}
	p.s.eventually("all acknowledged pushes are at the receiver", func() error {
		answer, err := post(t.Context(), "http://"+p.s.address("receiver", 1, 9476)+"/complete", body, http.Header{})
		if err != nil {
			return err
		}
		var c receiver.Completeness
		if err := json.Unmarshal(answer, &c); err != nil || len(c.Missing)+len(c.Partial) > 0 {
			return fmt.Errorf("of %d, missing: %v %v: %w", c.Scrapes, c.Missing, c.Partial, errors.Join(err, errNone))
		}
		return nil
	})
	p.s.eventually("all acknowledged pushes are at the Prometheus",
		p.s.are(fmt.Sprintf(`count_over_time(%s{job=%q}[6h])`, numbered.ScrapeMetric, pushJob), numbered.TargetLabel, want))
	p.s.eventually("the sums of all deltas are at the Prometheus",
		p.s.are(fmt.Sprintf(`max_over_time(%s_total{job=%q}[6h])`, deltas, pushJob), numbered.TargetLabel, wantSums))
}

// otlp is what an application pushes as number n.
func otlp(job, name string, n uint64, at time.Time) pmetricotlp.ExportRequest {
	m := pmetric.NewMetrics()
	resource := m.ResourceMetrics().AppendEmpty()
	resource.Resource().Attributes().PutStr("service.name", job)
	resource.Resource().Attributes().PutStr("service.instance.id", name)
	metrics := resource.ScopeMetrics().AppendEmpty().Metrics()
	point := func(to pmetric.NumberDataPointSlice, value float64) {
		p := to.AppendEmpty()
		p.Attributes().PutStr(numbered.TargetLabel, name)
		p.SetStartTimestamp(pcommon.NewTimestampFromTime(at.Add(-pushPace)))
		p.SetTimestamp(pcommon.NewTimestampFromTime(at))
		p.SetDoubleValue(value)
	}
	gauge := metrics.AppendEmpty()
	gauge.SetName(numbered.ScrapeMetric)
	point(gauge.SetEmptyGauge().DataPoints(), float64(n))
	counter := metrics.AppendEmpty()
	counter.SetName(deltas)
	sum := counter.SetEmptySum()
	sum.SetIsMonotonic(true)
	sum.SetAggregationTemporality(pmetric.AggregationTemporalityDelta)
	point(sum.DataPoints(), 1)
	return pmetricotlp.NewExportRequestFromMetrics(m)
}

// whole fails where a part of a request was refused.
func whole(r pmetricotlp.ExportResponse) error {
	if n := r.PartialSuccess().RejectedDataPoints(); n > 0 {
		return fmt.Errorf("%w: %d points: %s", errRefused, n, r.PartialSuccess().ErrorMessage())
	}
	return nil
}

func pushGRPC(name string, n uint64, at time.Time) (try, error) {
	request := otlp(pushJob, name, n, at)
	return func(ctx context.Context, address string) error {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		response, err := pmetricotlp.NewGRPCClient(conn).Export(ctx, request)
		switch code := status.Code(err); {
		case err == nil:
			return whole(response)
		case code == codes.InvalidArgument || code == codes.Unauthenticated || code == codes.Unimplemented:
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return err
	}, nil
}

func pushHTTP(name string, n uint64, at time.Time) (try, error) {
	body, err := otlp(pushJob, name, n, at).MarshalProto()
	return func(ctx context.Context, address string) error {
		response, err := postOTLP(ctx, address, body)
		if err != nil {
			return err
		}
		return whole(response)
	}, err
}

func postOTLP(ctx context.Context, address string, body []byte) (pmetricotlp.ExportResponse, error) {
	response := pmetricotlp.NewExportResponse()
	answer, err := post(ctx, "http://"+address+"/v1/metrics", body, http.Header{"Content-Type": {"application/x-protobuf"}})
	if err != nil {
		return response, err
	}
	return response, response.UnmarshalProto(answer)
}

func pushRemoteWrite(name string, n uint64, at time.Time) (try, error) {
	request := prompb.WriteRequest{Timeseries: []prompb.TimeSeries{{
		Labels: []prompb.Label{
			{Name: "__name__", Value: numbered.ScrapeMetric}, {Name: "instance", Value: name}, {Name: "job", Value: pushJob}, {Name: numbered.TargetLabel, Value: name},
		},
		Samples: []prompb.Sample{{Value: float64(n), Timestamp: at.UnixMilli()}},
	}}}
	body, err := request.Marshal()
	return func(ctx context.Context, address string) error {
		_, err := post(ctx, "http://"+address+"/api/v1/write", snappy.Encode(nil, body), http.Header{
			"Content-Type": {"application/x-protobuf"}, "Content-Encoding": {"snappy"}, "X-Prometheus-Remote-Write-Version": {"0.1.0"},
		})
		return err
	}, err
}

// post returns the answer to a request that was taken. An answer that does not ask to try again wraps errRefused.
func post(ctx context.Context, url string, body []byte, header http.Header) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	switch {
	case err != nil || resp.StatusCode/100 == 2:
		return answer, err
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode/100 == 5:
		return nil, fmt.Errorf("%s answers %s: %s", url, resp.Status, answer)
	}
	return nil, fmt.Errorf("%w: %s answers %s: %s", errRefused, url, resp.Status, answer)
}

// pushFuture pushes points of the future, which are refused and say so, under a job that the receiver does not get.
func (s *stack) pushFuture() {
	s.t.Helper()
	body, err := otlp("future", "future", 1, time.Now().Add(time.Hour)).MarshalProto()
	if err != nil {
		s.t.Fatal(err)
	}
	address := s.address("ingest", 1, 4318)
	s.eventually("points of the future are refused", func() error {
		response, err := postOTLP(s.t.Context(), address, body)
		if err == nil && response.PartialSuccess().RejectedDataPoints() == 0 {
			err = errors.New("they are taken")
		}
		return err
	})
}
