package e2e_test

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
)

// lastingAddress returns an address of 127.0.0.1 that stays free while the process is away that a test kills: the system does not give
// its port to outgoing connections.
func lastingAddress(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))); err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

// ways are the addresses at which a millrace process takes pushes.
type ways struct {
	web, http, grpc string
	path            string // of OTLP by HTTP. Default: /v1/metrics
}

func newWays(t testing.TB) ways {
	t.Helper()
	return ways{web: lastingAddress(t), http: lastingAddress(t), grpc: lastingAddress(t)}
}

// config returns a part of the millrace block: where OTLP is taken. more are further lines of the ingest block, without indentation.
func (w ways) config(more ...string) string {
	s := fmt.Sprintf("  ingest:\n    otlp:\n      grpc: {listen: %q}\n      http: {listen: %q}\n", w.grpc, w.http)
	for _, line := range more {
		s += "    " + line + "\n"
	}
	return s
}

// options are those of a process that takes pushes at these addresses.
func (w ways) options() []option {
	return []option{onAddress(w.web), withArgs("--web.enable-remote-write-receiver")}
}

func (w ways) otlpURL() string        { return "http://" + w.http + cmp.Or(w.path, "/v1/metrics") }
func (w ways) remoteWriteURL() string { return "http://" + w.web + "/api/v1/write" }

// Content types of pushes.
const (
	otlpType    = "application/x-protobuf"
	jsonType    = "application/json"
	write1Type  = "application/x-protobuf"
	write2Type  = "application/x-protobuf;proto=io.prometheus.write.v2.Request"
	grpcType    = "application/grpc+proto"
	grpcService = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
)

// pushed is a sample that a test pushes.
type pushed struct {
	labels labels.Labels // as they arrive
	time   int64         // in milliseconds
	value  float64
}

// otlpBody returns an OTLP request of gauges, which become these samples with Prometheus's default translation.
func otlpBody(t testing.TB, list []pushed) []byte {
	t.Helper()
	md := pmetric.NewMetrics()
	resources := map[string]pmetric.MetricSlice{}
	for _, p := range list {
		job, instance := p.labels.Get(model.JobLabel), p.labels.Get(model.InstanceLabel)
		metrics, ok := resources[job+"\xff"+instance]
		if !ok {
			r := md.ResourceMetrics().AppendEmpty()
			putUnlessEmpty(r.Resource().Attributes(), "service.name", job)
			putUnlessEmpty(r.Resource().Attributes(), "service.instance.id", instance)
			metrics = r.ScopeMetrics().AppendEmpty().Metrics()
			resources[job+"\xff"+instance] = metrics
		}
		m := metrics.AppendEmpty()
		m.SetName(p.labels.Get(model.MetricNameLabel))
		d := m.SetEmptyGauge().DataPoints().AppendEmpty()
		d.SetTimestamp(pcommon.NewTimestampFromTime(time.UnixMilli(p.time)))
		d.SetDoubleValue(p.value)
		p.labels.Range(func(l labels.Label) {
			switch l.Name {
			case model.MetricNameLabel, model.JobLabel, model.InstanceLabel:
			default:
				d.Attributes().PutStr(l.Name, l.Value)
			}
		})
	}
	body, err := pmetricotlp.NewExportRequestFromMetrics(md).MarshalProto()
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func putUnlessEmpty(attributes pcommon.Map, name, value string) {
	if value != "" {
		attributes.PutStr(name, value)
	}
}

// write1Body returns a compressed remote_write 1.0 request.
func write1Body(t testing.TB, list []pushed) []byte {
	t.Helper()
	var req prompb.WriteRequest
	for _, p := range list {
		req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
			Labels: prompb.FromLabels(p.labels, nil), Samples: []prompb.Sample{{Timestamp: p.time, Value: p.value}},
		})
	}
	body, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return snappy.Encode(nil, body)
}

// write2Body returns a compressed remote_write 2.0 request.
func write2Body(t testing.TB, list []pushed) []byte {
	t.Helper()
	symbols := writev2.NewSymbolTable()
	var req writev2.Request
	for _, p := range list {
		req.Timeseries = append(req.Timeseries, writev2.TimeSeries{
			LabelsRefs: symbols.SymbolizeLabels(p.labels, nil), Samples: []writev2.Sample{{Timestamp: p.time, Value: p.value}},
			Metadata: writev2.Metadata{Type: writev2.Metadata_METRIC_TYPE_GAUGE},
		})
	}
	req.Symbols = symbols.Symbols()
	body, err := req.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return snappy.Encode(nil, body)
}

// post sends a body by HTTP and returns the answer's status and text.
func post(client *http.Client, url string, body []byte, header map[string]string) (int, string, error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(string(body)))
	if err != nil {
		return 0, "", err
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, string(answer), err
}
