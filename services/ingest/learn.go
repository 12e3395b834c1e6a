package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote/otlptranslator/prometheusremotewrite"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/services/ingest/door"
)

// translation says how OTLP becomes samples. It is read-only.
type translation struct {
	generation    uint64 // part of every key: what is known by another translation is not known by this one
	settings      prometheusremotewrite.Settings
	customBuckets bool // histograms with explicit bounds become native ones
	delta         bool // points of delta temporality are taken

	promotesResource, promotesScope bool // attributes of these become labels of each series
}

// promoted returns about how many bytes of a resource and a scope become labels of each series.
func (t *translation) promoted(res *resource, sc *scope) (n int) {
	if t.promotesResource {
		n += len(res.bytes)
	}
	if t.promotesScope {
		n += len(sc.bytes)
	}
	return n
}

// lookback is Prometheus's default: samples of target_info are at most half of it apart.
const lookback = 5 * time.Minute

func newTranslation(cfg promconfig.OTLPConfig, delta bool, generation uint64) *translation {
	return &translation{
		generation: generation, customBuckets: cfg.ConvertHistogramsToNHCB, delta: delta,
		promotesResource: cfg.PromoteAllResourceAttributes || len(cfg.PromoteResourceAttributes) > 0, promotesScope: cfg.PromoteScopeMetadata,
		settings: prometheusremotewrite.Settings{
			AddMetricSuffixes: cfg.TranslationStrategy.ShouldAddSuffixes(), AllowUTF8: !cfg.TranslationStrategy.ShouldEscape(),
			PromoteResourceAttributes:            prometheusremotewrite.NewPromoteResourceAttributes(cfg),
			KeepIdentifyingResourceAttributes:    cfg.KeepIdentifyingResourceAttributes,
			ConvertHistogramsToNHCB:              cfg.ConvertHistogramsToNHCB,
			PromoteScopeMetadata:                 cfg.PromoteScopeMetadata,
			LookbackDelta:                        lookback,
			LabelNameUnderscoreSanitization:      cfg.LabelNameUnderscoreSanitization,
			LabelNamePreserveMultipleUnderscores: cfg.LabelNamePreserveMultipleUnderscores,
		},
	}
}

// learner translates points by Prometheus's own package. Its memory is used again.
type learner struct {
	converter prometheusremotewrite.PrometheusConverter
	got       []translated
	point     []byte
	data      []byte
	metric    []byte
	scope     []byte
	resource  []byte
	request   []byte
	labels    *labels.Builder
}

// translated is a sample as Prometheus's package gives it.
type translated struct {
	labels labels.Labels
	t, st  int64
	v      float64
	h      *histogram.Histogram
	fh     *histogram.FloatHistogram
	family string
	meta   metadata.Metadata
	exs    []exemplar.Exemplar
}

// Append implements [storage.AppenderV2].
func (l *learner) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AOptions) (storage.SeriesRef, error) {
	l.got = append(l.got, translated{ls, t, st, v, h, fh, opts.MetricFamilyName, opts.Metadata, slices.Clone(opts.Exemplars)})
	return 0, nil
}

// Commit and Rollback implement [storage.AppenderV2]; nothing is to be done.
func (l *learner) Commit() error   { return nil }
func (l *learner) Rollback() error { return nil }

func (l *learner) release() {
	l.got = emptied(l.got)
	if cap(l.request) > 1<<20 {
		l.point, l.data, l.metric, l.scope, l.resource, l.request = nil, nil, nil, nil, nil, nil
	}
}

// translate has the request in l.request translated into l.got. Warnings are what Prometheus says of it that is no error. What translating takes besides is many times the
// bytes of the request, so only some are translated at a time: as many as there are processors.
func (l *learner) translate(settings prometheusremotewrite.Settings, r *request) error {
	if r.translated += len(l.request); r.translated > maxTranslations && r.failed == nil {
		r.failed = &door.Refusal{Kind: door.TooLarge, Message: "the request has too many new metrics of large resources and scopes; send fewer at a time"}
	}
	if r.failed == nil && r.cancelled != nil {
		r.failed = r.cancelled()
	}
	if r.failed != nil {
		return r.failed
	}
	r.svc.translating <- struct{}{}
	defer func() { <-r.svc.translating }()
	md, err := (&pmetric.ProtoUnmarshaler{}).UnmarshalMetrics(l.request)
	if err != nil {
		return err
	}
	clear(l.got)
	l.got = l.got[:0]
	l.converter.Reset(l)
	defer l.converter.Reset(nil)
	warnings, err := l.converter.FromMetrics(context.Background(), md, settings)
	for category, n := range prometheusremotewrite.CountWarningsByCategory(warnings) {
		r.svc.metrics.warnings.WithLabelValues(string(category)).Add(float64(n))
	}
	return err
}

// assemble puts a request together that has one metric, of one point or of none, or no metric at all.
func (l *learner) assemble(resource, resourceSchema, scope, scopeSchema, metric []byte) {
	l.resource = l.resource[:0]
	if resource != nil {
		l.resource = appendBytesField(l.resource, 1, resource)
	}
	l.scope = l.scope[:0]
	if scope != nil {
		l.scope = appendBytesField(l.scope, 1, scope)
	}
	l.scope = appendBytesField(l.scope, 2, metric)
	l.scope = appendBytesField(l.scope, 3, scopeSchema)
	l.resource = appendBytesField(l.resource, 2, l.scope)
	l.resource = appendBytesField(l.resource, 3, resourceSchema)
	l.request = appendBytesField(l.request[:0], 1, l.resource)
}

// metricOf puts a metric together that has these points. Deltas are translated as what they become.
func (l *learner) metricOf(head []byte, m *metric, points ...[]byte) []byte {
	l.data = l.data[:0]
	for _, p := range points {
		l.data = appendBytesField(l.data, 1, p)
	}
	if m.kind != kindGauge && m.kind != kindSummary {
		l.data = binary.AppendUvarint(l.data, 2<<3|wireVarint)
		l.data = binary.AppendUvarint(l.data, temporalityCumulative)
	}
	if m.monotonic {
		l.data = binary.AppendUvarint(l.data, 3<<3|wireVarint)
		l.data = binary.AppendUvarint(l.data, 1)
	}
	l.metric = append(l.metric[:0], head...)
	l.metric = appendBytesField(l.metric, int(m.kind), l.data)
	return l.metric
}

// learn translates the metric's points that are not known, some at a time, keeps what they are, and gathers their samples. Where one of them makes the translation fail, each is
// translated alone.
func (r *request) learn(m *metric, first int) error {
	for left := r.otlp.unknown; len(left) > 0 && r.failed == nil; {
		n, size, weight := 0, 0, 0
		for n < len(left) && (n == 0 || size+len(m.points[left[n].number]) <= maxTranslated && weight+left[n].weight <= maxLearned) {
			size += len(m.points[left[n].number])
			weight += left[n].weight
			n++
		}
		some := left[:n]
		left = left[n:]
		if r.learnPoints(m, some, first) || n == 1 {
			continue
		}
		for i := range some {
			r.learnPoints(m, some[i:i+1], first)
		}
	}
	return r.failed
}

// maxLearned is how much the series of the points weigh that are translated at a time, unless it is one point.
const maxLearned = 4 << 20

// learnPoints translates points in one go. It reports whether that is done with; of several points, none is where one cannot be translated.
func (r *request) learnPoints(m *metric, some []unknown, first int) bool {
	res, sc, l, p := &r.otlp.resource, &r.otlp.scope, &r.learner, &r.otlp.point
	points := make([][]byte, len(some))
	for i := range some {
		points[i] = m.points[some[i].number]
	}
	l.assemble(res.bytes, res.schema, sc.bytes, sc.schema, l.metricOf(m.head, m, points...))
	settings := r.tr.settings
	settings.DisableTargetInfo = true
	if err := l.translate(settings, r); err != nil {
		if len(some) == 1 && r.failed == nil {
			r.refuse(refusedTranslation, 1, "a point of metric %q: %v", short(m.name), err)
		}
		return false
	}
	got := slices.Clone(l.got) // values may be translated below
	for i := range some {
		n := some[i].number
		if p.read(m.kind, m.points[n]) != nil {
			continue // it was read before
		}
		size := p.samples(m.kind, r.tr.customBuckets)
		if size > len(got) {
			r.refuse(refusedTranslation, 1, "a point of metric %q is translated to %d samples instead of %d", short(m.name), len(got), size)
			return true
		}
		if e := r.entryOf(m, got[:size]); e != nil {
			if len(p.apart) == 0 {
				e.size = p.to - p.from
			}
			r.svc.registry.remember(m.key.with(p.identity(r.svc.hash)), e, r.now)
			r.addPoint(m, p, e, first+n)
		}
		got = got[size:]
	}
	return true
}

// entryOf returns what is to be known of a point that is translated to these samples; nil where it is refused.
func (r *request) entryOf(m *metric, got []translated) *entry {
	// All series of a point are of its metric, of which one thing is said.
	e := &entry{series: make([]*series, 0, len(got)), about: aboutOf(familyOf(got[0].family, got[0].labels), got[0].meta)}
	delta := m.temporality == temporalityDelta && m.kind != kindGauge && m.kind != kindSummary
	if err := r.roomFor(got, delta); err != nil {
		r.refuse(refusalOf(err), 1, "a point of metric %q: %v", short(m.name), err)
		return nil
	}
	for i := range got {
		x := &got[i]
		ser, err := r.seriesOf(x.labels, x.family, x.meta, e.about, delta)
		if err != nil {
			r.refuse(refusalOf(err), 1, "a point of metric %q: %v", short(m.name), err)
			return nil
		}
		e.series = append(e.series, ser)
	}
	return e
}

// roomFor returns an error where a point has more new series than may be known besides the others: some of them alone are worth nothing.
func (r *request) roomFor(got []translated, delta bool) error {
	reg := r.svc.registry
	if reg.series.Load()+int64(len(got)) <= reg.maxSeries {
		return nil
	}
	added := 0
	for i := range got {
		ls := r.labelsOf(got[i].labels)
		s := reg.lock(reg.sourceOf(r.tenant, ls, familyOf(got[i].family, ls), delta))
		if s.find(ls.Hash(), ls) == nil {
			added++
		}
		s.mu.Unlock()
	}
	if reg.series.Load()+int64(added) <= reg.maxSeries {
		return nil
	}
	return reg.full(r.labelsOf(got[0].labels))
}

// addTranslated adds the samples of a point whose values Prometheus's package translates. Without its attributes, that costs no labels.
func (r *request) addTranslated(m *metric, p *point, e *entry, number int) {
	l := &r.learner
	l.point = l.point[:0]
	f := walk(p.raw)
	for f.next() {
		if f.num != places[m.kind].attributes {
			l.point = append(l.point, p.raw[f.start:f.end()]...)
		}
	}
	l.assemble(nil, nil, nil, nil, l.metricOf(appendBytesField(nil, 1, []byte("m")), m, l.point))
	settings := r.tr.settings
	settings.DisableTargetInfo, settings.PromoteResourceAttributes = true, nil
	err := l.translate(settings, r)
	if err == nil && len(l.got) != len(e.series) {
		err = fmt.Errorf("%d samples for %d series", len(l.got), len(e.series))
	}
	if err != nil {
		r.refuse(refusedTranslation, 1, "a point of metric %q: %v", short(m.name), err)
		return
	}
	for i := range l.got {
		x := &l.got[i]
		s := sample{ser: e.series[i], about: e.about, t: x.t, st: x.st, v: x.v, exs: x.exs, point: number}
		if x.h != nil || x.fh != nil {
			if s.hist, err = checkHistogram(x.h, x.fh); err != nil {
				r.refuse(refusedHistogram, 1, "a point of metric %q: %v", short(m.name), err)
				return
			}
		}
		r.add(s)
	}
}

// checkHistogram returns a native histogram as it goes into a frame, or why no Prometheus would store it.
func checkHistogram(h *histogram.Histogram, fh *histogram.FloatHistogram) (*frame.Histogram, error) {
	if h != nil {
		if err := checkBuckets(len(h.PositiveBuckets), len(h.NegativeBuckets), h.PositiveSpans, h.NegativeSpans, h.CustomValues); err != nil {
			return nil, err
		}
		if histogram.IsExponentialSchemaReserved(h.Schema) && h.Schema > histogram.ExponentialSchemaMax {
			if err := h.ReduceResolution(histogram.ExponentialSchemaMax); err != nil {
				return nil, err
			}
		}
		return &frame.Histogram{Int: h}, h.Validate()
	}
	if err := checkBuckets(len(fh.PositiveBuckets), len(fh.NegativeBuckets), fh.PositiveSpans, fh.NegativeSpans, fh.CustomValues); err != nil {
		return nil, err
	}
	if histogram.IsExponentialSchemaReserved(fh.Schema) && fh.Schema > histogram.ExponentialSchemaMax {
		if err := fh.ReduceResolution(histogram.ExponentialSchemaMax); err != nil {
			return nil, err
		}
	}
	return &frame.Histogram{Float: fh}, fh.Validate()
}

// maxBuckets is how many buckets, or spans of them, a native histogram may have on a side; more make a frame that no reader takes.
const maxBuckets = 1 << 14

func checkBuckets(positive, negative int, positiveSpans, negativeSpans []histogram.Span, custom []float64) error {
	if most := max(positive, negative, len(positiveSpans), len(negativeSpans), len(custom)); most > maxBuckets {
		return fmt.Errorf("%d buckets, the most is %d", most, maxBuckets)
	}
	return nil
}

// maxTargetInfos bounds the samples of target_info that one request brings about, whose points may be of any times.
const maxTargetInfos = 1000

// targetInfo adds the samples of the series target_info of the resource at hand: at the time of its earliest point, of its latest, and between.
func (r *request) targetInfo() error {
	res := &r.otlp.resource
	k := res.key.with(r.svc.hash.string("target_info"))
	e := r.svc.registry.lookup(k, r.now)
	if e == nil {
		e = r.learnTargetInfo(k)
	}
	if len(e.series) == 0 {
		return nil
	}
	step := uint64(lookback / 2)
	if span := res.latest - res.earliest; span/step > maxTargetInfos {
		res.earliest = res.latest
	}
	r.points++
	if err := r.weigh(int((res.latest-res.earliest)/step+2) * weighSample); err != nil {
		return err
	}
	for t := res.earliest; t < res.latest; t += step {
		r.add(sample{ser: e.series[0], about: e.about, t: int64(t / 1_000_000), v: 1, point: targetInfo})
	}
	r.add(sample{ser: e.series[0], about: e.about, t: int64(res.latest / 1_000_000), v: 1, point: targetInfo})
	return nil
}

// learnTargetInfo translates a resource; the entry has no series where there is no target_info of it.
func (r *request) learnTargetInfo(k key) *entry {
	res, l := &r.otlp.resource, &r.learner
	e := &entry{}
	// Prometheus makes it where there is a point; this one is dropped again.
	gauge := &metric{kind: kindGauge}
	point := binary.LittleEndian.AppendUint64([]byte{3<<3 | wireFixed64}, 1_000_000)
	l.assemble(res.bytes, res.schema, nil, nil, l.metricOf(appendBytesField(nil, 1, []byte("m")), gauge, point))
	if err := l.translate(r.tr.settings, r); err != nil {
		r.refuse(refusedTranslation, 0, "target_info of a resource: %v", err)
		return e
	}
	for i := range l.got {
		x := &l.got[i]
		if x.labels.Get(model.MetricNameLabel) != "target_info" {
			continue
		}
		e.about = aboutOf(familyOf(x.family, x.labels), x.meta)
		ser, err := r.seriesOf(x.labels, x.family, x.meta, e.about, false)
		if err != nil {
			r.refuse(refusalOf(err), 0, "target_info of a resource: %v", err)
			return e
		}
		e.series = []*series{ser}
	}
	r.svc.registry.remember(k, e, r.now)
	return e
}

// labelError says why a label set is refused.
type labelError struct {
	why refusal
	error
}

func refusalOf(err error) refusal {
	var l labelError
	if errors.As(err, &l) {
		return l.why
	}
	return refusedLabels
}

// seriesOf returns the series with these labels, and the tenant's; it becomes a new one where there is none. It gets what is said about it or, where that is nothing, the metadata.
func (r *request) seriesOf(ls labels.Labels, family string, meta metadata.Metadata, a about, delta bool) (*series, error) {
	ls = r.labelsOf(ls)
	if err := r.checkLabels(ls); err != nil {
		return nil, err
	}
	family = familyOf(family, ls)
	reg := r.svc.registry
	s := reg.lock(reg.sourceOf(r.tenant, ls, family, delta))
	defer s.mu.Unlock()
	hash := ls.Hash()
	x := s.find(hash, ls)
	if x == nil {
		if reg.series.Add(1) > reg.maxSeries {
			reg.series.Add(-1)
			return nil, reg.full(ls)
		}
		x = s.add(hash, ls, r.now)
	}
	switch {
	case a != about{}:
		s.tell(x, a)
	case meta != metadata.Metadata{}:
		s.setMetadata(x, family, clipped(meta))
	}
	return x, nil
}

// labelsOf returns the labels of a series with that of its tenant, and without empty ones.
func (r *request) labelsOf(ls labels.Labels) labels.Labels {
	if name := r.svc.cfg.TenantLabel; name != "" && r.tenant != "" {
		if r.learner.labels == nil {
			r.learner.labels = labels.NewBuilder(labels.EmptyLabels())
		}
		b := r.learner.labels
		b.Reset(ls)
		ls = b.Set(name, r.tenant).Labels()
	}
	return ls.WithoutEmpty()
}

// familyOf returns the family of a series, which is that of its name where nothing else is known.
func familyOf(family string, ls labels.Labels) string {
	if family == "" {
		return ls.Get(model.MetricNameLabel)
	}
	return family
}

// full is the error of a series for which there is no room.
func (r *registry) full(ls labels.Labels) error {
	return labelError{refusedSeries, fmt.Errorf("%d series are known already, which is the most (millrace.ingest.max_series): %.200s is refused", r.maxSeries, ls.String())}
}

// checkLabels returns an error for label sets that Prometheus refuses, that are above the listener's limits, or that no dictionary takes.
func (r *request) checkLabels(ls labels.Labels) error {
	fail := func(format string, args ...any) error { return labelError{refusedLabels, fmt.Errorf(format, args...)} }
	name := ls.Get(model.MetricNameLabel)
	if name == "" {
		return fail("the series %.200s has no metric name", ls.String())
	}
	if twice, ok := ls.HasDuplicateLabelNames(); ok {
		return fail("a series of %.100q has the label %.100q twice", name, twice)
	}
	if n := ls.Len(); n > r.limits.MaxLabelNames+1 { // besides the name
		return fail("a series of %.100q has %d labels, the most is %d", name, n, r.limits.MaxLabelNames)
	}
	if !ls.IsValid(model.UTF8Validation) {
		return fail("a series of %.100q has labels that are not valid UTF-8, or an empty label name", name)
	}
	var err error
	ls.Range(func(l labels.Label) {
		switch {
		case err != nil:
		case len(l.Name) > r.limits.MaxLabelNameBytes:
			err = fail("a series of %.100q has a label name of %d bytes, the most is %d: %.50q…", name, len(l.Name), r.limits.MaxLabelNameBytes, l.Name)
		case len(l.Value) > r.limits.MaxLabelValueBytes:
			err = fail("a series of %.100q has a value of the label %.100q of %d bytes, the most is %d", name, l.Name, len(l.Value), r.limits.MaxLabelValueBytes)
		}
	})
	if n := labelBytes(ls); err == nil && n > frame.MaxLabelSetBytes {
		err = fail("a series of %.100q has %d bytes of labels, the most is %d", name, n, frame.MaxLabelSetBytes)
	}
	return err
}
