package ingest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/ingest/door"
)

// sample is a sample on its way into a frame.
type sample struct {
	ser   *series
	about about // what is said of the series with it
	t, st int64 // timestamp and start timestamp in milliseconds; st is 0 where it is not known
	v     float64
	hist  *frame.Histogram // nil for a float; Index, Time and Start are not set
	exs   []exemplar.Exemplar
	point int  // number of the point that it comes from, within the request, or targetInfo
	round int  // how many samples of the series stand before it
	known bool // it is the series' newest once more, to carry an exemplar
}

// targetInfo is the number of the point of samples that come from a resource.
const targetInfo = -2

// loose is an exemplar that came without a sample of its series.
type loose struct {
	ser *series
	x   exemplar.Exemplar
}

// gather is what a request has for one source.
type gather struct {
	src       *source
	samples   []sample
	exemplars []loose
	repeats   bool // there were samples that are taken already, or about to be
}

// request is one push on its way from bytes to the stream's acknowledgement. Its memory is used again.
type request struct {
	svc     *Service
	tenant  string
	limits  *door.Limits
	root    key // of the tenant and the limits
	now     int64
	maxTime int64 // in milliseconds
	tr      *translation

	gathers []*gather
	free    []*gather
	bySrc   map[*source]*gather
	current *gather
	points  int // or time series, so far
	values  int // samples, histograms and exemplars of time series, so far
	number  int // of samples, so far

	hold         func(int64) error // of the push
	cancelled    func() error      // tells whether somebody waits for the answer
	weight, room int64             // see weigh
	failed       error             // what weigh has said
	translated   int               // how much was translated, in bytes

	before  *entry // that was found last
	out     door.Outcome
	reasons []string
	refused map[int]bool // points of which a sample was refused

	newest map[*series]exemplar.Exemplar // of the source at hand, as it is once its samples are taken
	runs   map[*series]uint64            // likewise: what series have several samples of, see [sameRun]

	build   builder
	learner learner
	otlp    otlpScratch
	pushed  pushed
	symbols []symbol
	refs    []uint32
	texts   map[uint32]string // symbols that are help or unit of a new series
	scratch labels.ScratchBuilder
}

var requests = sync.Pool{New: func() any {
	return &request{bySrc: map[*source]*gather{}, refused: map[int]bool{}, newest: map[*series]exemplar.Exemplar{}, runs: map[*series]uint64{}, scratch: labels.NewScratchBuilder(16)}
}}

// maxAhead is by how much a sample may be in the future, as in Prometheus.
const maxAhead = 10 * time.Minute

func (s *Service) begin(p *door.Push) *request {
	r := requests.Get().(*request)
	now := time.Now()
	r.svc, r.tenant, r.limits, r.now, r.maxTime = s, p.Tenant, p.Limits, seconds(now), now.Add(maxAhead).UnixMilli()
	r.hold, r.room = p.Hold, unweighed
	r.tr = s.translation.Load()
	r.root = s.hash.string(p.Tenant).number(uint64(p.Limits.MaxLabelNames)).number(uint64(p.Limits.MaxLabelNameBytes)).
		number(uint64(p.Limits.MaxLabelValueBytes)).number(uint64(p.Format)).number(r.tr.generation)
	return r
}

// release gives the request's memory back.
func (r *request) release() {
	for _, g := range r.gathers {
		clear(g.samples)
		clear(g.exemplars)
		g.src, g.samples, g.exemplars, g.repeats = nil, g.samples[:0], g.exemplars[:0], false
		if cap(g.samples) <= keptItems {
			r.free = append(r.free, g)
		}
	}
	clear(r.gathers)
	clear(r.bySrc)
	clear(r.refused)
	clear(r.newest)
	clear(r.runs)
	r.before = nil
	r.gathers, r.current, r.points, r.values, r.number = r.gathers[:0], nil, 0, 0, 0
	r.hold, r.cancelled, r.weight, r.room, r.failed, r.translated = nil, nil, 0, 0, nil, 0
	r.out, r.reasons = door.Outcome{}, nil
	r.learner.release()
	r.otlp.release()
	r.pushed.reset()
	r.pushed.samples = emptied(r.pushed.samples)
	r.build.release()
	if len(r.free) > 64 {
		r.free = r.free[:64]
	}
	r.symbols, r.refs = emptied(r.symbols), emptied(r.refs)
	clear(r.texts)
	requests.Put(r)
}

// add takes a sample for its series.
func (r *request) add(x sample) {
	g := r.gatherOf(x.ser.src)
	g.samples = append(g.samples, x)
}

// known returns what is known of a point, or nil.
func (r *request) known(k key) *entry {
	e := r.svc.registry.after(r.before, k, r.now)
	if e != nil {
		r.before = e
	}
	return e
}

// gatherOf returns what there is for a source.
func (r *request) gatherOf(src *source) *gather {
	if r.current != nil && r.current.src == src {
		return r.current
	}
	g, ok := r.bySrc[src]
	if !ok {
		if n := len(r.free); n > 0 {
			g, r.free = r.free[n-1], r.free[:n-1]
		} else {
			g = &gather{}
		}
		g.src = src
		r.bySrc[src] = g
		r.gathers = append(r.gathers, g)
	}
	r.current = g
	return g
}

// maxReasons is how many refusals an answer names.
const maxReasons = 3

// refuse notes that n points, or samples, will not be taken, by whatever is wrong with them.
func (r *request) refuse(why refusal, n int, format string, args ...any) {
	r.out.Refused += n
	r.svc.metrics.refused(why, n)
	if len(r.reasons) < maxReasons {
		r.reasons = append(r.reasons, string(why)+": "+fmt.Sprintf(format, args...))
	}
}

// refuseSample is refuse for one sample of several that a point may have: a point counts once.
func (r *request) refuseSample(why refusal, x *sample, format string, args ...any) {
	n := 1
	if r.refused[x.point] {
		n = 0
	}
	r.refused[x.point] = true
	r.refuse(why, n, format, args...)
}

// errFull is returned where frames that are not acknowledged yet take all the memory that they may.
var errFull = &door.Refusal{Kind: door.Full, RetryAfter: time.Second, Message: "the stream does not take samples as fast as they come; try again later"}

// finish brings everything gathered into the stream and waits for its acknowledgement.
func (r *request) finish(ctx context.Context) (door.Outcome, error) {
	acks := &acks{done: make(chan struct{})}
	acks.left.Store(1)
	var refused error
	for _, g := range r.gathers {
		if refused = r.commit(g, acks); refused != nil {
			break
		}
	}
	acks.end(nil)
	if refused != nil {
		return door.Outcome{}, refused
	}
	if err := r.wait(ctx, acks); err != nil {
		return door.Outcome{}, err
	}
	r.svc.metrics.samples.Add(float64(r.out.Samples + r.out.Histograms))
	r.out.Reason = r.reason()
	return r.out, nil
}

func (r *request) reason() string {
	if len(r.reasons) == 0 {
		return ""
	}
	text := strings.Join(r.reasons, "; ")
	if r.out.Refused > len(r.reasons) {
		text += "; and others"
	}
	return text
}

// wait waits until the stream has acknowledged all, for as long as a request may.
func (r *request) wait(ctx context.Context, a *acks) error {
	select { // there may have been nothing to wait for
	case <-a.done:
	default:
		timer := time.NewTimer(r.svc.cfg.AckTimeout)
		defer timer.Stop()
		select {
		case <-a.done:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return r.svc.unavailable()
		}
	}
	if err := a.err.Load(); err != nil {
		return *err
	}
	return nil
}

// acks waits for several acknowledgements.
type acks struct {
	left atomic.Int32
	err  atomic.Pointer[error]
	done chan struct{}
}

func (a *acks) end(err error) {
	if err != nil {
		a.err.CompareAndSwap(nil, &err)
	}
	if a.left.Add(-1) == 0 {
		close(a.done)
	}
}

// commit makes frames of what a request has for one source and hands them to the publisher of its partition. The source knows the samples from then on: what is pushed again is not published
// again, but waits for the same acknowledgement.
func (r *request) commit(g *gather, a *acks) error {
	s := r.svc.registry.lock(g.src)
	defer s.mu.Unlock()
	for i := range g.samples {
		x := &g.samples[i]
		x.ser = r.settle(s, x.ser, x.about)
	}
	clear(r.newest)
	clear(r.runs)
	list := r.judge(s, g)
	if len(g.exemplars) > 0 {
		list = r.attach(s, g, list)
	}
	u := &publish.Unit{Linger: r.svc.cfg.Linger, Budget: r.svc.budget, Job: s.key.job, Waits: g.repeats}
	if len(list) > 0 {
		s.describe(r.svc.metadata)
		s.tidy()
		if err := s.seal(); err != nil {
			return fmt.Errorf("series of job %q: %w", s.key.job, err)
		}
		r.build.frames(s, list, u)
	} else if !g.repeats {
		return nil
	}
	u.Done = func(err error) {
		if err != nil {
			s.failed()
			err = notPublished(err)
		}
		a.end(err)
	}
	a.left.Add(1)
	if !r.svc.publishers(s.key.delta).Offer(s.partition, u) {
		a.left.Add(-1)
		r.svc.metrics.full.Inc()
		return errFull
	}
	for i := range list {
		x := &list[i]
		if x.known {
			continue
		}
		if x.t >= x.ser.last {
			x.ser.last, x.ser.bits, x.ser.hist, x.ser.run = x.t, x.bits(), x.hist != nil, 0
		}
		if x.hist != nil {
			r.out.Histograms++
		} else {
			r.out.Samples++
		}
	}
	for ser, run := range r.runs {
		ser.run = run
	}
	if s.exemplars == nil && len(r.newest) > 0 {
		s.exemplars = map[*series]exemplar.Exemplar{}
	}
	maps.Copy(s.exemplars, r.newest)
	return nil
}

// settle returns the series of the source as it is now that stands for another: it may have been forgotten while the request was read. The sample says this about
// it, which is not what the series has where another sender, or the same one, has said something else since the point was learned.
func (r *request) settle(s *source, x *series, a about) *series {
	if x.src != s || x.number == gone {
		hash := x.labels.Hash()
		now := s.find(hash, x.labels)
		if now == nil {
			now = s.add(hash, x.labels, r.now)
			now.family, now.meta, now.about = x.family, x.meta, x.about
			r.svc.registry.series.Add(1)
		}
		x = now
	}
	if a != x.about && a != (about{}) {
		s.retell(x, a, r.now)
	}
	x.seen = r.now
	return x
}

// attach gives exemplars that came without a sample to one of their series: to the last one in the list, or to the newest one that was taken before, which is sent once more, since no
// endpoint takes an exemplar alone.
func (r *request) attach(s *source, g *gather, list []sample) []sample {
	at := map[*series]int{}
	for i := range list {
		at[list[i].ser] = i
	}
	for _, e := range g.exemplars {
		ser := r.settle(s, e.ser, about{})
		i, ok := at[ser]
		if !ok {
			if ser.last == minTime || ser.hist {
				r.refuse(refusedExemplar, 0, "an exemplar of %s comes before any sample", ser.labels)
				continue
			}
			i = len(list)
			at[ser] = i
			list = append(list, sample{ser: ser, t: ser.last, v: math.Float64frombits(ser.bits), known: true})
		}
		list[i].exs = append(list[i].exs, r.judgeExemplars(s, g, ser, []exemplar.Exemplar{e.x})...)
	}
	list = slices.DeleteFunc(list, func(x sample) bool { return x.known && len(x.exs) == 0 })
	slices.SortStableFunc(list, byNumber)
	return list
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }

// notPublished is what a sender hears of an error of the publisher.
func notPublished(err error) error {
	if errors.Is(err, stream.ErrTooLarge) {
		return &door.Refusal{Kind: door.TooLarge, Message: "a series or sample is larger than a message of the stream may be"}
	}
	return &door.Refusal{Kind: door.Unavailable, RetryAfter: time.Second, Message: "the process stops before the stream has taken the samples"}
}

// unavailable is what a sender hears where the stream has not acknowledged in time.
func (s *Service) unavailable() error {
	message := "the stream has not acknowledged the samples in time"
	if w := s.Waiting(); len(w) > 0 {
		message += ": " + w[0]
	}
	s.metrics.late.Inc()
	return &door.Refusal{Kind: door.Unavailable, RetryAfter: 2 * time.Second, Message: message}
}
