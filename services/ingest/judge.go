package ingest

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"

	"github.com/millrace/millrace/pkg/frame"
)

// judge sorts the samples by series and returns those to take: not those that are refused, and not those that are taken already.
func (r *request) judge(s *source, g *gather) []sample {
	list := g.samples
	for i := 1; i < len(list); i++ {
		if list[i].ser.number < list[i-1].ser.number {
			slices.SortStableFunc(list, byNumber)
			break
		}
	}
	kept := 0
	for i := 0; i < len(list); {
		n := i + 1
		for n < len(list) && list[n].ser == list[i].ser {
			n++
		}
		if n == i+1 && r.plain(&list[i]) {
			if kept < i {
				list[kept] = list[i]
			}
			kept++
		} else {
			kept = len(r.judgeSeries(s, g, list[i:n], list[:kept]))
		}
		i = n
	}
	return list[:kept]
}

// plain reports whether a sample that is the only one of its series in the request is taken as it is, which judgeSeries would say as well: it is newer than the others, and has no exemplars.
func (r *request) plain(x *sample) bool {
	return x.t > x.ser.last && x.t <= r.maxTime && len(x.exs) == 0
}

func byNumber(a, b sample) int { return cmp.Compare(a.ser.number, b.ser.number) }

// judgeSeries judges the samples of one series.
func (r *request) judgeSeries(s *source, g *gather, run, kept []sample) []sample {
	byTime := func(a, b sample) int { return cmp.Compare(a.t, b.t) }
	if !slices.IsSortedFunc(run, byTime) { // floats and histograms come apart
		slices.SortStableFunc(run, byTime)
	}
	ser := run[0].ser
	last, bits, hist := ser.last, ser.bits, ser.hist
	same := func(x *sample) bool {
		return x.t == last && (x.hist != nil) == hist && x.bits() == bits
	}
	// A request that is sent again has all the samples that it had, up to the newest.
	again := len(run) > 1 && !s.key.delta && same(&run[len(run)-1]) && sameRun(run) == ser.run
	round, fresh := 0, 0
	for k := range run {
		x := run[k]
		switch {
		case x.t > r.maxTime:
			r.refuseSample(refusedFuture, &x, "%s at %s", ser.labels, stamp(x.t))
			continue
		case s.key.delta:
		case again && x.t <= last, same(&x):
			g.repeats = true
			if x.hist != nil {
				r.out.Histograms++
			} else {
				r.out.Samples++
			}
			if x.t < last {
				r.out.Exemplars += len(x.exs)
				continue
			}
			if x.exs = r.judgeExemplars(s, g, ser, x.exs); len(x.exs) > 0 { // new ones of an old sample
				x.known, x.round = true, round
				round++
				kept = append(kept, x)
			}
			continue
		case x.point == targetInfo && x.t <= last:
			continue // no sender has a point of it, or would hear of one
		case x.t == last:
			r.refuseSample(refusedDuplicate, &x, "%s has another value at %s", ser.labels, stamp(x.t))
			continue
		case x.t < last && last-x.t > r.svc.cfg.OutOfOrderWindow.Milliseconds():
			r.refuseSample(refusedOutOfOrder, &x, "%s at %s, its newest sample is of %s", ser.labels, stamp(x.t), stamp(last))
			continue
		}
		if x.t > last {
			last, bits, hist = x.t, x.bits(), x.hist != nil
		}
		x.exs = r.judgeExemplars(s, g, ser, x.exs)
		x.round = round
		round++
		fresh++
		kept = append(kept, x)
	}
	if n := len(run); n > 1 && fresh == n && kept[len(kept)-1].t == last {
		r.runs[ser] = sameRun(kept[len(kept)-n:])
	}
	return kept
}

// bits stands for the value of a sample: samples of a time with the same bits are the same.
func (x *sample) bits() uint64 {
	if x.hist == nil {
		return math.Float64bits(x.v)
	}
	return histogramBits(x.hist)
}

// histogramBits is a hash of a native histogram.
func histogramBits(h *frame.Histogram) uint64 {
	var d xxhash.Digest
	d.Reset()
	var b [8]byte
	number := func(n uint64) {
		binary.LittleEndian.PutUint64(b[:], n)
		_, _ = d.Write(b[:]) // writing to a digest never fails
	}
	floats := func(list []float64) {
		number(uint64(len(list)))
		for _, v := range list {
			number(math.Float64bits(v))
		}
	}
	deltas := func(list []int64) {
		number(uint64(len(list)))
		for _, v := range list {
			number(uint64(v))
		}
	}
	spans := func(list []histogram.Span) {
		number(uint64(len(list)))
		for _, s := range list {
			number(uint64(uint32(s.Offset))<<32 | uint64(s.Length))
		}
	}
	if x := h.Int; x != nil {
		number(uint64(uint32(x.Schema)))
		floats([]float64{x.ZeroThreshold, x.Sum})
		number(x.ZeroCount)
		number(x.Count)
		spans(x.PositiveSpans)
		spans(x.NegativeSpans)
		deltas(x.PositiveBuckets)
		deltas(x.NegativeBuckets)
		floats(x.CustomValues)
		return d.Sum64()
	}
	x := h.Float
	number(uint64(uint32(x.Schema)) | 1<<32)
	floats([]float64{x.ZeroThreshold, x.Sum, x.ZeroCount, x.Count})
	spans(x.PositiveSpans)
	spans(x.NegativeSpans)
	floats(x.PositiveBuckets)
	floats(x.NegativeBuckets)
	floats(x.CustomValues)
	return d.Sum64()
}

// sameRun is a hash of the samples of a series that a request has, by which they are known when they come again.
func sameRun(run []sample) uint64 {
	var d xxhash.Digest
	d.Reset()
	var b [17]byte
	for i := range run {
		binary.LittleEndian.PutUint64(b[:], uint64(run[i].t))
		binary.LittleEndian.PutUint64(b[8:], run[i].bits())
		if b[16] = 0; run[i].hist != nil {
			b[16] = 1
		}
		_, _ = d.Write(b[:]) // writing to a digest never fails
	}
	return d.Sum64()
}

// judgeExemplars returns those that are newer than the series' newest; others are what senders repeat until something new happens, and are taken already, or about to be.
func (r *request) judgeExemplars(s *source, g *gather, ser *series, list []exemplar.Exemplar) []exemplar.Exemplar {
	if len(list) == 0 {
		return nil
	}
	r.out.Exemplars += len(list)
	newest, have := r.newest[ser]
	if !have {
		newest, have = s.exemplars[ser]
	}
	kept := list[:0]
	for _, x := range list {
		if have && exemplar.Compare(x, newest) <= 0 {
			g.repeats = true
			continue
		}
		newest, have = x, true
		kept = append(kept, x)
	}
	r.newest[ser] = newest
	return kept
}
