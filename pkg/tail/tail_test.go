package tail

import (
	"context"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/await"
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

func (b *bench) publish(subject string, data []byte) {
	b.t.Helper()
	if _, err := b.conn.Publish(b.t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
		b.t.Fatal(err)
	}
}

func list(sets ...labels.Labels) (series []frame.Series) {
	for _, ls := range sets {
		series = append(series, frame.Series{Labels: ls})
	}
	return series
}

func (b *bench) dict(partition int, sets ...labels.Labels) frame.DictID {
	b.t.Helper()
	d, msg, err := frame.NewDictionary("api", list(sets...))
	if err != nil {
		b.t.Fatal(err)
	}
	b.publish(b.conn.Dict(partition, d.ID), msg)
	return d.ID
}

func (b *bench) relabelled(endpoint string, partition int, id frame.DictID, rules string, sets ...labels.Labels) {
	b.t.Helper()
	msg, err := frame.EncodeRelabelled(id, rules, list(sets...))
	if err != nil {
		b.t.Fatal(err)
	}
	b.publish(b.conn.Relabelled(endpoint, partition, id), msg)
}

func (b *bench) frame(partition int, s frame.Section) {
	b.t.Helper()
	b.seq++
	f := frame.Frame{Source: 1, Epoch: 1, Seq: b.seq, Time: 1_000, Sections: []frame.Section{s}}
	var w frame.BatchWriter
	var enc frame.Encoder
	w.Add(enc.Encode(nil, &f), f.Time, f.Samples())
	b.publish(b.conn.Frames(partition), w.Seal(0))
}

func (b *bench) open(q Query) *Tail {
	b.t.Helper()
	t, err := Open(b.t.Context(), b.conn, q)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(t.Close)
	return t
}

// next returns the lines of the next events.
func (b *bench) next(t *Tail, n int) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	var lines []string
	for range n {
		e, err := t.Next(ctx)
		if err != nil {
			b.t.Fatalf("after %q: %v", lines, err)
		}
		lines = append(lines, e.Line())
	}
	return strings.Join(lines, "\n")
}

func series(name, instance string) labels.Labels {
	return labels.FromStrings("__name__", name, "instance", instance, "job", "api")
}

// TestSamplesAreShownAsTheyPass shows all kinds of samples of what is selected.
func TestSamplesAreShownAsTheyPass(t *testing.T) {
	conn := streamtest.New(t, 2)
	b := &bench{t: t, conn: conn}
	id := b.dict(1, series("up", "a"), series("down", "a\n\x1b"), series("hist", "a"), labels.FromStrings("__name__", "dotted.name", "job", "other"))
	b.frame(1, frame.Section{Dict: id, Series: 4, Values: []float64{9, 9, 9, 9}}) // before anybody looks
	all, some := b.open(Query{}), b.open(Query{Match: []string{`up`, `{instance=~"a\n.*"}`}, Limit: 2})
	b.frame(1, frame.Section{
		Dict: id, Series: 4, Present: []uint32{0, 1, 3}, Values: []float64{1.5, math.Float64frombits(value.StaleNaN), math.Inf(-1)}, Times: []int64{2_000, 2_001, 2_002}, Starts: []int64{500, 0, 0},
		Histograms: []frame.Histogram{{Index: 2, Time: 3_000, Int: &histogram.Histogram{Count: 5, Sum: 1.25, ZeroCount: 5}}},
		Exemplars:  []frame.Exemplar{{Index: 0, Exemplar: exemplar.Exemplar{Labels: labels.FromStrings("trace_id", "x"), Value: 0.3, Ts: 2_000, HasTs: true}}},
	})
	want := `1970-01-01T00:00:02.000Z up{instance="a", job="api"} 1.5 since 1970-01-01T00:00:00Z
1970-01-01T00:00:02.001Z down{instance="a\n\x1b", job="api"} stale
1970-01-01T00:00:02.002Z {__name__="dotted.name", job="other"} -Inf
1970-01-01T00:00:03.000Z hist{instance="a", job="api"} count=5 sum=1.25
1970-01-01T00:00:02.000Z up{instance="a", job="api"} exemplar {trace_id="x"} 0.3`
	if got := b.next(all, 5); got != want {
		t.Errorf("all:\n%s\nwant\n%s", got, want)
	}
	lines := strings.Split(want, "\n")
	if got := b.next(some, 2); got != lines[0]+"\n"+lines[1] {
		t.Errorf("selected:\n%s", got)
	}
	if _, err := some.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("after the limit: %v", err)
	}
}

// TestAnEndpointsLabelsAreShown follows them as its rules change.
func TestAnEndpointsLabelsAreShown(t *testing.T) {
	conn := streamtest.New(t, 1)
	b := &bench{t: t, conn: conn}
	if _, err := Open(t.Context(), conn, Query{Endpoint: "main"}); !errors.Is(err, ErrUnknownEndpoint) {
		t.Errorf("an endpoint that has never got anything: %v", err)
	}
	id := b.dict(0, series("up", "a"), series("up", "b"))
	b.relabelled("main", 0, id, "1", series("up", "A"), labels.EmptyLabels())
	shown := b.open(Query{Endpoint: "main"})
	b.frame(0, frame.Section{Dict: id, Series: 2, Values: []float64{1, 2}})
	if got, want := b.next(shown, 1), `1970-01-01T00:00:01.000Z up{instance="A", job="api"} 1`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	b.relabelled("main", 0, id, "2", labels.EmptyLabels(), series("up", "B"))
	// The new labels and samples come by different streams, so a sample may still go by the old ones.
	got, want := "", `1970-01-01T00:00:01.000Z up{instance="B", job="api"} 2`
	for deadline := time.Now().Add(30 * time.Second); got != want && time.Now().Before(deadline); {
		b.frame(0, frame.Section{Dict: id, Series: 2, Values: []float64{1, 2}})
		got = b.next(shown, 1)
	}
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestWhatIsMissedIsCounted has samples come that nobody takes, and some whose labels are gone.
func TestWhatIsMissedIsCounted(t *testing.T) {
	conn := streamtest.New(t, 1)
	b := &bench{t: t, conn: conn}
	sets := make([]labels.Labels, frame.MaxSeries)
	for i := range sets {
		sets[i] = labels.FromStrings("__name__", "x", "i", string(rune('!'+i)))
	}
	values := make([]float64, len(sets))
	id := b.dict(0, sets...)
	shown := b.open(Query{})
	const rounds = 4
	for range rounds {
		b.frame(0, frame.Section{Dict: id, Series: len(sets), Values: values})
	}
	b.frame(0, frame.Section{Dict: frame.DictID{9}, Series: 3, Values: []float64{1, 2, 3}})
	await.True(t, "all come before anybody takes one", func() bool { return shown.unlabelled.Load() == 3 })
	seen, missed := uint64(0), Missed{}
	for seen+missed.Samples < rounds*frame.MaxSeries || missed.Unlabelled < 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		e, err := shown.Next(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %d samples, %+v: %v", seen, missed, err)
		}
		if e.Missed != nil {
			missed.Samples, missed.Unlabelled = missed.Samples+e.Missed.Samples, missed.Unlabelled+e.Missed.Unlabelled
			continue
		}
		seen++
	}
	if seen != queueLength || missed.Messages != 0 {
		t.Errorf("%d samples are shown, %+v missed", seen, missed)
	}
}

func TestQueriesAreChecked(t *testing.T) {
	for text, want := range map[string]string{
		"match[]={": "match: ", "endpoint=a.*": "endpoint: ", "limit=x": "limit: ", "limit=3&match[]=up": "",
	} {
		values := map[string][]string{}
		for part := range strings.SplitSeq(text, "&") {
			k, v, _ := strings.Cut(part, "=")
			values[k] = append(values[k], v)
		}
		q, err := ParseQuery(values)
		if want == "" && (err != nil || q.Limit != 3 || len(q.Match) != 1) || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: %+v, %v", text, q, err)
		}
	}
}
