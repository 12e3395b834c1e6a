package survey

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// bench publishes dictionaries and frames.
type bench struct {
	t    *testing.T
	conn *stream.Conn
	seq  uint64
}

func (b *bench) publish(subject string, data []byte, first time.Time) {
	b.t.Helper()
	msg := &nats.Msg{Subject: subject, Data: data}
	stream.SetFirstAnnounced(msg, first)
	if _, err := b.conn.Publish(b.t.Context(), msg, nil); err != nil {
		b.t.Fatal(err)
	}
}

// dict publishes a dictionary that was first published at a time.
func (b *bench) dict(partition int, job string, first time.Time, list ...labels.Labels) frame.DictID {
	b.t.Helper()
	var series []frame.Series
	for _, ls := range list {
		series = append(series, frame.Series{Labels: ls})
	}
	d, msg, err := frame.NewDictionary(job, series)
	if err != nil {
		b.t.Fatal(err)
	}
	b.publish(b.conn.Dict(partition, d.ID), msg, first)
	return d.ID
}

// frame publishes values of the first series of a dictionary.
func (b *bench) frame(partition int, id frame.DictID, series int, values ...float64) {
	b.t.Helper()
	b.seq++
	s := frame.Section{Dict: id, Series: series, Values: values}
	if len(values) < series {
		s.Present = []uint32{}
		for i := range values {
			s.Present = append(s.Present, uint32(i))
		}
	}
	f := frame.Frame{Source: 1, Epoch: 1, Seq: b.seq, Time: time.Now().UnixMilli(), Sections: []frame.Section{s}}
	var w frame.BatchWriter
	var enc frame.Encoder
	data := enc.Encode(nil, &f)
	w.Add(data, f.Time, f.Samples())
	b.publish(b.conn.Frames(partition), w.Seal(0), time.Time{})
}

func user(metric, instance, id string) labels.Labels {
	return labels.FromStrings("__name__", metric, "job", "api", "instance", instance, "user_id", id)
}

func TestActiveSeriesAreCounted(t *testing.T) {
	conn := streamtest.New(t, 2)
	b := &bench{t: t, conn: conn}
	long := time.Now().Add(-24 * time.Hour)
	stale := math.Float64frombits(value.StaleNaN)
	old := b.dict(0, "api", long, user("x", "a", "1"), user("x", "a", "2"), user("x", "a", "3"))
	b.frame(0, old, 3, 1, 2, 3)
	b.frame(0, old, 3, 1, stale) // the second ends, the third is not there this time
	// The same series again in a new dictionary, and one more.
	b.frame(0, b.dict(0, "api", time.Time{}, user("x", "a", "1"), user("x", "a", "4")), 2, 1, 4)
	// One that has ended in another dictionary than it was in before.
	b.frame(0, b.dict(0, "api", time.Time{}, user("x", "a", "3"), user("x", "a", "8")), 2, stale, stale)
	// Known from a dictionary that is not in use any more.
	b.dict(1, "api", long, user("y", "b", "5"), user("y", "b", "6"))
	b.frame(1, b.dict(1, "api", time.Time{}, user("y", "b", "5"), user("y", "b", "7")), 2, 5, 7)
	b.frame(1, frame.DictID{9}, 4, 1, 1, 1, 1)

	r, err := Take(t.Context(), Config{Conn: conn, Query: cardinality.Query{Window: 5 * time.Minute, Since: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	r.Time, r.Since = time.Time{}, time.Time{}
	got, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"0001-01-01T00:00:00Z","since":"0001-01-01T00:00:00Z","window_seconds":300,"series":4,"new":2,"refused":0,"unknown":4,"partial":false,` +
		`"metrics":[{"name":"x","series":2,"new":1,"refused":0},{"name":"y","series":2,"new":1,"refused":0}],` +
		`"labels":[{"name":"user_id","series":4,"values":4,"new":2},{"name":"instance","series":4,"values":2,"new":0},{"name":"job","series":4,"values":1,"new":0}],` +
		`"jobs":[{"name":"api","series":4,"new":2,"refused":0}],` +
		`"targets":[{"name":"api","instance":"a","series":2,"new":1,"refused":0},{"name":"api","instance":"b","series":2,"new":1,"refused":0}]}`
	if !bytes.Equal(got, []byte(want)) {
		t.Errorf("the report is\n%s\nwant\n%s", got, want)
	}
	if r, err = Take(t.Context(), Config{Conn: conn, Query: cardinality.Query{Window: 5 * time.Minute, Since: 48 * time.Hour, Top: 1}}); err != nil || r.New != 4 || len(r.Metrics) != 1 || len(r.Labels) != 1 {
		t.Errorf("with a longer time and fewer lines: %+v, %v", r, err)
	}
}

func TestNothingIsCountedWhereNothingIs(t *testing.T) {
	conn := streamtest.New(t, 2)
	if r, err := Take(t.Context(), Config{Conn: conn, Query: cardinality.Query{Window: time.Minute, Since: time.Hour, Top: 10}}); err != nil || r.Series != 0 || r.Metrics == nil {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestASeriesOfTwoPartitionsIsCountedOnce has two sources make the same series.
func TestASeriesOfTwoPartitionsIsCountedOnce(t *testing.T) {
	conn := streamtest.New(t, 2)
	b := &bench{t: t, conn: conn}
	long := time.Now().Add(-24 * time.Hour)
	for p := range 2 {
		b.frame(p, b.dict(p, "api", long, user("x", "a", "1"), user("x", "a", string(rune('2'+p)))), 2, 1, 2)
	}
	r, err := Take(t.Context(), Config{Conn: conn, Query: cardinality.Query{Window: 5 * time.Minute, Since: time.Hour}})
	if err != nil || r.Series != 3 || r.New != 0 || r.Partial || len(r.Metrics) != 1 || r.Metrics[0].Series != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestWhatThereIsNoMemoryForIsNotCounted gives a survey less and less.
func TestWhatThereIsNoMemoryForIsNotCounted(t *testing.T) {
	conn := streamtest.New(t, 2)
	b := &bench{t: t, conn: conn}
	const each = 500
	for p := range 2 {
		var list []labels.Labels
		var values []float64
		for i := range each {
			list, values = append(list, user("x", "a", fmt.Sprint(p*each+i))), append(values, 1)
		}
		b.frame(p, b.dict(p, "api", time.Now(), list...), each, values...)
	}
	before := 2 * each
	for _, max := range []int{0, 1 << 20, 100 << 10, 30 << 10, 2 << 10, 1} {
		r, err := Take(t.Context(), Config{Conn: conn, Query: cardinality.Query{Window: 5 * time.Minute, Since: time.Hour}, MaxBytes: max})
		if err != nil {
			t.Fatal(err)
		}
		whole := max == 0 || max == 1<<20
		if r.Partial == whole || r.Series > before || whole && r.Series != 2*each || r.Metrics == nil || r.Labels == nil {
			t.Errorf("with %d bytes: %+v", max, r)
		}
		if max == 100<<10 && (r.Series == 0 || len(r.Metrics) != 1 || r.Metrics[0].Series != r.Series) {
			t.Errorf("with %d bytes nothing is counted: %+v", max, r)
		}
		before = r.Series
	}
}

// TestASurveyKeepsToItsMemory counts more series than there is room for, and looks at the heap.
func TestASurveyKeepsToItsMemory(t *testing.T) {
	const most = 16 << 20
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	c := newCount(time.Now(), time.Now(), most)
	for range 4 {
		free := c.forEntries
		for i := 0; c.has(&c.forEntries, 0) && i < 100_000; i++ {
			id := rand.Uint64()
			c.add("api", labels.FromStrings("__name__", fmt.Sprint("metric_", id%10_000), "job", "api", "instance", fmt.Sprint("host-", id%1000), "path", fmt.Sprint("/", id), "method", "GET"),
				newMark(1, false), false, true)
		}
		held := heap() - before
		c.addUp()
		c.forEntries = free
		if sums := heap() - before; held > most*5/4 || sums > most*5/4 {
			t.Errorf("%d bytes are held, and %d afterwards", held, sums)
		}
	}
	if r := c.report(10); !r.Partial || r.Series < 50_000 {
		t.Errorf("%+v", r)
	}
}
