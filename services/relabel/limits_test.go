package relabel

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

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

func TestMetricNamesOfLimitsAreClean(t *testing.T) {
	conn := newLimitedConn(t)
	r, _ := startLimited(t, conn, limit.Limits{All: limit.Rule{MaxSeries: 1}, FreeAfter: time.Hour}, Endpoint{"plain", external("a", "b")})
	kept(t, conn, "plain", 0, publishDict(t, conn, 0, names("a", 3)...))
	problems, err := testutil.GatherAndLint(r.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
