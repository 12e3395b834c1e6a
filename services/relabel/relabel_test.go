package relabel

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/counter"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
	"github.com/millrace/millrace/services/relabel/limit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a service with streams of its own.
type rig struct {
	*Service
	t    *testing.T
	conn *stream.Conn
	log  *logtest.Buffer
	reg  *prometheus.Registry
}

func newConn(t *testing.T) *stream.Conn {
	t.Helper()
	return streamtest.New(t, 2)
}

// start runs a service until stop or the end of the test.
func start(t *testing.T, conn *stream.Conn, endpoints ...Endpoint) (r *rig, stop func()) {
	t.Helper()
	return startLimited(t, conn, limit.Limits{}, endpoints...)
}

// startLimited is start with limits on series.
func startLimited(t *testing.T, conn *stream.Conn, limits limit.Limits, endpoints ...Endpoint) (r *rig, stop func()) {
	t.Helper()
	r = &rig{t: t, conn: conn, log: &logtest.Buffer{}, reg: prometheus.NewPedanticRegistry()}
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	system := actor.NewSystem("test", logger, r.reg)
	member, leave := fleettest.Join(t, conn, "relabel")
	r.Service = New(Config{Conn: conn, Partitions: 2, Fleet: member, Limits: limits, DictAge: 3 * time.Hour, Logger: logger, Registerer: r.reg}, system)
	if err := r.ApplyConfig(endpoints); err != nil {
		t.Fatal(err)
	}
	system.Spawn("relabel-service", r.Service)
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
	return r, stop
}

// publishDict publishes a dictionary of the named series.
func publishDict(t *testing.T, conn *stream.Conn, partition int, names ...string) frame.DictID {
	t.Helper()
	var series []frame.Series
	for _, n := range names {
		series = append(series, frame.Series{Labels: labels.FromStrings("__name__", n)})
	}
	d, msg, err := frame.NewDictionary("job", series)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, conn, conn.Dict(partition, d.ID), msg)
	return d.ID
}

func publish(t *testing.T, conn *stream.Conn, subject string, data []byte) {
	t.Helper()
	if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: subject, Data: data}, nil); err != nil {
		t.Fatal(err)
	}
}

// result is what an endpoint gets for a dictionary, as text, with the sequence number of the message; "" where there is none.
func result(t *testing.T, conn *stream.Conn, endpoint string, partition int, id frame.DictID) (text, rulesHash string, seq uint64) {
	t.Helper()
	msg, err := conn.Last(t.Context(), stream.Relabelled, conn.Relabelled(endpoint, partition, id))
	if err != nil {
		return "", "", 0
	}
	packed, err := frame.ReadRelabelled(msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	if packed.Dict != id {
		t.Errorf("the result for %s is of %s", id, packed.Dict)
	}
	series, err := packed.Series()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, s := range series {
		list = append(list, s.Labels.String())
	}
	return strings.Join(list, " "), packed.Rules, msg.Seq
}

func expect(t *testing.T, conn *stream.Conn, endpoint string, partition int, id frame.DictID, want string) (seq uint64) {
	t.Helper()
	await.True(t, fmt.Sprintf("%s for %s", want, endpoint), func() bool {
		var got string
		got, _, seq = result(t, conn, endpoint, partition, id)
		return got == want
	})
	return seq
}

func drop(regex string) *relabel.Config {
	return &relabel.Config{
		SourceLabels: model.LabelNames{"__name__"}, Separator: ";", Regex: relabel.MustNewRegexp(regex), Action: relabel.Drop,
		Replacement: "$1", NameValidationScheme: model.UTF8Validation,
	}
}

func external(name, value string) rules.Rules {
	return rules.Rules{External: labels.FromStrings(name, value)}
}

func TestEveryEndpointGetsItsOwn(t *testing.T) {
	conn := newConn(t)
	before := publishDict(t, conn, 0, "x", "y")
	r, _ := start(t, conn,
		Endpoint{"plain", rules.Rules{}},
		Endpoint{"west", external("region", "west")},
		Endpoint{"west-too", external("region", "west")},
		Endpoint{"less", rules.Rules{External: labels.FromStrings("region", "west"), Relabel: []*relabel.Config{drop("x")}}},
	)
	later := publishDict(t, conn, 1, "x", "z")
	for _, test := range []struct {
		endpoint  string
		partition int
		id        frame.DictID
		want      string
	}{
		{"plain", 0, before, `{__name__="x"} {__name__="y"}`},
		{"west", 0, before, `{__name__="x", region="west"} {__name__="y", region="west"}`},
		{"west-too", 0, before, `{__name__="x", region="west"} {__name__="y", region="west"}`},
		{"less", 0, before, `{} {__name__="y", region="west"}`},
		{"plain", 1, later, `{__name__="x"} {__name__="z"}`},
		{"less", 1, later, `{} {__name__="z", region="west"}`},
	} {
		expect(t, conn, test.endpoint, test.partition, test.id, test.want)
	}
	// Endpoints with equal rules share the evaluation.
	await.True(t, "the counts", func() bool {
		return counter.Value(r.metrics.dictionaries) == 6 && counter.Value(r.metrics.dropped) == 2 && r.Series() == 12
	})
	_, a, _ := result(t, conn, "west", 0, before)
	_, b, _ := result(t, conn, "west-too", 0, before)
	want, err := (&rules.Rules{External: labels.FromStrings("region", "west")}).Hash()
	if err != nil || a != want || b != want {
		t.Errorf("the results are of the rules %s and %s, want %s: %v", a, b, want, err)
	}
	if reasons := r.Waiting(); len(reasons) > 0 {
		t.Errorf("it waits: %v", reasons)
	}
}

func TestAPlanThatChangesEvaluatesAllAgain(t *testing.T) {
	conn := newConn(t)
	r, stop := start(t, conn, Endpoint{"prod", external("v", "1")})
	var ids []frame.DictID
	for i := range 20 {
		ids = append(ids, publishDict(t, conn, i%2, fmt.Sprint("x", i)))
	}
	all := func(version string) (last uint64) {
		t.Helper()
		for i, id := range ids {
			last = max(last, expect(t, conn, "prod", i%2, id, fmt.Sprintf(`{__name__="x%d", v=%q}`, i, version)))
		}
		return last
	}
	all("1")
	// There and back again: what was evaluated before by the first rules has been written over since.
	for _, version := range []string{"2", "1", "3"} {
		if err := r.ApplyConfig([]Endpoint{{"prod", external("v", version)}}); err != nil {
			t.Fatal(err)
		}
		all(version)
	}
	last := all("3")
	if err := r.ApplyConfig([]Endpoint{{"prod", external("v", "3")}}); err != nil {
		t.Fatal(err)
	}
	stop()

	// A restart with the same plan evaluates nothing again, one with another plan everything.
	r, stop = start(t, conn, Endpoint{"prod", external("v", "3")})
	ids = append(ids, publishDict(t, conn, 0, "x20"))
	if got := all("3"); got != last+1 || r.Series() != 1 {
		t.Errorf("after a restart with the same plan, %v series were evaluated", r.Series())
	}
	stop()
	start(t, conn, Endpoint{"prod", external("v", "2")}, Endpoint{"new", rules.Rules{}})
	all("2")
	expect(t, conn, "new", 0, ids[0], `{__name__="x0"}`)
}

func TestAnEndpointlessServiceWaitsForAPlan(t *testing.T) {
	conn := newConn(t)
	id := publishDict(t, conn, 0, "x")
	r, _ := start(t, conn)
	if err := r.ApplyConfig([]Endpoint{{"prod", rules.Rules{}}}); err != nil {
		t.Fatal(err)
	}
	expect(t, conn, "prod", 0, id, `{__name__="x"}`)
}

func TestUnreadableDictionariesAreSkippedAndKept(t *testing.T) {
	conn := newConn(t)
	publish(t, conn, conn.Dict(0, frame.DictID{1}), []byte{200, 1, 2})
	publish(t, conn, conn.Dict(0, frame.DictID{2}), []byte{1, 0x80})
	publish(t, conn, "test.dicts.0.nonsense", []byte("x"))
	good := publishDict(t, conn, 0, "x")
	r, _ := start(t, conn, Endpoint{"prod", rules.Rules{}})
	expect(t, conn, "prod", 0, good, `{__name__="x"}`)
	if n := counter.Value(r.metrics.unreadable); n != 3 {
		t.Errorf("%v unreadable dictionaries, want 3", n)
	}
	for _, part := range []string{frame.DictID{1}.String(), frame.DictID{2}.String(), "nonsense"} {
		if !strings.Contains(r.log.String(), part) {
			t.Errorf("the log does not name %s", part)
		}
	}
	if _, err := conn.Last(t.Context(), stream.Dicts, conn.Dict(0, frame.DictID{1})); err != nil {
		t.Errorf("the message is gone: %v", err)
	}
}

func TestAWriterGetsADictionaryThatItAsksFor(t *testing.T) {
	conn := newConn(t)
	r, _ := start(t, conn, Endpoint{"prod", rules.Rules{}})
	id := publishDict(t, conn, 1, "x")
	first := expect(t, conn, "prod", 1, id, `{__name__="x"}`)
	// As if the stream had lost the result.
	s, err := conn.JS.Stream(t.Context(), conn.Stream(stream.Relabelled))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, question := range []string{"what?", frame.DictID{9}.String(), id.String()} {
		if err := conn.NC.Publish(conn.Ask(1), []byte(question)); err != nil {
			t.Fatal(err)
		}
	}
	if again := expect(t, conn, "prod", 1, id, `{__name__="x"}`); again <= first {
		t.Errorf("the result has the number %d, before %d", again, first)
	}
	if n := counter.Value(r.metrics.asked); n != 1 {
		t.Errorf("%v questions were answered, want 1", n)
	}
}

func TestRulesThatMakeTooMuchHoldBackNobodyElse(t *testing.T) {
	conn := newConn(t)
	var names []string
	for i := range frame.MaxSeries {
		names = append(names, fmt.Sprintf("series_%d", i))
	}
	// A label of 5 KB for each of 8,192 series is more than a dictionary may have.
	r, _ := start(t, conn, Endpoint{"greedy", external("long", strings.Repeat("x", 5000))}, Endpoint{"modest", external("short", "x")})
	big := publishDict(t, conn, 0, names...)
	small := publishDict(t, conn, 0, "x")
	await.True(t, "the result of the modest", func() bool {
		text, _, _ := result(t, conn, "modest", 0, big)
		return strings.HasPrefix(text, `{__name__="series_0", short="x"}`)
	})
	expect(t, conn, "modest", 0, small, `{__name__="x", short="x"}`)
	await.True(t, "the next result of the greedy", func() bool { text, _, _ := result(t, conn, "greedy", 0, small); return text != "" })
	if n := counter.Value(r.metrics.failed); n != 1 || !strings.Contains(r.log.String(), "greedy") {
		t.Errorf("%v failures are counted\n%s", n, r.log)
	}
	if n := testutil.ToFloat64(r.metrics.failed); n != 1 {
		t.Errorf("%v dictionaries failed", n)
	}
	if n := r.system.Restarts("relabel"); n > 0 {
		t.Errorf("an actor was restarted %d times", n)
	}
}

func TestSeriesThatRulesMakeTooLargeAreDropped(t *testing.T) {
	conn := newConn(t)
	r, _ := start(t, conn, Endpoint{"prod", external("long", strings.Repeat("x", frame.MaxLabelSetBytes-20))})
	id := publishDict(t, conn, 0, "x", strings.Repeat("y", 20))
	await.True(t, "the result", func() bool { text, _, _ := result(t, conn, "prod", 0, id); return strings.HasSuffix(text, " {}") })
	if n := counter.Value(r.metrics.dropped); n != 1 || !strings.Contains(r.log.String(), "too large") {
		t.Errorf("%v series are counted as dropped\n%s", n, r.log)
	}
}

func TestTheServiceSaysOnWhatItWaits(t *testing.T) {
	conn := newConn(t)
	r, _ := start(t, conn, Endpoint{"prod", rules.Rules{}})
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Relabelled)); err != nil {
		t.Fatal(err)
	}
	id := publishDict(t, conn, 1, "x")
	await.True(t, "a word about it", func() bool { w := r.Waiting(); return len(w) == 1 && strings.Contains(w[0], "partition 1") })
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	expect(t, conn, "prod", 1, id, `{__name__="x"}`)
	await.True(t, "no more waiting", func() bool { return len(r.Waiting()) == 0 })
}

func TestMetricNamesAreClean(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	newMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
