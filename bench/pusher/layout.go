package pusher

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/millrace/millrace/bench/numbered"
)

// digits stands in texts where the number of the sender is to be.
const digits = "\x00"

// The sender's names. The target label is not that of a load generator's targets, so that both may write to one receiver.
const (
	targetName  = "p" + digits
	serviceName = "checkout"
	namespace   = "shop"
	instance    = serviceName + "-" + digits + ".shop:8080"
)

// resource is what each sender says of itself, as an SDK does.
var resource = []attribute{
	{key: "service.name", value: serviceName},
	{key: "service.namespace", value: namespace},
	{key: "service.instance.id", value: instance},
	{key: "service.version", value: "2.14.3"},
	{key: "deployment.environment.name", value: "production"},
	{key: "host.name", value: serviceName + "-" + digits},
	{key: "os.type", value: "linux"},
	{key: "process.pid", number: 4711},
	{key: "telemetry.sdk.language", value: "go"},
	{key: "telemetry.sdk.name", value: "opentelemetry"},
	{key: "telemetry.sdk.version", value: "1.46.0"},
}

// attribute is one of a resource or of a data point.
type attribute struct {
	key, value string
	// number is the value if it is a number; then value is empty.
	number uint64
}

// label is what Prometheus makes of the attribute.
func (a attribute) label() label {
	if a.number != 0 {
		a.value = strconv.FormatUint(a.number, 10)
	}
	return label{strings.ReplaceAll(a.key, ".", "_"), a.value}
}

// kind is the type of an instrument.
type kind byte

const (
	sum kind = iota
	gauge
	histogram
)

// instrument is a metric of a sender.
type instrument struct {
	kind kind
	// name and unit are those of OTLP, prometheus is what both become there.
	name, unit, prometheus, help string
	shape                        numbered.Kind
	// integer says that OTLP has whole numbers as values.
	integer bool
	// attributes are what its points have beside shape and target; %d is the number of the point.
	attributes []attribute
}

// server are the attributes of what serves requests.
func server(method string, status uint64) []attribute {
	return []attribute{
		{key: "http.request.method", value: method}, {key: "http.response.status_code", number: status},
		{key: "http.route", value: "/api/v1/items/%d"}, {key: "url.scheme", value: "https"},
	}
}

// database are the attributes of what asks a database.
func database(operation string) []attribute {
	return []attribute{
		{key: "db.collection.name", value: "orders_%d"}, {key: "db.operation.name", value: operation},
		{key: "db.system.name", value: "postgresql"}, {key: "server.address", value: "orders.db.shop"},
	}
}

// queue are the attributes of a queue.
func queue() []attribute {
	return []attribute{
		{key: "messaging.consumer.group.name", value: "billing"}, {key: "messaging.destination.name", value: "jobs-%d"},
		{key: "messaging.operation.type", value: "process"}, {key: "messaging.system", value: "nats"},
	}
}

// instruments are what each sender has, beside its number of the push and its histograms.
var instruments = []instrument{
	{sum, "http.server.requests", "{request}", "http_server_requests_total", "Requests that were answered.", numbered.Counter, true, server("GET", 200)},
	{sum, "http.server.errors", "{request}", "http_server_errors_total", "Requests that failed.", numbered.Counter, true, server("POST", 503)},
	{sum, "http.server.request.body.size", "By", "http_server_request_body_size_bytes_total", "Bytes that were received.",
		numbered.Counter, true, server("POST", 201)},
	{sum, "db.client.operations", "{operation}", "db_client_operations_total", "Queries by table.", numbered.Counter, true, database("SELECT")},
	{sum, "db.client.operation.time", "s", "db_client_operation_time_seconds_total", "Time spent in queries.", numbered.Seconds, false, database("UPDATE")},
	{sum, "messaging.client.consumed.messages", "{message}", "messaging_client_consumed_messages_total", "Messages that were taken.",
		numbered.Counter, true, queue()},
	{gauge, "http.server.active_requests", "{request}", "http_server_active_requests", "Requests being served.", numbered.Gauge, false, server("GET", 200)},
	{gauge, "db.client.connection.idle", "{connection}", "db_client_connection_idle", "Connections at rest.", numbered.Gauge, false, database("SELECT")},
	{gauge, "messaging.queue.size", "By", "messaging_queue_size_bytes", "Bytes that wait.", numbered.Gauge, false, queue()},
	{gauge, "messaging.queue.age", "s", "messaging_queue_age_seconds", "Age of the oldest message.", numbered.Gauge, false, queue()},
}

// duration is the instrument of a sender's histograms.
var duration = instrument{
	histogram, "http.server.request.duration", "s", "http_server_request_duration_seconds", "How long requests took.",
	numbered.Histogram, false, server("GET", 200),
}

// number is the instrument of the push's number.
var number = instrument{gauge, numbered.ScrapeMetric, "", numbered.ScrapeMetric, "Number of this push of the sender.", numbered.Plain, true, nil}

// samplesOf is how many samples a histogram of OTLP becomes: its buckets, +Inf, _sum and _count.
var samplesOf = len(numbered.Bounds) + 3

// metric is an instrument with its points.
type metric struct {
	instrument
	points []point
}

// point is a data point of OTLP, one or more series of Prometheus.
type point struct {
	attributes []attribute
	// value is that of a number. For a histogram count and sum are, and value is what each of its buckets holds.
	value, count, sum numbered.Code
}

// layout is what each push of a sender holds: so many series, those of so many histograms among them.
func layout(series, histograms int) ([]metric, error) {
	step := uint64(1)
	build := func(i instrument, count int) (metric, error) {
		m := metric{instrument: i}
		for k := range count {
			step = step*1664525%numbered.MaxStep + 1
			p, err := newPoint(i, k, step)
			if err != nil {
				return m, err
			}
			m.points = append(m.points, p)
		}
		return m, nil
	}
	first, err := build(number, 1)
	if err != nil {
		return nil, err
	}
	out := []metric{first}
	numbers := series - 1 - histograms*samplesOf
	for i, in := range append(slices.Clone(instruments), duration) {
		count := numbers / len(instruments)
		switch {
		case in.kind == histogram:
			count = histograms
		case i < numbers%len(instruments):
			count++
		}
		m, err := build(in, count)
		if err != nil {
			return nil, err
		}
		if count > 0 {
			out = append(out, m)
		}
	}
	return out, nil
}

func newPoint(i instrument, index int, step uint64) (point, error) {
	var p point
	for _, a := range i.attributes {
		a.value = strings.ReplaceAll(a.value, "%d", strconv.Itoa(index))
		p.attributes = append(p.attributes, a)
	}
	shape := numbered.Shape(i.shape, i.shape.Step(step))
	if i.shape != numbered.Plain {
		p.attributes = append(p.attributes, attribute{key: numbered.ShapeLabel, value: shape})
	}
	p.attributes = append(p.attributes, attribute{key: numbered.TargetLabel, value: targetName})
	var err error
	if i.kind != histogram {
		p.value, err = numbered.Parse(shape, i.prometheus, "")
		return p, err
	}
	if p.value, err = numbered.Parse(shape, i.prometheus+"_bucket", bound(0)); err != nil {
		return p, err
	}
	if p.count, err = numbered.Parse(shape, i.prometheus+"_count", ""); err != nil {
		return p, err
	}
	p.sum, err = numbered.Parse(shape, i.prometheus+"_sum", "")
	return p, err
}

// bound is the le label of a histogram's i-th bucket, counted from 0.
func bound(i int) string {
	if i == len(numbered.Bounds) {
		return "+Inf"
	}
	return strconv.FormatFloat(numbered.Bounds[i], 'g', -1, 64)
}

// label of a series.
type label struct{ name, value string }

// series is one of remote_write.
type series struct {
	// labels are sorted by name.
	labels []label
	code   numbered.Code
	metric metric
}

// seriesOf are the series that a metric becomes in Prometheus, in the order of its points.
func seriesOf(m metric) ([]series, error) {
	var out []series
	add := func(p point, suffix, le string, code numbered.Code) {
		list := []label{{"__name__", m.prometheus + suffix}, {"instance", instance}, {"job", namespace + "/" + serviceName}}
		for _, a := range p.attributes {
			list = append(list, a.label())
		}
		if le != "" {
			list = append(list, label{"le", le})
		}
		slices.SortFunc(list, func(a, b label) int { return cmp.Compare(a.name, b.name) })
		out = append(out, series{list, code, m})
	}
	for _, p := range m.points {
		if m.kind != histogram {
			add(p, "", "", p.value)
			continue
		}
		shape := p.attributes[slices.IndexFunc(p.attributes, func(a attribute) bool { return a.key == numbered.ShapeLabel })].value
		for i := range len(numbered.Bounds) + 1 {
			code, err := numbered.Parse(shape, m.prometheus+"_bucket", bound(i))
			if err != nil {
				return nil, fmt.Errorf("laying out %s: %w", m.prometheus, err)
			}
			add(p, "_bucket", bound(i), code)
		}
		add(p, "_count", "", p.count)
		add(p, "_sum", "", p.sum)
	}
	return out, nil
}
