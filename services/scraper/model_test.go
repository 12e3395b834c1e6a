package scraper

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/pkg/publish"
)

// The model says in the plainest way what an appender has to do, series by series. The test drives it and the real one with the same
// scrapes, and compares what the frames decode to with what the model has taken.

// modelSample is a sample with all that a reader gets to know of it.
type modelSample struct {
	T, St  int64
	V      float64
	Int    *histogram.Histogram
	Float  *histogram.FloatHistogram
	Family string
	Meta   metadata.Metadata
}

func (s *modelSample) isHistogram() bool { return s.Int != nil || s.Float != nil }

// modelSeries is what the model knows of a series between scrapes.
type modelSeries struct {
	last     int64
	known    bool // whether value is that of the sample at last
	value    float64
	family   string
	meta     metadata.Metadata
	exemplar *exemplar.Exemplar
}

type modelSource struct {
	series map[string]*modelSeries
	// What readers have got of each series.
	samples   map[string][]modelSample
	exemplars map[string][]exemplar.Exemplar
}

// modelScrape is a scrape that is collected.
type modelScrape struct {
	app     *testAppender
	n       int
	lastT   int64
	samples map[string][]modelSample
	exs     []modelExemplar
	live    map[string]bool
}

type modelExemplar struct {
	series string
	exemplar.Exemplar
}

// choices turns bytes into decisions; behind the last byte all are 0.
type choices struct{ b []byte }

func (c *choices) pick(n int) int {
	if len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0])
	c.b = c.b[1:]
	return v % n
}

// oneIn is true with the probability 1/n, and not for 0.
func (c *choices) oneIn(n int) bool { return c.pick(n) == n-1 }

type modelTest struct {
	t      *testing.T
	r      *rig
	c      *choices
	src    *source
	target labels.Labels
	model  modelSource
	now    int64
	seq    uint64

	compactions, drops int
}

// universe is how many series there are.
const universe = 120

func runModel(t *testing.T, data []byte) *modelTest {
	r := newRig(t)
	m := &modelTest{t: t, r: r, c: &choices{data}, target: newTarget("a:1"), now: 1_767_225_600_000}
	m.src = r.sourceOf(m.target)
	m.model = modelSource{series: map[string]*modelSeries{}, samples: map[string][]modelSample{}, exemplars: map[string][]exemplar.Exemplar{}}
	got := modelSource{samples: map[string][]modelSample{}, exemplars: map[string][]exemplar.Exemplar{}}
	for scrapes := 0; len(m.c.b) > 0; scrapes++ {
		m.now += int64(1 + m.c.pick(5)*250)
		s := m.begin()
		m.fill(s, scrapes)
		m.end(s, &got)
	}
	m.check(&got)
	return m
}

func (m *modelTest) begin() *modelScrape {
	return &modelScrape{
		app: m.r.appender(m.target), samples: map[string][]modelSample{}, live: map[string]bool{},
	}
}

// fill appends the samples of some series, as a target that exposes ever more of them.
func (m *modelTest) fill(s *modelScrape, scrapes int) {
	n := 1 + m.c.pick(12)
	for range n {
		m.append(s, m.c.pick(min(universe, 4+4*scrapes)))
	}
}

func (m *modelTest) append(s *modelScrape, i int) {
	c := m.c
	ls := labels.FromStrings("__name__", "series", "i", fmt.Sprint(i))
	key := ls.String()
	x := modelSample{T: m.now}
	switch c.pick(6) {
	case 4: // a timestamp of its own, which comes again and again
		x.T = m.now/5000*5000 + int64(c.pick(3))*1000
	case 5:
		x.T += int64(c.pick(5)) - 2
	}
	if c.oneIn(6) {
		x.St = m.now - 60_000
	}
	kind := i % 6 // most series have one kind
	if c.oneIn(16) {
		kind = c.pick(6)
	}
	stale := c.oneIn(12)
	switch kind {
	case 4:
		x.Int = &histogram.Histogram{Count: uint64(c.pick(4)), Sum: 1.5, PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{int64(c.pick(4))}}
		if stale {
			x.Int = &histogram.Histogram{Sum: staleNaN}
		}
	case 5:
		x.Float = &histogram.FloatHistogram{Schema: histogram.CustomBucketsSchema, Count: float64(c.pick(4)), CustomValues: []float64{1}}
		if stale {
			x.Float = &histogram.FloatHistogram{Sum: staleNaN}
		}
	default:
		x.V = []float64{0, math.Copysign(0, -1), 1, 2.5, math.NaN(), math.Inf(1)}[c.pick(6)]
		if stale {
			x.V = staleNaN
		}
	}
	var opts storage.AOptions
	if !stale && !c.oneIn(4) {
		opts.MetricFamilyName = "series"
		opts.Metadata = metadata.Metadata{Type: "gauge", Help: fmt.Sprint("help ", c.pick(20)/19)}
	}
	opts.RejectOutOfOrder = stale
	if c.oneIn(5) {
		for range 1 + c.pick(2) {
			opts.Exemplars = append(opts.Exemplars, exemplar.Exemplar{
				Labels: labels.FromStrings("trace", fmt.Sprint(c.pick(3))), Value: float64(c.pick(3)), HasTs: true, Ts: m.now - int64(c.pick(3))*1000,
			})
		}
		slices.SortFunc(opts.Exemplars, exemplar.Compare)
	}
	wantErr := s.append(m, key, &x, stale, opts)
	_, err := s.app.Append(0, ls, x.St, x.T, x.V, x.Int, x.Float, opts)
	var partial *storage.AppendPartialError
	if errors.As(err, &partial) {
		var want *storage.AppendPartialError
		if !errors.As(wantErr, &want) || len(want.ExemplarErrors) != len(partial.ExemplarErrors) {
			m.t.Fatalf("appending %s at %d: %v, want %v", key, x.T, err, wantErr)
		}
	} else if !errors.Is(err, wantErr) {
		m.t.Fatalf("appending %s at %d: %v, want %v", key, x.T, err, wantErr)
	}
}

// append does what Append has to.
func (s *modelScrape) append(m *modelTest, key string, x *modelSample, stale bool, opts storage.AOptions) error {
	series := m.model.series[key]
	if series == nil {
		series = &modelSeries{last: math.MinInt64}
		m.model.series[key] = series
	}
	pending := s.samples[key]
	if opts.MetricFamilyName != "" && len(pending) == 0 {
		series.family, series.meta = opts.MetricFamilyName, opts.Metadata
	}
	if !stale {
		s.live[key] = true
	}
	last, known, val := series.last, series.known, series.value
	if len(pending) > 0 {
		if p := pending[len(pending)-1]; p.T >= last {
			last, known, val = p.T, !p.isHistogram(), p.V
		} else {
			known, val = !p.isHistogram(), p.V
		}
	}
	switch {
	case x.T < last || x.T == last && opts.RejectOutOfOrder:
		return storage.ErrOutOfOrderSample
	case x.T == last && (x.isHistogram() || known && math.Float64bits(val) == math.Float64bits(x.V)):
		return nil
	case x.T == last:
		return storage.ErrDuplicateSampleForTimestamp
	}
	if stale {
		delete(s.live, key)
	}
	x.Family, x.Meta = series.family, series.meta
	s.samples[key] = append(pending, *x)
	s.n++
	s.lastT = x.T
	return s.exemplarsOf(key, series, opts.Exemplars)
}

func (s *modelScrape) exemplarsOf(key string, series *modelSeries, list []exemplar.Exemplar) error {
	var partial *storage.AppendPartialError
	newest := series.exemplar // each append of a scrape is compared with what earlier scrapes had
	for _, x := range list {
		switch {
		case newest != nil && exemplar.Compare(x, *newest) == 0:
		case newest != nil && exemplar.Compare(x, *newest) < 0:
			if partial == nil {
				partial = &storage.AppendPartialError{}
			}
			partial.ExemplarErrors = append(partial.ExemplarErrors, storage.ErrOutOfOrderExemplar)
		default:
			newest = &x
			s.exs = append(s.exs, modelExemplar{key, x})
		}
	}
	return partial.ToError()
}

// end commits the scrape, rolls it back, or finds no room for it.
func (m *modelTest) end(s *modelScrape, got *modelSource) {
	t := m.t
	switch m.c.pick(10) {
	case 8:
		if err := s.app.Rollback(); err != nil {
			t.Fatal(err)
		}
		return
	case 9:
		budget := m.r.budget
		m.r.budget = publish.NewBudget(0)
		defer func() { m.r.budget = budget }()
		if err := s.app.Commit(); err != nil {
			t.Fatal(err)
		}
		if u := m.r.unitOf(m.src); u != nil {
			t.Fatal("a scrape was taken though there is no room")
		}
		m.drops++
		return
	}
	before := len(m.src.series)
	if err := s.app.Commit(); err != nil {
		t.Fatal(err)
	}
	if s.n == 0 {
		return
	}
	left := m.commit(s)
	u := m.r.unitOf(m.src)
	if (u == nil) != (left == 0) {
		t.Fatalf("%d samples, but the unit is %v", left, u)
	}
	if u == nil {
		return
	}
	if u.Samples != left {
		t.Fatalf("the unit has %d samples, want %d", u.Samples, left)
	}
	m.read(u, s.lastT, got)
	if len(m.src.series) < before {
		m.compactions++
		m.forget(s)
	}
}

// commit does what Commit has to, and returns how many samples are left to publish.
func (m *modelTest) commit(s *modelScrape) (left int) {
	several := map[string]bool{}
	for key, list := range s.samples {
		several[key] = len(list) > 1
		left += len(list)
	}
	if left == 0 {
		return 0
	}
	for key, list := range s.samples {
		series, x := m.model.series[key], list[len(list)-1]
		series.last, series.value = x.T, x.V
		// A float with the scrape's own timestamp cannot come again; its value is not kept.
		series.known = !x.isHistogram() && (x.T != s.lastT || several[key])
		m.model.samples[key] = append(m.model.samples[key], list...)
	}
	for _, x := range s.exs {
		series := m.model.series[x.series]
		m.model.exemplars[x.series] = append(m.model.exemplars[x.series], x.Exemplar)
		if series.exemplar == nil || exemplar.Compare(x.Exemplar, *series.exemplar) > 0 {
			series.exemplar = &x.Exemplar
		}
	}
	return left
}

// forget drops what a compaction may have dropped: series that the scrape did not expose.
func (m *modelTest) forget(s *modelScrape) {
	have := map[string]bool{}
	for _, ls := range labelsOf(m.t, m.src) {
		have[ls.String()] = true
	}
	for key := range m.model.series {
		if have[key] {
			continue
		}
		if s.live[key] {
			m.t.Fatalf("compaction has dropped %s, which was exposed", key)
		}
		delete(m.model.series, key)
	}
}

// read adds what a reader gets.
func (m *modelTest) read(u *publish.Unit, time int64, got *modelSource) {
	t := m.t
	frames, dicts := decode(t, u)
	for _, f := range frames {
		if f.Seq != m.seq+1 && f.Seq <= m.seq {
			t.Fatalf("frame %d after %d", f.Seq, m.seq)
		}
		m.seq = f.Seq
		if f.Source != m.src.id || f.Epoch != 7 || f.Time != time {
			t.Fatalf("frame of source %x, epoch %d, time %d", f.Source, f.Epoch, f.Time)
		}
		for i := range f.Sections {
			s := &f.Sections[i]
			series := dicts[s.Dict]
			take := func(at uint32, x modelSample) {
				x.Family, x.Meta = series[at].Family, series[at].Metadata
				key := series[at].Labels.String()
				got.samples[key] = append(got.samples[key], x)
			}
			for k, v := range s.Values {
				at, x := uint32(k), modelSample{T: f.Time, V: v}
				if s.Present != nil {
					at = s.Present[k]
				}
				if len(s.Times) > 0 {
					x.T = s.Times[k]
				}
				if len(s.Starts) > 0 {
					x.St = s.Starts[k]
				}
				take(at, x)
			}
			for _, h := range s.Histograms {
				take(h.Index, modelSample{T: h.Time, St: h.Start, Int: h.Int, Float: h.Float})
			}
			for _, x := range s.Exemplars {
				key := series[x.Index].Labels.String()
				got.exemplars[key] = append(got.exemplars[key], x.Exemplar)
			}
		}
	}
}

func (m *modelTest) check(got *modelSource) {
	m.t.Helper()
	if d := gocmp.Diff(m.model.samples, got.samples, exact); d != "" {
		m.t.Errorf("samples (-model +frames):\n%s", d)
	}
	if d := gocmp.Diff(m.model.exemplars, got.exemplars, exact); d != "" {
		m.t.Errorf("exemplars (-model +frames):\n%s", d)
	}
	for key, list := range got.samples {
		var last int64 = math.MinInt64
		for _, x := range list {
			if x.T <= last && m.compactions == 0 {
				m.t.Errorf("%s has a sample at %d after one at %d", key, x.T, last)
			}
			last = x.T
		}
	}
	if m.r.budget.Pending() != 0 {
		m.t.Errorf("%d bytes are pending in the end", m.r.budget.Pending())
	}
}

func TestFramesHoldWhatTheModelHasTaken(t *testing.T) {
	var compactions, drops int
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		data := make([]byte, 200+rnd.IntN(6000))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		m := runModel(t, data)
		compactions, drops = compactions+m.compactions, drops+m.drops
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if compactions == 0 || drops == 0 {
		t.Errorf("%d compactions, %d dropped scrapes: the test does not see all there is", compactions, drops)
	}
}

func FuzzAppender(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{0, 100, 3000} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { runModel(t, data[:min(len(data), 1<<14)]) })
}
