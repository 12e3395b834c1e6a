package delta

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// load pushes deltas of many series and kinds, some of which are to be dropped, and knows what they come to.
type load struct {
	*river
	rnd    *rand.Rand
	dicts  [partitions][]frame.DictID // two of the same series in another order, and one of histograms
	series int
	time   int64
	totals [partitions]map[string]float64
	points [partitions]int
}

func newLoad(r *river, series int) *load {
	l := &load{river: r, rnd: rand.New(rand.NewPCG(1, 2)), series: series, time: 1_000_000}
	for p := range partitions {
		var names, others []string
		for i := range series {
			names = append(names, fmt.Sprintf("s%d", i))
			others = append(others, fmt.Sprintf("s%d", series-1-i))
		}
		l.dicts[p] = []frame.DictID{r.dict(p, names...), r.dict(p, others...), r.dict(p, "h")}
		l.totals[p] = map[string]float64{}
	}
	return l
}

// push pushes one message of some frames to a partition.
func (l *load) push(p, frames int) {
	l.t.Helper()
	var list []*frame.Frame
	for range frames {
		l.time += 1000
		which := l.rnd.IntN(2)
		f := frame.Section{Dict: l.dicts[p][which], Series: l.series}
		for i := range l.series {
			v := float64(l.rnd.IntN(1_000_000)) / 4
			name := fmt.Sprintf("s%d", i)
			if which == 1 {
				name = fmt.Sprintf("s%d", l.series-1-i)
			}
			f.Values, f.Starts, f.Times = append(f.Values, v), append(f.Starts, l.time-1000), append(f.Times, l.time)
			if l.rnd.IntN(50) == 0 && l.totals[p][name] != 0 {
				f.Times[i] = 999_000 // out of order
				continue
			}
			l.totals[p][name] += v
			l.points[p]++
		}
		sections := []frame.Section{f}
		if l.rnd.IntN(3) == 0 {
			h := exponential(int32(l.rnd.IntN(9)), int32(l.rnd.IntN(300)-150), 1, int64(l.rnd.IntN(5)))
			sections = append(sections, frame.Section{Dict: l.dicts[p][2], Series: 1, Histograms: []frame.Histogram{{Time: l.time, Start: l.time - 1000, Int: h}}})
			l.totals[p]["h"] = 0
			l.points[p]++
		}
		list = append(list, l.frameOf(uint64(1+l.rnd.IntN(3)), l.time, sections...))
	}
	l.river.push(p, list...)
}

// check waits until a partition of FRAMES holds all points, and compares what they come to.
func (l *load) check(p int) *result {
	l.t.Helper()
	res := l.wait(p, l.points[p])
	if diff := equalTotals(l.totals[p], res.totals()); diff != "" || len(res.points) != l.points[p] {
		l.t.Errorf("partition %d holds %d points, want %d:\n%s", p, len(res.points), l.points[p], diff)
	}
	return res
}

// TestACrashAnywhereChangesNothing takes away all that was published after each message in turn, and the position as well, which is what a process
// leaves that is killed there.
func TestACrashAnywhereChangesNothing(t *testing.T) {
	r := newRiver(t)
	l := newLoad(r, 4000)
	for range 6 {
		l.push(0, 1)
	}
	l.push(0, 40) // more than a message of FRAMES holds
	l.push(0, 1)
	_, stop := r.start(Config{})
	whole := l.check(0)
	stop()
	if len(whole.messages) < 4 {
		t.Fatalf("only %d messages of sums", len(whole.messages))
	}
	frames, err := r.JS.Stream(t.Context(), r.Stream(stream.Frames))
	if err != nil {
		t.Fatal(err)
	}
	for k := range whole.messages {
		messages := r.read(0).messages
		for _, seq := range messages[min(k, len(messages)):] {
			if err := frames.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}
		r.forgetPosition(0)
		_, stop := r.start(Config{})
		res := l.wait(0, l.points[0])
		stop()
		if res.text() != whole.text() || res.repeated > 0 {
			t.Fatalf("killed after message %d, the sums differ, or %d frames are there twice", k, res.repeated)
		}
	}
}

func TestSumsGoOnThroughRestarts(t *testing.T) {
	r := newRiver(t)
	l := newLoad(r, 20)
	for n := range 8 {
		s, stop := r.start(Config{})
		await.True(t, "it has all", func() bool { return len(s.Status().Partitions) == partitions })
		for range 10 {
			l.push(0, 1)
			l.push(1, 2)
		}
		if n%2 == 0 {
			l.check(0)
		}
		stop()
		l.push(1, 1) // while nobody is there
		if n%3 == 0 {
			r.forgetPosition(0)
			r.forgetPosition(1)
		}
	}
	r.start(Config{})
	for p := range partitions {
		l.check(p)
	}
}

func TestPartitionsMoveBetweenServices(t *testing.T) {
	r := newRiver(t)
	l := newLoad(r, 20)
	push := func() {
		for range 20 {
			l.push(0, 1)
			l.push(1, 1)
		}
	}
	one, stopOne := r.start(Config{})
	push()
	two, stopTwo := r.start(Config{})
	push()
	await.True(t, "each has a partition", func() bool { return len(one.Status().Partitions) == 1 && len(two.Status().Partitions) == 1 })
	push()
	stopOne()
	push()
	await.True(t, "the second has both", func() bool { return len(two.Status().Partitions) == partitions })
	r.start(Config{})
	push()
	stopTwo()
	push()
	for p := range partitions {
		l.check(p)
	}
	if one.budget.used.Load() != 0 || two.budget.used.Load() != 0 {
		t.Errorf("services that are gone hold %d and %d series", one.budget.used.Load(), two.budget.used.Load())
	}
}

// TestAFormerOwnerIsHarmless has two actors work on one partition, of which neither knows of the other.
func TestAFormerOwnerIsHarmless(t *testing.T) {
	r := newRiver(t)
	l := newLoad(r, 20)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	run := func() {
		logger := slog.New(slog.NewTextHandler(io.Discard, nil))
		s := New(Config{Conn: r.Conn, Partitions: partitions, Logger: logger, Registerer: prometheus.NewPedanticRegistry()}, nil)
		p := &partition{svc: s, log: logger}
		go func() { ended <- actor.Try(func() error { return p.Serve(ctx) }) }()
	}
	run()
	for range 5 {
		l.push(0, 3)
	}
	l.wait(0, 1)
	run()
	for range 40 {
		l.push(0, 1)
	}
	res := l.check(0)
	t.Logf("%d of %d frames were published twice", res.repeated, res.frames)
	cancel()
	for range 2 {
		<-ended
	}
	r.start(Config{})
	l.push(0, 1)
	l.check(0)
}

func TestWhatWaitedForLongIsAddedToWhatWasBefore(t *testing.T) {
	// Between a message that was handled and the next, less than MaxStale has passed, but since then much more.
	const maxStale = 10 * time.Second
	r := newRiver(t)
	r.exact = true
	id := r.dict(0, "a")
	s, stop := r.start(Config{MaxStale: maxStale})
	r.push(0, r.frameOf(1, 1000, floats(id, 0, 1)))
	r.expect(0, "a@1000(0)=1")
	await.True(t, "the position", func() bool { return s.Status().Behind == 0 })
	stop()
	r.push(0, r.frameOf(1, 2000, floats(id, 0, 1)))
	pushed := time.Now()
	await.True(t, "the time is over", func() bool { return time.Since(pushed) > 2*maxStale })
	r.start(Config{MaxStale: maxStale})
	r.expect(0, "a@1000(0)=1", "a@2000(0)=2")
}

func TestADeltaStreamThatWasMadeAnewIsRead(t *testing.T) {
	r := newRiver(t)
	id := r.dict(0, "a")
	_, stop := r.start(Config{})
	for i := range 5 {
		r.push(0, r.frameOf(1, int64(1000*(i+1)), floats(id, 0, 1)))
	}
	r.wait(0, 5)
	stop()
	if err := r.JS.DeleteStream(t.Context(), r.Stream(stream.Deltas)); err != nil {
		t.Fatal(err)
	}
	if err := r.Ensure(t.Context(), stream.Layout{Partitions: partitions, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	r.push(0, r.frameOf(1, 9000, floats(id, 0, 1)))
	r.start(Config{})
	if res := r.wait(0, 6); res.points[5].v != 6 {
		t.Errorf("the sum is %v", res.points[5])
	}
}

func TestStepsAreWrittenAndRead(t *testing.T) {
	want := []step{{seq: 1, time: 2, frames: 3}, {seq: 1 << 60, time: 1 << 62, frames: 0, done: 7}}
	got, err := parseSteps(formatSteps(want))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, want %v: %v", got, want, err)
	}
	for _, bad := range []string{"", "1", "1 2", "1 2 3 4 5", "1 2 x", "1 2 -3", "1 2 3,", "-1 2 3", "1 2 3 -4"} {
		if got, err := parseSteps(bad); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}
