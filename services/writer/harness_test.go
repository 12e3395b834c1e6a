package writer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// point is a sample as an endpoint gets it.
type point struct {
	Series string
	T      int64
	V      float64
	Hist   bool
}

// request is what an endpoint was asked to take.
type request struct {
	points    []point
	exemplars int
	metadata  []string // families of version 1.0
	header    http.Header
	body      []byte
}

// recorder is a remote_write endpoint.
type recorder struct {
	*httptest.Server
	t *testing.T

	mu     sync.Mutex
	answer func(r *request) (status int, text string, header map[string]string) // nil: all is taken
	asked  []*request                                                           // all, in order
	taken  []point
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	e := &recorder{t: t}
	e.Server = httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(e.Close)
	return e
}

func (e *recorder) serve(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost { // a test of another package, whose target had this port before, scrapes
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the client has given up
	}
	protocol := 1
	if strings.Contains(req.Header.Get("Content-Type"), "v2.Request") {
		protocol = 2
	}
	r, err := decodeBody(protocol, body)
	if err != nil {
		e.t.Error(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	r.header, r.body = req.Header.Clone(), body
	e.mu.Lock()
	e.asked = append(e.asked, r)
	answer := e.answer
	e.mu.Unlock()
	if answer != nil {
		status, text, header := answer(r)
		for name, value := range header {
			w.Header().Set(name, value)
		}
		if status/100 != 2 {
			http.Error(w, text, status)
			return
		}
	}
	e.mu.Lock()
	e.taken = append(e.taken, r.points...)
	e.mu.Unlock()
}

func (e *recorder) answers(f func(r *request) (int, string, map[string]string)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

// points returns what the endpoint has taken, in order.
func (e *recorder) points() []point {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]point(nil), e.taken...)
}

func (e *recorder) requests() []*request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]*request(nil), e.asked...)
}

func decodeBody(protocol int, body []byte) (*request, error) {
	raw, err := snappy.Decode(nil, body)
	if err != nil {
		return nil, err
	}
	r := &request{}
	if protocol == 2 {
		var m writev2.Request
		if err := m.Unmarshal(raw); err != nil {
			return nil, err
		}
		var b labels.ScratchBuilder
		for _, ts := range m.Timeseries {
			ls, err := ts.ToLabels(&b, m.Symbols)
			if err != nil {
				return nil, err
			}
			for _, s := range ts.Samples {
				r.points = append(r.points, point{ls.String(), s.Timestamp, s.Value, false})
			}
			for _, h := range ts.Histograms {
				r.points = append(r.points, point{ls.String(), h.Timestamp, h.Sum, true})
			}
			r.exemplars += len(ts.Exemplars)
		}
		return r, nil
	}
	var m prompb.WriteRequest
	if err := m.Unmarshal(raw); err != nil {
		return nil, err
	}
	for _, ts := range m.Timeseries {
		var b labels.ScratchBuilder
		for _, l := range ts.Labels {
			b.Add(l.Name, l.Value)
		}
		series := b.Labels().String()
		for _, s := range ts.Samples {
			r.points = append(r.points, point{series, s.Timestamp, s.Value, false})
		}
		for _, h := range ts.Histograms {
			r.points = append(r.points, point{series, h.Timestamp, h.Sum, true})
		}
		r.exemplars += len(ts.Exemplars)
	}
	for _, f := range m.Metadata {
		r.metadata = append(r.metadata, f.MetricFamilyName+" "+f.Type.String()+" "+f.Help)
	}
	return r, nil
}

// rig is a service with streams of its own.
type rig struct {
	t    *testing.T
	conn *stream.Conn
	next [partitions]uint64 // samples published to each partition
	seq  uint64
}

const partitions = 2

func newRig(t *testing.T) *rig {
	t.Helper()
	return &rig{t: t, conn: streamtest.New(t, partitions)}
}

// service is a service that runs.
type service struct {
	*Service
	log  *logtest.Buffer
	reg  *prometheus.Registry
	stop func()
}

// start runs the service until stop or the end of the test. It returns once the endpoints read.
func (r *rig) start(endpoints []Endpoint, change ...func(*Config)) *service {
	r.t.Helper()
	s := &service{log: &logtest.Buffer{}, reg: prometheus.NewPedanticRegistry()}
	logger := slog.New(slog.NewTextHandler(s.log, nil))
	system := actor.NewSystem("test", logger, s.reg)
	member, leave := fleettest.Join(r.t, r.conn, "writer")
	cfg := Config{Conn: r.conn, Partitions: partitions, Fleet: member, CacheBytes: 64 << 20, Logger: logger, Registerer: s.reg}
	for _, f := range change {
		f(&cfg)
	}
	s.Service = New(cfg, system)
	if err := s.ApplyConfig(r.t.Context(), endpoints); err != nil {
		r.t.Fatal(err)
	}
	system.Spawn("writer-service", s.Service)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- system.Serve(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("the service ended with %v", err)
		}
		leave()
	})
	r.t.Cleanup(s.stop)
	for _, e := range endpoints {
		r.ready(e.Name)
	}
	return s
}

// ready waits until an endpoint has positions: what is published from then on is for it.
func (r *rig) ready(endpoint string) {
	r.t.Helper()
	for p := range partitions {
		await.True(r.t, "a position of "+endpoint, func() bool { return r.position(endpoint, p) != nil })
	}
}

func (r *rig) positions() jetstream.KeyValue {
	r.t.Helper()
	kv, err := r.conn.JS.KeyValue(r.t.Context(), r.conn.Bucket("positions"))
	if err != nil {
		r.t.Fatal(err)
	}
	return kv
}

// position returns the stored position, as it is; nil where there is none.
func (r *rig) position(endpoint string, partition int) []byte {
	r.t.Helper()
	entry, err := r.positions().Get(r.t.Context(), positionKey(endpoint, partition))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return entry.Value()
}

func positionKey(endpoint string, partition int) string {
	return fmt.Sprintf("writer.%s.%d", endpoint, partition)
}

// endpoint returns the configuration of an endpoint at the recorder.
func (e *recorder) endpoint(name string, change ...func(*Endpoint)) Endpoint {
	u, err := url.Parse(e.URL)
	if err != nil {
		e.t.Fatal(err)
	}
	rw := promconfig.DefaultRemoteWriteConfig
	rw.URL = &commonconfig.URL{URL: u}
	rw.Name = name
	rw.ProtobufMessage = remoteapi.WriteV1MessageType
	rw.QueueConfig.MinBackoff, rw.QueueConfig.MaxBackoff = model.Duration(time.Millisecond), model.Duration(20*time.Millisecond)
	rw.MetadataConfig.Send = false
	out := Endpoint{Name: name, RetryOn429: true, RemoteWriteConfig: &rw}
	for _, f := range change {
		f(&out)
	}
	return out
}

func v2(e *Endpoint) { e.ProtobufMessage = remoteapi.WriteV2MessageType }

// dict is a dictionary of a test.
type dict struct {
	*frame.Dictionary
	msg []byte
}

func (r *rig) dict(series ...frame.Series) *dict {
	r.t.Helper()
	d, msg, err := frame.NewDictionary("job", series)
	if err != nil {
		r.t.Fatal(err)
	}
	return &dict{d, msg}
}

// named returns a dictionary of n series that begin with a prefix.
func (r *rig) named(prefix string, n int) *dict {
	var list []frame.Series
	for i := range n {
		list = append(list, frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprintf("%s_%04d", prefix, i))})
	}
	return r.dict(list...)
}

func seriesName(prefix string, i int) string { return fmt.Sprintf(`{__name__="%s_%04d"}`, prefix, i) }

// announce publishes a dictionary and what the endpoints get for it.
func (r *rig) announce(partition int, d *dict, endpoints ...Endpoint) {
	r.t.Helper()
	r.publish(r.conn.Dict(partition, d.ID), d.msg)
	for _, e := range endpoints {
		r.relabelled(partition, d, e, e.Rules)
	}
}

func (r *rig) relabelled(partition int, d *dict, e Endpoint, by rules.Rules) {
	r.t.Helper()
	hash, err := by.Hash()
	if err != nil {
		r.t.Fatal(err)
	}
	series, _ := by.Apply(d.Series)
	msg, err := frame.EncodeRelabelled(d.ID, hash, series)
	if err != nil {
		r.t.Fatal(err)
	}
	r.publish(r.conn.Relabelled(e.Name, partition, d.ID), msg)
}

func (r *rig) publish(subject string, data []byte) {
	r.t.Helper()
	if _, err := r.conn.Publish(r.t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
		r.t.Fatal(err)
	}
}

// floats returns a frame with a value for every series of a dictionary.
func (r *rig) floats(d *dict, at int64, value float64) *frame.Frame {
	values := make([]float64, len(d.Series))
	for i := range values {
		values[i] = value
	}
	r.seq++
	return &frame.Frame{Source: 1, Epoch: 1, Seq: r.seq, Time: at, Sections: []frame.Section{{Dict: d.ID, Series: len(values), Values: values}}}
}

// send publishes frames as one message.
func (r *rig) send(partition int, frames ...*frame.Frame) {
	r.t.Helper()
	var w frame.BatchWriter
	var e frame.Encoder
	for _, f := range frames {
		w.Add(e.Encode(nil, f), f.Time, f.Samples())
	}
	samples := w.Header().Samples
	r.publish(r.conn.Frames(partition), w.Seal(r.next[partition]))
	r.next[partition] += uint64(samples)
}

// rejections returns what the stream REJECTED holds.
func (r *rig) rejections(endpoint string) (list []*stream.Rejection) {
	r.t.Helper()
	for seq := uint64(1); ; {
		msg, err := r.conn.Next(r.t.Context(), stream.Rejected, r.conn.Rejected(endpoint), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		if err != nil {
			r.t.Fatal(err)
		}
		rej, err := stream.ReadRejection(msg.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		list = append(list, rej)
		seq = msg.Seq + 1
	}
}

// value returns a metric's value of an endpoint; -1 where there is none.
func (s *service) value(t *testing.T, name, endpoint string) float64 {
	t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "endpoint" && l.GetValue() == endpoint {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return -1
}

func (e *recorder) wait(n int) []point {
	e.t.Helper()
	await.True(e.t, fmt.Sprint(n, " samples"), func() bool { return len(e.points()) >= n })
	return e.points()
}
