package relabel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/relabel/limit"
)

// partition is the actor that relabels the dictionaries of one partition. Its durable mailbox is the stream DICTS.
type partition struct {
	svc    *Service
	plan   *plan
	number int
	epoch  uint64 // of the lease
	log    *slog.Logger

	limits  atomic.Pointer[limit.Partition] // nil where there are no limits
	turn    chan struct{}                   // holds one while a dictionary is judged and published
	waiting atomic.Pointer[string]          // on what, for people; nil while all is well
}

// asks is how many questions of writers may wait.
const asks = 64

// Serve evaluates every dictionary that it has not evaluated with these rules, and each that a writer asks for.
func (p *partition) Serve(ctx context.Context) error {
	conn := p.svc.cfg.Conn
	questions := make(chan *nats.Msg, asks)
	sub, err := conn.NC.ChanSubscribe(conn.Ask(p.number), questions)
	if err != nil {
		return fmt.Errorf("listening for writers: %w", err)
	}
	defer sub.Unsubscribe()
	defer p.waiting.Store(nil)
	sides, ctx := errgroup.WithContext(ctx)
	if p.number == 0 && p.svc.cfg.Limits.Enabled() {
		sides.Go(func() error { return actor.Try(func() error { return p.account(ctx) }) })
	}
	sides.Go(func() error { return actor.Try(func() error { return p.work(ctx, questions) }) })
	return sides.Wait()
}

// work reads dictionaries and questions.
func (p *partition) work(ctx context.Context, questions <-chan *nats.Msg) error {
	var limits *limit.Partition
	if p.svc.cfg.Limits.Enabled() {
		var err error
		if limits, err = p.openLimits(ctx); err != nil {
			return err
		}
		defer limits.Close()
		if err := p.finish(ctx, limits); err != nil {
			return err
		}
	}
	sides, ctx := errgroup.WithContext(ctx)
	if limits != nil {
		sides.Go(func() error { return actor.Try(func() error { return limits.Introduce(ctx) }) })
		sides.Go(func() error { return actor.Try(func() error { return p.sweep(ctx, limits) }) })
	}
	sides.Go(func() error { return actor.Try(func() error { return p.answer(ctx, questions) }) })
	sides.Go(func() error { return actor.Try(func() error { return p.follow(ctx) }) })
	return sides.Wait()
}

// finish publishes what follows from the newest verdict, because the owner before may have been killed before it had: there could be two series with the same labels,
// one of which may not have them any more. What followed from verdicts before was published before the newest was decided.
func (p *partition) finish(ctx context.Context, limits *limit.Partition) error {
	id, verdict, ok := limits.Newest()
	if !ok {
		return nil
	}
	conn := p.svc.cfg.Conn
	msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(p.number, id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d := p.read(msg)
	if d == nil {
		return nil
	}
	if err := p.publish(ctx, d, &verdict); err != nil {
		return err
	}
	limits.Published(id)
	return nil
}

// follow evaluates the dictionaries of the mailbox.
func (p *partition) follow(ctx context.Context) error {
	conn := p.svc.cfg.Conn
	mb, err := conn.OpenMailbox(ctx, stream.MailboxConfig{
		Stream: stream.Dicts, Filter: conn.DictPartition(p.number), Key: fmt.Sprintf("relabel.%d", p.number), Generation: p.plan.hash, ReadAhead: 16,
	})
	if err != nil {
		return err
	}
	defer mb.Close()
	for {
		msg, err := mb.Next(ctx)
		if err != nil {
			return err
		}
		if err := p.relabel(ctx, msg, false); err != nil {
			return err
		}
		mb.Handled(msg.Seq, 0)
	}
}

// answer evaluates the dictionaries that writers ask for because they do not find them relabelled.
func (p *partition) answer(ctx context.Context, questions <-chan *nats.Msg) error {
	conn := p.svc.cfg.Conn
	for {
		select {
		case <-ctx.Done():
			return nil
		case q := <-questions:
			id, err := frame.ParseDictID(string(q.Data))
			if err != nil {
				p.log.Warn("Ignoring a question for a dictionary", "err", err)
				continue
			}
			msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(p.number, id))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue // the writer finds that out as well
			}
			if err == nil {
				p.svc.metrics.asked.Inc()
				err = p.relabel(ctx, msg, true)
			}
			if err != nil && ctx.Err() == nil {
				p.log.Warn("Cannot relabel a dictionary that a writer asks for", "dictionary", id, "err", err)
			}
		}
	}
}

// relabel evaluates one dictionary with all rules and publishes what each endpoint gets. A dictionary that cannot be read is named in the log
// and left where it is. Where there are limits, what the endpoints have is not published again unless a writer has asked.
func (p *partition) relabel(ctx context.Context, msg stream.Message, asked bool) error {
	others, err := p.judged(ctx, msg, asked)
	if err != nil {
		return err
	}
	conn := p.svc.cfg.Conn
	for _, id := range others {
		msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(p.number, id))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // nobody sends it any more
		}
		if err == nil {
			_, err = p.judged(ctx, msg, false) // what else follows comes with the next announcements
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// judged evaluates one dictionary. It returns those to evaluate anew because of it. Where there are limits, this is done for one dictionary at a time: else what
// follows from a verdict could be written over by what followed from the one before.
func (p *partition) judged(ctx context.Context, msg stream.Message, asked bool) (others []frame.DictID, err error) {
	d := p.read(msg)
	if d == nil {
		return nil, nil
	}
	limits := p.limits.Load()
	if limits == nil {
		return nil, p.publish(ctx, d, &limit.Verdict{})
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := limits.Judge(ctx, d, msg.Time)
	if errors.Is(err, stream.ErrTooLarge) {
		p.svc.metrics.failed.Inc()
		p.log.Error("Cannot decide which series of a dictionary have a place; its samples wait", "dictionary", d.ID, "err", err)
		return nil, nil
	}
	if err != nil || r.Current && !asked {
		return r.Others, err
	}
	if err := p.publish(ctx, d, &r.Verdict); err != nil {
		return nil, err
	}
	limits.Published(d.ID)
	return r.Others, nil
}

// read returns the dictionary of a message; nil where it cannot be read, which the log says.
func (p *partition) read(msg stream.Message) *frame.Dictionary {
	id, err := p.svc.cfg.Conn.DictOf(msg.Subject)
	if err != nil {
		p.svc.metrics.unreadable.Inc()
		p.log.Error("Ignoring a message among the dictionaries", "seq", msg.Seq, "err", err)
		return nil
	}
	d, err := frame.ReadDictionary(msg.Data, id)
	if err != nil {
		p.svc.metrics.unreadable.Inc()
		p.log.Error("Cannot read a dictionary; its samples wait until it can be read", "dictionary", id, "seq", msg.Seq, "err", err)
		return nil
	}
	return d
}

// publish evaluates a dictionary with all rules, as a verdict has its series, and publishes what each endpoint gets.
func (p *partition) publish(ctx context.Context, d *frame.Dictionary, verdict *limit.Verdict) error {
	d = &frame.Dictionary{ID: d.ID, Job: d.Job, Series: verdict.Apply(d.Series)}
	for i := range p.plan.groups {
		if err := p.evaluate(ctx, &p.plan.groups[i], d); err != nil {
			return err
		}
	}
	return nil
}

// evaluate publishes what one group of endpoints gets for a dictionary. Where that is more than a message holds, these endpoints wait, by the
// log, until their rules are mended; others do not wait for them.
func (p *partition) evaluate(ctx context.Context, g *group, d *frame.Dictionary) error {
	conn := p.svc.cfg.Conn
	series, tooLarge := g.rules.Apply(d.Series)
	if tooLarge > 0 {
		p.log.Error("Rules make label sets too large; their series are dropped", "endpoints", g.endpoints, "series", tooLarge, "limit_bytes", frame.MaxLabelSetBytes, "dictionary", d.ID)
	}
	data, err := frame.EncodeRelabelled(d.ID, g.hash, series)
	if err != nil {
		p.failed(g, d, err)
		return nil
	}
	p.svc.metrics.dictionaries.Inc()
	p.svc.metrics.series.Add(float64(len(series)))
	for k := range series {
		if series[k].Labels.IsEmpty() && !d.Series[k].Labels.IsEmpty() {
			p.svc.metrics.dropped.Inc()
		}
	}
	for _, name := range g.endpoints {
		_, err := conn.Publish(ctx, &nats.Msg{Subject: conn.Relabelled(name, p.number, d.ID), Data: data}, p.wait)
		if errors.Is(err, stream.ErrTooLarge) {
			p.failed(g, d, err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("publishing the relabelled dictionary %s for %q: %w", d.ID, name, err)
		}
		p.waiting.Store(nil)
	}
	return nil
}

func (p *partition) failed(g *group, d *frame.Dictionary, err error) {
	p.svc.metrics.failed.Inc()
	p.log.Error("Cannot give endpoints what their rules make of a dictionary; their samples wait", "endpoints", g.endpoints, "dictionary", d.ID, "err", err,
		"remedy", "let external_labels and write_relabel_configs add less")
}

// wait notes what the stream said to a failed try.
func (p *partition) wait(err error) {
	reason := "the stream: " + err.Error()
	if p.waiting.Swap(&reason) == nil {
		p.log.Warn("The stream does not take relabelled dictionaries, trying again", "err", err)
	}
}
