package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/prompb"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/services/ingest/door"
)

// The messages of remote_write 1.0 (prompb/types.proto and remote.proto) are read from their bytes: a series that is known by the bytes of its labels costs its samples and no more.

// pushed is a time series of a remote_write request.
type pushed struct {
	samples   []sample
	exemplars []exemplar.Exemplar
	err       error // why it is refused
	why       refusal
}

func (p *pushed) reset() {
	clear(p.samples)
	p.samples, p.exemplars, p.err = p.samples[:0], nil, nil
}

func (p *pushed) refuse(why refusal, err error) {
	if p.err == nil {
		p.err, p.why = err, why
	}
}

// refuseLabels refuses the time series where the error is about its labels, and reports whether it is.
func (p *pushed) refuseLabels(err error) bool {
	var l labelError
	if !errors.As(err, &l) {
		return false
	}
	p.refuse(l.why, err)
	return true
}

// readV1 gathers the samples of a prometheus.WriteRequest.
func (r *request) readV1(body []byte) error {
	f := walk(body)
	for f.next() {
		switch {
		case f.is(1, wireBytes):
			if err := r.readSeriesV1(f.bytes); err != nil {
				return err
			}
		case f.is(3, wireBytes):
			if err := r.readMetadata(f.bytes); err != nil {
				return malformed("metadata", err)
			}
		}
	}
	if f.err != nil {
		return malformed("request", f.err)
	}
	return nil
}

func (r *request) readSeriesV1(msg []byte) error {
	if err := r.count(); err != nil {
		return err
	}
	if e, x := r.expected(msg); e != nil {
		r.number++
		x.ser, x.point = e.series[0], r.number
		r.add(x)
		return r.value()
	}
	p := &r.pushed
	p.reset()
	var set point // of which the place of its labels is used, as that of a point's attributes
	set.apart = r.otlp.point.apart[:0]
	f := walk(msg)
	for f.next() {
		switch {
		case f.is(1, wireBytes):
			set.attribute(&f)
		case f.is(2, wireBytes):
			if err := r.value(); err != nil {
				return err
			}
			x, err := readSample(f.bytes)
			if err != nil {
				return malformed("sample", err)
			}
			p.samples = append(p.samples, x)
		case f.is(3, wireBytes):
			if err := r.value(); err != nil {
				return err
			}
			if len(f.bytes) > maxExemplarBytes {
				continue // Prometheus drops it without a word
			}
			var e prompb.Exemplar
			if err := e.Unmarshal(f.bytes); err != nil {
				return malformed("exemplar", err)
			}
			p.exemplar(e.ToExemplar(&r.scratch, nil))
		case f.is(4, wireBytes):
			if ok, err := r.histogramFits(p, f.bytes); err != nil {
				return err
			} else if !ok {
				continue
			}
			var h prompb.Histogram
			if err := h.Unmarshal(f.bytes); err != nil {
				return malformed("histogram", err)
			}
			p.histogram(h.Timestamp, 0, &h)
		}
	}
	if f.err != nil {
		return malformed("time series", f.err)
	}
	set.raw = msg
	k := r.root.with(set.identity(r.svc.hash))
	e := r.known(k)
	if e == nil {
		size := 0
		if set.from == 0 && len(set.apart) == 0 {
			size = set.to
		}
		ls, err := r.labelsV1(&set)
		if err == nil {
			e, err = r.learnLabels(k, size, ls, metadata.Metadata{})
		}
		if err != nil && !p.refuseLabels(err) {
			return err
		}
	}
	r.addPushed(e, p)
	return nil
}

// expected reads a time series that consists of the labels that came after those of the series before the last time, and one sample: so nearly all do. It returns nil for others.
func (r *request) expected(msg []byte) (*entry, sample) {
	if r.before == nil {
		return nil, sample{}
	}
	e := r.before.next.Load()
	if e == nil || e.size == 0 || len(msg) < e.size+2 {
		return nil, sample{}
	}
	rest := msg[e.size:]
	if rest[0] != 2<<3|wireBytes || int(rest[1]) != len(rest)-2 || rest[1] >= 0x80 || r.root.with(r.svc.hash.bytes(msg[:e.size])) != e.key {
		return nil, sample{}
	}
	x, err := readSample(rest[2:])
	if err != nil {
		return nil, sample{}
	}
	e.touch(r.now)
	r.before = e
	return e, x
}

// readSample reads a sample of 1.0 or 2.0.
func readSample(msg []byte) (x sample, err error) {
	const value, time = 1<<3 | wireFixed64, 2<<3 | wireVarint
	if len(msg) > 10 && msg[0] == value && msg[9] == time { // as all write it
		if t, n := binary.Uvarint(msg[10:]); n == len(msg)-10 {
			return sample{v: math.Float64frombits(binary.LittleEndian.Uint64(msg[1:])), t: int64(t)}, nil
		}
	}
	f := walk(msg)
	for f.next() {
		switch {
		case f.is(1, wireFixed64):
			x.v = f.float()
		case f.is(2, wireVarint):
			x.t = int64(f.n)
		case f.is(3, wireVarint):
			x.st = int64(f.n)
		}
	}
	return x, f.err
}

// labelsV1 reads a label set of Label messages.
func (r *request) labelsV1(set *point) (labels.Labels, error) {
	if set.names > r.limits.MaxLabelNames+1 {
		return labels.EmptyLabels(), nil // too many, which learnLabels is not to read one by one
	}
	r.scratch.Reset()
	var size labelSize
	read := func(part []byte) error {
		f := walk(part)
		for f.next() {
			var name, value []byte
			l := walk(f.bytes)
			for l.next() {
				switch {
				case l.is(1, wireBytes):
					name = l.bytes
				case l.is(2, wireBytes):
					value = l.bytes
				}
			}
			if l.err != nil {
				return malformed("label", l.err)
			}
			if err := size.add(r.limits, name, value); err != nil {
				return err
			}
			r.scratch.Add(string(name), string(value))
		}
		return nil
	}
	if err := read(set.raw[set.from:set.to]); err != nil {
		return labels.EmptyLabels(), err
	}
	for _, b := range set.apart {
		if err := read(b); err != nil {
			return labels.EmptyLabels(), err
		}
	}
	r.scratch.Sort()
	return r.scratch.Labels(), nil
}

// labelSize is the size of a label set in bytes, so far.
type labelSize int

// add adds a label. It returns an error where the label set will be refused for its size, so that it need not be copied for that.
func (s *labelSize) add(limits *door.Limits, name, value []byte) error {
	var err error
	switch *s += labelSize(len(name) + len(value)); {
	case len(name) > limits.MaxLabelNameBytes:
		err = fmt.Errorf("a series has a label name of %d bytes, the most is %d: %.50q…", len(name), limits.MaxLabelNameBytes, name)
	case len(value) > limits.MaxLabelValueBytes:
		err = fmt.Errorf("a series has a value of the label %.100q of %d bytes, the most is %d", name, len(value), limits.MaxLabelValueBytes)
	case *s > frame.MaxLabelSetBytes:
		err = fmt.Errorf("a series has more than %d bytes of labels", frame.MaxLabelSetBytes)
	default:
		return nil
	}
	return labelError{refusedLabels, err}
}

// learnLabels notes which series a label set stands for.
// The labels' bytes have that size where they stand together at the beginning of a message; it is 0 where they do not.
func (r *request) learnLabels(k key, size int, ls labels.Labels, m metadata.Metadata) (*entry, error) {
	if ls.IsEmpty() {
		return nil, labelError{refusedLabels, fmt.Errorf("a series has no labels, or more than %d", r.limits.MaxLabelNames)}
	}
	if err := r.weigh(weighSeries + labelBytes(ls)); err != nil {
		return nil, err
	}
	name := ls.Get(model.MetricNameLabel)
	family, a := name, aboutOf(name, m)
	if m == (metadata.Metadata{}) {
		if f, known := r.svc.metadata.of(r.tenant, name); f != "" {
			family, m = f, known
		}
	}
	ser, err := r.seriesOf(ls, family, m, a, false)
	if err != nil {
		return nil, err
	}
	e := &entry{size: size, series: []*series{ser}, about: a}
	r.svc.registry.remember(k, e, r.now)
	return e, nil
}

func (p *pushed) exemplar(x exemplar.Exemplar) {
	size := 0
	x.Labels.Range(func(l labels.Label) { size += len([]rune(l.Name)) + len([]rune(l.Value)) })
	if size <= exemplar.ExemplarMaxLabelSetLength { // Prometheus drops longer ones without a word
		p.exemplars = append(p.exemplars, x)
	}
}

// addPushed gathers a time series' samples, or refuses them.
func (r *request) addPushed(e *entry, p *pushed) {
	if p.err != nil {
		r.refuse(p.why, max(len(p.samples), 1), "%v", p.err) // a series without samples is refused, too
		return
	}
	ser := e.series[0]
	for i := range p.samples {
		x := p.samples[i]
		r.number++
		x.ser, x.about, x.point = ser, e.about, r.number
		if i == len(p.samples)-1 {
			x.exs, p.exemplars = p.exemplars, nil
		}
		r.add(x)
	}
	for _, x := range p.exemplars {
		g := r.gatherOf(ser.src)
		g.exemplars = append(g.exemplars, loose{ser, x})
	}
}

// metricTypes are the numbers of metric types in remote_write 1.0 and 2.0.
var metricTypes = []model.MetricType{
	model.MetricTypeUnknown, model.MetricTypeCounter, model.MetricTypeGauge, model.MetricTypeHistogram, model.MetricTypeGaugeHistogram,
	model.MetricTypeSummary, model.MetricTypeInfo, model.MetricTypeStateset,
}

func metricType(n uint64) model.MetricType {
	if n >= uint64(len(metricTypes)) {
		return model.MetricTypeUnknown
	}
	return metricTypes[n]
}

// readMetadata learns a family's metadata.
func (r *request) readMetadata(msg []byte) error {
	var m metadata.Metadata
	var name string
	m.Type = model.MetricTypeUnknown
	f := walk(msg)
	for f.next() {
		switch {
		case f.is(1, wireVarint):
			m.Type = metricType(f.n)
		case f.is(2, wireBytes):
			if name = ""; len(f.bytes) <= r.limits.MaxLabelValueBytes { // a longer one is no series' name
				name = string(f.bytes)
			}
		case f.is(4, wireBytes):
			m.Help = clippedText(f.bytes)
		case f.is(5, wireBytes):
			if m.Unit = ""; len(f.bytes) <= maxHelp {
				m.Unit = string(f.bytes)
			}
		}
	}
	if f.err == nil && name != "" {
		r.svc.metadata.learn(r.tenant, name, m, r.now)
	}
	return f.err
}
