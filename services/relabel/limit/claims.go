package limit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/stream"
)

// answerTime is how long the accountant may take to answer.
const answerTime = 2 * time.Second

// waits tells on what the partition waits.
func (p *Partition) waits(on string) {
	if p.cfg.Waiting != nil {
		p.cfg.Waiting(on)
	}
}

// maxMessage is how many bytes of names go into one message: NATS takes 1 MiB by default, and an answer may be half as large again as its ask.
const maxMessage = 1 << 18

// perName is how many bytes a name takes in a message at most, besides its own.
const perName = 32

// fit returns how many of n things go into one message, at least one, each of which takes as many bytes as size says.
func (p *Partition) fit(n int, size func(i int) int) int {
	room := min(maxMessage, p.cfg.Conn.MaxMessage()/2)
	for i := range n {
		if room -= size(i); room < 0 {
			return max(i, 1)
		}
	}
	return n
}

// ask asks the accountant for places for groups of series of one job, by metric, in as many messages as it takes. taken is what this judgement has been granted before, and gets what is
// granted now. Where no limit concerns several partitions, there is room for all.
func (p *Partition) ask(ctx context.Context, job string, names []string, groups map[string][]int, taken map[key]int, standIns bool) ([]grant, error) {
	grants := make([]grant, 0, len(names))
	if !p.cfg.Limits.shared() {
		for _, name := range names {
			grants = append(grants, grant{N: len(groups[name])})
		}
		return grants, nil
	}
	for len(names) > 0 {
		n := p.fit(len(names), func(i int) int { return 2 * (len(names[i]) + perName) })
		some, err := p.askOnce(ctx, job, names[:n], groups, taken, standIns)
		if err != nil {
			return nil, err
		}
		for i, g := range some {
			for _, k := range []key{{Job, job}, {Metric, names[i]}, {All, ""}} {
				taken[k] += g.N
			}
		}
		grants, names = append(grants, some...), names[n:]
	}
	return grants, nil
}

// askOnce asks for as many groups as go into one message.
func (p *Partition) askOnce(ctx context.Context, job string, names []string, groups map[string][]int, taken map[key]int, standIns bool) ([]grant, error) {
	q := &ask{Job: job, StandIns: standIns}
	p.account(q, key{Job, job}, taken)
	p.account(q, key{All, ""}, taken)
	for _, name := range names {
		p.account(q, key{Metric, name}, taken)
		q.Want = append(q.Want, want{name, len(groups[name])})
	}
	p.pending = taken
	r, err := p.request(ctx, q)
	p.pending = nil
	if err != nil {
		return nil, fmt.Errorf("asking for places of %d metrics: %w", len(names), err)
	}
	if len(r.Grants) != len(names) {
		return nil, fmt.Errorf("asking for places of %d metrics: %d answers", len(names), len(r.Grants))
	}
	return r.Grants, nil
}

// account adds to an ask what the partition has of a key.
func (p *Partition) account(q *ask, k key, taken map[key]int) {
	if p.cfg.Limits.rule(k.kind).MaxSeries > 0 {
		q.Have = append(q.Have, count{k.kind, k.name, p.have(k) + taken[k]})
	}
}

// report tells the accountant that there are fewer series. Where it does not answer, it will ask.
func (p *Partition) report(ctx context.Context, changed map[key]int) error {
	if !p.cfg.Limits.shared() || p.known == 0 {
		return nil
	}
	q := &ask{}
	for k := range changed {
		p.account(q, k, nil)
	}
	if err := p.tell(ctx, p.known, q.Have, false); err != nil {
		p.known = 0
	}
	return nil
}

// tell tells the accountant numbers of series, in as many messages as it takes. whole is whether they are all that it is to know.
func (p *Partition) tell(ctx context.Context, epoch uint64, have []count, whole bool) error {
	for first := true; first || len(have) > 0; first = false {
		n := p.fit(len(have), func(i int) int { return len(have[i].Name) + perName })
		r, err := p.once(ctx, &ask{Epoch: epoch, Reset: whole && first, Have: have[:n], Last: whole && n == len(have)})
		if err != nil {
			return err
		}
		if r.Status != granted {
			return errNoAccountant
		}
		have = have[n:]
	}
	return nil
}

// lasting reports whether it does not help to try again.
func lasting(err error) bool { return errors.Is(err, ErrMoved) || errors.Is(err, stream.ErrTooLarge) }

// request asks until there is an answer, ctx ends, or nobody will ever answer.
func (p *Partition) request(ctx context.Context, q *ask) (*reply, error) {
	defer p.waits("")
	for {
		err := p.introduce(ctx)
		if err == nil {
			q.Epoch = p.known
			var r *reply
			if r, err = p.once(ctx, q); err == nil && r.Status == granted {
				return r, nil
			}
			if err == nil && r.Status == incomplete {
				err = fmt.Errorf("relabel partitions %v to tell what series they have", r.Missing)
			} else {
				p.known = 0
			}
		}
		if lasting(err) {
			return nil, err
		}
		if err != nil {
			p.waits(err.Error())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryAfter):
		}
	}
}

var errNoAccountant = errors.New("the owner of relabel partition 0, which grants places within limits")

// introduce tells the accountant of what the partition has, unless it knows.
func (p *Partition) introduce(ctx context.Context) error {
	if p.known != 0 {
		return nil
	}
	// An accountant whose lease is over is not to be believed.
	epoch := p.cfg.Accountant()
	if epoch == 0 {
		return errNoAccountant
	}
	if err := p.tell(ctx, epoch, p.full(), true); err != nil {
		return err
	}
	p.known = epoch
	return nil
}

// full returns all numbers of series that the accountant is to know.
func (p *Partition) full() (have []count) {
	numbers := map[key]int{{All, ""}: p.all.n}
	for name, t := range p.jobs {
		numbers[key{Job, name}] = t.n
	}
	for name, t := range p.metrics {
		numbers[key{Metric, name}] = t.n
	}
	for k, n := range p.pending {
		numbers[k] += n
	}
	for k, n := range numbers {
		if p.cfg.Limits.rule(k.kind).MaxSeries > 0 {
			have = append(have, count{k.kind, k.name, n})
		}
	}
	return have
}

// once asks once.
func (p *Partition) once(ctx context.Context, q *ask) (*reply, error) {
	q.Partition, q.Lease, q.Session = p.cfg.Number, p.cfg.Lease, p.session
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	data := encodeMessage(q)
	msg, err := p.cfg.Conn.NC.RequestWithContext(ctx, p.cfg.Conn.Limits(), data)
	if errors.Is(err, nats.ErrMaxPayload) {
		return nil, tooLarge(p.cfg.Conn, p.cfg.Conn.Limits(), len(data))
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return nil, errNoAccountant
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAccountant, err)
	}
	r := &reply{}
	if err := decodeMessage(msg.Data, r); err != nil {
		return nil, fmt.Errorf("the answer of %w: %w", errNoAccountant, err)
	}
	if r.Status == moved {
		return nil, ErrMoved
	}
	return r, nil
}

// introduceEvery is how often a partition makes sure that the accountant knows it.
const introduceEvery = time.Second

// Introduce tells the accountant what the partition has, and does so again where it does not know any more, until ctx ends: other partitions wait for that.
func (p *Partition) Introduce(ctx context.Context) error {
	for p.cfg.Limits.shared() {
		wait := introduceEvery
		if err := p.greet(ctx); err != nil {
			if lasting(err) {
				return err
			}
			wait = retryAfter
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
	return nil
}

// greet makes sure that the accountant knows the partition.
func (p *Partition) greet(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known != 0 && p.known == p.cfg.Accountant() {
		if r, err := p.once(ctx, &ask{Epoch: p.known}); err != nil || r.Status == granted {
			return err
		}
	}
	p.known = 0
	return p.introduce(ctx)
}
