package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// otlpCase is a way from an application to an endpoint.
type otlpCase struct {
	name     string
	grpc     bool   // Millrace gets it by gRPC, and otherwise by HTTP; Prometheus always by HTTP
	protocol string // in which Millrace writes
	delta    bool   // the application's temporality
	otlp     string // the content of the section otlp, the same for both
	features string // of both Prometheus servers
}

func otlpCases() []otlpCase {
	return []otlpCase{
		{name: "defaults over HTTP, 1.0", protocol: protocol1},
		{name: "defaults over gRPC, 1.0", grpc: true, protocol: protocol1},
		{name: "defaults over HTTP, 2.0", protocol: protocol2},
		{name: "defaults over gRPC, 2.0", grpc: true, protocol: protocol2},
		{name: "deltas over HTTP, 1.0", protocol: protocol1, delta: true},
		{name: "deltas over gRPC, 2.0", grpc: true, protocol: protocol2, delta: true},
		{name: "start timestamps", grpc: true, protocol: protocol2, features: "created-timestamp-zero-ingestion"},
		{name: "start timestamps of deltas", protocol: protocol2, delta: true, features: "created-timestamp-zero-ingestion"},
		{name: "NoUTF8EscapingWithSuffixes", grpc: true, protocol: protocol2, otlp: "translation_strategy: NoUTF8EscapingWithSuffixes"},
		{name: "NoUTF8EscapingWithSuffixes, 1.0", protocol: protocol1, otlp: "translation_strategy: NoUTF8EscapingWithSuffixes"},
		{name: "UnderscoreEscapingWithoutSuffixes", protocol: protocol1, otlp: "translation_strategy: UnderscoreEscapingWithoutSuffixes"},
		{name: "NoTranslation", protocol: protocol2, otlp: "translation_strategy: NoTranslation"},
		{name: "promoted attributes", protocol: protocol1, otlp: "promote_resource_attributes: [host.name, deployment.environment, process.pid, größe, missing]"},
		{name: "all attributes promoted", grpc: true, protocol: protocol2, otlp: "promote_all_resource_attributes: true"},
		{name: "all attributes promoted but some", protocol: protocol2, otlp: "promote_all_resource_attributes: true, ignore_resource_attributes: [process.pid, host.name]"},
		{name: "identifying attributes kept", protocol: protocol1, otlp: "keep_identifying_resource_attributes: true"},
		{name: "histograms with custom buckets", grpc: true, protocol: protocol2, otlp: "convert_histograms_to_nhcb: true"},
		{name: "deltas with custom buckets", protocol: protocol2, delta: true, otlp: "convert_histograms_to_nhcb: true"},
		{name: "scopes promoted", protocol: protocol2, otlp: "promote_scope_metadata: true"},
		{name: "scopes and all attributes promoted, no translation", grpc: true, protocol: protocol2, delta: true,
			otlp: "promote_scope_metadata: true, promote_all_resource_attributes: true, translation_strategy: NoTranslation"},
		{name: "underscores", protocol: protocol1, otlp: "label_name_underscore_sanitization: true, label_name_preserve_multiple_underscores: true"},
	}
}

// otlpRounds is how often the application exports.
const otlpRounds = 6

// TestPushedOTLPEqualsPrometheus is the promise that OTLP means what it means to Prometheus: an application exports the same points to Millrace,
// which writes them to a Prometheus, and to a Prometheus by itself. Both know the same afterwards.
func TestPushedOTLPEqualsPrometheus(t *testing.T) {
	for _, tc := range otlpCases() {
		t.Run(tc.name, func(t *testing.T) { tc.run(t) })
	}
}

func (tc otlpCase) run(t *testing.T) {
	began := time.Now()
	options := []option{withArgs("--web.enable-otlp-receiver", "--enable-feature=otlp-deltatocumulative")}
	if tc.features != "" {
		options = append(options, withArgs("--enable-feature="+tc.features))
	}
	config := "global: {external_labels: {}}\notlp: {" + tc.otlp + "}\n"
	direct, written := startPrometheus(t, config, options...), startPrometheus(t, config, options...)
	rec := newRecorder(t, written.URL+"/api/v1/write")
	message := map[string]string{protocol1: "prometheus.WriteRequest", protocol2: "io.prometheus.write.v2.Request"}[tc.protocol]
	w := newWays(t)
	m := startMillrace(t, config+fmt.Sprintf(`remote_write:
- {name: main, url: %q, protobuf_message: %s, send_exemplars: true, send_native_histograms: true, metadata_config: {send_interval: 1s}}
millrace:
%s`, rec.URL, message, w.config(fmt.Sprintf("delta: {enabled: %t}", tc.delta))), w.options()...)

	described := newDescriber(t, config, direct)
	tc.export(t, exporterTo(t, w, tc.grpc), exporterTo(t, described.ways(), false))

	var want, answers map[string]string
	eventually(t, 20*time.Second, "the same samples", func() error {
		want = flatSamples(stored(t, direct, began.Add(-time.Hour), time.Now()))
		return difference(want, flatSamples(stored(t, written, began.Add(-time.Hour), time.Now())))
	})
	eventually(t, 20*time.Second, "the same answers", func() error {
		answers = samplesAsked(t, direct)
		return difference(answers, samplesAsked(t, written))
	})
	tc.checkVariety(t, want, answers)
	tc.compareExemplars(t, direct, written, began)
	if tc.protocol == protocol1 {
		described.arrives(t, rec)
	}
	for _, p := range []*proc{m, direct, written} {
		if code := p.Stop(); code != 0 {
			t.Errorf("%s ended with code %d", p.name, code)
		}
	}
	if tc.protocol == protocol2 {
		if err := difference(described.metadata(), storedMetadata(t, written)); err != nil {
			t.Errorf("metadata: %v", err)
		}
	}
}

func (tc otlpCase) compareExemplars(t *testing.T, direct, written *proc, from time.Time) {
	t.Helper()
	eventually(t, 20*time.Second, "the same exemplars", func() error {
		want, got := eachExemplar(t, direct, from), eachExemplar(t, written, from)
		if len(want) < 100 {
			t.Fatalf("only %d exemplars", len(want))
		}
		if tc.delta {
			// Prometheus keeps those of the first delta of a series alone; Millrace those of all.
			maps.DeleteFunc(got, func(e, _ string) bool { _, ok := want[e]; return !ok })
		}
		return difference(want, got)
	})
}

// export exports rounds of the application, and of points by hand, to both.
func (tc otlpCase) export(t *testing.T, toMillrace, toPrometheus *otlpExporter) {
	t.Helper()
	temporality := sdkmetric.CumulativeTemporalitySelector
	if tc.delta {
		temporality = sdkmetric.DeltaTemporalitySelector
	}
	app := newApplication(t, temporality)
	start := time.Now().Add(-time.Second)
	for round := 1; round <= otlpRounds; round++ {
		collected, byHand := app.next(), pointsByHand(round, start, time.Now())
		for to, exporter := range map[string]*otlpExporter{"Millrace": toMillrace, "Prometheus": toPrometheus} {
			if err := exporter.sdk.Export(t.Context(), collected); err != nil {
				t.Fatalf("round %d to %s: %v", round, to, err)
			}
			if err := exporter.send(byHand, round%2 == 0); err != nil {
				t.Fatalf("round %d by hand to %s: %v", round, to, err)
			}
		}
		pause(t, 20*time.Millisecond) // timestamps are milliseconds
	}
}

// otlpExporter exports to one receiver.
type otlpExporter struct {
	sdk sdkmetric.Exporter
	// send sends a request as it is; as JSON where the protocol has it.
	send func(md pmetric.Metrics, asJSON bool) error
}

func exporterTo(t *testing.T, w ways, byGRPC bool) *otlpExporter {
	t.Helper()
	e := &otlpExporter{}
	var err error
	if byGRPC {
		conn, dialErr := grpc.NewClient(w.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if dialErr != nil {
			t.Fatal(dialErr)
		}
		t.Cleanup(func() { conn.Close() })
		e.sdk, err = otlpmetricgrpc.New(t.Context(), otlpmetricgrpc.WithGRPCConn(conn), otlpmetricgrpc.WithCompressor("gzip"))
		client := pmetricotlp.NewGRPCClient(conn)
		e.send = func(md pmetric.Metrics, _ bool) error {
			answer, err := client.Export(t.Context(), pmetricotlp.NewExportRequestFromMetrics(md))
			if p := answer.PartialSuccess(); err == nil && (p.RejectedDataPoints() != 0 || p.ErrorMessage() != "") {
				err = fmt.Errorf("%d points refused: %s", p.RejectedDataPoints(), p.ErrorMessage())
			}
			return err
		}
	} else {
		e.sdk, err = otlpmetrichttp.New(t.Context(), otlpmetrichttp.WithEndpointURL(w.otlpURL()), otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression))
		e.send = func(md pmetric.Metrics, asJSON bool) error { return sendOTLP(w.otlpURL(), md, asJSON) }
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.sdk.Shutdown(context.WithoutCancel(t.Context())) })
	return e
}

// sendOTLP sends points by HTTP.
func sendOTLP(url string, md pmetric.Metrics, asJSON bool) error {
	request := pmetricotlp.NewExportRequestFromMetrics(md)
	marshal, contentType := request.MarshalProto, otlpType
	if asJSON {
		marshal, contentType = request.MarshalJSON, jsonType
	}
	body, err := marshal()
	if err != nil {
		return err
	}
	status, answer, err := post(http.DefaultClient, url, body, map[string]string{"Content-Type": contentType})
	if err == nil && (status != http.StatusOK || strings.Contains(answer, "rejected")) {
		err = fmt.Errorf("status %d: %s", status, answer)
	}
	return err
}

// flatSamples tells the samples of each series with their times.
func flatSamples(series map[string][]point) map[string]string {
	m := make(map[string]string, len(series))
	for name, points := range series {
		var list []string
		for _, p := range points {
			list = append(list, fmt.Sprintf("%d: %s", p.t, p.v))
		}
		m[name] = strings.Join(list, " | ")
	}
	return m
}

// samplesAsked returns the answer to a query for all samples, which remote read tells in all bits but that of -0.
func samplesAsked(t testing.TB, p *proc) map[string]string {
	t.Helper()
	var data struct {
		Result []struct {
			Metric             labels.Labels
			Values, Histograms json.RawMessage
		}
	}
	api(t, p, "/api/v1/query", url.Values{"query": {`{__name__=~".+"}[2h]`}}, &data)
	m := make(map[string]string, len(data.Result))
	for _, s := range data.Result {
		m[s.Metric.String()] = string(s.Values) + string(s.Histograms)
	}
	return m
}

// eachExemplar returns the exemplars with their series, each as a key.
func eachExemplar(t testing.TB, p *proc, from time.Time) map[string]string {
	t.Helper()
	m := map[string]string{}
	for series, list := range exemplars(t, p, from.Add(-time.Hour), time.Now(), func(labels.Labels) bool { return true }) {
		for e := range strings.SplitSeq(list, ", {") {
			m[series+" {"+strings.TrimPrefix(e, "{")] = "an exemplar"
		}
	}
	return m
}

// checkVariety fails the test where the points do not have everything that the comparison is about.
func (tc otlpCase) checkVariety(t *testing.T, samples, answers map[string]string) {
	t.Helper()
	all := strings.Join(slices.Concat(slices.Collect(maps.Values(samples)), slices.Collect(maps.Values(answers))), "\n")
	for _, what := range []string{staleBits, `"-0"`, "(NaN)", "(+Inf)", "(-Inf)", "(5e-324)", "int {"} {
		if !strings.Contains(all, what) {
			t.Errorf("nothing is compared that has %q", what)
		}
	}
	names := strings.Join(slices.Collect(maps.Keys(samples)), "\n")
	for _, what := range []string{`__name__="target_info"`, "größe", `quantile="0.99"`, `begins="late"`} {
		if !strings.Contains(names, what) && !(what == "größe" && !strings.Contains(tc.otlp, "No")) {
			t.Errorf("no series has %s", what)
		}
	}
	for series, points := range samples {
		// The start shows as a sample of its own.
		if n := strings.Count(points, " | ") + 1; tc.features != "" && strings.Contains(series, `always="true"`) && strings.Contains(series, "requests") && n != otlpRounds+1 {
			t.Errorf("%s has %d samples, want %d: %s", series, n, otlpRounds+1, points)
		}
	}
	if len(samples) < 150 {
		t.Errorf("only %d series", len(samples))
	}
	t.Logf("%d series compared", len(samples))
}
