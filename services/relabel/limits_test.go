package relabel

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/relabel/limit"
)

func newLimitedConn(t *testing.T) *stream.Conn {
	t.Helper()
	conn := newConn(t)
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1, Verdicts: true}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// names returns the names of series of which no two dictionaries have the same.
func names(of string, n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprint(of, "_", i))
	}
	return list
}

// kept waits for what an endpoint gets for a dictionary, and returns how many series that is.
func kept(t *testing.T, conn *stream.Conn, endpoint string, partition int, id frame.DictID) (n int) {
	t.Helper()
	await.True(t, "what the endpoint gets", func() bool {
		text, _, _ := result(t, conn, endpoint, partition, id)
		n = strings.Count(text, "__name__")
		return text != ""
	})
	return n
}

func TestEndpointsGetNoMoreThanTheLimit(t *testing.T) {
	conn := newLimitedConn(t)
	limits := limit.Limits{All: limit.Rule{MaxSeries: 10}, FreeAfter: time.Hour}
	endpoints := []Endpoint{{"plain", external("region", "west")}, {"other", external("region", "east")}}
	r, stop := startLimited(t, conn, limits, endpoints...)
	a, b := publishDict(t, conn, 0, names("a", 8)...), publishDict(t, conn, 1, names("b", 8)...)
	for _, e := range endpoints {
		if n := kept(t, conn, e.Name, 0, a) + kept(t, conn, e.Name, 1, b); n != 10 {
			t.Errorf("%s gets %d series, the limit is 10", e.Name, n)
		}
	}
	text, _, _ := result(t, conn, "plain", 1, b)
	if n := kept(t, conn, "plain", 0, a); n < 8 {
		text, _, _ = result(t, conn, "plain", 0, a)
	}
	if !strings.HasSuffix(text, " {} {} {} {} {} {}") {
		t.Errorf("refused series have labels: %s", text)
	}
	await.True(t, "the number of series with places", func() bool { return activeSeries(t, r) == 10 })
	if n := counter.Value(r.metrics.dropped); n != 0 {
		t.Errorf("%v series count as dropped by rules", n)
	}

	// The work is shared, handed on and begun anew with other rules: the limit is the same.
	r2, _ := startLimited(t, conn, limits, endpoints...)
	await.True(t, "the work to be shared", func() bool {
		return activeSeries(t, r)+activeSeries(t, r2) == 10 && len(r.Waiting())+len(r2.Waiting()) == 0
	})
	c := publishDict(t, conn, 0, names("c", 5)...)
	if n := kept(t, conn, "plain", 0, c); n != 0 {
		t.Errorf("%d series beyond the limit", n)
	}
	stop()
	d := publishDict(t, conn, 1, names("d", 5)...)
	if n := kept(t, conn, "plain", 1, d); n != 0 {
		t.Errorf("%d series beyond the limit after a handover", n)
	}
	if err := r2.ApplyConfig([]Endpoint{{"plain", external("region", "north")}}); err != nil {
		t.Fatal(err)
	}
	await.True(t, "results of the new rules", func() bool {
		x, _, _ := result(t, conn, "plain", 0, a)
		y, _, _ := result(t, conn, "plain", 1, b)
		return strings.Count(x+y, "north") == 10 && strings.Count(x+y, "{}") == 6
	})
	if !strings.Contains(r.log.String()+r2.log.String(), "A limit on series is reached") {
		t.Error("no log line says that the limit is reached")
	}
}

func activeSeries(t *testing.T, r *rig) (n float64) {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "millrace_relabel_active_series" {
			n += f.Metric[0].Gauge.GetValue()
		}
	}
	return n
}

func TestWhatIsAnnouncedAgainIsNotPublishedAgain(t *testing.T) {
	conn := newLimitedConn(t)
	r, _ := startLimited(t, conn, limit.Limits{All: limit.Rule{MaxSeries: 10}, FreeAfter: time.Hour}, Endpoint{"plain", external("region", "west")})
	id := publishDict(t, conn, 1, names("a", 4)...)
	kept(t, conn, "plain", 1, id)
	_, _, first := result(t, conn, "plain", 1, id)
	publishDict(t, conn, 1, names("a", 4)...)
	kept(t, conn, "plain", 1, publishDict(t, conn, 1, "behind"))
	if _, _, seq := result(t, conn, "plain", 1, id); seq != first {
		t.Errorf("the result has the number %d, before %d", seq, first)
	}
	if n := r.Series(); n != 5 {
		t.Errorf("%v series were evaluated, want 5", n)
	}
}

// TestTheNewestVerdictIsPublishedLast also where what followed from the one before is still to be published.
func TestTheNewestVerdictIsPublishedLast(t *testing.T) {
	conn := newLimitedConn(t)
	r, _ := startLimited(t, conn, limit.Limits{All: limit.Rule{MaxSeries: 10}, FreeAfter: time.Second}, Endpoint{"plain", external("region", "west")})
	all := publishDict(t, conn, 0, names("all", 10)...)
	if n := kept(t, conn, "plain", 0, all); n != 10 {
		t.Fatalf("%d of 10 series are kept", n)
	}
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Relabelled)); err != nil {
		t.Fatal(err)
	}
	// The first verdict refuses them, and waits to be published until there are places.
	id := publishDict(t, conn, 0, names("a", 8)...)
	await.True(t, "the first verdict", func() bool { return len(r.Waiting()) == 1 })
	await.True(t, "places", func() bool { return activeSeries(t, r) == 0 })
	if err := conn.NC.Publish(conn.Ask(0), []byte(id.String())); err != nil {
		t.Fatal(err)
	}
	await.True(t, "a question", func() bool { return counter.Value(r.metrics.asked) == 1 })
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1, Verdicts: true}); err != nil {
		t.Fatal(err)
	}
	behind := publishDict(t, conn, 0, "behind")
	kept(t, conn, "plain", 0, behind)
	await.True(t, "what follows from the newest verdict", func() bool { return kept(t, conn, "plain", 0, id) == 8 })
}

// TestAVerdictIsPublishedByTheNextOwner where its own was killed before it had published what follows.
func TestAVerdictIsPublishedByTheNextOwner(t *testing.T) {
	conn := newLimitedConn(t)
	limits := limit.Limits{Target: limit.Rule{MaxSeries: 2}, FreeAfter: time.Hour}
	plain := Endpoint{"plain", external("region", "west")}
	_, stop := startLimited(t, conn, limits, plain)
	d, msg, err := frame.NewDictionary("job", targetSeries(4))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, conn, conn.Dict(0, d.ID), msg)
	if n := kept(t, conn, "plain", 0, d.ID); n != 2 {
		t.Fatalf("%d of 4 series are kept, the limit is 2", n)
	}
	kept(t, conn, "plain", 0, publishDict(t, conn, 0, "behind")) // so that the dictionary is not read again
	stop()
	limits.Target.MaxSeries = 4
	killed, err := limit.Open(t.Context(), limit.Config{
		Conn: conn, Limits: limits, DictAge: time.Hour, Offenders: limit.NewOffenders(prometheus.NewRegistry()), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := killed.Judge(t.Context(), d, time.Now()); err != nil {
		t.Fatal(err)
	}
	startLimited(t, conn, limits, plain)
	await.True(t, "what follows from the verdict", func() bool { return kept(t, conn, "plain", 0, d.ID) == 4 })
}

// targetSeries returns series of one target.
func targetSeries(n int) (list []frame.Series) {
	for i := range n {
		list = append(list, frame.Series{Labels: labels.FromStrings("__name__", fmt.Sprint("x_", i), "instance", "a", "job", "job", "version", "1")})
	}
	return list
}

func TestAVerdictThatIsTooLargeHoldsBackNobodyElse(t *testing.T) {
	conn := newLimitedConn(t)
	huge := strings.Repeat("x", int(conn.NC.MaxPayload()))
	r, _ := startLimited(t, conn, limit.Limits{
		Target: limit.Rule{MaxSeries: 1, Action: limit.DropLabel, Labels: []string{"version", huge}}, FreeAfter: time.Hour,
	}, Endpoint{"plain", external("region", "west")})
	d, msg, err := frame.NewDictionary("job", targetSeries(1))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, conn, conn.Dict(0, d.ID), msg)
	if n := kept(t, conn, "plain", 0, publishDict(t, conn, 0, "behind")); n != 1 {
		t.Errorf("%d series of another dictionary are kept, want 1", n)
	}
	if n := counter.Value(r.metrics.failed); n != 1 || !strings.Contains(r.log.String(), "max_payload") || !strings.Contains(r.log.String(), d.ID.String()) {
		t.Errorf("%v failures are counted\n%.2000s", n, r.log)
	}
	if n := r.system.Restarts("relabel"); n > 0 {
		t.Errorf("an actor was restarted %d times", n)
	}
}

func TestMetricNamesOfLimitsAreClean(t *testing.T) {
	conn := newLimitedConn(t)
	r, _ := startLimited(t, conn, limit.Limits{All: limit.Rule{MaxSeries: 1}, FreeAfter: time.Hour}, Endpoint{"plain", external("a", "b")})
	kept(t, conn, "plain", 0, publishDict(t, conn, 0, names("a", 3)...))
	problems, err := testutil.GatherAndLint(r.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
