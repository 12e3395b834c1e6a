package rejected

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// keep stores a rejected request of n samples, with a label value.
func keep(t *testing.T, conn *stream.Conn, endpoint string, protocol, n int, value string) {
	t.Helper()
	var raw []byte
	var err error
	if protocol == 2 {
		req := writev2.Request{Symbols: []string{"", "__name__", "up", "user", value}}
		for i := range n {
			req.Timeseries = append(req.Timeseries, writev2.TimeSeries{LabelsRefs: []uint32{1, 2, 3, 4}, Samples: []writev2.Sample{{Timestamp: int64(i), Value: float64(i)}}})
		}
		raw, err = req.Marshal()
	} else {
		req := prompb.WriteRequest{}
		for i := range n {
			req.Timeseries = append(req.Timeseries, prompb.TimeSeries{
				Labels: []prompb.Label{{Name: "__name__", Value: "up"}, {Name: "user", Value: value}}, Samples: []prompb.Sample{{Timestamp: int64(i), Value: float64(i)}},
			})
		}
		raw, err = req.Marshal()
	}
	if err != nil {
		t.Fatal(err)
	}
	r := stream.Rejection{Endpoint: endpoint, Protocol: protocol, Status: 400, Answer: "no: " + value, Time: 1_700_000_000_000, Samples: n, Body: snappy.Encode(nil, raw)}
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	store(t, conn, endpoint, data)
}

func store(t *testing.T, conn *stream.Conn, endpoint string, data []byte) {
	t.Helper()
	if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: conn.Rejected(endpoint), Data: data}, nil); err != nil {
		t.Fatal(err)
	}
}

// numbers are those of the messages that a list has, and where it goes on.
func numbers(t *testing.T, s *Shelf, endpoint string, before uint64, n int) string {
	t.Helper()
	p, err := s.List(t.Context(), endpoint, before, n)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, b := range p.Batches {
		list = append(list, fmt.Sprint(b.Message))
	}
	return fmt.Sprintf("%s older %d of %d", strings.Join(list, " "), p.Older, p.Messages)
}

func TestBatchesAreListedTheNewestFirst(t *testing.T) {
	conn := streamtest.New(t, 1)
	s := &Shelf{Conn: conn}
	if got := numbers(t, s, "", 0, 10); got != " older 0 of 0" {
		t.Errorf("of an empty stream: %s", got)
	}
	for i := range 3 {
		keep(t, conn, "a", 1+i%2, 5, "x")
		keep(t, conn, "b", 2, 1, "y")
	}
	store(t, conn, "a", []byte("junk"))
	for _, tc := range []struct {
		endpoint string
		before   uint64
		n        int
		want     string
	}{
		{"", 0, 10, "7 6 5 4 3 2 1 older 0 of 7"}, {"", 0, 2, "7 6 older 6 of 7"}, {"", 6, 2, "5 4 older 4 of 7"}, {"a", 0, 2, "7 5 older 5 of 7"}, {"a", 2, 5, "1 older 0 of 7"},
		{"c", 0, 5, " older 0 of 7"}, {"", 1, 5, " older 0 of 7"}, {"", 1000, 1, "7 older 7 of 7"},
	} {
		if got := numbers(t, s, tc.endpoint, tc.before, tc.n); got != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
	p, err := s.List(t.Context(), "", 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if b := p.Batches[0]; b.Unreadable == "" || b.Endpoint != "a" || b.Time.IsZero() {
		t.Errorf("one that cannot be read: %+v", b)
	}
	if b := p.Batches[1]; b.Endpoint != "b" || b.Status != 400 || b.Answer != "no: y" || b.Samples != 1 || b.Protocol != "remote_write 2.0" || b.Time.UnixMilli() != 1_700_000_000_000 || b.Bytes == 0 {
		t.Errorf("%+v", b)
	}

	js, err := conn.JS.Stream(t.Context(), conn.Stream(stream.Rejected))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.Purge(t.Context(), jetstream.WithPurgeSequence(6)); err != nil {
		t.Fatal(err)
	}
	if got := numbers(t, s, "", 0, 10); got != "7 6 older 0 of 2" || len(s.known) != 2 {
		t.Errorf("after the stream has let go of some: %s, %d are known", got, len(s.known))
	}
	if _, err := s.Open(t.Context(), 3, 0); !errors.Is(err, ErrGone) {
		t.Errorf("opening what is gone: %v", err)
	}
}

func TestManyMessagesOfOthersAreReadInParts(t *testing.T) {
	conn := streamtest.New(t, 1)
	s := &Shelf{Conn: conn}
	store(t, conn, "rare", []byte("x"))
	for range maxRead + 5 {
		store(t, conn, "often", []byte("x"))
	}
	if got := numbers(t, s, "rare", 0, 10); got != " older 7 of 106" {
		t.Errorf("at first: %s", got)
	}
	if got := numbers(t, s, "rare", 7, 10); got != "1 older 0 of 106" {
		t.Errorf("then: %s", got)
	}
}

func TestABatchIsOpenedAPageAtATime(t *testing.T) {
	conn := streamtest.New(t, 1)
	s := &Shelf{Conn: conn}
	for protocol := 1; protocol <= 2; protocol++ {
		keep(t, conn, "a", protocol, 450, `"><script>`)
	}
	keep(t, conn, "a", 2, 100, strings.Repeat("x", 60_000))
	for message := uint64(1); message <= 2; message++ {
		for _, tc := range []struct{ from, rows, next int }{{0, 200, 200}, {400, 50, 0}, {450, 0, 0}, {-1, 200, 200}} {
			l, err := s.Open(t.Context(), message, tc.from)
			if err != nil || len(l.Rows) != tc.rows || l.Next != tc.next || l.All != 450 || l.Series != 450 || l.Unreadable != "" {
				t.Errorf("message %d from %d: %v, %d rows, %+v", message, tc.from, err, len(l.Rows), l.Batch)
			}
		}
		l, err := s.Open(t.Context(), message, 3)
		if err != nil {
			t.Fatal(err)
		}
		if r := l.Rows[0]; r.Value != "3" || r.Time.UnixMilli() != 3 || r.Labels.Get("user") != `"><script>` {
			t.Errorf("%+v", r)
		}
	}
	if l, err := s.Open(t.Context(), 3, 0); err != nil || len(l.Rows) != 8 || l.Next != 8 {
		t.Errorf("long labels: %v, %d rows, next %d", err, len(l.Rows), l.Next)
	}
	broken := stream.Rejection{Endpoint: "a", Protocol: 2, Body: []byte("junk")}
	data, err := broken.Encode()
	if err != nil {
		t.Fatal(err)
	}
	store(t, conn, "a", data)
	if l, err := s.Open(t.Context(), 4, 0); err != nil || !strings.Contains(l.Unreadable, "cannot be read") || l.Rows == nil {
		t.Errorf("a request that cannot be read: %v, %+v", err, l)
	}
}
