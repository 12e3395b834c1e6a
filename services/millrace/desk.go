package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/inquiry"
	"github.com/millrace/millrace/pkg/rejected"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/web"
)

// What writers are asked for by processes whose NATS users may not find it out, as parts of subjects.
const (
	aboutRejected    = "rejected"
	aboutReplays     = "replays"
	aboutCardinality = "cardinality"
)

// answerTime is how long a writer may take to answer what takes no counting.
const answerTime = 30 * time.Second

// openDesk has this process, which runs the writer service, answer the others.
func (p *process) openDesk(conn *stream.Conn) (*inquiry.Desk, error) {
	d := inquiry.NewDesk(conn, p.unanswered)
	err := errors.Join(
		inquiry.Answer(d, conn.AskWriter(aboutRejected), answerTime, p.answerRejected),
		inquiry.Answer(d, conn.AskWriter(aboutReplays), answerTime, p.answerReplays),
		inquiry.Answer(d, conn.AskWriter(aboutCardinality), web.CardinalityTimeout, p.count),
	)
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// unanswered notes that a question of another process was not answered.
func (p *process) unanswered(err error) {
	p.log.Debug("A question of another process is not answered", "err", err)
}

// askWriter asks a writer on behalf of this process, which is none.
func askWriter[Q, A any](ctx context.Context, p *process, what string, q Q) (A, error) {
	var none A
	conn := p.nats.Load()
	if conn == nil {
		return none, web.ErrNotReady
	}
	a, err := inquiry.Ask[Q, A](ctx, conn, conn.AskWriter(what), q)
	switch {
	case errors.Is(err, inquiry.ErrNobody):
		err = fmt.Errorf("no process with the writer service answers, which alone may find this out: start one, or wait until it is ready; %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no process with the writer service has answered in time; the NATS user of this one may have no right to publish to %s, which deploy/compose/nats/permissions.conf gives it: %w",
			conn.AskWriter(what), err)
	}
	return a, err
}

// ownHistory is the history of the endpoints that this process writes to; nil where it writes to none.
func (p *process) ownHistory() *status.History {
	if !p.has("writer") {
		return nil
	}
	return p.recorder.History(time.Now())
}

// history collects the endpoints' history from all writers of the fleet.
func (p *process) history(ctx context.Context) (*status.History, error) {
	d, err := p.shared.Get(ctx)
	if err != nil {
		return nil, err
	}
	var writers []string
	for _, m := range d.Members {
		if m.ID != p.self.ID && m.State != status.Silent && slices.ContainsFunc(m.Services, func(s status.Service) bool { return s.Name == "writer" }) {
			writers = append(writers, m.ID)
		}
	}
	return status.CollectHistory(ctx, p.nats.Load(), p.ownHistory(), writers)
}

// rejectedQuestion asks for a list of rejected batches, or for a look inside one.
type rejectedQuestion struct {
	Endpoint string `json:"endpoint,omitempty"`
	Before   uint64 `json:"before,omitempty"`
	N        int    `json:"n,omitempty"`
	// Message is the batch to look into; 0 for the list.
	Message uint64 `json:"message,omitempty"`
	From    int    `json:"from,omitempty"`
}

// rejectedAnswer has what was asked for, or Gone.
type rejectedAnswer struct {
	Page *rejected.Page `json:"page,omitempty"`
	Look *rejected.Look `json:"look,omitempty"`
	Gone bool           `json:"gone,omitempty"`
}

func (p *process) answerRejected(ctx context.Context, q rejectedQuestion) (a rejectedAnswer, err error) {
	shelf := p.shelf.Load()
	if shelf == nil {
		return a, web.ErrNotReady
	}
	if q.Message == 0 {
		a.Page, err = shelf.List(ctx, q.Endpoint, q.Before, q.N)
		return a, err
	}
	if a.Look, err = shelf.Open(ctx, q.Message, q.From); errors.Is(err, rejected.ErrGone) {
		return rejectedAnswer{Gone: true}, nil
	}
	return a, err
}

// findRejected answers a question here where this process has the right to, and else by a writer.
func (p *process) findRejected(ctx context.Context, q rejectedQuestion) (rejectedAnswer, error) {
	if p.has("writer") {
		return p.answerRejected(ctx, q)
	}
	return askWriter[rejectedQuestion, rejectedAnswer](ctx, p, aboutRejected, q)
}

// fleetRejected implements [web.Rejected].
type fleetRejected struct{ p *process }

func (f fleetRejected) List(ctx context.Context, endpoint string, before uint64, n int) (*rejected.Page, error) {
	a, err := f.p.findRejected(ctx, rejectedQuestion{Endpoint: endpoint, Before: before, N: n})
	if err == nil && a.Page == nil {
		a.Page = &rejected.Page{}
	}
	return a.Page, err
}

func (f fleetRejected) Open(ctx context.Context, message uint64, from int) (*rejected.Look, error) {
	a, err := f.p.findRejected(ctx, rejectedQuestion{Message: message, From: from})
	if err == nil && a.Look == nil {
		err = fmt.Errorf("message %d: %w", message, rejected.ErrGone)
	}
	return a.Look, err
}

// count counts series here. One count runs at a time: each takes much memory.
func (p *process) count(ctx context.Context, q cardinality.Query) (*cardinality.Report, error) {
	conn := p.conn.Load()
	if conn == nil {
		return nil, web.ErrNotReady
	}
	select {
	case p.surveying <- struct{}{}:
		defer func() { <-p.surveying }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another count to end: %w", ctx.Err())
	}
	return takeSurvey(ctx, conn, q)
}

// cardinality counts series here where this process has the right to, and else by a writer; where there is none, it tries.
func (p *process) cardinality(ctx context.Context, q cardinality.Query) (*cardinality.Report, error) {
	if p.has("writer") {
		return p.count(ctx, q)
	}
	r, err := askWriter[cardinality.Query, *cardinality.Report](ctx, p, aboutCardinality, q)
	if errors.Is(err, inquiry.ErrNobody) {
		return p.count(ctx, q)
	}
	return r, err
}

// replayQuestion is what is to be done about replays.
type replayQuestion struct {
	// Do is start, hold, stop, get or list.
	Do   string      `json:"do"`
	Name string      `json:"name,omitempty"`
	Spec replay.Spec `json:"spec"`
}

// replayAnswer is how they stand, or why it was refused: Wrong is about a field, Refused names one of replayErrors.
type replayAnswer struct {
	Replays []replay.Status    `json:"replays"`
	Wrong   *replay.FieldError `json:"wrong,omitempty"`
	Refused string             `json:"refused,omitempty"`
	Message string             `json:"message,omitempty"`
}

var replayErrors = map[string]error{"unknown": replay.ErrUnknown, "taken": replay.ErrTaken, "many": replay.ErrMany, "not ready": web.ErrNotReady}

// refusedReplay is an error that another process has found, with the one of replayErrors that it wraps.
type refusedReplay struct {
	message string
	is      error
}

func (e *refusedReplay) Error() string { return e.message }
func (e *refusedReplay) Unwrap() error { return e.is }

func (p *process) answerReplays(ctx context.Context, q replayQuestion) (a replayAnswer, err error) {
	own := ownReplays{p}
	one := func(st replay.Status, err error) ([]replay.Status, error) { return []replay.Status{st}, err }
	switch q.Do {
	case "start", "hold":
		if q.Spec.URL != "" { // any address might be one of somebody who has no right to the samples
			return a, errors.New("url: a replay to any address is only taken at the address of a process that runs the writer service; add the endpoint to the configuration and use endpoint")
		}
		a.Replays, err = one(own.Start(ctx, q.Spec, q.Do == "hold"))
	case "stop":
		a.Replays, err = one(own.Stop(ctx, q.Name))
	case "get":
		a.Replays, err = one(own.Get(ctx, q.Name))
	case "list":
		a.Replays, err = own.List(ctx)
	default:
		return a, fmt.Errorf("%q is nothing to be done about replays; upgrade the older of the two processes", q.Do)
	}
	if field, ok := errors.AsType[*replay.FieldError](err); ok {
		return replayAnswer{Wrong: field}, nil
	}
	for name, known := range replayErrors {
		if errors.Is(err, known) {
			return replayAnswer{Refused: name, Message: err.Error()}, nil
		}
	}
	return a, err
}

// askedReplays are the replays of a fleet as a process shows them that does not run the writer service.
type askedReplays struct{ p *process }

func (r askedReplays) ask(ctx context.Context, q replayQuestion) ([]replay.Status, error) {
	a, err := askWriter[replayQuestion, replayAnswer](ctx, r.p, aboutReplays, q)
	switch {
	case err != nil:
		return nil, err
	case a.Wrong != nil:
		return nil, a.Wrong
	case a.Refused != "":
		return nil, &refusedReplay{a.Message, replayErrors[a.Refused]}
	}
	return a.Replays, nil
}

func (r askedReplays) one(ctx context.Context, q replayQuestion) (replay.Status, error) {
	list, err := r.ask(ctx, q)
	if err != nil {
		return replay.Status{}, err
	}
	if len(list) != 1 {
		return replay.Status{}, fmt.Errorf("a writer has answered with %d replays where one was asked for", len(list))
	}
	return list[0], nil
}

// Start implements [web.Replays].
func (r askedReplays) Start(ctx context.Context, spec replay.Spec, hold bool) (replay.Status, error) {
	do := "start"
	if hold {
		do = "hold"
	}
	return r.one(ctx, replayQuestion{Do: do, Spec: spec})
}

// Stop implements [web.Replays].
func (r askedReplays) Stop(ctx context.Context, name string) (replay.Status, error) {
	return r.one(ctx, replayQuestion{Do: "stop", Name: name})
}

// Get implements [web.Replays].
func (r askedReplays) Get(ctx context.Context, name string) (replay.Status, error) {
	return r.one(ctx, replayQuestion{Do: "get", Name: name})
}

// List implements [web.Replays].
func (r askedReplays) List(ctx context.Context) ([]replay.Status, error) {
	return r.ask(ctx, replayQuestion{Do: "list"})
}
