package scraper

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/osutil"
	"github.com/prometheus/prometheus/util/pool"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) {
	bodies = pool.New(16, 128<<20, 2, func(size int) any { return make([]byte, 0, size) }) // so that pieces may be tiny
	// Prometheus's scrape manager asks for the name in a bubble of synctest. What that makes in the resolver may not belong to one.
	_, _ = osutil.GetFQDN()
	goleak.VerifyTestMain(m)
}

var staleNaN = math.Float64frombits(value.StaleNaN)

// exact compares bit for bit.
var exact = cmp.Options{
	cmp.Comparer(func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }),
	cmp.Comparer(labels.Equal),
	cmpopts.EquateEmpty(),
}

// rig is a service under test.
type rig struct {
	*Service
	t          testing.TB
	log        *logtest.Buffer
	reg        *prometheus.Registry
	publishers *publish.Publishers // of a rig on a server
	shelf      *shelf              // of one without
}

// shelf keeps what a service would publish.
type shelf struct{ units [][]*publish.Unit }

func (s *shelf) Offer(partition int, u *publish.Unit) bool {
	if !u.Budget.Take(int64(u.Bytes)) {
		return false
	}
	s.units[partition] = append(s.units[partition], u)
	return true
}

func (s *shelf) Flush(context.Context, int) {}

func (s *shelf) Waiting() []string { return nil }

// newRig returns a service that does not run. Without a server, what it would publish stays on the shelf.
func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, log: &logtest.Buffer{}, reg: prometheus.NewPedanticRegistry()}
	logger := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := Config{
		Partitions: 2, Linger: 20 * time.Millisecond, MaxPendingBytes: 64 << 20, MaxBodyBytes: 64 << 20, DictAge: time.Hour,
		Logger: logger, Registerer: r.reg,
	}
	for _, f := range change {
		f(&cfg)
	}
	system := actor.NewSystem("test", logger, r.reg)
	if cfg.Conn != nil {
		r.publishers = publish.New(publish.Config{
			Conn: cfg.Conn, Partitions: cfg.Partitions, Subject: cfg.Conn.Frames, Stream: stream.Frames, MaxBatchBytes: 256 << 10, DictAge: cfg.DictAge,
			Name: "frames", Logger: logger, Registerer: r.reg,
		}, system)
		cfg.Publishers = r.publishers
	} else {
		r.shelf = &shelf{make([][]*publish.Unit, cfg.Partitions)}
		cfg.Publishers = r.shelf
	}
	r.Service = New(cfg, system)
	for shard := range r.epochs {
		r.epochs[shard].Store(7)
	}
	return r
}

// value returns a metric's value.
func (r *rig) value(name string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.t.Fatalf("there is no metric %s", name)
	return 0
}

// running returns how many actors of a kind run.
func (r *rig) running(kind string) int {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "millrace_actors" && m.GetLabel()[0].GetValue() == kind {
				return int(m.GetGauge().GetValue())
			}
		}
	}
	return 0
}

// server is an embedded NATS server with the streams.
func server(t *testing.T) *stream.Conn {
	t.Helper()
	return streamtest.New(t, 2)
}

// newTarget returns the labels of a target.
func newTarget(instance string) labels.Labels {
	return labels.FromStrings("__address__", instance, "__scheme__", "http", "__metrics_path__", "/metrics", "instance", instance, "job", "test")
}

// sourceOf returns the source of a target. It lasts as long as the rig.
func (r *rig) sourceOf(target labels.Labels) *source {
	src, _ := r.sources.attach(target)
	return src
}

// testAppender is an appender of the shape that Prometheus's scrape loop takes.
type testAppender struct {
	*appender
	to *source
}

func (r *rig) appender(target labels.Labels) *testAppender {
	return &testAppender{&appender{svc: r.Service}, r.sourceOf(target)}
}

func (a *testAppender) begun() {
	if a.src == nil {
		a.begin(a.to)
	}
}

// Append takes a sample by its labels.
func (a *testAppender) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AOptions) (storage.SeriesRef, error) {
	a.begun()
	i, err := a.number(ls, &opts)
	if err != nil {
		return 0, err
	}
	i, err = a.append(i, scraped{t: t, st: st, v: v, h: h, fh: fh}, &opts)
	return storage.SeriesRef(i + 1), err
}

func (a *testAppender) Commit() error {
	a.begun()
	_, err := a.commit()
	return err
}

func (a *testAppender) Rollback() error {
	a.begun()
	a.rollback()
	return nil
}

// labelsOf returns the labels of all entries of a source.
func labelsOf(t testing.TB, s *source) []labels.Labels {
	t.Helper()
	var list []labels.Labels
	for _, d := range s.dicts {
		read, err := frame.ReadDictionary(d.msg, d.id)
		if err != nil {
			t.Fatal(err)
		}
		for i := range read.Series {
			list = append(list, read.Series[i].Labels)
		}
	}
	rest := slices.Clone(s.unsealed)
	if err := s.unpack(rest); err != nil {
		t.Fatal(err)
	}
	for i := range rest {
		list = append(list, rest[i].labels)
	}
	if len(list) != len(s.series) {
		t.Fatalf("labels of %d entries, there are %d", len(list), len(s.series))
	}
	return list
}

// runPublishers runs the publishers; the result stops them.
func (r *rig) runPublishers() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.publishers.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("the publishers ended with %v", err)
		}
	}
}

// unitOf takes the oldest scrape that was committed from the shelf; nil where there is none.
func (r *rig) unitOf(s *source) *publish.Unit {
	list := r.shelf.units[s.partition]
	if len(list) == 0 {
		return nil
	}
	u := list[0]
	r.shelf.units[s.partition] = list[1:]
	u.Budget.Give(int64(u.Bytes))
	return u
}

// decode returns the frames of a scrape and the series of its dictionaries.
func decode(t testing.TB, u *publish.Unit) ([]*frame.Frame, map[frame.DictID][]frame.Series) {
	t.Helper()
	dicts := map[frame.DictID][]frame.Series{}
	for _, d := range u.Dicts {
		read, err := frame.ReadDictionary(d.Msg, d.ID)
		if err != nil {
			t.Fatal(err)
		}
		dicts[d.ID] = read.Series
	}
	var w frame.BatchWriter
	for _, f := range u.Frames {
		w.Add(f.Data, f.Time, f.Samples)
	}
	return openBatch(t, w.Seal(0)), dicts
}

func openBatch(t testing.TB, msg []byte) (frames []*frame.Frame) {
	t.Helper()
	b, err := frame.OpenBatch(msg, nil)
	if err != nil {
		t.Fatal(err)
	}
	for {
		f := &frame.Frame{}
		ok, err := b.Next(f)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return frames
		}
		frames = append(frames, f)
	}
}

// sample is a sample as a reader sees it.
type sample struct {
	Series    string
	T, St     int64
	V         float64
	Histogram any // *histogram.Histogram or *histogram.FloatHistogram
}

// samples lists what frames hold, in the order in which a writer delivers it.
func samples(t testing.TB, frames []*frame.Frame, dicts map[frame.DictID][]frame.Series) (list []sample) {
	t.Helper()
	for _, f := range frames {
		for i := range f.Sections {
			s := &f.Sections[i]
			series, ok := dicts[s.Dict]
			if !ok || len(series) != s.Series {
				t.Fatalf("section of %d series, its dictionary has %d", s.Series, len(series))
			}
			for k, v := range s.Values {
				x := sample{T: f.Time, V: v}
				at := uint32(k)
				if s.Present != nil {
					at = s.Present[k]
				}
				if len(s.Times) > 0 {
					x.T = s.Times[k]
				}
				if len(s.Starts) > 0 {
					x.St = s.Starts[k]
				}
				x.Series = series[at].Labels.String()
				list = append(list, x)
			}
			for _, h := range s.Histograms {
				x := sample{Series: series[h.Index].Labels.String(), T: h.Time, St: h.Start}
				if h.Int != nil {
					x.Histogram = h.Int
				} else {
					x.Histogram = h.Float
				}
				list = append(list, x)
			}
		}
	}
	return list
}

// commit commits a scrape and returns its samples.
func (r *rig) commit(a *testAppender) []sample {
	r.t.Helper()
	src := a.to
	if err := a.Commit(); err != nil {
		r.t.Fatal(err)
	}
	u := r.unitOf(src)
	if u == nil {
		return nil
	}
	frames, dicts := decode(r.t, u)
	return samples(r.t, frames, dicts)
}

func (r *rig) compare(what string, got []sample, want ...sample) {
	r.t.Helper()
	if d := cmp.Diff(want, got, exact); d != "" {
		r.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func name(n string) labels.Labels { return labels.FromStrings("__name__", n) }

func float(n string, t int64, v float64) sample {
	return sample{Series: name(n).String(), T: t, V: v}
}

// add appends a float that has to be taken.
func (r *rig) add(a *testAppender, ref storage.SeriesRef, n string, t int64, v float64) storage.SeriesRef {
	r.t.Helper()
	ref, err := a.Append(ref, name(n), 0, t, v, nil, nil, storage.AOptions{})
	if err != nil {
		r.t.Fatalf("appending %s: %v", n, err)
	}
	return ref
}

func TestMetricNamesAreClean(t *testing.T) {
	r := newRig(t)
	problems, err := testutil.GatherAndLint(r.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}

func numbered(prefix string, i int) string { return fmt.Sprintf("%s_%05d", prefix, i) }
