package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is what publishes under test, and the service that offers to it.
type rig struct {
	*Publishers
	t      testing.TB
	log    *logtest.Buffer
	reg    *prometheus.Registry
	budget *Budget
	linger time.Duration // of its units
	enc    frame.Encoder
	told   chan told
}

// told is what a unit was told.
type told struct {
	name string
	err  error
}

// newRig returns publishers that do not run yet.
func newRig(t testing.TB, conn *stream.Conn, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, log: &logtest.Buffer{}, reg: prometheus.NewPedanticRegistry(), budget: NewBudget(64 << 20), linger: 20 * time.Millisecond, told: make(chan told, 100)}
	logger := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := Config{
		Conn: conn, Partitions: 2, Subject: conn.Frames, Stream: stream.Frames, MaxBatchBytes: 256 << 10, DictAge: time.Hour, Name: "frames",
		Logger: logger, Registerer: r.reg,
	}
	for _, f := range change {
		f(&cfg)
	}
	r.Publishers = New(cfg, actor.NewSystem("test", logger, r.reg))
	return r
}

// dictionary returns one of n series.
func dictionary(t testing.TB, n int) Dict {
	t.Helper()
	var list []frame.Series
	for i := range n {
		list = append(list, frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprintf("x_%05d", i))})
	}
	d, msg, err := frame.NewDictionary("test", list)
	if err != nil {
		t.Fatal(err)
	}
	return Dict{ID: d.ID, Msg: msg}
}

// unit returns one of a source with n series at a time, in frames of at most 10,000 samples.
func (r *rig) unit(at int64, n int) *Unit {
	u := &Unit{Job: "test", Linger: r.linger, Budget: r.budget}
	for ; n > 0; n -= 10_000 {
		d := dictionary(r.t, min(n, 8000))
		sec := frame.Section{Dict: d.ID, Series: min(n, 8000)}
		f := frame.Frame{Source: 1, Seq: uint64(at), Time: at}
		for left := min(n, 10_000); left > 0; left -= sec.Series {
			sec.Series = min(left, 8000)
			if sec.Series < 8000 {
				d = dictionary(r.t, sec.Series)
				sec.Dict = d.ID
			}
			sec.Values = make([]float64, sec.Series)
			for i := range sec.Values {
				sec.Values[i] = float64(i) * 1.37
			}
			u.Dicts = append(u.Dicts, d)
			f.Sections = append(f.Sections, sec)
		}
		data := r.enc.Encode(nil, &f)
		u.Frames = append(u.Frames, Frame{Data: data, Time: at, Samples: f.Samples()})
		u.Samples += f.Samples()
		u.Bytes += len(data)
	}
	return u
}

// named returns u, which tells the rig how it has ended.
func (r *rig) named(name string, u *Unit) *Unit {
	u.Done = func(err error) { r.told <- told{name, err} }
	return u
}

// offer offers what has to be taken.
func (r *rig) offer(partition int, units ...*Unit) {
	r.t.Helper()
	for _, u := range units {
		if !r.Offer(partition, u) {
			r.t.Fatal("there is no room")
		}
	}
}

// expect waits until units are told, in this order; the error is that of the last.
func (r *rig) expect(names ...string) (err error) {
	r.t.Helper()
	for _, name := range names {
		select {
		case got := <-r.told:
			if got.name != name {
				r.t.Fatalf("%q was told %v, want %q to be told", got.name, got.err, name)
			}
			err = got.err
		case <-time.After(await.Patience):
			r.t.Fatalf("%q was not told anything after %v", name, await.Patience)
		}
	}
	return err
}

// nothing checks that no unit was told anything.
func (r *rig) nothing() {
	r.t.Helper()
	select {
	case got := <-r.told:
		r.t.Errorf("%q was told %v", got.name, got.err)
	default:
	}
}

// run runs the publishers; the result stops them.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		r.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("the publishers ended with %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
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
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	r.t.Fatalf("there is no metric %s", name)
	return 0
}

// batches returns the messages of a partition.
func batches(t *testing.T, conn *stream.Conn, partition int) (list []stream.Message) {
	t.Helper()
	for seq := uint64(1); ; {
		msg, err := conn.Next(t.Context(), stream.Frames, conn.Frames(partition), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, msg)
		seq = msg.Seq + 1
	}
}

// stored returns the frames of a partition, and checks that the batches' headers continue each other.
func stored(t *testing.T, conn *stream.Conn, partition int) (frames []*frame.Frame) {
	t.Helper()
	next := uint64(0)
	for _, msg := range batches(t, conn, partition) {
		h, err := frame.ReadHeader(msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		if h.First != next {
			t.Errorf("message %d begins at the sample %d, want %d", msg.Seq, h.First, next)
		}
		next = h.First + uint64(h.Samples)
		b, err := frame.OpenBatch(msg.Data, nil)
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
				break
			}
			frames = append(frames, f)
		}
	}
	return frames
}

func times(frames []*frame.Frame) (list []int64) {
	for _, f := range frames {
		list = append(list, f.Time)
	}
	return list
}

func total(frames []*frame.Frame) (n int) {
	for _, f := range frames {
		n += f.Samples()
	}
	return n
}

func TestMetricNamesAreClean(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	cfg := r.cfg
	cfg.Name = "deltas"
	New(cfg, r.system) // which shares the registry
	problems, err := testutil.GatherAndLint(r.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	var b strings.Builder
	families, _ := r.reg.Gather()
	for _, f := range families {
		fmt.Fprintln(&b, f)
	}
	for _, name := range []string{"frames", "deltas"} {
		if !strings.Contains(b.String(), fmt.Sprintf("value:%q", name)) {
			t.Errorf("no metric with the label %s:\n%s", name, b.String())
		}
	}
}
