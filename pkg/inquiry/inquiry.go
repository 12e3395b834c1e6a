package inquiry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/stream"
)

// ErrNobody is wrapped by [Ask] where nobody listens who could answer.
var ErrNobody = errors.New("nobody is there to answer")

const (
	version = 1
	queue   = "inquiry"
	// atOnce is how many questions a process answers at a time; the others wait.
	atOnce = 8
)

// reply is an answer as it is sent.
type reply struct {
	Version int             `json:"version"`
	Error   string          `json:"error,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Desk is where a process answers. Make it with [NewDesk].
type Desk struct {
	conn   *stream.Conn
	failed func(error)
	ctx    context.Context
	cancel context.CancelFunc
	turns  chan struct{}

	mu     sync.Mutex // held while a question begins, so that none does after Close
	closed bool
	subs   []*nats.Subscription
	busy   sync.WaitGroup
}

// NewDesk returns a desk; failed is told of answers that cannot be sent.
func NewDesk(conn *stream.Conn, failed func(error)) *Desk {
	ctx, cancel := context.WithCancel(context.Background())
	return &Desk{conn: conn, failed: failed, ctx: ctx, cancel: cancel, turns: make(chan struct{}, atOnce)}
}

// Close ends the answers that are on their way, and waits for them.
func (d *Desk) Close() {
	d.mu.Lock()
	d.closed = true
	for _, s := range d.subs {
		_ = s.Unsubscribe() // which fails where the connection is closed already
	}
	d.mu.Unlock()
	d.cancel()
	d.busy.Wait()
}

// Answer has the desk answer the questions of a subject with f, which gets so much time for each, and may be called for several at once.
func Answer[Q, A any](d *Desk, subject string, within time.Duration, f func(ctx context.Context, q Q) (A, error)) error {
	sub, err := d.conn.NC.QueueSubscribe(subject, queue, func(m *nats.Msg) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.closed || m.Reply == "" {
			return
		}
		d.busy.Go(func() {
			ctx, cancel := context.WithTimeout(d.ctx, within)
			defer cancel()
			select {
			case d.turns <- struct{}{}:
				defer func() { <-d.turns }()
			case <-ctx.Done():
				return
			}
			if err := m.Respond(encode(d.conn, handle(ctx, m.Data, f))); err != nil && d.ctx.Err() == nil {
				d.failed(fmt.Errorf("answering a question on %s: %w", subject, err))
			}
		})
	})
	if err != nil {
		return fmt.Errorf("listening for questions on %s: %w", subject, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.subs = append(d.subs, sub)
	return nil
}

func handle[Q, A any](ctx context.Context, data []byte, f func(context.Context, Q) (A, error)) reply {
	var q Q
	if err := json.Unmarshal(data, &q); err != nil {
		return reply{Error: fmt.Sprintf("the question cannot be read: %v; upgrade the older of the two processes", err)}
	}
	a, err := f(ctx, q)
	if err != nil {
		return reply{Error: err.Error()}
	}
	b, err := json.Marshal(a)
	if err != nil {
		return reply{Error: fmt.Sprintf("encoding the answer: %v", err)}
	}
	return reply{Data: b}
}

func encode(conn *stream.Conn, r reply) []byte {
	r.Version = version
	b, err := json.Marshal(r)
	if most := conn.MaxMessage(); err == nil && len(b) > most {
		b, err = json.Marshal(reply{Version: version, Error: fmt.Sprintf("the answer has %d bytes, and a message of NATS may have %d; ask for less", len(b), most)})
	}
	if err != nil {
		b = nil // of a struct of texts: it cannot be
	}
	return b
}

// Ask asks on a subject and returns the answer. Where nobody listens, the error wraps [ErrNobody].
func Ask[Q, A any](ctx context.Context, conn *stream.Conn, subject string, q Q) (A, error) {
	var a A
	data, err := json.Marshal(q)
	if err != nil {
		return a, fmt.Errorf("encoding a question on %s: %w", subject, err)
	}
	msg, err := conn.NC.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		err = ErrNobody
	}
	if err != nil {
		return a, fmt.Errorf("asking on %s: %w", subject, err)
	}
	var r reply
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return a, fmt.Errorf("asking on %s: the answer cannot be read: %w", subject, err)
	}
	if r.Version != version {
		return a, fmt.Errorf("asking on %s: the answer has version %d, this build reads version %d: upgrade the older of the two processes", subject, r.Version, version)
	}
	if r.Error != "" {
		return a, errors.New(r.Error)
	}
	if err := json.Unmarshal(r.Data, &a); err != nil {
		return a, fmt.Errorf("asking on %s: the answer cannot be read: %w", subject, err)
	}
	return a, nil
}
