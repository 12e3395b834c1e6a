package limit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/logtest"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// house is a fleet's limits with what they need: leases are numbers here.
type house struct {
	t      testing.TB
	conn   *stream.Conn
	limits Limits
	log    *logtest.Buffer

	mu     sync.Mutex
	leases []uint64 // epochs by partition
	parts  []*tenant
	judged map[frame.DictID]dict // all dictionaries
	latest map[frame.DictID]Verdict
}

type dict struct {
	*frame.Dictionary
	partition int
	msg       []byte
}

// tenant is a partition with its owner.
type tenant struct {
	*Partition
	offenders *Offenders
	stop      func()
}

// newHouse returns one in which all partitions have owners.
func newHouse(t testing.TB, partitions int, limits Limits) *house {
	t.Helper()
	if limits.FreeAfter == 0 {
		limits.FreeAfter = time.Hour
	}
	conn := streamtest.Connect(t, streamtest.Server(t, t.TempDir()), slog.New(slog.DiscardHandler))
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: partitions, Replicas: 1, Verdicts: true}); err != nil {
		t.Fatal(err)
	}
	h := &house{
		t: t, conn: conn, limits: limits, log: &logtest.Buffer{}, leases: make([]uint64, partitions), parts: make([]*tenant, partitions),
		judged: map[frame.DictID]dict{}, latest: map[frame.DictID]Verdict{},
	}
	for p := range partitions {
		h.move(p)
	}
	return h
}

func (h *house) lease(p int) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.leases[p]
}

// move gives a partition another owner, as if the one before had been killed: nothing of it is asked to end well. The accountant moves with partition 0.
func (h *house) move(p int) *tenant {
	h.t.Helper()
	if old := h.parts[p]; old != nil {
		old.stop()
	}
	h.mu.Lock()
	h.leases[p]++
	epoch := h.leases[p]
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var beside sync.WaitGroup
	logger := slog.New(slog.NewTextHandler(h.log, nil))
	if p == 0 {
		a := NewAccountant(AccountantConfig{Conn: h.conn, Partitions: len(h.parts), Limits: h.limits, Epoch: epoch, Lease: h.lease, Logger: logger})
		beside.Go(func() {
			if err := a.Serve(ctx); err != nil {
				h.t.Error(err)
			}
		})
	}
	x := &tenant{offenders: NewOffenders(prometheus.NewPedanticRegistry()), stop: sync.OnceFunc(func() { cancel(); beside.Wait() })}
	h.t.Cleanup(x.stop)
	var err error
	x.Partition, err = Open(h.t.Context(), Config{
		Conn: h.conn, Number: p, Lease: epoch, Limits: h.limits, DictAge: 3 * time.Hour, Accountant: func() uint64 { return h.lease(0) },
		Offenders: x.offenders, Logger: logger,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	beside.Go(func() {
		if err := x.Introduce(ctx); err != nil && !errors.Is(err, ErrMoved) {
			h.t.Error(err)
		}
	})
	h.parts[p] = x
	return x
}

// announce publishes a dictionary and has it judged.
func (h *house) announce(p int, job string, series ...labels.Labels) (frame.DictID, Verdict) {
	h.t.Helper()
	var list []frame.Series
	for _, ls := range series {
		list = append(list, frame.Series{Labels: ls})
	}
	d, msg, err := frame.NewDictionary(job, list)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.judged[d.ID] = dict{d, p, msg}
	h.mu.Unlock()
	return d.ID, h.again(d.ID)
}

// again announces a dictionary once more.
func (h *house) again(id frame.DictID) Verdict {
	h.t.Helper()
	h.mu.Lock()
	d := h.judged[id]
	h.mu.Unlock()
	if _, err := h.conn.Publish(h.t.Context(), &nats.Msg{Subject: h.conn.Dict(d.partition, id), Data: d.msg}, nil); err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), await.Patience)
	defer cancel()
	r, err := h.parts[d.partition].Judge(ctx, d.Dictionary, time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.latest[id] = r.Verdict
	for _, id := range r.Others {
		d := h.judged[id]
		r, err := h.parts[d.partition].Judge(ctx, d.Dictionary, time.Now())
		if err != nil {
			h.t.Fatal(err)
		}
		h.latest[id] = r.Verdict
	}
	return h.latest[id]
}

// update makes verdicts the newest ones.
func (h *house) update(verdicts map[frame.DictID]Verdict) {
	for id := range verdicts {
		verdicts[id] = h.latest[id]
	}
}

// count returns how many of a dictionary's series a verdict lets go by some labels.
func (h *house) count(id frame.DictID, v Verdict, text string) (n int) {
	for _, s := range v.Apply(h.judged[id].Series) {
		if s.Labels.String() == text {
			n++
		}
	}
	return n
}

// kept returns how many of a dictionary's series a verdict lets through.
func (h *house) kept(id frame.DictID, v Verdict) int {
	n := 0
	for _, s := range v.Apply(h.judged[id].Series) {
		if !s.Labels.IsEmpty() {
			n++
		}
	}
	return n
}

// numbered returns series of a metric and target that differ in one label.
func numbered(metric, instance, label string, from, n int) []labels.Labels {
	var list []labels.Labels
	for i := range n {
		list = append(list, labels.FromStrings("__name__", metric, "job", "api", "instance", instance, label, fmt.Sprint(from+i)))
	}
	return list
}
