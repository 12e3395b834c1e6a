package limit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// journal is the subject of VERDICTS that holds what a partition has decided. One process writes it at a time: each message is taken only behind the one
// that its writer knows as the last.
type journal struct {
	conn    *stream.Conn
	subject string
	owner   uint64
	last    uint64 // sequence number of the last message
	waiting func(error)
}

// read returns the newest verdict of each dictionary that has places, and when it was written.
func (j *journal) read(ctx context.Context) (map[frame.DictID]*written, error) {
	live := map[frame.DictID]*written{}
	j.last = 0
	err := j.conn.Past(ctx, stream.Verdicts, j.subject, time.Unix(1, 0), func(msg stream.Message) error {
		j.last = msg.Seq
		r, err := decodeRecord(msg.Data)
		if err != nil {
			return fmt.Errorf("message %d of %s: %w", msg.Seq, j.subject, err)
		}
		for b := r.Freed; len(b) > 0; b = b[len(frame.DictID{}):] {
			delete(live, frame.DictID(b[:len(frame.DictID{})]))
		}
		if len(r.Dict) > 0 {
			live[frame.DictID(r.Dict)] = &written{r, msg.Time}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading verdicts: %w", err)
	}
	return live, nil
}

// written is a record and when it was stored.
type written struct {
	*record
	at time.Time
}

// open reads the journal and makes this process the one that writes it.
func (j *journal) open(ctx context.Context) (map[frame.DictID]*written, error) {
	for {
		live, err := j.read(ctx)
		if err != nil {
			return nil, err
		}
		err = j.append(ctx, &record{})
		if !errors.Is(err, ErrMoved) {
			return live, err
		}
		// The one before has written once more.
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryAfter):
		}
	}
}

// retryAfter is how long is waited after a failure.
const retryAfter = 100 * time.Millisecond

// append stores a record, and tries again until it is stored, ctx ends, or another process has written: [ErrMoved].
func (j *journal) append(ctx context.Context, r *record) error {
	r.Owner = j.owner
	msg := &nats.Msg{Subject: j.subject, Data: r.encode()}
	for doubt := false; ; {
		try, cancel := context.WithTimeout(ctx, tryTime)
		ack, err := j.conn.JS.PublishMsg(try, msg, jetstream.WithExpectLastSequencePerSubject(j.last), jetstream.WithRetryAttempts(0))
		cancel()
		if err == nil {
			j.last = ack.Sequence
			return nil
		}
		if wrongSequence(err) {
			seq, mine, err := j.stored(ctx, msg.Data, doubt)
			if err != nil {
				return err
			}
			if !mine {
				return fmt.Errorf("writing to %s: %w", j.subject, ErrMoved)
			}
			j.last = seq
			return nil
		}
		doubt = true // it may have been stored all the same
		if j.waiting != nil {
			j.waiting(err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("writing to %s: %w (last error: %w)", j.subject, ctx.Err(), err)
		case <-time.After(retryAfter):
		}
	}
}

const tryTime = 5 * time.Second

func wrongSequence(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// stored reports whether the newest message is this one, stored by an earlier try whose answer was lost.
func (j *journal) stored(ctx context.Context, data []byte, doubt bool) (seq uint64, mine bool, err error) {
	for doubt {
		msg, err := j.conn.Last(ctx, stream.Verdicts, j.subject)
		if err == nil && msg.Seq > j.last {
			return msg.Seq, bytes.Equal(msg.Data, data), nil
		}
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return 0, false, err
		}
		select { // a server that lags behind has answered
		case <-ctx.Done():
			return 0, false, ctx.Err()
		case <-time.After(retryAfter):
		}
	}
	return 0, false, nil
}

// Refusals returns, for the dictionaries of a partition that have places, which of their series are refused, by their numbers. Where no limits have ever been
// set, there are none.
func Refusals(ctx context.Context, conn *stream.Conn, partition int) (map[frame.DictID]func(series int) bool, error) {
	if _, err := conn.JS.Stream(ctx, conn.Stream(stream.Verdicts)); errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	j := journal{conn: conn, subject: conn.Verdicts(partition)}
	live, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	refusals := map[frame.DictID]func(int) bool{}
	for id, w := range live {
		if len(w.Refused) > 0 {
			refusals[id] = marks(w.Refused).has
		}
	}
	return refusals, nil
}
