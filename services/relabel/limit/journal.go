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
	last    uint64       // sequence number of the last message
	newest  frame.DictID // of which the last verdict was that was read
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
			j.newest = frame.DictID(r.Dict)
			live[j.newest] = &written{r, msg.Time}
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

// append stores a record, and tries again until it is stored, ctx ends, or another process has written: [ErrMoved]. One that NATS never takes is [stream.ErrTooLarge].
func (j *journal) append(ctx context.Context, r *record) error {
	r.Owner = j.owner
	msg := &nats.Msg{Subject: j.subject, Data: j.encode(r)}
	for doubt := false; ; {
		try, cancel := context.WithTimeout(ctx, tryTime)
		ack, err := j.conn.JS.PublishMsg(try, msg, jetstream.WithExpectLastSequencePerSubject(j.last), jetstream.WithRetryAttempts(0))
		cancel()
		if err == nil {
			j.last = ack.Sequence
			return nil
		}
		if errors.Is(err, nats.ErrMaxPayload) {
			return tooLarge(j.conn, j.subject, len(msg.Data))
		}
		if wrongSequence(err) {
			found, err := j.look(ctx, msg.Data, doubt)
			switch {
			case err != nil:
				return err
			case found == another:
				return fmt.Errorf("writing to %s: %w", j.subject, ErrMoved)
			case found == mine:
				return nil
			}
			continue
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

// finding is what stands where another message was expected to be the last.
type finding uint8

const (
	another finding = iota // message, of another process
	mine                   // stored by an earlier try whose answer was lost
	nothing                // the last message has passed with the stream's retention
)

// look finds out why a message is not taken behind the last one, and where the next goes. doubt is whether an earlier try may have stored the message.
func (j *journal) look(ctx context.Context, data []byte, doubt bool) (finding, error) {
	for began := time.Now(); ; {
		msg, err := j.conn.Last(ctx, stream.Verdicts, j.subject)
		switch {
		case err == nil && msg.Seq > j.last:
			if !doubt || !bytes.Equal(msg.Data, data) {
				return another, nil
			}
			j.last = msg.Seq
			return mine, nil
		case err != nil && !errors.Is(err, jetstream.ErrMsgNotFound):
			return another, err
		case err != nil && j.conn.IsEmpty(ctx, stream.Verdicts, j.subject):
			j.last = 0
			return nothing, nil
		case time.Since(began) > tryTime:
			return another, nil // who takes the partition over reads all anew, which is right whatever has happened
		}
		select { // a server that lags behind has answered
		case <-ctx.Done():
			return another, ctx.Err()
		case <-time.After(retryAfter):
		}
	}
}

// most returns how large records are to be, in bytes.
func (j *journal) most() int { return min(maxRecord, j.conn.MaxMessage()) }

// encode returns a record as it is stored. It names fewer of the limits that were met where it would be too large.
func (j *journal) encode(r *record) []byte {
	data := r.encode()
	for len(data) > j.most() && len(r.Stops) > 0 {
		r.Stops = r.Stops[:len(r.Stops)/2]
		data = r.encode()
	}
	return data
}

// tooLarge is the error of a message that NATS never takes.
func tooLarge(conn *stream.Conn, subject string, size int) error {
	return fmt.Errorf("%d bytes to %s: %w: at most %d bytes; raise max_payload of the NATS server", size, subject, stream.ErrTooLarge, conn.MaxMessage())
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
