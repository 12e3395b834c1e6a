package scraper

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
	"unique"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/frame"
)

// appender collects one scrape. Samples stand at the number of their series, which is their place in the dictionaries, so that a frame's columns are
// slices of what is here.
type appender struct {
	svc *Service
	src *source // locked from begin to the end

	live   bitmap // series that the target exposes, also where the sample is none to take
	floats bitmap // series whose first sample in this scrape is a float
	histos bitmap // series whose first sample in this scrape is a histogram
	vals   []float64
	times  []int64 // of both
	starts []int64 // as long as vals was when a float got a start timestamp last

	last int64 // timestamp of the sample appended last: the scrape's own, since reports come last
	at   int64 // the scrape's own for certain, where a collector has told it; 0 otherwise
	n    int   // samples

	hists []frame.Histogram
	exs   []frame.Exemplar

	extra []extraSample      // second and further samples of series in one scrape, which have timestamps of their own
	tails map[uint32]tailing // the newest of them, by series

	enc  frame.Encoder
	fr   frame.Frame
	size int // about what the sections of fr take, in bytes
	vbuf []float64
	tbuf []int64
	sbuf []int64
	ebuf []byte
}

// scraped is a sample: a float, or a histogram where one of h and fh is not nil.
type scraped struct {
	t, st int64 // timestamp and start timestamp in milliseconds; st is 0 where it is not known
	v     float64
	h     *histogram.Histogram
	fh    *histogram.FloatHistogram
}

func (s *scraped) isHistogram() bool { return s.h != nil || s.fh != nil }

func (s *scraped) isStale() bool {
	switch {
	case s.h != nil:
		return value.IsStaleNaN(s.h.Sum)
	case s.fh != nil:
		return value.IsStaleNaN(s.fh.Sum)
	default:
		return value.IsStaleNaN(s.v)
	}
}

// extraSample is a float, or a histogram where hist is not nil. It is the series' sample number round+2 of the scrape.
type extraSample struct {
	i     uint32
	round int
	t, st int64
	v     float64
	hist  *frame.Histogram
}

type tailing struct {
	round int
	t     int64
	bits  uint64 // of a float
	hist  bool
}

// begin starts a scrape of the source. Until commit or rollback the appender has its turn, and holds its lock.
func (a *appender) begin(src *source) {
	src.turn.Lock()
	src.mu.Lock()
	a.src = src
}

// number returns the number of the series with the given labels, which becomes a new one where the source does not have it.
func (a *appender) number(ls labels.Labels, opts *storage.AOptions) (uint32, error) {
	s := a.src
	k := s.hasher.key(ls)
	if i, ok := s.find(k); ok {
		return i, nil
	}
	ls = ls.WithoutEmpty()
	if err := checkLabels(ls); err != nil {
		return 0, err
	}
	k = s.hasher.key(ls)
	if i, ok := s.find(k); ok {
		return i, nil
	}
	return s.add(k, unsealed{labels: ls}, s.numberOf(unique.Make(describe(ls.Get(model.MetricNameLabel), opts)))), nil
}

// append takes one sample of a series and returns the series' number now. It returns the errors that Prometheus's storage returns: out of
// order, duplicate for a timestamp, and partial ones for exemplars.
func (a *appender) append(i uint32, x scraped, opts *storage.AOptions) (uint32, error) {
	s := a.src
	i = s.resolve(i)
	pending := a.pending(i)
	if !pending {
		i = s.described(i, opts)
	}
	last := s.series[i].last
	if pending {
		last = max(last, a.lastOf(i))
	}
	stale := x.isStale()
	if !stale {
		a.live.set(i)
	}
	if x.t <= last {
		if err := a.refuse(i, x.t, last, x.v, x.isHistogram(), pending, opts.RejectOutOfOrder); err != nil {
			return i, err
		}
		return i, nil // the same sample again, as timestamps exposed by the target bring about
	}
	if stale {
		a.live.clear(i)
	}
	a.n++
	a.last = x.t
	if x.isHistogram() {
		a.addHistogram(frame.Histogram{Index: i, Time: x.t, Start: x.st, Int: x.h, Float: x.fh}, pending)
	} else {
		a.addFloat(i, x.t, x.st, x.v, pending)
	}
	if len(opts.Exemplars) > 0 {
		return i, a.addExemplars(i, opts.Exemplars)
	}
	return i, nil
}

// reserve makes room for all series of the source, as a scrape that repeats the last one needs it.
func (a *appender) reserve() {
	if n := len(a.src.series); n > 0 {
		a.grow(uint32(n - 1))
		a.live.reserve(n)
		a.floats.reserve(n)
	}
}

// take appends a float sample in the usual case: the only one of its series in the scrape, newer than the last, without a start timestamp. It
// reports whether it was that.
func (a *appender) take(i uint32, t int64, v float64) bool {
	if st := &a.src.series[i]; st.moved != 0 || t <= st.last || int(i) >= len(a.vals) || a.pending(i) {
		return false
	}
	if int(i) < len(a.starts) {
		a.starts[i] = 0
	}
	a.live.set(i)
	a.floats.set(i)
	a.vals[i], a.times[i] = v, t
	a.n++
	a.last = t
	return true
}

// checkLabels returns an error for label sets that Prometheus's storage refuses, and for ones that no dictionary takes.
func checkLabels(ls labels.Labels) error {
	if ls.IsEmpty() {
		return errors.New("empty label set")
	}
	if name, twice := ls.HasDuplicateLabelNames(); twice {
		return fmt.Errorf("label name %q is not unique (metric: %.50s)", name, ls.Get(model.MetricNameLabel))
	}
	if n := labelBytes(ls); n > frame.MaxLabelSetBytes {
		return fmt.Errorf("label set of %d bytes, the most is %d (metric: %.50s)", n, frame.MaxLabelSetBytes, ls.Get(model.MetricNameLabel))
	}
	return nil
}

// pending reports whether the series has a sample in this scrape.
func (a *appender) pending(i uint32) bool { return a.floats.has(i) || a.histos.has(i) }

// refuse says what is wrong with a sample that is not newer than the series' last one; nil where it is that sample again.
func (a *appender) refuse(i uint32, t, last int64, v float64, isHistogram, pending, reject bool) error {
	if t < last || reject {
		return storage.ErrOutOfOrderSample
	}
	if isHistogram {
		return nil
	}
	bits, ok := a.src.explicit[i]
	if pending {
		bits, ok = math.Float64bits(a.vals[i]), a.floats.has(i)
		if tail, more := a.tails[i]; more {
			bits, ok = tail.bits, !tail.hist
		}
	}
	if ok && bits == math.Float64bits(v) {
		return nil
	}
	return storage.ErrDuplicateSampleForTimestamp
}

// lastOf returns the timestamp of the newest sample that a pending series has in this scrape.
func (a *appender) lastOf(i uint32) int64 {
	if tail, ok := a.tails[i]; ok {
		return tail.t
	}
	return a.times[i]
}

func (a *appender) addFloat(i uint32, t, st int64, v float64, pending bool) {
	if pending {
		a.addFurther(extraSample{i: i, t: t, st: st, v: v})
		return
	}
	a.grow(i)
	a.floats.set(i)
	a.vals[i], a.times[i] = v, t
	if st != 0 || len(a.starts) > 0 {
		a.growStarts()
		a.starts[i] = st
	}
}

func (a *appender) growStarts() {
	if n, old := len(a.vals), len(a.starts); old < n {
		a.starts = slices.Grow(a.starts, n-old)[:n]
		clear(a.starts[old:])
	}
}

// setStart sets the start timestamp of a float sample that was taken: the first one of a series, or where further is not below 0, that of the further samples.
func (a *appender) setStart(i uint32, further int, st int64) {
	if further >= 0 {
		a.extra[further].st = st
		return
	}
	a.growStarts()
	a.starts[i] = st
}

// addHistogram takes a histogram, whose memory is the caller's.
func (a *appender) addHistogram(h frame.Histogram, pending bool) {
	if h.Int != nil {
		h.Int = h.Int.Copy()
	} else {
		h.Float = h.Float.Copy()
	}
	if pending {
		a.addFurther(extraSample{i: h.Index, t: h.Time, hist: &h})
		return
	}
	a.grow(h.Index)
	a.histos.set(h.Index)
	a.times[h.Index] = h.Time
	a.hists = append(a.hists, h)
}

func (a *appender) addFurther(x extraSample) {
	if tail, ok := a.tails[x.i]; ok {
		x.round = tail.round + 1
	}
	a.extra = append(a.extra, x)
	if a.tails == nil {
		a.tails = map[uint32]tailing{}
	}
	a.tails[x.i] = tailing{x.round, x.t, math.Float64bits(x.v), x.hist != nil}
}

// grow makes room for series i.
func (a *appender) grow(i uint32) {
	if int(i) >= len(a.vals) {
		n := max(int(i)+1, len(a.src.series))
		a.vals = slices.Grow(a.vals, n-len(a.vals))[:n]
		a.times = slices.Grow(a.times, n-len(a.times))[:n]
	}
}

// addExemplars takes those that are newer than the series' newest. Repeated ones are what targets expose until
// something new happens.
func (a *appender) addExemplars(i uint32, list []exemplar.Exemplar) error {
	var partial *storage.AppendPartialError
	fail := func(err error) {
		if partial == nil {
			partial = &storage.AppendPartialError{}
		}
		partial.ExemplarErrors = append(partial.ExemplarErrors, err)
	}
	newest, have := a.src.exemplars[i]
	for _, x := range list {
		if have && x.Equals(newest) {
			continue
		}
		size := 0
		x.Labels.Range(func(l labels.Label) { size += utf8.RuneCountInString(l.Name) + utf8.RuneCountInString(l.Value) })
		switch {
		case size > exemplar.ExemplarMaxLabelSetLength:
			fail(storage.ErrExemplarLabelLength)
		case have && exemplar.Compare(x, newest) < 0:
			fail(storage.ErrOutOfOrderExemplar)
		default:
			newest, have = x, true
			a.exs = append(a.exs, frame.Exemplar{Index: i, Exemplar: x})
		}
	}
	return partial.ToError()
}

// rollback forgets the scrape.
func (a *appender) rollback() {
	a.release()
}

// commit ends the scrape: it hands it on, and lets go of the source.
func (a *appender) commit() (taken bool, err error) {
	defer a.release()
	return a.handOn()
}

// handOn turns the scrape into frames and hands them to the partition's publisher. Where the publisher holds as much as it may, because
// the stream does not take it, the scrape is dropped as a whole and counted. It reports whether the scrape was taken, as one without samples is.
func (a *appender) handOn() (taken bool, err error) {
	if a.n == 0 {
		return true, nil
	}
	s, svc := a.src, a.svc
	epoch := svc.epochOf(s.id)
	if epoch == 0 {
		return false, nil // another owns the shard now
	}
	if err := s.seal(); err != nil {
		s.clear() // or every scrape would fail for the same series
		return false, fmt.Errorf("source %016x: %w", s.id, err)
	}
	u := a.build(epoch)
	samples, frames := float64(u.Samples), float64(len(u.Frames)) // the publisher owns u once it has taken it
	if !svc.cfg.Publishers.Offer(s.partition, u) {
		svc.dropped(samples)
		svc.full.add()
		svc.reportRefusals()
		return false, nil
	}
	svc.reportRefusals()
	a.commitState()
	svc.metrics.samples.Add(samples)
	svc.metrics.frames.Add(frames)
	s.compact(&a.live, a.last, svc.cfg.SeriesIdle.Milliseconds())
	if s.changed {
		s.changed = false
		svc.keeper.note(s)
	}
	return true, nil
}

// commitState makes the scrape's timestamps, values and exemplars the source's.
func (a *appender) commitState() {
	s := a.src
	s.scraped = max(s.scraped, a.at) // a scrape that was overtaken comes late
	a.floats.each(func(i uint32) { s.setLast(i, a.times[i], a.times[i] != a.last, a.vals[i]) })
	for i := range a.hists {
		s.setLast(a.hists[i].Index, a.hists[i].Time, false, 0)
	}
	for i := range a.extra {
		x := &a.extra[i]
		s.setLast(x.i, x.t, x.hist == nil, x.v)
	}
	for _, x := range a.exs {
		s.setExemplar(x.Index, x.Exemplar)
	}
}

// release empties the appender and lets go of the source.
func (a *appender) release() {
	a.src.mu.Unlock()
	a.src.turn.Unlock()
	a.src = nil
	a.live.reset()
	a.floats.reset()
	a.histos.reset()
	a.vals, a.times, a.starts = a.vals[:0], a.times[:0], a.starts[:0]
	a.n, a.last, a.at = 0, 0, 0
	clear(a.extra)
	clear(a.hists)
	clear(a.exs)
	clear(a.fr.Sections[:cap(a.fr.Sections)]) // they refer to histograms and exemplars
	a.extra, a.hists, a.exs = a.extra[:0], a.hists[:0], a.exs[:0]
	a.tails = nil
}
