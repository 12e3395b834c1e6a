package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/stream"
)

// Record is a replay as it stands in the bucket. It is JSON, whose decoder takes no length on trust.
type Record struct {
	// Version is that of this format.
	Version int `json:"version"`
	// Spec is what was asked for; Rate is the newest one.
	Spec Spec `json:"spec"`
	// Created is when it was asked for: the now of the spec's times.
	Created time.Time `json:"created"`
	// Stopped says that nothing is sent for now.
	Stopped bool `json:"stopped"`
	// HeldSince is set where the stream had lost older messages, and some of the time asked for with them: what it held was stored (or refused, with Rejected) then or later.
	HeldSince time.Time `json:"heldSince,omitzero"`
	// Parts bound what is to be read: one for each partition, or one where what was rejected is sent.
	Parts []Part `json:"parts"`
}

// Part bounds one partition's messages.
type Part struct {
	// After and End are sequence numbers: what lies behind After up to End is read.
	After uint64 `json:"after"`
	End   uint64 `json:"end"`
	// Messages is how many messages lie between.
	Messages uint64 `json:"messages"`
}

const recordVersion = 1

// How far the storage of samples may lie from their timestamps.
const (
	// Lead is how much earlier than its timestamp a sample may have been stored: clocks differ.
	Lead = 10 * time.Minute
	// Late is how much later. A Prometheus server that catches up after an outage sends samples that are two hours old.
	Late = 6 * time.Hour
)

// ErrRecord is returned for an entry of the bucket that cannot be read.
var ErrRecord = errors.New("not a replay")

func (r *Record) encode() ([]byte, error) {
	r.Version = recordVersion
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the replay %q: %w", r.Spec.Name, err)
	}
	return b, nil
}

// Decode reads an entry of the bucket.
func Decode(b []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%w: it is of version %d, this build reads version %d; upgrade it", ErrRecord, r.Version, recordVersion)
	}
	if _, err := r.Selection(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return &r, nil
}

// Selection is which samples are to be sent.
func (r *Record) Selection() (Selection, error) { return r.Spec.Select(r.Created) }

// Position returns the key of a part's position. It is not that of an earlier replay of the same name, which a reader may still hold.
func (r *Record) Position(part int) string {
	return fmt.Sprintf("replay.%s-%x.%d", r.Spec.Name, r.Created.UnixMilli(), part)
}

// plan finds what a replay has to read.
func plan(ctx context.Context, conn *stream.Conn, spec Spec, partitions int, now time.Time) (*Record, error) {
	r := &Record{Spec: spec, Created: now.UTC().Truncate(time.Millisecond)}
	sel, err := r.Selection()
	if err != nil {
		return nil, err
	}
	name, parts, subject := stream.Frames, partitions, conn.Frames
	if spec.Rejected {
		name, parts, subject = stream.Rejected, 1, func(int) string { return conn.Rejected(spec.Endpoint) }
	}
	since, until := time.UnixMilli(sel.From).Add(-Lead), time.UnixMilli(sel.To).Add(Late)
	if spec.Rejected { // long after the samples' own times
		since, until = time.Unix(0, 0), now.Add(Lead)
	}
	for p := range parts {
		var part Part
		first, err := conn.CutAt(ctx, name, subject(p), since)
		if err != nil {
			return nil, err
		}
		if first.Later > 0 {
			behind, err := conn.CutAt(ctx, name, subject(p), until)
			if err != nil {
				return nil, err
			}
			part.After, part.Messages = first.Before, first.Later-min(first.Later, behind.Later)
			if behind.Later > 0 {
				part.End = max(behind.Before, part.After)
			}
		}
		r.Parts = append(r.Parts, part)
	}
	// Behind what was counted: a replay is to read no less, or it would miss messages that were not there to be read.
	state, err := conn.State(ctx, name)
	if err != nil {
		return nil, err
	}
	for i := range r.Parts {
		switch part := &r.Parts[i]; {
		case part.End != 0:
		case part.Messages == 0:
			part.After, part.End = state.Last, state.Last
		default:
			part.End = state.Last
		}
	}
	if lost := state.First > 1 && (state.Messages == 0 || state.Oldest.UnixMilli() > sel.From); lost {
		if r.HeldSince = state.Oldest.UTC(); state.Messages == 0 {
			r.HeldSince = now.UTC()
		}
	}
	return r, nil
}

// Progress is what has become of one part's samples up to its position. It is the position's note.
type Progress struct {
	// Samples were selected and sent, or counted by a dry run; Refused of them went to REJECTED.
	Samples uint64 `json:"samples"`
	Refused uint64 `json:"refused,omitempty"`
	// Lost were in the time asked for and have no labels any more, cannot be read, or had gone from the stream before they were read.
	Lost uint64 `json:"lost,omitempty"`
	// Unsupported are histograms that the endpoint's protocol cannot carry.
	Unsupported uint64 `json:"unsupported,omitempty"`
	// Bytes are those of request bodies.
	Bytes uint64 `json:"bytes"`
	// Series counts different series; only a dry run does so. AtLeast says that there were too many to tell them apart.
	Series  uint64 `json:"series,omitempty"`
	AtLeast bool   `json:"atLeast,omitempty"`
	// Messages have been handled.
	Messages uint64 `json:"messages"`
	// Waiting says on what; empty while samples flow.
	Waiting string `json:"waiting,omitempty"`
}

// Note returns the progress as it is stored.
func (p *Progress) Note() []byte {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // a few numbers and a string
	}
	return b
}

// ReadProgress reads a position's note; none is no progress.
func ReadProgress(note []byte) (p Progress, err error) {
	if len(note) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(note, &p); err != nil {
		return Progress{}, fmt.Errorf("progress of a replay: %w", err)
	}
	p.Waiting = strings.ToValidUTF8(p.Waiting, "")
	return p, nil
}
