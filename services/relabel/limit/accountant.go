package limit

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/stream"
)

// Accountant is the actor that grants places within the limits that concern several partitions. It stores nothing: what each partition has, the partition tells it, and until all have, it
// grants nothing. So there is never more granted than the limits allow, whoever is killed. It runs where partition 0 is owned, and its epoch is that of the lease.
type Accountant struct {
	cfg   AccountantConfig
	parts []account
	used  map[key]int // over all partitions
}

// key is what a limit counts.
type key struct {
	kind Kind
	name string
}

// account is what a partition has.
type account struct {
	lease   uint64 // epoch
	session uint64
	whole   bool // the partition has told all
	have    map[key]int
}

// AccountantConfig configures an [Accountant].
type AccountantConfig struct {
	// Conn reaches the partitions, of which there are Partitions.
	Conn       *stream.Conn
	Partitions int
	// Limits are those of the fleet.
	Limits Limits
	// Epoch is that of the lease of partition 0, and Lease returns that of any partition; 0 where nobody has it.
	Epoch uint64
	Lease func(partition int) uint64
	// Logger receives log lines.
	Logger *slog.Logger
}

// NewAccountant returns the accountant of a fleet.
func NewAccountant(cfg AccountantConfig) *Accountant {
	a := &Accountant{cfg: cfg}
	a.begin()
	return a
}

func (a *Accountant) begin() { a.parts, a.used = make([]account, a.cfg.Partitions), map[key]int{} }

// questions is how many asks may wait.
const questions = 1024

// Serve answers partitions until ctx ends.
func (a *Accountant) Serve(ctx context.Context) error {
	a.begin()
	asks := make(chan *nats.Msg, questions)
	sub, err := a.cfg.Conn.NC.ChanSubscribe(a.cfg.Conn.Limits(), asks)
	if err != nil {
		return fmt.Errorf("listening for partitions: %w", err)
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return nil
		case msg := <-asks:
			var q ask
			if err := decodeMessage(msg.Data, &q); err != nil || q.Partition < 0 || q.Partition >= len(a.parts) {
				a.cfg.Logger.Warn("Ignoring a question for places", "partition", q.Partition, "err", err)
				continue
			}
			if err := msg.Respond(encodeMessage(a.handle(&q))); err != nil {
				a.cfg.Logger.Warn("Cannot answer a partition that asks for places", "partition", q.Partition, "err", err)
			}
		}
	}
}

// handle notes what a partition has and grants what it wants.
func (a *Accountant) handle(q *ask) *reply {
	p := &a.parts[q.Partition]
	r := &reply{Epoch: a.cfg.Epoch}
	switch {
	case q.Epoch != a.cfg.Epoch:
		r.Status = unknown
		return r
	case q.Lease < p.lease || q.Reset && q.Lease < a.cfg.Lease(q.Partition):
		r.Status = moved
		return r
	case !q.Reset && (p.have == nil || p.lease != q.Lease || p.session != q.Session):
		r.Status = unknown
		return r
	case q.Reset:
		for k := range p.have {
			a.set(p, k, 0)
		}
		*p = account{lease: q.Lease, session: q.Session, have: map[key]int{}}
	}
	for _, c := range q.Have {
		a.set(p, key{c.Kind, c.Name}, c.N)
	}
	p.whole = p.whole || q.Last
	if len(q.Want) == 0 {
		return r
	}
	for n := range a.parts {
		if !a.parts[n].whole {
			r.Missing = append(r.Missing, n)
		}
	}
	if len(r.Missing) > 0 {
		r.Status = incomplete
		return r
	}
	for _, w := range q.Want {
		r.Grants = append(r.Grants, a.grant(p, q.Job, w, q.StandIns))
	}
	return r
}

// set changes how many series of a key a partition has.
func (a *Accountant) set(p *account, k key, n int) {
	if n = max(n, 0); n == p.have[k] {
		return
	}
	if a.used[k] += n - p.have[k]; a.used[k] == 0 {
		delete(a.used, k)
	}
	if p.have[k] = n; n == 0 {
		delete(p.have, k)
	}
}

// grant gives a partition places for series of a job and metric, as many as all limits leave.
func (a *Accountant) grant(p *account, job string, w want, standIns bool) grant {
	g := grant{N: max(w.N, 0)}
	keys := []key{{Job, job}, {Metric, w.Metric}, {All, ""}}
	for _, k := range keys {
		if n := a.cfg.Limits.rule(k.kind).room(a.used[k], g.N, standIns); n < g.N {
			g.N, g.By = n, k.kind
		}
	}
	for _, k := range keys {
		rule := a.cfg.Limits.rule(k.kind)
		if rule.MaxSeries == 0 {
			continue
		}
		a.set(p, k, p.have[k]+g.N)
		if n := rule.over(a.used[k], g.N); n > 0 {
			g.Over = append(g.Over, over{k.kind, n})
		}
	}
	return g
}
