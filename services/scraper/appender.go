package scraper

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/frame"
)

const minTime = math.MinInt64

// appendable gives Prometheus's scrape loops appenders that make frames. It is all that depends on the scrape package's idea of storage.
type appendable struct {
	svc  *Service
	pool sync.Pool
}

// AppenderV2 returns the appender for one scrape. The scrape manager says in ctx for which target.
func (a *appendable) AppenderV2(ctx context.Context) storage.AppenderV2 {
	t, ok := scrape.TargetFromContext(ctx)
	if !ok {
		panic("scrape manager without PassMetadataInContext") // fixed in this package
	}
	app, ok := a.pool.Get().(*appender)
	if !ok {
		app = &appender{owner: a}
	}
	app.src = a.svc.sources.of(t)
	return app
}

// appender collects one scrape. Samples stand at the number of their series, which is their place in the dictionaries, so that a frame's columns are
// slices of what is here.
type appender struct {
	owner *appendable
	src   *source
	gen   uint64 // the source's generation when the first sample came

	seen   bitmap // series that have a float sample in this scrape
	vals   []float64
	times  []int64
	starts []int64 // as long as vals once any sample has a start timestamp

	last  int64 // timestamp of the sample appended last: the scrape's own, since reports come last
	n     int   // samples
	stale int   // of them staleness markers

	extra  []extraSample // second and further samples of a series in one scrape
	hists  []frame.Histogram
	exs    []frame.Exemplar
	histAt map[uint32]int64 // newest histogram per series in this scrape

	enc  frame.Encoder
	fr   frame.Frame
	vbuf []float64
	tbuf []int64
	sbuf []int64
	ebuf []byte
}

type extraSample struct {
	i     uint32
	t, st int64
	v     float64
}

// Append takes one sample. It returns the errors that Prometheus's storage returns: out of order, duplicate for a timestamp, and
// partial ones for exemplars.
func (a *appender) Append(ref storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AOptions) (storage.SeriesRef, error) {
	s := a.src
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.n == 0 {
		a.gen = s.generation
	} else if a.gen != s.generation {
		return 0, fmt.Errorf("source %016x was reorganised by another scrape loop; this scrape is given up", s.id)
	}
	if ref == 0 {
		if n := labelBytes(ls); n > frame.MaxLabelSetBytes {
			return 0, fmt.Errorf("label set of %d bytes, the most is %d (metric: %.50s)", n, frame.MaxLabelSetBytes, ls.Get(labels.MetricName))
		}
	}
	i := s.lookup(ref, ls, &opts)
	last, pending := s.series[i].last, a.seen.has(i)
	if pending || len(a.hists) > 0 {
		last = max(last, a.lastOf(i))
	}
	if t <= last {
		if err := a.refuse(i, t, last, v, h != nil || fh != nil, pending, opts.RejectOutOfOrder); err != nil {
			return 0, err
		}
		return s.ref(i), nil // the same sample again, as timestamps exposed by the target bring about
	}
	a.n++
	a.last = t
	switch {
	case h != nil:
		a.addHistogram(frame.Histogram{Index: i, Time: t, Start: st, Int: h.Copy()}, value.IsStaleNaN(h.Sum))
	case fh != nil:
		a.addHistogram(frame.Histogram{Index: i, Time: t, Start: st, Float: fh.Copy()}, value.IsStaleNaN(fh.Sum))
	case pending:
		a.extra = append(a.extra, extraSample{i, t, st, v})
	default:
		a.addFloat(i, t, st, v)
	}
	var err error
	if len(opts.Exemplars) > 0 {
		err = a.addExemplars(i, opts.Exemplars)
	}
	return s.ref(i), err
}

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
		bits, ok = math.Float64bits(a.vals[i]), true
		for k := range a.extra {
			if a.extra[k].i == i {
				bits = math.Float64bits(a.extra[k].v)
			}
		}
	}
	if ok && bits == math.Float64bits(v) {
		return nil
	}
	return storage.ErrDuplicateSampleForTimestamp
}

// lastOf returns the newest timestamp that a series has in this scrape so far.
func (a *appender) lastOf(i uint32) int64 {
	if t, ok := a.histAt[i]; ok {
		return t
	}
	if !a.seen.has(i) {
		return minTime
	}
	last := a.times[i]
	for k := range a.extra {
		if a.extra[k].i == i {
			last = a.extra[k].t
		}
	}
	return last
}

func (a *appender) addFloat(i uint32, t, st int64, v float64) {
	if int(i) >= len(a.vals) {
		n := max(int(i)+1, len(a.src.series))
		a.vals = slices.Grow(a.vals, n-len(a.vals))[:n]
		a.times = slices.Grow(a.times, n-len(a.times))[:n]
	}
	a.seen.set(i)
	a.vals[i], a.times[i] = v, t
	if st != 0 || len(a.starts) > 0 {
		if n := len(a.vals); len(a.starts) < n {
			old := len(a.starts)
			a.starts = slices.Grow(a.starts, n-old)[:n]
			clear(a.starts[old:])
		}
		a.starts[i] = st
	}
	if value.IsStaleNaN(v) {
		a.stale++
	}
}

func (a *appender) addHistogram(h frame.Histogram, stale bool) {
	a.hists = append(a.hists, h)
	if a.histAt == nil {
		a.histAt = map[uint32]int64{}
	}
	a.histAt[h.Index] = h.Time
	if stale {
		a.stale++
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
		size := 0
		x.Labels.Range(func(l labels.Label) { size += utf8.RuneCountInString(l.Name) + utf8.RuneCountInString(l.Value) })
		switch {
		case size > exemplar.ExemplarMaxLabelSetLength:
			fail(storage.ErrExemplarLabelLength)
		case have && x.Equals(newest):
		case have && (x.Ts < newest.Ts || x.Ts == newest.Ts && (x.Value < newest.Value || x.Value == newest.Value && x.Labels.Hash() < newest.Labels.Hash())):
			fail(storage.ErrOutOfOrderExemplar)
		default:
			newest, have = x, true
			a.exs = append(a.exs, frame.Exemplar{Index: i, Exemplar: x})
		}
	}
	return partial.ToError()
}

// Rollback forgets the scrape.
func (a *appender) Rollback() error {
	a.release()
	return nil
}

// Commit turns the scrape into frames and hands them to the partition's publisher. Where the publisher holds as much as it may, because
// the stream does not take it, the scrape is dropped as a whole and counted.
func (a *appender) Commit() error {
	if a.n == 0 {
		a.release()
		return nil
	}
	s, svc := a.src, a.owner.svc
	s.mu.Lock()
	defer s.mu.Unlock()
	defer a.release()
	s.used = time.Now()
	if a.gen != s.generation {
		return fmt.Errorf("source %016x was reorganised by another scrape loop; this scrape is given up", s.id)
	}
	if err := s.seal(); err != nil {
		return err
	}
	u := a.build(svc.epoch.Load())
	if !svc.publishers[s.partition].offer(u) {
		svc.metrics.droppedScrapes.Inc()
		svc.metrics.droppedSamples.Add(float64(u.samples))
		return nil // said by the publisher, once in a while
	}
	a.commitState()
	svc.metrics.samples.Add(float64(u.samples))
	svc.metrics.frames.Add(float64(len(u.frames)))
	s.compact(a.live(), a.n-a.stale, svc.nextGeneration)
	return nil
}

// live returns the series that have a sample in this scrape which is not a staleness marker. The appender's own set becomes it.
func (a *appender) live() *bitmap {
	if a.stale > 0 {
		for i := range a.vals {
			if a.seen.has(uint32(i)) && value.IsStaleNaN(a.vals[i]) {
				a.seen.clear(uint32(i))
			}
		}
	}
	for i := range a.hists {
		a.seen.set(a.hists[i].Index)
	}
	return &a.seen
}

// commitState makes the scrape's timestamps, values and exemplars the source's.
func (a *appender) commitState() {
	s := a.src
	for i := range a.vals {
		if !a.seen.has(uint32(i)) {
			continue
		}
		s.series[i].last = a.times[i]
		if a.times[i] != a.last {
			s.setExplicit(uint32(i), math.Float64bits(a.vals[i]))
		}
	}
	for _, x := range a.extra {
		s.series[x.i].last = x.t
		s.setExplicit(x.i, math.Float64bits(x.v))
	}
	for _, h := range a.hists {
		s.series[h.Index].last = h.Time
	}
	for _, x := range a.exs {
		s.setExemplar(x.Index, x.Exemplar)
	}
}

// release empties the appender and gives it back.
func (a *appender) release() {
	a.src = nil
	a.seen.reset()
	a.vals, a.times, a.starts = a.vals[:0], a.times[:0], a.starts[:0]
	a.n, a.stale, a.last = 0, 0, 0
	clear(a.extra)
	clear(a.hists)
	clear(a.exs)
	a.extra, a.hists, a.exs = a.extra[:0], a.hists[:0], a.exs[:0]
	clear(a.histAt)
	a.owner.pool.Put(a)
}
