package pusher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/config"
	native "github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace/millrace/bench/receiver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is an appendable that writes to a receiver what is committed, as an agent does to its endpoint.
type agent struct{ receiver *receiver.Receiver }

func (a agent) AppenderV2(context.Context) storage.AppenderV2 { return &appender{receiver: a.receiver} }

type appender struct {
	receiver *receiver.Receiver
	request  prompb.WriteRequest
}

func (a *appender) Append(ref storage.SeriesRef, l labels.Labels, _, at int64, v float64, _ *native.Histogram, _ *native.FloatHistogram,
	_ storage.AOptions) (storage.SeriesRef, error) {
	a.request.Timeseries = append(a.request.Timeseries, prompb.TimeSeries{
		Labels: prompb.FromLabels(l, nil), Samples: []prompb.Sample{{Value: v, Timestamp: at}},
	})
	return ref, nil
}

func (a *appender) Rollback() error { return nil }

func (a *appender) Commit() error {
	body, err := a.request.Marshal()
	if err != nil {
		return err
	}
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(snappy.Encode(nil, body)))
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("Content-Encoding", "snappy")
	w := httptest.NewRecorder()
	if a.receiver.ServeHTTP(w, r); w.Code != http.StatusNoContent {
		return fmt.Errorf("the receiver answered %d: %s", w.Code, w.Body)
	}
	return nil
}

// otlpHandler translates OTLP as Prometheus does and writes it to a receiver.
func otlpHandler(r *receiver.Receiver) http.Handler {
	c := config.DefaultConfig
	return remote.NewOTLPWriteHandler(promslog.NewNopLogger(), nil, agent{r}, func() config.Config { return c },
		remote.OTLPOptions{LookbackDelta: 5 * time.Minute})
}

// otlpService is OTLP's gRPC service over a handler for HTTP.
type otlpService struct {
	pmetricotlp.UnimplementedGRPCServer
	handler http.Handler
}

func (s *otlpService) Export(ctx context.Context, request pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	response := pmetricotlp.NewExportResponse()
	body, err := request.MarshalProto()
	if err != nil {
		return response, status.Error(codes.InvalidArgument, err.Error())
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/metrics", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/x-protobuf")
	w := httptest.NewRecorder()
	switch s.handler.ServeHTTP(w, r); {
	case w.Code == http.StatusServiceUnavailable:
		return response, status.Error(codes.Unavailable, w.Body.String())
	case w.Code != http.StatusOK:
		return response, status.Error(codes.InvalidArgument, w.Body.String())
	}
	return response, nil
}

// sometimes answers 503 to every fifth request, and to every seventh after having taken it.
func sometimes(handler http.Handler) http.Handler {
	turns := make(chan int, 1)
	turns <- 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		turn := <-turns + 1
		turns <- turn
		if turn%5 == 0 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		if turn%7 != 0 {
			handler.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(httptest.NewRecorder(), r)
		http.Error(w, "taken, but the answer was lost", http.StatusServiceUnavailable)
	})
}

// serve serves a protocol in front of a receiver and returns its URL.
func serve(t *testing.T, protocol Protocol, r *receiver.Receiver) string {
	t.Helper()
	handler := http.Handler(r)
	if protocol.isOTLP() {
		handler = otlpHandler(r)
	}
	handler = sometimes(handler)
	if protocol != OTLPGRPC {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		return server.URL + "/v1/metrics"
	}
	server := grpc.NewServer()
	pmetricotlp.RegisterGRPCServer(server, &otlpService{handler: handler})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return "http://" + listener.Addr().String()
}

// runUntil runs a pusher until a condition holds.
func runUntil(t *testing.T, p *Pusher, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Run(ctx)
	}()
	for tick := time.NewTicker(10 * time.Millisecond); !holds(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("not in time: %+v", p.Stats())
			cancel()
			<-done
			return
		}
	}
	cancel()
	<-done
}

// prove checks that everything that was acknowledged arrived.
func prove(t *testing.T, p *Pusher, r *receiver.Receiver) {
	t.Helper()
	stats, report, complete := p.Stats(), r.Report(), r.Complete(p.Log())
	if stats.Refused+stats.Rejected+stats.Unanswered > 0 {
		t.Errorf("stats %+v", stats)
	}
	if len(complete.Missing)+len(complete.Partial) > 0 || complete.Samples != stats.Samples || complete.ArrivedSamples != stats.Samples {
		t.Errorf("acknowledged %d, arrived %d, %d missing, %d partial", stats.Samples, complete.ArrivedSamples, len(complete.Missing), len(complete.Partial))
	}
	if report.Lost+report.Reordered+report.Changed+report.Refused > 0 {
		t.Errorf("report %+v", report)
	}
	if want := p.config.Senders * p.config.Series; report.Numbered != want {
		t.Errorf("%d numbered series, want %d", report.Numbered, want)
	}
}

func TestEverythingAcknowledgedArrives(t *testing.T) {
	for _, protocol := range Protocols() {
		t.Run(string(protocol), func(t *testing.T) {
			r := receiver.New(receiver.Config{})
			p, err := New(Config{
				URL: serve(t, protocol, r), Protocol: protocol, Senders: 12, Series: 60, Histograms: 2,
				Interval: 50 * time.Millisecond, MinBackoff: 5 * time.Millisecond, MaxBackoff: 20 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			runUntil(t, p, func() bool { return p.Stats().Acknowledged >= 200 })
			prove(t, p, r)
			if s := p.Stats(); s.Repeated == 0 || r.Report().Repeated == 0 || s.Answer.Count != s.Acknowledged {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestWhatIsAcknowledgedAndNotPassedOnIsFound(t *testing.T) {
	r := receiver.New(receiver.Config{})
	turns := make(chan int, 1)
	turns <- 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		turn := <-turns + 1
		turns <- turn
		if turn == 3 {
			return // acknowledged
		}
		r.ServeHTTP(w, request)
	}))
	defer server.Close()
	p, err := New(Config{URL: server.URL, Protocol: RemoteWrite, Senders: 1, Series: 20, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	runUntil(t, p, func() bool { return p.Stats().Acknowledged >= 6 })
	complete := r.Complete(p.Log())
	if len(complete.Missing) != 1 || complete.Missing[0].Target != "p0" || complete.Missing[0].Number != 3 || r.Report().Lost != 20 {
		t.Errorf("missing %+v, lost %d", complete.Missing, r.Report().Lost)
	}
}

func TestAThousandSenders(t *testing.T) {
	for _, protocol := range Protocols() {
		t.Run(string(protocol), func(t *testing.T) {
			r := receiver.New(receiver.Config{})
			// Few pushes a second, and one of each sender at a time: a slow machine is to take longer, not to pile them up until none is answered in time.
			p, err := New(Config{
				URL: serve(t, protocol, r), Protocol: protocol, Senders: 1000, Series: 12, MaxBackoff: 200 * time.Millisecond,
				Interval: 15 * time.Second, QueueLimit: 1, Timeout: time.Minute, Drain: time.Minute,
			})
			if err != nil {
				t.Fatal(err)
			}
			runUntil(t, p, func() bool {
				served := p.Served()
				return len(served) == 1000 && slices.Min(slices.Collect(maps.Values(served))) > 0
			})
			prove(t, p, r)
		})
	}
}

func TestAPusherTellsOverHTTP(t *testing.T) {
	r := receiver.New(receiver.Config{})
	p, err := New(Config{URL: serve(t, RemoteWrite, r), Protocol: RemoteWrite, Senders: 2, Series: 12, Interval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	runUntil(t, p, func() bool { return p.Stats().Acknowledged >= 4 })
	get := func(method, path string, into any) {
		t.Helper()
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != http.StatusOK {
			t.Fatalf("%s answered %d: %s", path, w.Code, w.Body)
		}
		if into != nil {
			if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
				t.Fatal(err)
			}
		}
	}
	var stats Stats
	var served map[string]int
	var log map[string][]json.RawMessage
	get(http.MethodGet, "/stats", &stats)
	get(http.MethodGet, "/served", &served)
	get(http.MethodGet, "/served?log=1", &log)
	if stats.Acknowledged != served["p0"]+served["p1"] || len(log["p1"]) != served["p1"] {
		t.Errorf("stats %+v, served %v, log %v", stats, served, log)
	}
	get(http.MethodPost, "/window", nil)
	if s := p.Stats(); s.Answer.Count != 0 {
		t.Errorf("answers %+v of a new window", s.Answer)
	}
}
