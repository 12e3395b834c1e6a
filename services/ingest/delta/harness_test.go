package delta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// partitions of the tests' streams.
const partitions = 2

// river is the streams of a test, and who publishes deltas.
type river struct {
	*stream.Conn
	t         *testing.T
	published uint64
	seq       map[uint64]uint64 // of the frames, by source
	exact     bool              // services take all clocks for the same
	enc       frame.Encoder
}

func newRiver(t *testing.T) *river {
	t.Helper()
	return &river{Conn: streamtest.New(t, partitions), t: t, seq: map[uint64]uint64{}}
}

// dict publishes a dictionary of series of the given names.
func (r *river) dict(partition int, names ...string) frame.DictID {
	r.t.Helper()
	var series []frame.Series
	for _, n := range names {
		series = append(series, frame.Series{Labels: labels.FromStrings("__name__", n)})
	}
	d, msg, err := frame.NewDictionary("job", series)
	if err != nil {
		r.t.Fatal(err)
	}
	r.publish(r.Dict(partition, d.ID), msg, nil)
	return d.ID
}

func (r *river) publish(subject string, data []byte, h nats.Header) {
	r.t.Helper()
	if _, err := r.Conn.Publish(r.t.Context(), &nats.Msg{Subject: subject, Data: data, Header: h}, nil); err != nil {
		r.t.Fatal(err)
	}
}

// frameOf returns the next frame of a source.
func (r *river) frameOf(source uint64, time int64, sections ...frame.Section) *frame.Frame {
	r.seq[source]++
	return &frame.Frame{Source: source, Epoch: 1, Seq: r.seq[source], Time: time, Sections: sections}
}

// push publishes a message of delta frames.
func (r *river) push(partition int, frames ...*frame.Frame) {
	r.t.Helper()
	var w frame.BatchWriter
	for _, f := range frames {
		w.Add(r.enc.Encode(nil, f), f.Time, f.Samples())
	}
	n := uint64(w.Header().Samples)
	r.publish(r.Deltas(partition), w.Seal(r.published), nil)
	r.published += n
}

// floats returns a section of float samples for all series of a dictionary.
func floats(id frame.DictID, start int64, values ...float64) frame.Section {
	s := frame.Section{Dict: id, Series: len(values), Values: values}
	if start != 0 {
		for range values {
			s.Starts = append(s.Starts, start)
		}
	}
	return s
}

// rig is a running service.
type rig struct {
	*Service
	log *logtest.Buffer
	reg *prometheus.Registry
}

// start runs a service until stop or the end of the test.
func (r *river) start(cfg Config) (s *rig, stop func()) {
	t := r.t
	t.Helper()
	s = &rig{log: &logtest.Buffer{}, reg: prometheus.NewPedanticRegistry()}
	logger := slog.New(slog.NewTextHandler(s.log, nil))
	system := actor.NewSystem("test", logger, s.reg)
	member, leave := fleettest.Join(t, r.Conn, "ingest")
	cfg.Conn, cfg.Partitions, cfg.Fleet, cfg.Logger, cfg.Registerer = r.Conn, partitions, member, logger, s.reg
	s.Service = New(cfg, system)
	if r.exact {
		s.margin = 0
	}
	system.Spawn("delta-service", s.Service)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- system.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
		leave()
	})
	t.Cleanup(stop)
	return s, stop
}

func (s *rig) dropped(why reason) float64 { return counter.Value(s.metrics.dropped[why]) }

// forgetPosition makes the next actor of a partition read all of DELTAS again, as if the former had been killed before it stored where it was.
func (r *river) forgetPosition(partition int) {
	r.t.Helper()
	kv, err := r.JS.KeyValue(r.t.Context(), r.Bucket("positions"))
	if err == nil {
		err = kv.Delete(r.t.Context(), fmt.Sprintf("delta.%d", partition))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// point is a cumulative sample as an endpoint gets it.
type point struct {
	series   string
	t, start int64
	v        float64
	hist     string // a native histogram as text
}

func (p point) String() string {
	if p.hist != "" {
		return fmt.Sprintf("%s@%d(%d)=%s", p.series, p.t, p.start, p.hist)
	}
	if math.IsNaN(p.v) {
		return fmt.Sprintf("%s@%d(%d)=%x", p.series, p.t, p.start, math.Float64bits(p.v))
	}
	return fmt.Sprintf("%s@%d(%d)=%v", p.series, p.t, p.start, p.v)
}

// result is what a partition of FRAMES holds.
type result struct {
	points   []point // of frames that are no repetition, as a writer takes them
	frames   int
	repeated int
	messages []uint64 // sequence numbers
}

func (res *result) text() string {
	var b strings.Builder
	for _, p := range res.points {
		fmt.Fprintln(&b, p)
	}
	return b.String()
}

// read returns what a partition of FRAMES holds. A repetition of a frame that is not the same as the first is an error.
func (r *river) read(partition int) *result {
	r.t.Helper()
	res := &result{}
	dicts := map[frame.DictID]*frame.Dictionary{}
	first := map[[2]uint64]string{}
	last := map[uint64]uint64{}
	next := map[string]uint64{}
	for seq := uint64(1); ; {
		msg, err := r.Next(r.t.Context(), stream.Frames, r.Frames(partition), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return res
		}
		if err != nil {
			r.t.Fatal(err)
		}
		seq = msg.Seq + 1
		res.messages = append(res.messages, msg.Seq)
		if msg.Header.Get(Header) == "" {
			r.t.Errorf("message %d has no header %s", msg.Seq, Header)
		}
		batch, err := frame.OpenBatch(msg.Data, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		if publisher := msg.Header.Get(stream.PublisherHeader); publisher == "" || batch.First != next[publisher] {
			r.t.Errorf("message %d of publisher %q begins with sample %d, want %d", msg.Seq, publisher, batch.First, next[publisher])
		} else {
			next[publisher] += uint64(batch.Samples)
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
			points := r.points(dicts, partition, &f)
			res.frames++
			id, text := [2]uint64{f.Source, f.Seq}, fmt.Sprint(points)
			if before, ok := first[id]; ok && before != text {
				r.t.Errorf("frame %d of source %d is\n%s\nand, in message %d,\n%s", f.Seq, f.Source, before, msg.Seq, text)
			}
			first[id] = text
			if f.Seq <= last[f.Source] {
				res.repeated++
				continue
			}
			last[f.Source] = f.Seq
			res.points = append(res.points, points...)
		}
	}
}

// points returns the samples of a frame.
func (r *river) points(dicts map[frame.DictID]*frame.Dictionary, partition int, f *frame.Frame) (points []point) {
	r.t.Helper()
	for i := range f.Sections {
		s := &f.Sections[i]
		d := dicts[s.Dict]
		if d == nil {
			msg, err := r.Last(r.t.Context(), stream.Dicts, r.Dict(partition, s.Dict))
			if err == nil {
				d, err = frame.ReadDictionary(msg.Data, s.Dict)
			}
			if err != nil {
				r.t.Fatal(err)
			}
			dicts[s.Dict] = d
		}
		for k, v := range s.Values {
			n, t, start := s.At(f, k)
			points = append(points, point{series: d.Series[n].Labels.Get("__name__"), t: t, start: start, v: v})
		}
		for _, h := range s.Histograms {
			p := point{series: d.Series[h.Index].Labels.Get("__name__"), t: h.Time, start: h.Start}
			if h.Int != nil {
				p.hist = "int " + h.Int.Copy().Compact(0).String()
			} else {
				p.hist = "float " + h.Float.Copy().Compact(0).String()
			}
			points = append(points, p)
		}
	}
	return points
}

// wait waits until a partition of FRAMES has the samples of a number of frames, and returns them.
func (r *river) wait(partition, points int) *result {
	r.t.Helper()
	var res *result
	await.True(r.t, fmt.Sprintf("%d points", points), func() bool {
		res = r.read(partition)
		return len(res.points) >= points
	})
	return res
}

// expect waits for points and compares them.
func (r *river) expect(partition int, want ...string) {
	r.t.Helper()
	res := r.wait(partition, len(want))
	if got := res.text(); got != strings.Join(want, "\n")+"\n" {
		r.t.Errorf("the frames hold\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// totals returns the last value of each series.
func (res *result) totals() map[string]float64 {
	totals := map[string]float64{}
	for _, p := range res.points {
		totals[p.series] = p.v
	}
	return totals
}

func equalTotals(a, b map[string]float64) string {
	var diff []string
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if a[k] != b[k] {
			diff = append(diff, fmt.Sprintf("%s is %v, want %v", k, b[k], a[k]))
		}
	}
	if len(a) != len(b) {
		diff = append(diff, fmt.Sprintf("%d series, want %d", len(b), len(a)))
	}
	return strings.Join(diff, "\n")
}

// find returns the first frame of a partition of FRAMES that has the given time.
func (r *river) find(partition int, time int64) *frame.Frame {
	r.t.Helper()
	for _, seq := range r.read(partition).messages {
		msg, err := r.Next(r.t.Context(), stream.Frames, r.Frames(partition), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		batch, err := frame.OpenBatch(msg.Data, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		f := &frame.Frame{}
		for ok, err := batch.Next(f); ok || err != nil; ok, err = batch.Next(f) {
			if err != nil {
				r.t.Fatal(err)
			}
			if f.Time == time {
				return f
			}
		}
	}
	r.t.Fatalf("partition %d has no frame of the time %d", partition, time)
	return nil
}

// lastFrame returns the first frame of the last message of a partition of FRAMES.
func (r *river) lastFrame(partition int) *frame.Frame {
	r.t.Helper()
	msg, err := r.Last(r.t.Context(), stream.Frames, r.Frames(partition))
	if err != nil {
		r.t.Fatal(err)
	}
	batch, err := frame.OpenBatch(msg.Data, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	f := &frame.Frame{}
	if ok, err := batch.Next(f); !ok || err != nil {
		r.t.Fatalf("message %d has no frame: %v", msg.Seq, err)
	}
	return f
}
