package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/golang/snappy"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	writev2 "github.com/prometheus/prometheus/prompb/io/prometheus/write/v2"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// at names a sample: its series by the hash of its labels, and its timestamp.
type at struct {
	series uint64
	time   int64
}

// ledger notes every sample of requests that an endpoint has accepted.
type ledger struct {
	t    testing.TB
	next http.Handler

	mu      sync.Mutex
	samples map[at]uint64      // the value's bits
	orders  map[uint64][]int64 // of each series the times in the order of their first arrivals; nil where nobody asks for them
}

func newLedger(t testing.TB, next http.Handler) *ledger {
	return &ledger{t: t, next: next, samples: map[at]uint64{}}
}

// accepting notes whether the status was a success.
type accepting struct {
	http.ResponseWriter
	status int
}

func (a *accepting) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *accepting) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the sender is gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	a := &accepting{ResponseWriter: w}
	l.next.ServeHTTP(a, r)
	if a.status/100 != 2 {
		return
	}
	list, err := decodeSamples(body, strings.Contains(r.Header.Get("Content-Type"), "v2.Request"))
	if err != nil {
		l.t.Errorf("body of an accepted request: %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range list {
		key := at{s.labels.Hash(), s.time}
		if old, ok := l.samples[key]; ok && old != s.bits {
			l.t.Errorf("%s has two values for %d: %x and %x", s.labels, s.time, old, s.bits)
		} else if !ok && l.orders != nil {
			l.orders[key.series] = append(l.orders[key.series], key.time)
		}
		l.samples[key] = s.bits
	}
}

// value returns what was accepted for a series and a time.
func (l *ledger) value(key at) (bits uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bits, ok = l.samples[key]
	return bits, ok
}

// samplesOf returns what was accepted for some series up to a time.
func (l *ledger) samplesOf(series map[uint64]bool, until int64) map[at]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := map[at]uint64{}
	for key, bits := range l.samples {
		if series[key.series] && key.time <= until {
			list[key] = bits
		}
	}
	return list
}

// keepOrder notes from now on in which order samples come.
func (l *ledger) keepOrder() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orders = map[uint64][]int64{}
}

// inTwoOrders fails the test unless the samples of each series came as those do that are sent beside newer ones: what was not newer than all before came in order as well. It returns how many those were.
func (l *ledger) inTwoOrders(t testing.TB) (beside int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong := 0
	for series, times := range l.orders {
		var newest, newestOld int64
		for _, at := range times {
			switch {
			case at > newest:
				newest = at
			case at > newestOld:
				newestOld = at
				beside++
			default:
				if wrong++; wrong <= 5 {
					t.Errorf("of series %x, the sample @%d came after that @%d, though both are older than @%d", series, at, newestOld, newest)
				}
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d samples came out of order", wrong)
	}
	return beside
}

// forget begins anew.
func (l *ledger) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.samples)
}

// wireSample is a sample of a remote_write body.
type wireSample struct {
	labels labels.Labels
	time   int64
	bits   uint64
}

// decodeSamples returns the float samples of a compressed remote_write body.
func decodeSamples(compressed []byte, v2 bool) ([]wireSample, error) {
	body, err := snappy.Decode(nil, compressed)
	if err != nil {
		return nil, err
	}
	var list []wireSample
	b := labels.NewScratchBuilder(0)
	if v2 {
		var req writev2.Request
		if err := req.Unmarshal(body); err != nil {
			return nil, err
		}
		for i := range req.Timeseries {
			ls, err := req.Timeseries[i].ToLabels(&b, req.Symbols)
			if err != nil {
				return nil, err
			}
			for _, s := range req.Timeseries[i].Samples {
				list = append(list, wireSample{ls, s.Timestamp, math.Float64bits(s.Value)})
			}
		}
		return list, nil
	}
	var req prompb.WriteRequest
	if err := req.Unmarshal(body); err != nil {
		return nil, err
	}
	for i := range req.Timeseries {
		ls := req.Timeseries[i].ToLabels(&b, nil)
		for _, s := range req.Timeseries[i].Samples {
			list = append(list, wireSample{ls, s.Timestamp, math.Float64bits(s.Value)})
		}
	}
	return list, nil
}

// storage opens the streams that a stopped process has left.
func storage(t testing.TB, dir string) *stream.Conn {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	server, err := stream.StartServer(stream.ServerConfig{
		Dir: filepath.Join(dir, "data"), SyncAlways: true, MaxMemory: 64 << 20, MaxStorage: 20 << 30, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	conn, err := stream.Connect(t.Context(), stream.Config{Names: stream.Names{Prefix: "millrace"}, Server: server, Client: "test", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// messages calls each with every message of a stream, in order, and returns the number of the first.
func messages(t testing.TB, conn *stream.Conn, name string, each func(*jetstream.RawStreamMsg)) (first uint64) {
	t.Helper()
	s, err := conn.JS.Stream(t.Context(), conn.Stream(name))
	if err != nil {
		t.Fatal(err)
	}
	state := s.CachedInfo().State
	if state.NumDeleted > 0 {
		t.Errorf("the stream %s has %d holes", name, state.NumDeleted)
	}
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		msg, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatalf("message %d of %s: %v", seq, name, err)
		}
		each(msg)
	}
	return state.FirstSeq
}

// storedSamples calls each with every float sample in the stream FRAMES, joined with its labels, and returns how many there are.
func storedSamples(t testing.TB, conn *stream.Conn, each func(labels.Labels, at, uint64)) (count int, first uint64) {
	t.Helper()
	dicts := map[frame.DictID][]labels.Labels{}
	hashes := map[frame.DictID][]uint64{}
	next := map[string]uint64{}
	first = messages(t, conn, stream.Frames, func(msg *jetstream.RawStreamMsg) {
		partition, err := strconv.Atoi(msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:])
		if err != nil {
			t.Fatalf("subject %q: %v", msg.Subject, err)
		}
		batch, err := frame.OpenBatch(msg.Data, nil)
		if err != nil {
			t.Fatalf("message %d: %v", msg.Sequence, err)
		}
		if want, ok := next[msg.Subject]; ok && batch.First != want {
			t.Errorf("message %d of %s begins at sample %d, want %d", msg.Sequence, msg.Subject, batch.First, want)
		}
		next[msg.Subject] = batch.First + uint64(batch.Samples)
		var f frame.Frame
		for {
			ok, err := batch.Next(&f)
			if err != nil {
				t.Fatalf("message %d: %v", msg.Sequence, err)
			}
			if !ok {
				break
			}
			for i := range f.Sections {
				s := &f.Sections[i]
				if _, ok := dicts[s.Dict]; !ok {
					dicts[s.Dict] = dictionary(t, conn, partition, s.Dict)
					for _, ls := range dicts[s.Dict] {
						hashes[s.Dict] = append(hashes[s.Dict], ls.Hash())
					}
				}
				for k, v := range s.Values {
					index := uint32(k)
					if s.Present != nil {
						index = s.Present[k]
					}
					time := f.Time
					if len(s.Times) > 0 {
						time = s.Times[k]
					}
					count++
					each(dicts[s.Dict][index], at{hashes[s.Dict][index], time}, math.Float64bits(v))
				}
			}
		}
	})
	return count, first
}

func dictionary(t testing.TB, conn *stream.Conn, partition int, id frame.DictID) []labels.Labels {
	t.Helper()
	msg, err := conn.Last(context.Background(), stream.Dicts, conn.Dict(partition, id))
	if err != nil {
		t.Fatalf("dictionary %s: %v", id, err)
	}
	d, err := frame.ReadDictionary(msg.Data, id)
	if err != nil {
		t.Fatalf("dictionary %s: %v", id, err)
	}
	list := make([]labels.Labels, 0, len(d.Series))
	for _, s := range d.Series {
		list = append(list, s.Labels)
	}
	return list
}

// delivered fails the test unless every sample that the stream of a stopped process holds was accepted by the endpoint with the same
// value, and the stream holds all messages from the first on.
func delivered(t testing.TB, dir string, e *endpoint) {
	t.Helper()
	missing, changed := 0, 0
	count, first := storedSamples(t, storage(t, dir), func(ls labels.Labels, key at, bits uint64) {
		got, ok := e.value(key)
		switch {
		case !ok:
			if missing++; missing <= 5 {
				t.Errorf("%s @%d was acknowledged by the stream and has not arrived", ls, key.time)
			}
		case got != bits:
			if changed++; changed <= 5 {
				t.Errorf("%s @%d is %s in the stream, and arrived as %s", ls, key.time, floatText(bits), floatText(got))
			}
		}
	})
	if first != 1 || count == 0 {
		t.Errorf("the stream begins at message %d and holds %d samples", first, count)
	}
	if missing+changed > 0 {
		t.Errorf("of %d acknowledged samples, %d have not arrived and %d are different", count, missing, changed)
	}
	t.Logf("%d samples in the stream, all of them compared", count)
}

func floatText(bits uint64) string { return fmt.Sprintf("%v (%x)", math.Float64frombits(bits), bits) }
