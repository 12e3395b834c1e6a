package discovery

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

const (
	// inFlight is how many messages of a job wait for their ack at once.
	inFlight = 32
	// batch is how many changes are published before the job looks for newer input.
	batch = 512
	// tombstoneTTL is how long the message that removes a target stays in the stream: longer than any scraper is cut off and goes on scraping.
	tombstoneTTL = "1h"
	// logEvery is the time between two log lines about publishes that fail.
	logEvery = 10 * time.Second
)

// change is a target to publish, or to remove where put is nil.
type change struct {
	id    uint64
	shard int // of a target to remove
	put   *found
}

// publish brings the first changes of todo into the stream. It returns when JetStream has acknowledged them or ctx has ended.
func (j *job) publish(ctx context.Context) {
	n := min(batch, len(j.todo))
	now := j.todo[:n]
	j.todo = j.todo[n:]
	for _, c := range now {
		j.begin(c)
	}
	errs := make([]error, n)
	var g errgroup.Group
	g.SetLimit(inFlight)
	for i, c := range now {
		g.Go(func() error {
			errs[i] = j.publishOne(ctx, c)
			return nil
		})
	}
	_ = g.Wait() // errs has the errors
	for i, c := range now {
		if errs[i] == nil {
			j.end(c)
		}
	}
	j.waiting.Store(nil)
}

// begin notes that the stream may have the change from now on.
func (j *job) begin(c change) {
	p := j.published[c.id]
	if p == nil {
		p = &published{}
		j.published[c.id] = p
	}
	p.acked = false
	if c.put != nil {
		p.target, p.sum, p.confirmed = c.put.target, c.put.sum, true
	}
}

// end notes that the stream has the change.
func (j *job) end(c change) {
	if c.put == nil {
		delete(j.published, c.id)
		j.svc.metrics.removed.Inc()
		return
	}
	j.published[c.id].acked = true
	j.svc.metrics.published.Inc()
}

// publishOne returns nil once the change is in the stream, or can never be; its errors are those of ctx.
func (j *job) publishOne(ctx context.Context, c change) error {
	names := j.svc.cfg.Conn.Names
	if c.put == nil {
		msg := nats.NewMsg(names.Target(c.shard, c.id))
		msg.Header.Set(jetstream.MsgTTLHeader, tombstoneTTL)
		_, err := j.svc.cfg.Conn.Publish(ctx, msg, j.failed)
		return err
	}
	t := c.put.target
	err := j.put(ctx, t)
	if errors.Is(err, stream.ErrTooLarge) {
		j.log.Warn("A target's discovered labels are too large to publish; it goes without them", "target", t.Labels, "err", err)
		bare := *t
		bare.Discovered = labels.EmptyLabels()
		err = j.put(ctx, &bare)
	}
	if errors.Is(err, stream.ErrTooLarge) {
		j.log.Error("A target is too large to publish and left out", "address", t.Labels.Get("__address__"), "err", err)
		j.svc.metrics.failed.WithLabelValues(j.name).Inc()
		return nil
	}
	return err
}

func (j *job) put(ctx context.Context, t *target.Target) error {
	b, err := target.Encode(t)
	if err != nil {
		return err
	}
	_, err = j.svc.cfg.Conn.Publish(ctx, &nats.Msg{Subject: j.svc.cfg.Conn.Target(t.Shard(), t.ID), Data: b}, j.failed)
	return err
}

// failed is told of each publish that is going to be tried again.
func (j *job) failed(err error) {
	j.svc.metrics.retries.Inc()
	what := "NATS to store its targets: " + err.Error()
	j.waiting.Store(&what)
	now, last := time.Now().UnixNano(), j.logged.Load()
	if now-last >= int64(logEvery) && j.logged.CompareAndSwap(last, now) {
		j.log.Warn("Waiting for NATS to store targets, trying again", "stream", j.svc.cfg.Conn.Stream(stream.Targets), "err", err)
	}
}
