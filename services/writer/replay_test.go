package writer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/rules"
)

// hourAgo is when the samples of these tests begin, in milliseconds.
var hourAgo = time.Now().Add(-time.Hour).Truncate(time.Minute).UnixMilli()

func rfc3339(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339Nano) }

func (r *rig) manager(endpoints ...Endpoint) *replay.Manager {
	return &replay.Manager{Conn: r.conn, Partitions: partitions, Endpoints: func() (names []string) {
		for _, e := range endpoints {
			names = append(names, e.Name)
		}
		return names
	}}
}

// done waits until a replay is over.
func done(t *testing.T, m *replay.Manager, name string) (st replay.Status) {
	t.Helper()
	await.True(t, "the end of "+name, func() bool {
		var err error
		if st, err = m.Get(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		return st.State == replay.Done
	})
	return st
}

func start(t *testing.T, m *replay.Manager, spec replay.Spec) replay.Status {
	t.Helper()
	st, err := m.Start(t.Context(), spec, false)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// jobs publishes scrapes of two jobs to each partition, a second apart, and returns what an endpoint with these rules is to get.
func (r *rig) jobs(series, scrapes int, endpoints ...Endpoint) (want []point) {
	r.t.Helper()
	for p := range partitions {
		for _, job := range []string{"api", "db"} {
			var list []frame.Series
			for i := range series {
				list = append(list, frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprintf("m_%03d", i), "job", job, "partition", fmt.Sprint(p))})
			}
			d := r.dict(list...)
			r.announce(p, d, endpoints...)
			for n := range scrapes {
				at := hourAgo + int64(n)*1000
				f := r.floats(d, at, float64(n))
				f.Source = uint64(len(job))
				r.send(p, f)
				for i := range list {
					want = append(want, point{list[i].Labels.String(), at, float64(n), false})
				}
			}
		}
	}
	return want
}

func selected(points []point, keep func(point) bool) []point {
	points = slices.DeleteFunc(slices.Clone(points), func(x point) bool { return !keep(x) })
	return sorted(points)
}

func sorted(points []point) []point {
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Or(strings.Compare(a.Series, b.Series), cmp.Compare(a.T, b.T)) })
	return points
}

// inOrder fails where the samples of a series did not arrive in the order of their times.
func inOrder(t *testing.T, points []point) {
	t.Helper()
	last := map[string]int64{}
	for _, x := range points {
		if x.T <= last[x.Series] {
			t.Fatalf("%s: %d comes after %d", x.Series, x.T, last[x.Series])
		}
		last[x.Series] = x.T
	}
}

func TestAReplaySendsTheSamplesOfItsTimesAndSeries(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){"1.0": func(*Endpoint) {}, "2.0": v2} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", change, func(e *Endpoint) {
				e.QueueConfig.MaxSamplesPerSend = 70
				e.QueueConfig.SampleAgeLimit = model.Duration(time.Second) // is about what is collected now
			})
			all := r.jobs(20, 60, cfg)
			s := r.start([]Endpoint{cfg}) // begins behind them
			m := r.manager(cfg)
			start(t, m, replay.Spec{
				Name: "incident", From: rfc3339(hourAgo + 20_000), To: rfc3339(hourAgo + 39_999), Match: []string{`{job="api"}`}, Endpoint: "prod",
			})
			st := done(t, m, "incident")
			want := selected(all, func(x point) bool {
				return strings.Contains(x.Series, `job="api"`) && x.T >= hourAgo+20_000 && x.T < hourAgo+40_000
			})
			got := e.points()
			inOrder(t, got)
			if d := gocmp.Diff(want, sorted(got)); d != "" {
				t.Errorf("samples (-want +got):\n%s", d)
			}
			if st.Sent != uint64(len(want)) || st.Refused != 0 || st.Skipped != 0 || st.Messages != st.AllMessages || st.Bytes == 0 {
				t.Errorf("%d samples are told as %+v", len(want), st)
			}
			if n := s.value(t, "millrace_writer_replayed_samples_total", "prod"); n != float64(len(want)) {
				t.Errorf("replayed samples: %v", n)
			}
			if n := s.value(t, "millrace_writer_sent_samples_total", "prod"); n != 0 {
				t.Errorf("%v replayed samples count as collected ones", n)
			}
			// What is collected now goes its own way.
			d := r.named("live", 1)
			r.announce(0, d, cfg)
			r.send(0, r.floats(d, time.Now().UnixMilli(), 1))
			e.wait(len(want) + 1)
		})
	}
}

func TestAReplayTakesWhatStandsInAFrameAsLiveTrafficDoes(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) {
		e.SendExemplars, e.SendNativeHistograms = true, true
		e.Rules = rules.Rules{External: labels.FromStrings("region", "west"), Relabel: []*relabel.Config{{
			SourceLabels: model.LabelNames{"__name__"}, Regex: relabel.MustNewRegexp("a_0001"), Action: relabel.Drop, NameValidationScheme: model.UTF8Validation,
		}}}
	})
	a, b := r.named("a", 3), r.named("b", 4)
	r.announce(0, a, cfg)
	r.announce(0, b, cfg)
	at := hourAgo
	h := &histogram.Histogram{Count: 3, Sum: 7, Schema: 1, PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []int64{3}}
	first := &frame.Frame{Source: 1, Epoch: 2, Seq: 1, Time: at, Sections: []frame.Section{
		{Dict: a.ID, Series: 3, Values: []float64{1, 2, math.Float64frombits(value.StaleNaN)}},
		{Dict: b.ID, Series: 4, Present: []uint32{0, 1, 3}, Values: []float64{3, 4, 5}, Times: []int64{at - 5000, at - 100, at}, Starts: []int64{1, 2, 3},
			Histograms: []frame.Histogram{{Index: 2, Time: at, Int: h}, {Index: 2, Time: at + 60_000, Int: h}},
			Exemplars: []frame.Exemplar{
				{Index: 0, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("id", "out")}}, {Index: 1, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("id", "in")}},
				{Index: 2, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("id", "of a histogram")}},
			}},
	}}
	r.send(0, first)
	r.send(0, first)                                                                                                                               // stored twice
	r.send(0, &frame.Frame{Source: 1, Epoch: 1, Seq: 9, Time: at, Sections: []frame.Section{{Dict: a.ID, Series: 3, Values: []float64{7, 8, 9}}}}) // by a former owner
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: rfc3339(at - 1000), To: rfc3339(at + 30_000), Endpoint: "prod"})
	st := done(t, m, "x")
	var got []string
	for _, x := range e.points() {
		got = append(got, fmt.Sprintf("%s %d %x %t", x.Series, x.T-at, math.Float64bits(x.V), x.Hist))
	}
	label := func(name string, ms int64, v float64, hist bool) string {
		return fmt.Sprintf(`{__name__=%q, region="west"} %d %x %t`, name, ms, math.Float64bits(v), hist)
	}
	want := []string{
		label("a_0000", 0, 1, false), label("a_0002", 0, math.Float64frombits(value.StaleNaN), false), label("b_0001", -100, 4, false), label("b_0003", 0, 5, false), label("b_0002", 0, 7, true),
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	exemplars := 0
	for _, req := range e.requests() {
		exemplars += req.exemplars
	}
	if exemplars != 2 || st.Sent != 5 {
		t.Errorf("%d exemplars, %d samples", exemplars, st.Sent)
	}
}

func TestARawReplayHasExternalLabelsAndNoRules(t *testing.T) {
	r, e, other := newRig(t), newRecorder(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) {
		e.Rules = rules.Rules{External: labels.FromStrings("region", "west"), Relabel: []*relabel.Config{{Regex: relabel.MustNewRegexp("job"), Action: relabel.LabelDrop, NameValidationScheme: model.UTF8Validation}}}
	})
	all := r.jobs(5, 10)
	s := r.start([]Endpoint{cfg})
	s.SetExternalLabels(labels.FromStrings("region", "west"))
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "there", From: "-2h", URL: other.URL, Match: []string{`{region="west",__name__="m_001"}`, `m_003{job="db"}`}})
	done(t, m, "there")
	var want []point
	for _, x := range all {
		if strings.Contains(x.Series, `"m_001"`) || strings.Contains(x.Series, `"m_003"`) && strings.Contains(x.Series, `job="db"`) {
			x.Series = strings.TrimSuffix(x.Series, "}") + `, region="west"}`
			want = append(want, x)
		}
	}
	if d := gocmp.Diff(sorted(want), sorted(other.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if n := len(e.points()); n != 0 {
		t.Errorf("%d samples went to the endpoint of the configuration", n)
	}

	// To an endpoint of the configuration the same goes, where that is asked for.
	start(t, m, replay.Spec{Name: "raw", From: "-2h", Endpoint: "prod", Raw: true, Match: []string{`{region="west",__name__="m_001"}`, `m_003{job="db"}`}})
	done(t, m, "raw")
	if d := gocmp.Diff(sorted(want), sorted(e.points())); d != "" {
		t.Errorf("raw samples (-want +got):\n%s", d)
	}
}

// TestAReplayGoesOnWhereItWasAcknowledged stops the service while its endpoint takes nothing any more, several times.
func TestAReplayGoesOnWhereItWasAcknowledged(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 45 })
	all := r.jobs(20, 60, cfg)
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod"})
	for stop := 1; stop <= 3; stop++ {
		limit := stop * len(all) / 4
		e.answers(func(*request) (int, string, map[string]string) {
			if len(e.points()) > limit {
				return 503, "enough for now", nil
			}
			return 200, "", nil
		})
		s := r.start([]Endpoint{cfg})
		e.wait(limit)
		await.True(t, "the reason is told", func() bool {
			st, err := m.Get(t.Context(), "x")
			return err == nil && st.State == replay.Running && strings.Contains(st.Waiting, "enough for now")
		})
		s.stop()
	}
	e.answers(nil)
	r.start([]Endpoint{cfg})
	st := done(t, m, "x")
	got := e.points()
	again := len(got) - len(all)
	got = slices.Compact(sorted(got))
	if d := gocmp.Diff(sorted(all), got); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if again > len(all)/4 {
		t.Errorf("%d of %d samples were sent again", again, len(all))
	}
	if st.Sent != uint64(len(all)) || st.Samples != uint64(len(all)) || st.Messages != st.AllMessages {
		t.Errorf("%d samples are told as %+v", len(all), st)
	}
}

func TestAnotherProcessTakesOverAReplay(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 50 })
	all := r.jobs(20, 60, cfg)
	m := r.manager(cfg)
	first := r.start([]Endpoint{cfg})
	r.start([]Endpoint{cfg}) // takes one of the partitions
	await.True(t, "each process has a partition", func() bool {
		first.applying.Lock()
		defer first.applying.Unlock()
		return len(first.owned) == 1
	})
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod", Rate: 2000})
	e.wait(len(all) / 4)
	first.stop()
	st := done(t, m, "x")
	if d := gocmp.Diff(sorted(all), slices.Compact(sorted(e.points()))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if st.Sent != uint64(len(all)) {
		t.Errorf("%d samples are told as %d", len(all), st.Sent)
	}
}

func TestAReplayKeepsItsRateAndCanBeStopped(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 20 })
	all := r.jobs(20, 50, cfg) // 4,000 samples
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	began := time.Now()
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod", Rate: 1000})
	e.wait(1000)
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("1,000 samples within %s at a rate of 1,000/s", took)
	}
	if st, err := m.Stop(t.Context(), "x"); err != nil || st.State != replay.Stopped {
		t.Fatalf("stopping: %+v, %v", st, err)
	}
	var n int
	await.True(t, "nothing comes any more", func() bool {
		before := n
		n = len(e.points())
		time.Sleep(100 * time.Millisecond)
		return n == before && n == len(e.points())
	})
	if n == len(all) {
		t.Error("the replay was not stopped")
	}
	if st, err := m.Start(t.Context(), replay.Spec{Name: "x", Rate: 1e6}, false); err != nil || st.Rate != 1e6 {
		t.Fatalf("going on: %+v, %v", st, err)
	}
	done(t, m, "x")
	if d := gocmp.Diff(sorted(all), slices.Compact(sorted(e.points()))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if st, err := m.Stop(t.Context(), "x"); err != nil || st.State != replay.Removed {
		t.Errorf("removing: %+v, %v", st, err)
	}
	if _, err := m.Get(t.Context(), "x"); !errors.Is(err, replay.ErrUnknown) {
		t.Errorf("a removed replay: %v", err)
	}
}

func TestADryRunCountsAndSendsNothing(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	all := r.jobs(20, 60, cfg)
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	spec := replay.Spec{Name: "dry", From: rfc3339(hourAgo), To: rfc3339(hourAgo + 29_000), Match: []string{`{job="db"}`}, Endpoint: "prod", DryRun: true}
	start(t, m, spec)
	dry := done(t, m, "dry")
	if want := uint64(len(all) / 4); dry.Samples != want || dry.Series != 20*partitions || dry.Sent != 0 || dry.SeriesAtLeast || len(e.requests()) != 0 {
		t.Errorf("%d samples of %d series are told as %+v; %d requests", want, 20*partitions, dry, len(e.requests()))
	}
	spec.Name, spec.DryRun = "wet", false
	start(t, m, spec)
	wet := done(t, m, "wet")
	if wet.Samples != dry.Samples || wet.Sent != wet.Samples {
		t.Errorf("%d samples were announced, %d sent", dry.Samples, wet.Sent)
	}
	if min(wet.Bytes, dry.Bytes)*10 < max(wet.Bytes, dry.Bytes)*9 { // requests are cut as messages come
		t.Errorf("%d bytes were announced, %d sent", dry.Bytes, wet.Bytes)
	}
}

func TestWhatHasNoLabelsAnyMoreIsCounted(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	a, b := r.named("a", 2), r.named("b", 3)
	r.announce(0, a, cfg)
	r.send(0, r.floats(a, hourAgo, 1), r.floats(b, hourAgo, 1), r.floats(b, hourAgo+60_000, 1))
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", To: rfc3339(hourAgo + 1000), Endpoint: "prod"})
	if st := done(t, m, "x"); st.Sent != 2 || st.Lost != 3 || st.Skipped != 3 {
		t.Errorf("told as %+v", st)
	}
}

// TestMessagesBehindAReplayAreNotUnpacked has one whose frames cannot be read, which would be counted.
func TestMessagesBehindAReplayAreNotUnpacked(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	d := r.named("x", 2)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, hourAgo, 1))
	var w frame.BatchWriter
	w.Add([]byte("no frame"), hourAgo+2*headSlack.Milliseconds(), 7)
	r.publish(r.conn.Frames(0), w.Seal(2))
	r.next[0] += 7
	r.send(0, r.floats(d, hourAgo+1, 2)) // late, as pushed ones are
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", To: rfc3339(hourAgo + 1000), Endpoint: "prod"})
	if st := done(t, m, "x"); st.Sent != 4 || st.Skipped != 0 || st.Messages != 3 {
		t.Errorf("told as %+v", st)
	}
	if d := gocmp.Diff([]int64{hourAgo, hourAgo, hourAgo + 1, hourAgo + 1}, timesOf(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

func TestAReplayOfAnEmptyStreamEnds(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	for i, spec := range []replay.Spec{{From: "-2h", Endpoint: "prod"}, {Endpoint: "prod", Rejected: true}, {From: "-2h", URL: e.URL, DryRun: true}} {
		spec.Name = fmt.Sprint("empty", i)
		start(t, m, spec)
		if st := done(t, m, spec.Name); st.Samples != 0 {
			t.Errorf("told as %+v", st)
		}
	}
}

// TestAReplayEndsWhereTheStreamLosesItsMessages lets the messages go after the replay was made.
func TestAReplayEndsWhereTheStreamLosesItsMessages(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	all := r.jobs(2, 10, cfg)
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod"})
	s, err := r.conn.JS.Stream(t.Context(), r.conn.Stream("FRAMES"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.start([]Endpoint{cfg})
	if st := done(t, m, "x"); st.Sent != 0 {
		t.Errorf("of %d samples that are gone, %d were sent", len(all), st.Sent)
	}
}

func TestReplaysOnlySendsNothingElse(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	all := r.jobs(2, 10, cfg)
	s := r.start(nil, func(c *Config) { c.ReplaysOnly = true }) // which waits for the endpoints' positions, of which there are to be none
	if err := s.ApplyConfig(t.Context(), []Endpoint{cfg}); err != nil {
		t.Fatal(err)
	}
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod"})
	done(t, m, "x")
	if d := gocmp.Diff(sorted(all), sorted(e.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if r.position("prod", 0) != nil {
		t.Error("the endpoint has a position")
	}
}

// TestAReplayGoesOnWithAnEndpointThatHasChanged replaces the endpoint under a replay that it does not take.
func TestAReplayGoesOnWithAnEndpointThatHasChanged(t *testing.T) {
	r, e, next := newRig(t), newRecorder(t), newRecorder(t)
	e.answers(func(*request) (int, string, map[string]string) { return 503, "", nil })
	cfg, changed := e.endpoint("prod"), next.endpoint("prod")
	all := r.jobs(2, 10, cfg)
	s := r.start([]Endpoint{cfg})
	m := r.manager(cfg)
	start(t, m, replay.Spec{Name: "x", From: "-2h", Endpoint: "prod"})
	await.True(t, "a try", func() bool { return len(e.requests()) > 0 })
	if err := s.ApplyConfig(t.Context(), []Endpoint{changed}); err != nil {
		t.Fatal(err)
	}
	done(t, m, "x")
	if d := gocmp.Diff(sorted(all), sorted(next.points())); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

// TestReplaysRunBesideEachOther starts several at once, also while the service starts and stops.
func TestReplaysRunBesideEachOther(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	all := r.jobs(5, 20, cfg)
	m := r.manager(cfg)
	var starting sync.WaitGroup
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		starting.Go(func() {
			if _, err := m.Start(context.Background(), replay.Spec{Name: name, From: "-2h", Endpoint: "prod"}, false); err != nil {
				t.Error(err)
			}
		})
	}
	r.start([]Endpoint{cfg})
	starting.Wait()
	for _, name := range names {
		if st := done(t, m, name); st.Sent != uint64(len(all)) {
			t.Errorf("%s: %+v", name, st)
		}
	}
	list, err := m.List(t.Context())
	if err != nil || len(list) != len(names) {
		t.Errorf("%d replays are listed: %v", len(list), err)
	}
}
