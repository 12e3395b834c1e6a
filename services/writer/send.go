package writer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

// parcel is a request on its way, and what is done with when the endpoint has taken it.
type parcel struct {
	req *remotewrite.Request
	// seq and mark are the position to note afterwards; seq is 0 where no message of the mailbox ends in this request.
	seq, mark uint64
	// marks are the counts of publishers whose messages end in this request.
	marks map[uint64]uint64
	// messages counts those that end in it.
	messages int64
	// progress is a replay's with the message of seq.
	progress replay.Progress
	// oldest is the time of the oldest frame in it, in milliseconds.
	oldest int64
}

// send brings one request to the endpoint: it returns when every sample of it is accepted or stored in REJECTED, or when ctx ends.
func (p *partition) send(ctx context.Context, x *parcel) error {
	d := delivery{p: p, samples: x.req.Samples()}
	res, err := d.try(ctx, x.req.Body(), d.samples)
	if err != nil {
		return err
	}
	if res.Outcome == remotewrite.Accepted {
		p.ep.metrics.histograms.Add(float64(x.req.Histograms()))
		p.ep.metrics.exemplars.Add(float64(x.req.Exemplars()))
		return nil
	}
	pieces, err := takeApart(p.ep.protocol, x.req.Raw())
	if err != nil {
		return err
	}
	d.pieces = pieces
	d.budget = firstBudget
	return d.divide(ctx, 0, len(pieces.series), res)
}

// How many more requests may be spent on finding the refused part of a request. Each piece that is accepted shows that the search
// is worth it and adds to the budget. What is left when it is spent goes to REJECTED as it is.
const (
	firstBudget = 24
	moreBudget  = 16
)

// delivery is the sending of one request, whole or in pieces.
type delivery struct {
	p       *partition
	samples int
	pieces  parts
	budget  int
}

// divide deals with the series from lo to hi, which the endpoint did not take together: it sends halves, in order.
func (d *delivery) divide(ctx context.Context, lo, hi int, res remotewrite.Result) error {
	whole := res.Outcome == remotewrite.Refused && !dividable(res.Status)
	if hi-lo == 1 || whole || d.budget <= 0 && res.Outcome != remotewrite.TooLarge {
		return d.reject(ctx, lo, hi, res)
	}
	mid := lo + (hi-lo)/2
	for _, r := range [][2]int{{lo, mid}, {mid, hi}} {
		d.budget--
		half, err := d.try(ctx, d.pieces.body(r[0], r[1]), r[1]-r[0])
		if err != nil {
			return err
		}
		if half.Outcome == remotewrite.Accepted {
			d.budget += moreBudget
			continue
		}
		if err := d.divide(ctx, r[0], r[1], half); err != nil {
			return err
		}
	}
	return nil
}

// dividable reports whether an answer can be about a part of the request. Answers about the sender or the address are about all of it.
func dividable(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusNotAcceptable:
		return true
	}
	return false
}

// reject stores a refused piece in the stream REJECTED with the endpoint's answer.
func (d *delivery) reject(ctx context.Context, lo, hi int, res remotewrite.Result) error {
	p := d.p
	r := stream.Rejection{
		Endpoint: p.ep.name, Protocol: int(p.ep.protocol), Status: res.Status, Answer: res.Message, Time: time.Now().UnixMilli(),
		Samples: hi - lo, Body: d.pieces.body(lo, hi),
	}
	msg, err := r.Encode()
	if err != nil {
		return err
	}
	_, err = p.ep.svc.cfg.Conn.Publish(ctx, &nats.Msg{Subject: p.ep.svc.cfg.Conn.Rejected(p.ep.name), Data: msg}, nil)
	if errors.Is(err, stream.ErrTooLarge) && hi-lo > 1 {
		mid := lo + (hi-lo)/2
		if err := d.reject(ctx, lo, mid, res); err != nil {
			return err
		}
		return d.reject(ctx, mid, hi, res)
	}
	if err != nil {
		return fmt.Errorf("storing a rejected request: %w", err)
	}
	p.ep.metrics.rejected.Add(float64(hi - lo))
	p.ep.refused(res, hi-lo)
	return nil
}

// try sends a body until the endpoint has said something final about it: accepted, refused or too large. While it is unreachable,
// overloaded or failing, try waits and sends again, for ever.
func (d *delivery) try(ctx context.Context, body []byte, samples int) (remotewrite.Result, error) {
	p, ep := d.p, d.p.ep
	first := max(time.Duration(ep.cfg.QueueConfig.MinBackoff), time.Millisecond)
	backoff := first
	for attempt := 0; ; attempt++ {
		start := time.Now()
		res := ep.client.Send(ctx, ep.protocol, body, attempt)
		if p.stopping.Err() != nil && res.Outcome == remotewrite.Retry {
			return res, p.stopping.Err()
		}
		ep.metrics.requests(res.Status).Inc()
		ep.metrics.duration.Observe(time.Since(start).Seconds())
		if res.Status == http.StatusTooManyRequests && !ep.cfg.RetryOn429 {
			res.Outcome = remotewrite.Refused
		}
		if res.Outcome != remotewrite.Retry {
			p.took += time.Since(start)
			if res.Outcome == remotewrite.Accepted {
				ep.metrics.samples.Add(float64(samples))
				ep.metrics.bytes.Add(float64(len(body)))
				ep.recovered()
			}
			p.setWaiting("")
			return res, nil
		}
		ep.metrics.retried.Add(float64(samples))
		pause := max(backoff/2+rand.N(backoff/2+1), res.RetryAfter)
		backoff = min(2*backoff, max(time.Duration(ep.cfg.QueueConfig.MaxBackoff), time.Millisecond))
		ep.failed(res, pause)
		p.setWaiting(fmt.Sprintf("waiting: %s; next try in %s", res.Message, pause.Round(time.Millisecond)))
		var again <-chan struct{}
		if res.RetryAfter == 0 && pause > wakeAbove {
			again = ep.again()
		}
		select {
		case <-ctx.Done():
			return res, ctx.Err()
		case <-p.stopping.Done():
			return res, p.stopping.Err()
		case <-time.After(pause):
		case <-again:
			backoff = first
		}
	}
}

// wakeAbove is the pause above which a partition tries again as soon as another one's request is accepted.
const wakeAbove = 500 * time.Millisecond

// stopTime is how long a partition that is stopped goes on with what it has begun, so that a planned stop repeats nothing.
const stopTime = 5 * time.Second
