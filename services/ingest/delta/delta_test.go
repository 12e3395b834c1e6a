package delta

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

func TestDeltasAddUp(t *testing.T) {
	r := newRiver(t)
	id := r.dict(1, "a", "b")
	s, _ := r.start(Config{})
	r.push(1, r.frameOf(7, 1000, floats(id, 900, 1, 10)))
	r.push(1, r.frameOf(7, 2000, floats(id, 1000, 2, 20)), r.frameOf(7, 3000, floats(id, 2000, 3, 30)))
	r.push(1, r.frameOf(8, 4000, frame.Section{Dict: id, Series: 2, Present: []uint32{1}, Values: []float64{0.5}, Times: []int64{4500}, Starts: []int64{3000}}))
	r.expect(1, "a@1000(900)=1", "b@1000(900)=10", "a@2000(900)=3", "b@2000(900)=30", "a@3000(900)=6", "b@3000(900)=60", "b@4500(900)=60.5")
	if n := counter.Value(s.metrics.points); n != 7 {
		t.Errorf("%v points are counted", n)
	}
	await.True(t, "two streams and no lag", func() bool {
		st := s.Status()
		return st.Streams == 2 && st.Behind == 0 && len(st.Partitions) == partitions
	})
	if w := s.Waiting(); len(w) > 0 {
		t.Errorf("it waits: %v", w)
	}
}

func TestSeriesAreTheSameInEveryDictionary(t *testing.T) {
	r := newRiver(t)
	ab, bc := r.dict(0, "a", "b"), r.dict(0, "b", "c")
	r.start(Config{})
	r.push(0, r.frameOf(1, 1000, floats(ab, 0, 1, 10)))
	r.push(0, r.frameOf(2, 2000, floats(bc, 0, 20, 200), floats(ab, 0, 5, 7)))
	r.push(0, r.frameOf(1, 3000, floats(ab, 0, 2, 30)))
	r.expect(0, "a@1000(0)=1", "b@1000(0)=10", "b@2000(0)=30", "c@2000(0)=200", "a@2000(0)=6", "a@3000(0)=8", "b@3000(0)=60")
}

func TestWhatIsNotNewerIsDropped(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a", "b", "c")
	s, _ := r.start(Config{})
	first := floats(id, 500, 1, 10, 100)
	r.push(0, r.frameOf(1, 1000, first))
	r.push(0, r.frameOf(1, 1000, floats(id, 500, 1, 10, 100))) // sent again
	late := floats(id, 1000, 2, 20, 200)
	late.Times = []int64{2000, 900, 2001}
	late.Starts = []int64{1000, 800, 400} // the last begins before the sum
	late.Exemplars = []frame.Exemplar{exemplarOf(0, 1), exemplarOf(1, 2), exemplarOf(2, 3)}
	r.push(0, r.frameOf(1, 2000, late))
	r.push(0, r.frameOf(1, 3000, floats(id, 2000, 3, 30, 300)))
	r.expect(0, "a@1000(500)=1", "b@1000(500)=10", "c@1000(500)=100", "a@2000(500)=3", "a@3000(500)=6", "b@3000(500)=40", "c@3000(500)=400")
	if late, old := s.dropped(outOfOrder), s.dropped(olderStart); late != 4 || old != 1 {
		t.Errorf("%v points are dropped as out of order, %v as of an older start", late, old)
	}
	f := r.find(0, 2000)
	if x := f.Sections[0].Exemplars; len(x) != 1 || x[0].Index != 0 || x[0].Value != 1 {
		t.Errorf("the exemplars are %v", x)
	}
}

func exemplarOf(i uint32, v float64) frame.Exemplar {
	return frame.Exemplar{Index: i, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("trace_id", fmt.Sprint(i)), Value: v}}
}

func TestStalenessMarkersChangeNothing(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a", "h", "new")
	s, _ := r.start(Config{})
	stale := math.Float64frombits(value.StaleNaN)
	section := func(v float64, h *histogram.Histogram, t int64) frame.Section {
		return frame.Section{Dict: id, Series: 3, Present: []uint32{0}, Values: []float64{v}, Histograms: []frame.Histogram{{Index: 1, Time: t, Int: h}}}
	}
	r.push(0, r.frameOf(1, 1000, section(1, exponential(3, 0, 1, 2), 1000)))
	end := section(stale, &histogram.Histogram{Sum: stale}, 2000)
	end.Present, end.Values = []uint32{0, 2}, []float64{stale, stale}
	r.push(0, r.frameOf(1, 2000, end))
	r.push(0, r.frameOf(1, 3000, section(2, exponential(3, 0, 1, 2), 3000)))
	res := r.wait(0, 7)
	marker := fmt.Sprintf("%x", value.StaleNaN)
	for i, want := range []string{"a@1000(0)=1", "h@1000(0)=int {count:3", "a@2000(0)=" + marker, "new@2000(0)=" + marker, "h@2000(0)=int {count:0, sum:NaN}", "a@3000(0)=3", "h@3000(0)=int {count:6"} {
		if got := res.points[i].String(); !strings.HasPrefix(got, want) {
			t.Errorf("point %d is %s, want %s", i, got, want)
		}
	}
	if n := s.Status().Streams; n != 2 {
		t.Errorf("%d series, want 2: a marker makes none", n)
	}
}

// exponential returns an integer histogram with buckets from an index on.
func exponential(schema int32, index int32, counts ...int64) *histogram.Histogram {
	h := &histogram.Histogram{Schema: schema, ZeroThreshold: 1e-128, PositiveSpans: []histogram.Span{{Offset: index, Length: uint32(len(counts))}}}
	before := int64(0)
	for _, c := range counts {
		h.PositiveBuckets = append(h.PositiveBuckets, c-before)
		h.Count += uint64(c)
		h.Sum += float64(c)
		before = c
	}
	return h
}

func customBuckets(bounds []float64, counts ...int64) *histogram.Histogram {
	h := exponential(histogram.CustomBucketsSchema, 0, counts...)
	h.ZeroThreshold, h.CustomValues = 0, bounds
	return h
}

func TestHistogramsAddUp(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "h")
	s, _ := r.start(Config{})
	now := int64(0)
	push := func(h *histogram.Histogram, fh *histogram.FloatHistogram) {
		now += 1000
		r.push(0, r.frameOf(1, now, frame.Section{Dict: id, Series: 1, Histograms: []frame.Histogram{{Time: now, Start: now - 500, Int: h, Float: fh}}}))
	}
	push(exponential(3, 1, 1, 2), nil)
	push(exponential(2, 1, 1), nil) // the lower resolution counts
	push(nil, exponential(2, 2, 1).ToFloat(nil))
	push(exponential(2, 2, 1), nil)                      // a float histogram remains one
	push(customBuckets([]float64{1, 2}, 1, 2, 3), nil)   // begins anew
	push(customBuckets([]float64{1, 2}, 1, 0, 1), nil)   // added
	push(customBuckets([]float64{1, 3}, 1, 0, 1), nil)   // other bounds: begins anew
	push(&histogram.Histogram{Schema: 3, Count: 9}, nil) // not valid
	now += 1000
	r.push(0, r.frameOf(1, now, floats(id, now-500, 5))) // becomes a float
	push(exponential(0, 1, 1<<53, 1), nil)               // more than a float64 holds
	r.expect(0,
		"h@1000(500)=int {count:3, sum:3, (1,1.0905077326652577]:1, (1.0905077326652577,1.189207115002721]:2}",
		"h@2000(500)=int {count:4, sum:4, (1,1.189207115002721]:4}",
		"h@3000(500)=float {count:5, sum:5, (1,1.189207115002721]:4, (1.189207115002721,1.414213562373095]:1}",
		"h@4000(500)=float {count:6, sum:6, (1,1.189207115002721]:4, (1.189207115002721,1.414213562373095]:2}",
		"h@5000(4500)=int {count:6, sum:6, [-Inf,1]:1, (1,2]:2, (2,+Inf]:3}",
		"h@6000(4500)=int {count:8, sum:8, [-Inf,1]:2, (1,2]:2, (2,+Inf]:4}",
		"h@7000(6500)=int {count:2, sum:2, [-Inf,1]:1, (3,+Inf]:1}",
		"h@9000(8500)=5",
		"h@10000(9500)=float {count:9.007199254740992e+15, sum:9.007199254740992e+15, (1,2]:9.007199254740992e+15, (2,4]:1}",
	)
	if n := s.dropped(invalid); n != 1 {
		t.Errorf("%v points are dropped as not valid", n)
	}
}

func TestBucketsBeyondFloat64AreDropped(t *testing.T) {
	x := &sum{}
	if err := x.histogram(true, exponential(3, 1, 1).ToFloat(nil), true, 1, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := x.histogram(false, exponential(3, 1<<30, 1).ToFloat(nil), true, 2, 0, 0); err == nil || x.hist.Schema != 3 || x.last != 1 {
		t.Errorf("a bucket beyond all numbers is added: %v, %v", x.hist, err)
	}
}

func TestSeriesBeginAnewAfterMaxStale(t *testing.T) {
	const maxStale = 500 * time.Millisecond
	r := newRiver(t)
	id := r.dict(0, "a")
	s, _ := r.start(Config{MaxStale: maxStale})
	r.push(0, r.frameOf(1, 1000, floats(id, 500, 1)))
	pushed := time.Now()
	r.wait(0, 1)
	await.True(t, "the time is over", func() bool { return time.Since(pushed) > maxStale+100*time.Millisecond })
	r.push(0, r.frameOf(1, 2000, floats(id, 400, 5))) // even an older start
	r.expect(0, "a@1000(500)=1", "a@2000(400)=5")
	await.True(t, "one stream", func() bool { return s.Status().Streams == 1 })
}

func TestExpiryFollowsTheTimesOfMessages(t *testing.T) {
	b := &budget{limit: 3}
	s := newSums(1000, b)
	d := &dictionary{keys: []key{{1, 1}, {2, 2}, {1, 1}, {4, 4}}, sums: make([]*sum, 4)}
	for i, at := range []int64{100, 200} {
		x, fresh := s.of(d, uint32(i), at)
		if !fresh {
			t.Fatalf("series %d is there already", i)
		}
		x.float(fresh, 1, at, 0, at)
	}
	for at, want := range map[int64]bool{1100: false, 1101: true} {
		if x, fresh := s.of(d, 2, at); fresh != want || x != d.sums[0] {
			t.Errorf("at %d it is fresh: %v", at, fresh)
		}
	}
	s.sweep(1150)
	if len(s.byKey) != 1 || b.used.Load() != 1 || d.sums[0].held {
		t.Errorf("%d series are left, %d are counted", len(s.byKey), b.used.Load())
	}
	if x, fresh := s.of(d, 0, 1150); !fresh || !x.held || x.value != 0 {
		t.Errorf("a swept series goes on with %+v", x)
	}
	s.release()
	if b.used.Load() != 0 {
		t.Errorf("%d series are counted", b.used.Load())
	}
}

func TestTheNumberOfSeriesIsBounded(t *testing.T) {
	r := newRiver(t)
	s, _ := r.start(Config{MaxStreams: 3})
	one, other := r.dict(0, "a", "b", "overboard"), r.dict(1, "c", "overboard")
	r.push(1, r.frameOf(2, 1000, frame.Section{Dict: other, Series: 2, Present: []uint32{0}, Values: []float64{1}}))
	r.expect(1, "c@1000(0)=1")
	r.push(0, r.frameOf(1, 1000, floats(one, 0, 1, 2, 3)), r.frameOf(1, 2000, floats(one, 0, 1, 2, 3)))
	r.expect(0, "a@1000(0)=1", "b@1000(0)=2", "a@2000(0)=2", "b@2000(0)=4")
	r.push(1, r.frameOf(2, 2000, floats(other, 0, 1, 1)))
	r.expect(1, "c@1000(0)=1", "c@2000(0)=2")
	await.True(t, "the counts", func() bool { return s.dropped(limit) == 3 && s.Status().Streams == 3 })
	if n := strings.Count(s.log.String(), "metric=overboard max_streams=3"); n != 1 {
		t.Errorf("the log tells %d times of the limit:\n%s", n, s.log)
	}
}

func TestUnreadableMessagesArePassedOver(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a")
	lost := frame.DictID{1}
	r.push(0, r.frameOf(1, 1000, floats(id, 0, 1)))
	r.publish(r.Deltas(0), []byte{1, 1, 0x80}, nil)
	r.push(0, r.frameOf(1, 2000, floats(lost, 0, 1, 2, 3)))                                                   // the dictionary is not there
	r.push(0, r.frameOf(1, 3000, frame.Section{Dict: id, Series: 2, Values: []float64{1, 2}}))                // it has another number of series
	r.push(0, r.frameOf(1, 4000, floats(lost, 0, 1), floats(id, 0, 1)), r.frameOf(1, 5000, floats(id, 0, 1))) // one section remains
	s, _ := r.start(Config{})
	r.expect(0, "a@1000(0)=1", "a@4000(0)=2", "a@5000(0)=3")
	if skipped, none, bad := counter.Value(s.metrics.skipped), s.dropped(noDictionary), s.dropped(unreadable); skipped != 1 || none != 4 || bad != 2 {
		t.Errorf("%v messages skipped, %v points without dictionary, %v unreadable", skipped, none, bad)
	}
	if n := s.system.Restarts("delta"); n > 0 {
		t.Errorf("actors were restarted %d times:\n%s", n, s.log)
	}
}

func TestAMessageOfAnUnknownVersionIsWaitedWith(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a")
	r.push(0, r.frameOf(1, 1000, floats(id, 0, 1)))
	r.publish(r.Deltas(0), []byte{200, 1, 2}, nil)
	s, _ := r.start(Config{})
	await.True(t, "a word about it", func() bool { return strings.Contains(strings.Join(s.Waiting(), ""), "version 200") })
	r.push(0, r.frameOf(1, 2000, floats(id, 0, 1)))
	st, err := r.JS.Stream(t.Context(), r.Stream(stream.Deltas))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	r.expect(0, "a@1000(0)=1", "a@2000(0)=2")
}

func TestWhatTheRetentionTookIsCounted(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a", "b")
	for i := range 5 {
		r.push(0, r.frameOf(1, int64(1000*(i+1)), floats(id, 0, 1, 1)))
	}
	st, err := r.JS.Stream(t.Context(), r.Stream(stream.Deltas))
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{1, 3} {
		if err := st.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := r.start(Config{})
	r.expect(0, "a@2000(0)=1", "b@2000(0)=1", "a@4000(0)=2", "b@4000(0)=2", "a@5000(0)=3", "b@5000(0)=3")
	if n := counter.Value(s.metrics.lost); n != 4 || !strings.Contains(s.log.String(), "millrace.streams.deltas") {
		t.Errorf("%v points are counted as lost:\n%s", n, s.log)
	}
}

func TestOldDictionariesAreStoredAgain(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a")
	before, err := r.Last(t.Context(), stream.Dicts, r.Dict(0, id))
	if err != nil {
		t.Fatal(err)
	}
	r.start(Config{DictAge: time.Nanosecond})
	r.push(0, r.frameOf(1, 1000, floats(id, 0, 1)))
	r.expect(0, "a@1000(0)=1")
	if after, err := r.Last(t.Context(), stream.Dicts, r.Dict(0, id)); err != nil || after.Seq == before.Seq {
		t.Errorf("the dictionary has the number %d, before %d: %v", after.Seq, before.Seq, err)
	}
}

func TestMetricNamesAreClean(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	New(Config{Registerer: reg}, nil)
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}

func TestTheServiceSaysOnWhatItWaits(t *testing.T) {
	r := newRiver(t)
	id := r.dict(1, "a")
	s, _ := r.start(Config{})
	r.push(1, r.frameOf(1, 1000, floats(id, 0, 1)))
	r.expect(1, "a@1000(0)=1")
	if err := r.JS.DeleteStream(t.Context(), r.Stream(stream.Frames)); err != nil {
		t.Fatal(err)
	}
	r.push(1, r.frameOf(1, 2000, floats(id, 0, 1)))
	await.True(t, "a word about it", func() bool {
		w := s.Waiting()
		return len(w) == 1 && strings.Contains(w[0], "partition 1") && s.Status().Behind == 1
	})
	if err := r.Ensure(t.Context(), stream.Layout{Partitions: partitions, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	await.True(t, "the sum goes on", func() bool {
		msg, err := r.Last(t.Context(), stream.Frames, r.Frames(1))
		return err == nil && strings.HasPrefix(msg.Header.Get(Header), "2 ")
	})
	await.True(t, "no more waiting", func() bool { return len(s.Waiting()) == 0 && s.Status().Behind == 0 })
	if f := r.lastFrame(1); f.Sections[0].Values[0] != 2 {
		t.Errorf("the sum is %v", f.Sections[0].Values)
	}
}
