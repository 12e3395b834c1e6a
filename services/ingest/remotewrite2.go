package ingest

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
)

// symbol is an entry of a request's table, and its key once it was needed.
type symbol struct {
	text  []byte
	key   key
	known bool
}

// readV2 gathers the samples of an io.prometheus.write.v2.Request.
func (r *request) readV2(body []byte) error {
	f := walk(body)
	for f.next() {
		if f.is(4, wireBytes) {
			if len(r.symbols) == cap(r.symbols) { // all that come find room at once
				n, _ := countField(body[f.start:], 4) // what cannot be read is found below
				if err := r.weigh(n * weighSymbol); err != nil {
					return err
				}
				r.symbols = slices.Grow(r.symbols, n)
			}
			r.symbols = append(r.symbols, symbol{text: f.bytes})
		}
	}
	if f.err != nil {
		return malformed("request", f.err)
	}
	if len(r.symbols) > 0 && len(r.symbols[0].text) > 0 {
		return malformed("symbols", errors.New("the first one is not the empty string"))
	}
	f = walk(body)
	for f.next() {
		if f.is(5, wireBytes) {
			if err := r.readSeriesV2(f.bytes); err != nil {
				return err
			}
		}
	}
	if f.err != nil {
		return malformed("request", f.err)
	}
	return nil
}

func (r *request) readSeriesV2(msg []byte) error {
	if err := r.count(); err != nil {
		return err
	}
	p := &r.pushed
	p.reset()
	r.refs = r.refs[:0]
	var meta writev2.Metadata
	f := walk(msg)
	for f.next() {
		switch {
		case f.num == 1:
			r.refs = varints(&f, r.refs, 2*(r.limits.MaxLabelNames+1)+1)
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
			if ok, err := r.histogramFits(p, f.bytes); err != nil {
				return err
			} else if !ok {
				continue
			}
			var h writev2.Histogram
			if err := h.Unmarshal(f.bytes); err != nil {
				return malformed("histogram", err)
			}
			p.histogram(h.Timestamp, h.StartTimestamp, &h)
		case f.is(4, wireBytes):
			if err := r.exemplarV2(p, f.bytes); err != nil {
				return err
			}
		case f.is(5, wireBytes):
			if err := meta.Unmarshal(f.bytes); err != nil {
				return malformed("metadata", err)
			}
		}
	}
	if f.err != nil {
		return malformed("time series", f.err)
	}
	// Prometheus sends exemplars in time series of their own, which the specification does not have.
	if len(p.samples) == 0 && len(p.exemplars) == 0 {
		p.refuse(refusedEmpty, errors.New("a time series must have at least one sample or histogram"))
	}
	e, err := r.entryV2(&meta)
	if err != nil && !p.refuseLabels(err) {
		return err
	}
	r.addPushed(e, p)
	return nil
}

// varints reads a repeated field of numbers, packed or one of them, of which the list takes no more than that many.
func varints(f *fields, list []uint32, most int) []uint32 {
	if f.typ == wireVarint && len(list) < most {
		return append(list, uint32(f.n))
	}
	if f.typ == wireVarint {
		return list
	}
	if !f.is(f.num, wireBytes) {
		return list
	}
	packed := walk(f.bytes)
	for len(packed.rest) > 0 && len(list) < most {
		v, ok := packed.varint()
		if !ok {
			f.fail("field %d: %w", f.num, packed.err)
			return list
		}
		list = append(list, uint32(v))
	}
	return list
}

// symbol returns an entry of the table.
func (r *request) symbol(ref uint32) (*symbol, error) {
	if int64(ref) >= int64(len(r.symbols)) {
		return nil, labelError{refusedLabels, fmt.Errorf("a series refers to symbol %d of %d", ref, len(r.symbols))}
	}
	s := &r.symbols[ref]
	if !s.known {
		s.key, s.known = r.svc.hash.bytes(s.text), true
	}
	return s, nil
}

// entryV2 returns what is known of the series with the labels that r.refs refer to.
func (r *request) entryV2(meta *writev2.Metadata) (*entry, error) {
	if len(r.refs) > 2*(r.limits.MaxLabelNames+1) {
		return nil, labelError{refusedLabels, fmt.Errorf("a series has more than %d labels", r.limits.MaxLabelNames)}
	}
	if len(r.refs)%2 != 0 {
		return nil, labelError{refusedLabels, fmt.Errorf("a series has an odd number of symbols, %d, for its labels", len(r.refs))}
	}
	k := r.root.number(uint64(meta.Type))
	for _, ref := range r.refs {
		s, err := r.symbol(ref)
		if err != nil {
			return nil, err
		}
		k = k.with(s.key)
	}
	help, err := r.symbol(meta.HelpRef)
	if err != nil {
		return nil, err
	}
	unit, err := r.symbol(meta.UnitRef)
	if err != nil {
		return nil, err
	}
	k = k.with(help.key).with(unit.key)
	if e := r.known(k); e != nil {
		return e, nil
	}
	var size labelSize
	for i := 0; i+1 < len(r.refs); i += 2 {
		if err := size.add(r.limits, r.symbols[r.refs[i]].text, r.symbols[r.refs[i+1]].text); err != nil {
			return nil, err
		}
	}
	ls := r.labelsV2(r.refs)
	m := metadata.Metadata{Type: metricType(uint64(meta.Type)), Help: r.text(meta.HelpRef), Unit: r.text(meta.UnitRef)}
	if len(unit.text) > maxHelp {
		m.Unit = ""
	}
	if meta.Type == 0 && m.Help == "" && m.Unit == "" {
		m = metadata.Metadata{}
	}
	return r.learnLabels(k, 0, ls, m)
}

// text returns a symbol that is help or unit of a new series, for all of the request's series in one place.
func (r *request) text(ref uint32) string {
	if len(r.symbols[ref].text) == 0 {
		return ""
	}
	if s, ok := r.texts[ref]; ok {
		return s
	}
	if r.texts == nil {
		r.texts = map[uint32]string{}
	}
	s := clippedText(r.symbols[ref].text)
	r.texts[ref] = s
	return s
}

// labelsV2 makes a label set of symbols, whose references were looked at before.
func (r *request) labelsV2(refs []uint32) labels.Labels {
	r.scratch.Reset()
	for i := 0; i+1 < len(refs); i += 2 {
		r.scratch.Add(string(r.symbols[refs[i]].text), string(r.symbols[refs[i+1]].text))
	}
	r.scratch.Sort()
	return r.scratch.Labels()
}

func (r *request) exemplarV2(p *pushed, msg []byte) error {
	if err := r.value(); err != nil {
		return err
	}
	if len(msg) > maxExemplarBytes {
		return nil // Prometheus drops it without a word
	}
	var e writev2.Exemplar
	if err := e.Unmarshal(msg); err != nil {
		return malformed("exemplar", err)
	}
	runes := 0
	for _, ref := range e.LabelsRefs {
		s, err := r.symbol(ref)
		if err != nil {
			p.refuse(refusedLabels, err)
			return nil
		}
		if len(s.text) > utf8.UTFMax*exemplar.ExemplarMaxLabelSetLength {
			return nil // which need not be counted
		}
		if runes += utf8.RuneCount(s.text); runes > exemplar.ExemplarMaxLabelSetLength {
			return nil
		}
	}
	if err := r.weigh(weighExemplar); err != nil {
		return err
	}
	p.exemplar(exemplar.Exemplar{Labels: r.labelsV2(e.LabelsRefs), Value: e.Value, Ts: e.Timestamp, HasTs: e.Timestamp != 0})
	return nil
}

// wireHistogram is a native histogram of remote_write 1.0 or 2.0.
type wireHistogram interface {
	IsFloatHistogram() bool
	ToIntHistogram() *histogram.Histogram
	ToFloatHistogram() *histogram.FloatHistogram
}

// histogramFits reports whether a histogram is to be read, which is not too large; it is refused otherwise.
func (r *request) histogramFits(p *pushed, msg []byte) (bool, error) {
	if err := r.value(); err != nil {
		return false, err
	}
	if len(msg) > maxHistogramBytes {
		p.refuse(refusedHistogram, fmt.Errorf("a histogram has %d bytes, the most is %d", len(msg), maxHistogramBytes))
		return false, nil
	}
	// A number of one byte becomes one of eight.
	return true, r.weigh(weighHistogram + 8*len(msg))
}

func (p *pushed) histogram(t, st int64, w wireHistogram) {
	var h *histogram.Histogram
	var fh *histogram.FloatHistogram
	if w.IsFloatHistogram() {
		fh = w.ToFloatHistogram()
	} else {
		h = w.ToIntHistogram()
	}
	x := sample{t: t, st: st}
	var err error
	if x.hist, err = checkHistogram(h, fh); err != nil {
		p.refuse(refusedHistogram, err)
	}
	p.samples = append(p.samples, x)
}
