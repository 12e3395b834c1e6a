package status

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace/millrace/pkg/stream"
)

const (
	// patience is how long members may take to answer.
	patience = 2 * time.Second
	// grace is how long processes are waited for that are no members yet: nobody knows how many there are.
	grace = 200 * time.Millisecond
	// maxAnswers bounds the answers that are read.
	maxAnswers = 10_000
	// noResponders is the status of NATS's own answer where nobody hears a question.
	noResponders = "503"
)

// ask asks all processes how they stand. It returns when the expected ones have answered, or when they have had time to: the rest does not answer. Answers that
// cannot be read are returned as errors.
func ask(ctx context.Context, conn *stream.Conn, expected []string) (reports map[string]*Report, unread []error, err error) {
	reports = map[string]*Report{}
	q := question{subject: conn.Status(), expected: expected, grace: grace, read: func(b []byte) (string, error) {
		r, err := decodeReport(b)
		if err != nil {
			return "", err
		}
		reports[r.Member.ID] = r
		return r.Member.ID, nil
	}}
	if unread, _, err = q.ask(ctx, conn); err != nil {
		return reports, unread, fmt.Errorf("asking the members how they stand: %w", err)
	}
	return reports, unread, nil
}

// question is what is asked of all processes at once.
type question struct {
	subject  string
	data     []byte
	expected []string      // who is to answer
	grace    time.Duration // how long others are waited for when the expected ones have answered
	// read reads an answer and returns whose it is.
	read func([]byte) (member string, err error)
}

// ask returns when the expected processes have answered, or when they have had time to. unread are answers that could not be read, silent those who did not answer.
func (q *question) ask(ctx context.Context, conn *stream.Conn) (unread []error, silent []string, err error) {
	inbox := conn.NC.NewInbox()
	sub, err := conn.NC.SubscribeSync(inbox)
	if err != nil {
		return nil, q.expected, err
	}
	defer sub.Unsubscribe()
	if err := conn.NC.PublishRequest(q.subject, inbox, q.data); err != nil {
		return nil, q.expected, err
	}
	start := time.Now()
	missing := map[string]bool{}
	for _, id := range q.expected {
		missing[id] = true
	}
	for range maxAnswers {
		until := start.Add(patience)
		if len(missing) == 0 {
			until = start.Add(q.grace)
		}
		if !time.Now().Before(until) {
			break
		}
		waiting, cancel := context.WithDeadline(ctx, until)
		msg, err := sub.NextMsgWithContext(waiting)
		cancel()
		if err != nil || len(msg.Data) == 0 && msg.Header.Get("Status") == noResponders {
			break
		}
		id, err := q.read(msg.Data)
		if err != nil {
			unread = append(unread, err)
			continue
		}
		delete(missing, id)
	}
	return unread, slices.Sorted(maps.Keys(missing)), ctx.Err()
}

// inOrder returns reports in the order of their members' IDs.
func inOrder(reports map[string]*Report) []*Report {
	var list []*Report
	for _, id := range slices.Sorted(maps.Keys(reports)) {
		list = append(list, reports[id])
	}
	return list
}
