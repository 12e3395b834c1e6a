package replay

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// The states of a replay.
const (
	Running = "running"
	Stopped = "stopped"
	Done    = "done"
	Removed = "removed" // only in the answer to the stop that removed it
)

// Status is how a replay stands. Its JSON is the API's.
type Status struct {
	Spec
	// State is [Running], [Stopped], [Done] or [Removed].
	State string `json:"state"`
	// Created is when it was asked for. FromTime and ToTime are the times of the spec; zero where it names none.
	Created  time.Time `json:"created"`
	FromTime time.Time `json:"fromTime,omitzero"`
	ToTime   time.Time `json:"toTime,omitzero"`
	// HeldSince is set where the stream had lost some of the time asked for: it held only what was stored then or later.
	HeldSince time.Time `json:"heldSince,omitzero"`
	// Samples were selected: sent, refused, or counted by a dry run.
	Samples uint64 `json:"samples"`
	// Sent were accepted, Refused went to REJECTED. Both are 0 in a dry run.
	Sent    uint64 `json:"sent"`
	Refused uint64 `json:"refused"`
	// Skipped are those of the time asked for that could not be sent: Lost had no labels any more, could not be read, or had gone from the stream; Unsupported
	// are histograms that the protocol cannot carry.
	Skipped     uint64 `json:"skipped"`
	Lost        uint64 `json:"lost"`
	Unsupported uint64 `json:"unsupported"`
	// Bytes are those of the request bodies. Series is counted in a dry run; SeriesAtLeast says that there are more.
	Bytes         uint64 `json:"bytes"`
	Series        uint64 `json:"series"`
	SeriesAtLeast bool   `json:"seriesAtLeast,omitempty"`
	// Messages of the stream have been handled, of AllMessages.
	Messages    uint64 `json:"messages"`
	AllMessages uint64 `json:"allMessages"`
	// Waiting says on what; empty while samples flow.
	Waiting string `json:"waiting,omitempty"`
}

// Fraction is how much of it is done, from 0 to 1.
func (s *Status) Fraction() float64 {
	switch {
	case s.State == Done || s.AllMessages == 0:
		return 1
	default:
		return min(float64(s.Messages)/float64(s.AllMessages), 1)
	}
}

// status adds up the parts.
func (m *Manager) status(ctx context.Context, rec *Record) (Status, error) {
	st := Status{Spec: rec.Spec, State: Done, Created: rec.Created, HeldSince: rec.HeldSince}
	sel, err := rec.Selection()
	if err != nil {
		return st, err
	}
	if rec.Spec.From != "" {
		st.FromTime = time.UnixMilli(sel.From).UTC()
	}
	if rec.Spec.To != "" || rec.Spec.From != "" {
		st.ToTime = time.UnixMilli(sel.To).UTC()
	}
	for i, part := range rec.Parts {
		st.AllMessages += part.Messages
		pos, note, _, err := m.Conn.StoredPosition(ctx, rec.Position(i))
		if err != nil {
			return st, err
		}
		if pos.Seq < part.End && part.End != part.After {
			st.State = Running
		}
		p, err := ReadProgress(note)
		if err != nil {
			return st, err
		}
		st.Samples += p.Samples
		st.Refused += p.Refused
		st.Lost += p.Lost
		st.Unsupported += p.Unsupported
		st.Bytes += p.Bytes
		st.Series += p.Series
		st.SeriesAtLeast = st.SeriesAtLeast || p.AtLeast
		st.Messages += p.Messages
		if p.Waiting != "" {
			st.Waiting = p.Waiting
		}
	}
	st.AllMessages = max(st.AllMessages, st.Messages) // some may have come while they were counted
	st.Skipped = st.Lost + st.Unsupported
	if !rec.Spec.DryRun {
		st.Sent = st.Samples - min(st.Refused, st.Samples)
	}
	if st.State == Running && rec.Stopped {
		st.State = Stopped
	}
	switch {
	case st.State != Running:
		st.Waiting = ""
	case m.Endpoints != nil && rec.Spec.Endpoint != "" && !slices.Contains(m.Endpoints(), rec.Spec.Endpoint):
		st.Waiting = fmt.Sprintf("waiting: the configuration has no endpoint %q any more; add it again, or stop the replay", rec.Spec.Endpoint)
	}
	return st, nil
}
