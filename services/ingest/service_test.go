package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
	"github.com/millrace/millrace/services/ingest/door"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a service over a NATS server of its own.
type rig struct {
	*Service
	t    testing.TB
	conn *stream.Conn
	reg  *prometheus.Registry
	base int64 // a time of samples, in milliseconds
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, conn: streamtest.New(t, 2), reg: prometheus.NewPedanticRegistry(), base: time.Now().Add(-time.Hour).UnixMilli()}
	r.run(change...)
	return r
}

// run starts a service, which ends with the test.
func (r *rig) run(change ...func(*Config)) {
	log := slog.New(slog.DiscardHandler)
	system := actor.NewSystem("test", log, r.reg)
	publishers := publish.New(publish.Config{
		Conn: r.conn, Partitions: 2, Name: "frames", Stream: stream.Frames, Subject: r.conn.Frames, Publisher: stream.NewPublisher(), MaxBatchBytes: 256 << 10,
		DictAge: time.Hour, Logger: log, Registerer: r.reg,
	}, system)
	cfg := Config{
		Partitions: 2, Frames: publishers, Linger: 5 * time.Millisecond, MaxPendingBytes: 1 << 20, MaxSeries: 1000, SeriesIdle: time.Hour, AckTimeout: 30 * time.Second,
		Registerer: r.reg,
	}
	for _, f := range change {
		f(&cfg)
	}
	r.Service = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = publishers.Serve(ctx) })
	wg.Go(func() { _ = r.Serve(ctx) })
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	await.True(r.t, "the service is open", r.open.Load)
}

// push takes a list of samples by remote_write 2.0.
func (r *rig) push(list ...translated) (door.Outcome, error) {
	return r.Take(r.t.Context(), &door.Push{Format: door.RemoteWriteV2, Body: encodeV2(r.t, list), Limits: testLimits})
}

// mustPush fails where anything is refused.
func (r *rig) mustPush(list ...translated) door.Outcome {
	r.t.Helper()
	out, err := r.push(list...)
	if err != nil || out.Refused > 0 {
		r.t.Fatalf("pushing %d samples: %+v, %v", len(list), out, err)
	}
	return out
}

// at is a sample of a series at base + seconds.
func (r *rig) at(name string, seconds int, v float64) translated {
	return translated{labels: labels.FromStrings(model.MetricNameLabel, name, "job", "api", "instance", "a"), t: r.base + int64(seconds)*1000, v: v}
}

// stored returns what the stream holds, in the order of its messages.
func (r *rig) stored() (list []translated) {
	r.t.Helper()
	for p := range 2 {
		for seq := uint64(1); ; {
			msg, err := r.conn.Next(r.t.Context(), stream.Frames, r.conn.Frames(p), seq)
			if err != nil {
				break
			}
			seq = msg.Seq + 1
			batch, err := frame.OpenBatch(msg.Data, nil)
			if err != nil {
				r.t.Fatal(err)
			}
			var f frame.Frame
			for {
				ok, err := batch.Next(&f)
				if err != nil {
					r.t.Fatal(err)
				}
				if !ok {
					break
				}
				for i := range f.Sections {
					list = append(list, r.section(p, &f, &f.Sections[i])...)
				}
			}
		}
	}
	return list
}

func (r *rig) section(partition int, f *frame.Frame, s *frame.Section) (list []translated) {
	r.t.Helper()
	msg, err := r.conn.Last(r.t.Context(), stream.Dicts, r.conn.Dict(partition, s.Dict))
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := frame.ReadDictionary(msg.Data, s.Dict)
	if err != nil {
		r.t.Fatal(err)
	}
	exs := func(i uint32) (mine []exemplar.Exemplar) {
		for _, x := range s.Exemplars {
			if x.Index == i {
				mine = append(mine, x.Exemplar)
			}
		}
		return mine
	}
	for k, v := range s.Values {
		i := uint32(k)
		if s.Present != nil {
			i = s.Present[k]
		}
		x := translated{labels: d.Series[i].Labels, family: d.Series[i].Family, meta: d.Series[i].Metadata, t: f.Time, v: v, exs: exs(i)}
		if len(s.Times) > 0 {
			x.t = s.Times[k]
		}
		if len(s.Starts) > 0 {
			x.st = s.Starts[k]
		}
		list = append(list, x)
	}
	for k := range s.Histograms {
		h := &s.Histograms[k]
		x := &d.Series[h.Index]
		list = append(list, translated{labels: x.Labels, family: x.Family, meta: x.Metadata, t: h.Time, st: h.Start, h: h.Int, fh: h.Float, exs: exs(h.Index)})
	}
	return list
}

// storedLines are stored as lines, sorted.
func (r *rig) storedLines() []string {
	r.t.Helper()
	got := []string{}
	list := r.stored()
	for i := range list {
		got = append(got, list[i].line())
	}
	slices.Sort(got)
	return got
}

func (r *rig) mustStore(want ...translated) {
	r.t.Helper()
	if w, got := lines(want), r.storedLines(); !slices.Equal(w, got) {
		r.t.Fatalf("the stream holds something else:\n%s", diff(w, got))
	}
}

// mustStoreEach is mustStore for samples of requests of their own, with their exemplars.
func (r *rig) mustStoreEach(want ...translated) {
	r.t.Helper()
	var each []string
	for i := range want {
		each = append(each, lines(want[i:i+1])...)
	}
	slices.Sort(each)
	if got := r.storedLines(); !slices.Equal(each, got) {
		r.t.Fatalf("the stream holds something else:\n%s", diff(each, got))
	}
}

func TestWhatIsPushedIsInTheStreamWhenItIsAnswered(t *testing.T) {
	r := newRig(t)
	var all []translated
	for round := range 3 {
		list := randomSeries(5, round, true)
		onlyHint(list)
		out := r.mustPush(list...)
		if out.Samples+out.Histograms != len(list) {
			t.Fatalf("%d samples taken of %d", out.Samples+out.Histograms, len(list))
		}
		all = append(all, list...)
		w := []string{}
		for run := range slices.Values(all) {
			w = append(w, fmt.Sprint(run.labels, run.t))
		}
		got := []string{}
		for _, x := range r.stored() {
			got = append(got, fmt.Sprint(x.labels, x.t))
		}
		slices.Sort(w)
		slices.Sort(got)
		if !slices.Equal(w, got) {
			t.Fatalf("round %d: the stream holds something else:\n%s", round, diff(w, got))
		}
	}
}

func TestSteadySenderPublishesNoDictionary(t *testing.T) {
	r := newRig(t)
	dictionaries := func() float64 {
		n, err := testutil.GatherAndCount(r.reg, "millrace_publisher_dictionaries_total")
		if err != nil || n != 1 {
			t.Fatal(n, err)
		}
		families, _ := r.reg.Gather()
		for _, f := range families {
			if f.GetName() == "millrace_publisher_dictionaries_total" {
				return f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return -1
	}
	push := func(second int) {
		var list []translated
		for i := range 100 {
			list = append(list, r.at(fmt.Sprintf("m%d", i), second, float64(i)))
		}
		r.mustPush(list...)
	}
	push(0)
	before := dictionaries()
	for second := range 20 {
		push(second + 1)
	}
	if after := dictionaries(); after != before || before == 0 {
		t.Errorf("%v dictionaries after the first push, %v after twenty more", before, after)
	}
}

func TestRequestThatIsSentAgainIsNotPublishedAgain(t *testing.T) {
	r := newRig(t)
	list := []translated{r.at("a", 0, 1), r.at("a", 1, 2), r.at("b", 0, 3)}
	for range 3 {
		if out := r.mustPush(list...); out.Samples != 3 {
			t.Errorf("%d samples are said to be written", out.Samples)
		}
	}
	r.mustPush(r.at("a", 2, 5))
	r.mustStore(append(list, r.at("a", 2, 5))...)
}

func TestRefusedSamplesAreNamedAndTheOthersTaken(t *testing.T) {
	r := newRig(t, func(c *Config) { c.OutOfOrderWindow = 3 * time.Second })
	r.mustPush(r.at("a", 10, 1), r.at("b", 10, 1), r.at("c", 10, 1))
	future := r.at("f", 0, 1)
	future.t = time.Now().Add(time.Hour).UnixMilli()
	out, err := r.push(r.at("a", 10, 2), r.at("b", 5, 1), r.at("c", 8, 7), future, r.at("e", 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	if out.Refused != 3 || out.Samples != 2 {
		t.Errorf("%d refused, %d taken", out.Refused, out.Samples)
	}
	for _, want := range []string{"duplicate for timestamp", "out of order", "too far in the future"} {
		if !strings.Contains(out.Reason, want) {
			t.Errorf("%q does not say %q", out.Reason, want)
		}
	}
	r.mustStore(r.at("a", 10, 1), r.at("b", 10, 1), r.at("c", 10, 1), r.at("c", 8, 7), r.at("e", 0, 1))
}

func TestSeriesBeyondTheLimitAreRefused(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxSeries = 3 })
	var list []translated
	for i := range 5 {
		list = append(list, r.at(fmt.Sprintf("m%d", i), 0, 1))
	}
	out, err := r.push(list...)
	if err != nil || out.Refused != 2 || out.Samples != 3 || !strings.Contains(out.Reason, "max_series") {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err := r.push(r.at("m0", 1, 1), r.at("m1", 1, 1)); err != nil || out.Refused > 0 {
		t.Errorf("known series: %+v, %v", out, err)
	}
}

func TestForgottenSeriesComeAgain(t *testing.T) {
	r := newRig(t)
	r.mustPush(r.at("a", 0, 1), r.at("b", 0, 1))
	r.registry.sweep(seconds(time.Now())+1, false)
	if n := r.registry.series.Load(); n != 0 || r.registry.counts() != 0 || r.registry.places.Load() != 0 {
		t.Fatalf("%d series, %d sources, %d places after all were idle", n, r.registry.counts(), r.registry.places.Load())
	}
	r.mustPush(r.at("a", 1, 2), r.at("b", 1, 2))
	r.mustStore(r.at("a", 0, 1), r.at("b", 0, 1), r.at("a", 1, 2), r.at("b", 1, 2))
}

func TestFewForgottenSeriesLeaveTheirDictionaryWhereThatIsWanted(t *testing.T) {
	r := newRig(t)
	var list []translated
	for i := range 10 {
		list = append(list, r.at(fmt.Sprint("m", i), 0, 1))
	}
	r.mustPush(list...)
	var src *source
	for _, src = range r.registry.sources {
	}
	if len(r.registry.sources) != 1 || len(src.series) != 10 {
		t.Fatalf("%d sources, %d series", len(r.registry.sources), len(src.series))
	}
	src.series[3].seen -= 100
	before := src.series[0].seen - 50
	if n := src.forget(before, false); n != 0 || len(src.dicts) == 0 {
		t.Errorf("%d series forgotten", n)
	}
	if n := src.forget(before, true); n != 1 || len(src.series) != 9 || len(src.dicts) != 0 {
		t.Errorf("%d series forgotten, %d left in %d dictionaries", n, len(src.series), len(src.dicts))
	}
}

// The writer takes a frame only once by its source and number; those of a source that was forgotten in between are new ones.
func TestFramesAreNewAfterForgetting(t *testing.T) {
	r := newRig(t)
	const pushes = 4
	for i := range pushes {
		r.mustPush(r.at("a", i, 1))
		if i%2 > 0 {
			r.registry.sweep(seconds(time.Now())+1, false)
		}
	}
	frames := 0
	seen := map[uint64]uint64{}
	for p := range 2 {
		for seq := uint64(1); ; {
			msg, err := r.conn.Next(t.Context(), stream.Frames, r.conn.Frames(p), seq)
			if err != nil {
				break
			}
			seq = msg.Seq + 1
			batch, err := frame.OpenBatch(msg.Data, nil)
			if err != nil {
				t.Fatal(err)
			}
			var f frame.Frame
			for ok, _ := batch.Next(&f); ok; ok, _ = batch.Next(&f) {
				if f.Seq <= seen[f.Source] {
					t.Errorf("frame %d of source %x after %d", f.Seq, f.Source, seen[f.Source])
				}
				seen[f.Source] = f.Seq
				frames++
			}
		}
	}
	if frames != pushes {
		t.Errorf("%d frames of %d pushes", frames, pushes)
	}
}

func TestMetadataOfRemoteWrite1FollowsItsSeries(t *testing.T) {
	r := newRig(t)
	x := r.at("requests_total", 0, 1)
	r.mustPush(x)
	r.Service.metadata.learn("", "requests", metadata.Metadata{Type: model.MetricTypeCounter, Help: "Requests."}, seconds(time.Now()))
	r.Service.metadata.changed = time.Now().Add(-time.Minute)
	r.mustPush(r.at("requests_total", 1, 2))
	list := r.stored()
	if n := len(list); n != 2 || list[0].family != "requests_total" && list[0].family != "" || list[1].family != "requests" || list[1].meta.Help != "Requests." {
		t.Errorf("%+v", list)
	}
}

func TestExemplarWithoutSampleGoesWithTheNewest(t *testing.T) {
	for name, c := range map[string]struct {
		format door.Format
		encode func(testing.TB, []translated) []byte
	}{"1.0": {door.RemoteWriteV1, encodeV1}, "2.0": {door.RemoteWriteV2, encodeV2}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.mustPush(r.at("a", 0, 7))
			again := r.at("a", 0, 7)
			again.exs = []exemplar.Exemplar{{Labels: labels.FromStrings("trace_id", "x"), Value: 1, Ts: r.base + 500, HasTs: true}}
			body := withoutSamples(t, c.format, c.encode(t, []translated{again}))
			out, err := r.Take(t.Context(), &door.Push{Format: c.format, Body: body, Limits: testLimits})
			if err != nil || out.Refused > 0 || out.Exemplars != 1 {
				t.Fatalf("%+v, %v", out, err)
			}
			r.mustStore(r.at("a", 0, 7), again)
		})
	}
}

func TestPushIsAnsweredUnavailableWhileTheStreamIsAway(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxPendingBytes = 2000 })
	r.mustPush(r.at("a", 0, 1))
	r.cfg.AckTimeout = 20 * time.Millisecond // not before: the stream may take its time
	r.conn.NC.Opts.AllowReconnect = false
	r.conn.NC.Close()
	var refusal *door.Refusal
	_, err := r.push(r.at("a", 1, 1))
	if !errors.As(err, &refusal) || refusal.Kind != door.Unavailable || refusal.RetryAfter <= 0 {
		t.Fatalf("%v", err)
	}
	for i := 2; i < 1000; i++ { // until memory is full
		_, err = r.push(r.at("a", i, 1))
		if errors.As(err, &refusal) && refusal.Kind == door.Full {
			if refusal.RetryAfter <= 0 || r.budget.Pending() > r.budget.Limit() {
				t.Errorf("%v with %d bytes pending", err, r.budget.Pending())
			}
			return
		}
	}
	t.Error("the memory for pending frames was never full")
}

// traced returns a sample with an exemplar at the same time.
func (r *rig) traced(name string, seconds int, v float64) translated {
	x := r.at(name, seconds, v)
	x.exs = []exemplar.Exemplar{{Labels: labels.FromStrings("trace_id", fmt.Sprint(seconds)), Value: v, Ts: x.t, HasTs: true}}
	return x
}

// Prometheus takes an answer of nothing written for data that was dropped.
func TestExemplarsThatComeAgainAreWritten(t *testing.T) {
	r := newRig(t)
	x := r.traced("a", 0, 7)
	body := encodeV2(t, []translated{x})
	alone := withoutSamples(t, door.RemoteWriteV2, body)
	for _, body := range [][]byte{body, body, alone, alone} {
		out, err := r.Take(t.Context(), &door.Push{Format: door.RemoteWriteV2, Body: body, Limits: testLimits})
		if err != nil || out.Refused > 0 || out.Exemplars != 1 {
			t.Errorf("%+v, %v", out, err)
		}
	}
	r.mustStore(x)
	// A new one of a sample that is known goes out with it.
	y := x
	y.exs = r.traced("a", 1, 7).exs
	if out := r.mustPush(y); out.Samples != 1 || out.Exemplars != 1 {
		t.Errorf("%+v", out)
	}
	r.mustStoreEach(x, y)
}

func TestExemplarsOfRefusedRequestsAreTakenTheNextTime(t *testing.T) {
	r := newRig(t)
	r.mustPush(r.at("a", 0, 1))
	x := r.traced("a", 1, 2)
	all := r.budget.Limit() - r.budget.Pending()
	if !r.budget.Take(all) {
		t.Fatal("there is no room")
	}
	if _, err := r.push(x); !errors.Is(err, errFull) {
		t.Fatal(err)
	}
	r.budget.Give(all)
	r.mustPush(x)
	r.mustStore(r.at("a", 0, 1), x)
	// Nor are they known where the frames are dropped.
	r.registry.mu.RLock()
	for _, s := range r.registry.sources {
		s.failed()
	}
	r.registry.mu.RUnlock()
	r.mustPush(x)
	r.mustStoreEach(r.at("a", 0, 1), x, x)
}

// Only the request that was taken is taken already, not what ends with the same sample.
func TestSamplesThatWereNotTakenAreNotAcknowledged(t *testing.T) {
	for name, window := range map[string]time.Duration{"refused": 0, "within the window": time.Minute} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.OutOfOrderWindow = window })
			r.mustPush(r.at("a", 3, 3))
			run := []translated{r.at("a", 1, 1), r.at("a", 2, 2), r.at("a", 3, 3)}
			out, err := r.push(run...)
			if err != nil {
				t.Fatal(err)
			}
			if window > 0 {
				if out.Refused != 0 || out.Samples != 3 {
					t.Errorf("%+v", out)
				}
				r.mustStore(run...)
				return
			}
			if out.Refused != 2 || out.Samples != 1 || !strings.Contains(out.Reason, "out of order") {
				t.Errorf("%+v", out)
			}
			r.mustStore(r.at("a", 3, 3))
		})
	}
}

func TestAnotherHistogramAtTheNewestTimeIsRefused(t *testing.T) {
	r := newRig(t)
	for i, x := range []translated{
		{h: tsdbutil.GenerateTestHistogram(3)}, {fh: tsdbutil.GenerateTestFloatHistogram(3)}, {fh: tsdbutil.GenerateTestCustomBucketsFloatHistogram(3)},
	} {
		at := r.at(fmt.Sprint("h", i), 0, 0)
		x.labels, x.t = at.labels, at.t
		for range 2 {
			if out := r.mustPush(x); out.Histograms != 1 {
				t.Errorf("%+v", out)
			}
		}
		y := x
		if x.h != nil {
			y.h = tsdbutil.GenerateTestHistogram(4)
		} else {
			y.fh = x.fh.Copy()
			y.fh.PositiveBuckets[0]++
			y.fh.Count++
		}
		if out, err := r.push(y); err != nil || out.Refused != 1 || !strings.Contains(out.Reason, "duplicate for timestamp") {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if n := len(r.stored()); n != 3 {
		t.Errorf("%d histograms are in the stream", n)
	}
}

// A time series without samples is refused for its labels all the same.
func TestBadLabelsWithoutSamplesAreRefused(t *testing.T) {
	r := newRig(t)
	for format, body := range map[door.Format][]byte{
		door.RemoteWriteV1: nested(labelV1("b", "x"), 1),
		door.RemoteWriteV2: encodeV2(t, []translated{{labels: labels.FromStrings("b", "x")}}),
	} {
		if format == door.RemoteWriteV2 {
			body = withoutSamples(t, format, body)
		}
		out, err := r.Take(t.Context(), &door.Push{Format: format, Body: body, Limits: testLimits})
		if err != nil || out.Refused != 1 {
			t.Errorf("%v: %+v, %v", format, out, err)
		}
	}
}

// What is too large for the stream is so the next time, too.
func TestWhatIsTooLargeForTheStreamIsNotToBeSentAgain(t *testing.T) {
	for _, cause := range []error{fmt.Errorf("a frame: %w", stream.ErrTooLarge), &publish.DroppedError{Samples: 1, Reason: fmt.Errorf("a frame: %w", stream.ErrTooLarge)}} {
		if kind, ok := kindOf(notPublished(cause)); !ok || kind != door.TooLarge {
			t.Errorf("%v is answered %v", cause, notPublished(cause))
		}
	}
	r := newRig(t)
	x := r.at("h", 0, 0)
	x.h = &histogram.Histogram{Schema: 0, PositiveSpans: []histogram.Span{{Length: maxBuckets + 1}}, PositiveBuckets: make([]int64, maxBuckets+1)}
	if out, err := r.push(x); err != nil || out.Refused != 1 || !strings.Contains(out.Reason, "buckets, the most is") {
		t.Errorf("%+v, %v", out, err)
	}
}
