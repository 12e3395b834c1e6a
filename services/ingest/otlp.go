package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/services/ingest/door"
)

// The messages of OTLP (opentelemetry/proto/metrics/v1/metrics.proto, opentelemetry/proto/collector/metrics/v1) are read from their bytes: a point that is
// known by the bytes of its resource, scope, metric and attributes costs its value and no more. What is new is translated by Prometheus's own package, see learn.go.

// kind is the field number of a metric's data, which tells its type.
type kind int

const (
	kindGauge       kind = 5
	kindSum         kind = 7
	kindHistogram   kind = 9
	kindExponential kind = 10
	kindSummary     kind = 11
)

// Aggregation temporalities.
const (
	temporalityDelta      = 1
	temporalityCumulative = 2
)

// resource is a ResourceMetrics whose points are read.
type resource struct {
	bytes  []byte // the Resource
	schema []byte
	scopes [][]byte
	key    key

	earliest, latest uint64 // of the points, in nanoseconds
}

// scope is a ScopeMetrics.
type scope struct {
	bytes   []byte // the InstrumentationScope
	schema  []byte
	metrics [][]byte
	key     key

	attributes int
}

// metric is a Metric.
type metric struct {
	name        []byte
	head        []byte // all of its fields but the data
	kind        kind
	points      [][]byte
	temporality uint64
	monotonic   bool
	key         key
}

// otlpScratch is memory that is used again.
type otlpScratch struct {
	resource resource
	scope    scope
	metric   metric
	point    point
	unknown  []unknown // points of the metric at hand
}

// unknown is a point that is to be translated.
type unknown struct {
	number int // within its metric
	weight int // of its series, in bytes
}

func (s *otlpScratch) release() {
	s.resource.scopes, s.scope.metrics, s.metric.points, s.unknown = emptied(s.resource.scopes), emptied(s.scope.metrics), emptied(s.metric.points), emptied(s.unknown)
	if cap(s.metric.head) > maxTranslated {
		s.metric.head = nil
	}
	s.resource.bytes, s.resource.schema, s.scope.bytes, s.scope.schema, s.metric.name = nil, nil, nil, nil, nil
	s.point = point{bounds: emptied(s.point.bounds), counts: emptied(s.point.counts), quantiles: emptied(s.point.quantiles)}
}

// malformed is what a sender hears of an error of reading; what weigh has said is no such one.
func malformed(what string, err error) error {
	var refusal *door.Refusal
	if errors.As(err, &refusal) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &door.Refusal{Kind: door.Malformed, Message: fmt.Sprintf("reading the %s: %v", what, err)}
}

// readOTLP gathers the samples of an ExportMetricsServiceRequest.
func (r *request) readOTLP(body []byte) error {
	f := walk(body)
	for f.next() {
		if f.is(1, wireBytes) {
			if err := r.readResource(f.bytes); err != nil {
				return err
			}
		}
	}
	if f.err != nil {
		return malformed("request", f.err)
	}
	return nil
}

func (r *request) readResource(msg []byte) error {
	res := &r.otlp.resource
	*res = resource{scopes: res.scopes[:0], earliest: math.MaxUint64}
	f := walk(msg)
	for f.next() {
		switch {
		case f.is(1, wireBytes):
			res.bytes = f.bytes
		case f.is(2, wireBytes):
			if err := r.weigh(weighPart); err != nil {
				return err
			}
			res.scopes = append(res.scopes, f.bytes)
		case f.is(3, wireBytes):
			res.schema = f.bytes
		}
	}
	if f.err != nil {
		return malformed("resource metrics", f.err)
	}
	res.key = r.root.with(r.svc.hash.bytes(res.bytes))
	if n, err := countField(res.bytes, 1); err != nil {
		return malformed("resource", err)
	} else if n > r.limits.MaxLabelNames {
		return r.refuseResource("a resource has %d attributes, the most is %d", n, r.limits.MaxLabelNames)
	} else if len(res.bytes) > maxTranslated {
		return r.refuseResource("a resource has %d bytes, the most is %d", len(res.bytes), maxTranslated)
	}
	for _, sm := range res.scopes {
		if err := r.readScope(sm); err != nil {
			return err
		}
	}
	if res.earliest != math.MaxUint64 {
		return r.targetInfo()
	}
	return nil
}

// countField returns how often a field stands in a message.
func countField(msg []byte, num int) (n int, err error) {
	f := walk(msg)
	for f.next() {
		if f.num == num {
			n++
		}
	}
	return n, f.err
}

// refuseResource refuses all points of a resource.
func (r *request) refuseResource(why string, is, most int) error {
	points := 0
	for _, sm := range r.otlp.resource.scopes {
		if err := r.eachMetric(sm, func(m *metric) error {
			points += len(m.points)
			return nil
		}); err != nil {
			return err
		}
	}
	r.refuse(refusedLabels, points, why, is, most)
	return nil
}

func (r *request) readScope(msg []byte) error {
	return r.eachMetric(msg, r.readMetric)
}

// eachMetric reads a ScopeMetrics and calls do for each of its metrics.
func (r *request) eachMetric(msg []byte, do func(*metric) error) error {
	sc := &r.otlp.scope
	*sc = scope{metrics: sc.metrics[:0]}
	f := walk(msg)
	for f.next() {
		switch {
		case f.is(1, wireBytes):
			sc.bytes = f.bytes
		case f.is(2, wireBytes):
			if err := r.weigh(weighPart); err != nil {
				return err
			}
			sc.metrics = append(sc.metrics, f.bytes)
		case f.is(3, wireBytes):
			sc.schema = f.bytes
		}
	}
	if f.err != nil {
		return malformed("scope metrics", f.err)
	}
	var err error
	if sc.attributes, err = countField(sc.bytes, 3); err != nil {
		return malformed("scope", err)
	}
	sc.key = r.otlp.resource.key.with(r.svc.hash.bytes(sc.bytes)).with(r.svc.hash.bytes(sc.schema))
	for _, b := range sc.metrics {
		if err := r.parseMetric(b); err != nil {
			return malformed("metric", err)
		}
		if err := do(&r.otlp.metric); err != nil {
			return err
		}
	}
	return nil
}

// parseMetric reads a Metric and where its points are.
func (r *request) parseMetric(msg []byte) error {
	m := &r.otlp.metric
	*m = metric{points: m.points[:0], head: m.head[:0]}
	var data []byte
	f := walk(msg)
	for f.next() {
		switch k := kind(f.num); k {
		case kindGauge, kindSum, kindHistogram, kindExponential, kindSummary:
			if !f.is(int(k), wireBytes) {
				return f.err
			}
			m.kind, data = k, f.bytes // the last one counts
			continue
		}
		if f.is(1, wireBytes) {
			m.name = f.bytes
		}
		m.head = append(m.head, msg[f.start:f.end()]...)
	}
	if f.err != nil {
		return f.err
	}
	d := walk(data)
	room := r.limits.MaxSeriesPerRequest - r.points
	for d.next() {
		switch {
		case d.is(1, wireBytes):
			if len(m.points) == room {
				return tooMany(r.limits.MaxSeriesPerRequest, "points")
			}
			m.points = append(m.points, d.bytes)
		case d.num == 2 && m.kind != kindGauge && m.kind != kindSummary && d.is(2, wireVarint):
			m.temporality = d.n
		case d.num == 3 && m.kind == kindSum && d.is(3, wireVarint):
			m.monotonic = d.n != 0
		}
	}
	if d.err != nil {
		return d.err
	}
	n := uint64(m.kind)<<8 | m.temporality<<1
	if m.monotonic {
		n |= 1
	}
	m.key = r.otlp.scope.key.with(r.svc.hash.bytes(m.head)).number(n)
	return nil
}

// readMetric gathers a metric's samples.
func (r *request) readMetric(m *metric) error {
	first := r.points
	r.points += len(m.points)
	if err := r.weigh(len(m.points) * weighSample); err != nil {
		return err
	}
	refuse, why := "", refusedTemporality
	switch {
	case m.kind == 0:
		r.refuse(refusedType, 0, "metric %q has no data of a known type", short(m.name))
		return nil
	case m.kind == kindGauge || m.kind == kindSummary || m.temporality == temporalityCumulative:
	case m.temporality == temporalityDelta && r.tr.delta:
	case m.temporality == temporalityDelta:
		refuse = "metric %q has delta temporality, which is not accepted here; millrace.ingest.delta.enabled accepts it"
	default:
		refuse = "metric %q has no aggregation temporality"
	}
	p, res, sc := &r.otlp.point, &r.otlp.resource, &r.otlp.scope
	switch {
	case sc.attributes > r.limits.MaxLabelNames:
		refuse, why = fmt.Sprintf("metric %%q is of a scope with %d attributes, the most is %d", sc.attributes, r.limits.MaxLabelNames), refusedLabels
	case len(sc.bytes) > maxTranslated:
		refuse, why = fmt.Sprintf("metric %%q is of a scope of %d bytes, the most is %d", len(sc.bytes), maxTranslated), refusedLabels
	case len(m.head) > maxTranslated:
		refuse, why = fmt.Sprintf("metric %%q has %d bytes besides its points, the most is %d", len(m.head), maxTranslated), refusedLabels
	}
	r.otlp.unknown = r.otlp.unknown[:0] // what stopped an earlier request may have left some
	for i, b := range m.points {
		if refuse == "" && (m.kind == kindGauge || m.kind == kindSum) {
			if e, x, at := r.expectedNumber(m, b); e != nil {
				if int64(at/1_000_000) <= r.maxTime {
					res.earliest, res.latest = min(res.earliest, at), max(res.latest, at)
				}
				x.ser, x.about, x.point = e.series[0], e.about, first+i
				r.add(x)
				continue
			}
		}
		if err := p.read(m.kind, b); err != nil {
			return malformed(fmt.Sprintf("points of metric %q", short(m.name)), err)
		}
		if p.time != 0 && int64(p.time/1_000_000) <= r.maxTime {
			res.earliest, res.latest = min(res.earliest, p.time), max(res.latest, p.time)
		}
		switch {
		case refuse != "":
			continue
		case p.time == 0:
			r.refuse(refusedTime, 1, "a point of metric %q has no timestamp", short(m.name))
			continue
		}
		e := r.known(m.key.with(p.identity(r.svc.hash)))
		samples := p.samples(m.kind, r.tr.customBuckets)
		if more := (samples-1)*weighSample + p.exemplars*weighExemplar; more > 0 { // the first is weighed already
			if err := r.weigh(more); err != nil {
				return err
			}
		}
		switch {
		case e != nil && (p.plain(m.kind, r.tr.customBuckets) || len(b) <= maxTranslated):
			r.addPoint(m, p, e, first+i)
		case e == nil && p.names > r.limits.MaxLabelNames:
			r.refuse(refusedLabels, 1, "a point of metric %q has %d attributes, the most is %d", short(m.name), p.names, r.limits.MaxLabelNames)
		case len(b) > maxTranslated:
			r.refuse(refusedTranslation, 1, "a point of metric %q has %d bytes, the most is %d", short(m.name), len(b), maxTranslated)
		default:
			// Each of its series has its attributes, and maybe those of the resource and the scope.
			weight := samples * (weighSeries + p.attributeBytes() + r.tr.promoted(res, sc))
			if err := r.weigh(weight); err != nil {
				return err
			}
			r.otlp.unknown = append(r.otlp.unknown, unknown{i, weight})
		}
		if r.failed != nil {
			return r.failed
		}
	}
	if refuse != "" && len(m.points) > 0 {
		r.refuse(why, len(m.points), refuse, short(m.name))
	}
	return r.learn(m, first)
}

// expectedNumber reads a NumberDataPoint that has the attributes of the one that came after the point before the last time, and besides them a time, a value and maybe a start, written in the
// order of their numbers: so nearly all are. It returns the sample and the time in nanoseconds, or nil for other points.
func (r *request) expectedNumber(m *metric, msg []byte) (e *entry, x sample, at uint64) {
	const start, time, double, integer = 2<<3 | wireFixed64, 3<<3 | wireFixed64, 4<<3 | wireFixed64, 6<<3 | wireFixed64
	if r.before == nil {
		return nil, x, 0
	}
	e = r.before.next.Load()
	if e == nil || e.size == 0 || len(msg) < e.size+18 {
		return nil, x, 0
	}
	head, attributes := msg[:len(msg)-e.size], msg[len(msg)-e.size:]
	if len(head) == 27 && head[0] == start {
		x.st = int64(binary.LittleEndian.Uint64(head[1:])) / 1_000_000
		head = head[9:]
	}
	if len(head) != 18 || head[0] != time || head[9] != double && head[9] != integer {
		return nil, x, 0
	}
	at = binary.LittleEndian.Uint64(head[1:])
	value := binary.LittleEndian.Uint64(head[10:])
	if at == 0 || m.key.with(r.svc.hash.bytes(attributes)) != e.key {
		return nil, x, 0
	}
	x.t, x.v = int64(at)/1_000_000, math.Float64frombits(value)
	if head[9] == integer {
		x.v = float64(int64(value))
	}
	e.touch(r.now)
	r.before = e
	return e, x, at
}

func short(name []byte) string {
	if len(name) > 100 {
		return string(name[:100]) + "…"
	}
	return string(name)
}

// addPoint gathers the samples of a point that is known.
func (r *request) addPoint(m *metric, p *point, e *entry, number int) {
	if p.plain(m.kind, r.tr.customBuckets) {
		r.addValues(m.kind, p, e, int64(p.time)/1_000_000, int64(p.start)/1_000_000, number)
		return
	}
	r.addTranslated(m, p, e, number)
}

// samples returns how many samples a point is translated to.
func (p *point) samples(k kind, customBuckets bool) int {
	switch {
	case k == kindSummary:
		return 2 + len(p.quantiles)/2
	case k != kindHistogram || customBuckets:
		return 1
	case p.hasSum:
		return 3 + p.buckets()
	}
	return 2 + p.buckets()
}

// addValues adds the samples of a point whose values need no translation. They stand in the order in which Prometheus translates them.
func (r *request) addValues(k kind, p *point, e *entry, t, st int64, number int) {
	stale := p.flags&1 != 0
	i := 0
	add := func(v float64) {
		if stale {
			v = math.Float64frombits(value.StaleNaN)
		}
		r.add(sample{ser: e.series[i], about: e.about, t: t, st: st, v: v, point: number})
		i++
	}
	switch k {
	case kindGauge, kindSum:
		add(p.value)
	case kindHistogram:
		if p.hasSum {
			add(p.sum)
		}
		add(float64(p.count))
		cumulative := uint64(0)
		for n := range p.buckets() {
			cumulative += p.counts[n]
			add(float64(cumulative))
		}
		add(float64(p.count))
	case kindSummary:
		add(p.sum)
		add(float64(p.count))
		for n := 1; n < len(p.quantiles); n += 2 {
			add(p.quantiles[n])
		}
	}
}
