package e2e_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/trace"
)

// application is a program with metrics of all kinds, made by OpenTelemetry's SDK. It has its own provider and exports nothing by itself.
type application struct {
	t        testing.TB
	reader   *sdkmetric.ManualReader
	round    int
	random   *rand.Rand
	recorded []func(ctx context.Context, attributes ...attribute.KeyValue)
}

// lateRound is the round in which further series begin.
const lateRound = 3

func newApplication(t testing.TB, temporality sdkmetric.TemporalitySelector) *application {
	t.Helper()
	a := &application{t: t, reader: sdkmetric.NewManualReader(sdkmetric.WithTemporalitySelector(temporality)), random: rand.New(rand.NewPCG(1, 2))}
	provider := sdkmetric.NewMeterProvider(
		sdkmetric.WithReader(a.reader),
		sdkmetric.WithResource(resource.NewWithAttributes("https://opentelemetry.io/schemas/1.26.0",
			attribute.String("service.name", "shop"), attribute.String("service.namespace", "sales"), attribute.String("service.instance.id", "shop-1"),
			attribute.String("host.name", "node-7"), attribute.String("deployment.environment", "test"), attribute.Int("process.pid", 4711),
			attribute.StringSlice("process.command_args", []string{"shop", "--port=80"}), attribute.String("größe", "XL"), attribute.String("host_name", "node_7"),
		)),
		sdkmetric.WithView(
			sdkmetric.NewView(sdkmetric.Instrument{Name: "rpc.*"}, sdkmetric.Stream{Aggregation: sdkmetric.AggregationBase2ExponentialHistogram{MaxSize: 40, MaxScale: 20}}),
			sdkmetric.NewView(sdkmetric.Instrument{Name: "renamed"}, sdkmetric.Stream{Name: "größe.des/Fasses №1", Description: "Ein Name, den das SDK nicht nähme."}),
			// What a view takes away from the attributes goes out with the exemplars.
			sdkmetric.NewView(sdkmetric.Instrument{Name: "http.server.request.size"}, sdkmetric.Stream{AttributeFilter: attribute.NewDenyKeysFilter("user.id")}),
		),
	)
	t.Cleanup(func() {
		if err := provider.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("ending the application's metrics: %v", err)
		}
	})
	a.synchronous(provider.Meter("shop/server", metric.WithInstrumentationVersion("1.2.3"), metric.WithSchemaURL("https://example.com/schema"),
		metric.WithInstrumentationAttributes(attribute.String("scope.kind", "server"), attribute.Bool("beta", true))))
	a.observable(provider.Meter("shop/runtime"))
	return a
}

// instrument fails the test where the SDK refuses an instrument.
func instrument[T any](t testing.TB, made T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// synchronous makes the instruments that record when something happens.
func (a *application) synchronous(m metric.Meter) {
	requests, err := m.Int64Counter("http.server.requests", metric.WithUnit("1"), metric.WithDescription("Requests served."))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { requests.Add(ctx, a.random.Int64N(1000), o) })
	sent, err := m.Float64Counter("network/io-sent", metric.WithUnit("By"), metric.WithDescription("Bytes sent, with \"quotes\" and\na line break."))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { sent.Add(ctx, a.random.Float64()*1e9, o) })
	queued, err := m.Int64UpDownCounter("queue.size", metric.WithUnit("{items}"))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { queued.Add(ctx, a.random.Int64N(100)-50, o) })
	balance, err := m.Float64UpDownCounter("account.balance", metric.WithUnit("EUR"))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { balance.Add(ctx, a.random.NormFloat64(), o) })
	workers, err := m.Int64Gauge("workers")
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) {
		workers.Record(ctx, a.random.Int64N(math.MaxInt64), o)
	})
	temperature, err := m.Float64Gauge("room.temperature", metric.WithUnit("Cel"), metric.WithDescription("Temperature."))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) {
		temperature.Record(ctx, unusualValue(a.round), o)
	})
	renamed, err := m.Int64Gauge("renamed", metric.WithUnit("L"))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { renamed.Record(ctx, int64(a.round), o) })

	duration, err := m.Float64Histogram("http.server.duration", metric.WithUnit("ms"), metric.WithExplicitBucketBoundaries(1, 2.5, 10, 100, 1000))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) {
		duration.Record(ctx, math.Exp(a.random.Float64()*9), o)
	})
	size, err := m.Int64Histogram("http.server.request.size", metric.WithUnit("By"), metric.WithDescription("Sizes of requests."))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) { size.Record(ctx, a.random.Int64N(20000), o) })
	latency, err := m.Float64Histogram("rpc.duration", metric.WithUnit("s"), metric.WithDescription("Becomes a native histogram."))
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) {
		latency.Record(ctx, math.Exp(a.random.NormFloat64()*3), o)
	})
	drift, err := m.Float64Histogram("rpc.drift")
	a.record(err, func(ctx context.Context, o metric.MeasurementOption) {
		drift.Record(ctx, a.random.NormFloat64(), o)
		drift.Record(ctx, 0, o)
	})
}

// record makes the rounds record with an instrument.
func (a *application) record(err error, do func(context.Context, metric.MeasurementOption)) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
	a.recorded = append(a.recorded, func(ctx context.Context, attributes ...attribute.KeyValue) {
		do(ctx, metric.WithAttributes(attributes...))
	})
}

// unusualValue returns a value that is easily lost on the way.
func unusualValue(i int) float64 {
	values := []float64{math.Copysign(0, -1), math.SmallestNonzeroFloat64, math.MaxFloat64, math.Inf(1), math.Inf(-1), math.NaN(), 1 << 60, 0.1}
	return values[i%len(values)]
}

// observable makes the instruments that are asked at each collection.
func (a *application) observable(m metric.Meter) {
	t := a.t
	cpu, err := m.Float64ObservableCounter("process.cpu.time", metric.WithUnit("s"), metric.WithDescription("CPU time."))
	seconds := instrument(t, cpu, err)
	faults, err := m.Int64ObservableCounter("process.page/faults")
	count := instrument(t, faults, err)
	threads, err := m.Int64ObservableUpDownCounter("process.threads", metric.WithUnit("{threads}"))
	up := instrument(t, threads, err)
	usage, err := m.Float64ObservableGauge("process.memory.usage", metric.WithUnit("By"))
	gauge := instrument(t, usage, err)
	load, err := m.Int64ObservableGauge("load", metric.WithUnit("%"))
	percent := instrument(t, load, err)
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		n := float64(a.round)
		for i := range 3 {
			state := metric.WithAttributes(attribute.Int("cpu", i), attribute.String("state", "user"))
			o.ObserveFloat64(seconds, n*float64(i)+0.125, state)
			o.ObserveInt64(count, int64(n)*int64(i), state)
		}
		o.ObserveInt64(up, 10-int64(n))
		o.ObserveFloat64(gauge, 1e6*n/3)
		o.ObserveInt64(percent, int64(n)*7)
		return nil
	}, seconds, count, up, gauge, percent)
	if err != nil {
		t.Fatal(err)
	}
}

// next records a round's measurements and collects them.
func (a *application) next() *metricdata.ResourceMetrics {
	a.t.Helper()
	a.round++
	ctx := a.t.Context()
	sets := [][]attribute.KeyValue{
		{attribute.String("method", "GET"), attribute.Int("code", 200)},
		{attribute.String("straße", "Hauptstraße 1"), attribute.Bool("cached", true), attribute.Float64("q", 0.5), attribute.StringSlice("tags", []string{"a", "b"})},
		{attribute.String("a.b", "one"), attribute.String("a_b", "two"), attribute.String("1st", "first"), attribute.String("_private", "p"), attribute.String("a__b", "x")},
		{},
	}
	if a.round >= lateRound {
		sets = append(sets, []attribute.KeyValue{attribute.String("begins", "late"), attribute.Int("round", lateRound)})
	}
	for _, record := range a.recorded {
		for i, set := range sets {
			record(ctx, set...)
			for n := range 3 {
				record(a.inSpan(ctx, i, n), append([]attribute.KeyValue{attribute.String("user.id", fmt.Sprintf("u%d", n))}, set...)...)
			}
		}
	}
	var collected metricdata.ResourceMetrics
	if err := a.reader.Collect(ctx, &collected); err != nil {
		a.t.Fatalf("collecting round %d: %v", a.round, err)
	}
	return &collected
}

// inSpan returns the context of a sampled span, so that what is recorded in it becomes an exemplar.
func (a *application) inSpan(ctx context.Context, set, n int) context.Context {
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{1, byte(a.round), byte(set), byte(n)}, SpanID: trace.SpanID{2, byte(a.random.IntN(256))}, TraceFlags: trace.FlagsSampled,
	}))
}
