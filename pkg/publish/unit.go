package publish

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/pkg/frame"
)

// Dict is a dictionary as a message of the stream DICTS ([frame.NewDictionary]).
type Dict struct {
	ID  frame.DictID
	Msg []byte
}

// Frame is an encoded frame ([frame.Encoder]).
type Frame struct {
	// Data is the frame as the encoder has made it.
	Data []byte
	// Time is that of the frame, in milliseconds.
	Time int64
	// Samples is how many it holds.
	Samples int
}

// Unit is what a service publishes as one: the frames of a scrape, or those of a request that belong to one partition. A unit without frames is a barrier: it is done
// when all that was offered to the partition before it is, and makes no batch go early. Once offered and taken, a unit and its memory are the publishers'.
type Unit struct {
	// Job is what the frames come from, for people.
	Job string
	// Dicts are the dictionaries that the frames refer to. They are in the stream before the frames are.
	Dicts []Dict
	// Frames are published in this order. They may be spread over several batches.
	Frames []Frame
	// Samples is how many the frames hold together.
	Samples int
	// Bytes is the memory that Budget counts for the unit, until it is done.
	Bytes int
	// Linger is how long the unit may wait for others of its partition from the offer on.
	Linger time.Duration
	// Budget bounds the memory of the service; nil for a unit that takes none.
	Budget *Budget
	// Waits makes a unit that has frames a barrier besides: its sender waits for what was offered before, too.
	Waits bool
	// Done, which may be nil, is called once for a unit that was taken, in the order of the offers of its partition:
	//
	//   - With nil, when JetStream has acknowledged all of the unit, and the same is so, or has been found out not to be so, for every unit before it.
	//   - With a [DroppedError], where the stream does not get the unit, or not all of it. A barrier gets one where it has waited for a unit that was dropped.
	//
	// It is called by the partition's actor, so it must not block.
	Done func(error)

	flush    bool // the batch goes with this unit
	barrier  bool
	deadline time.Time
	drops    uint64 // units of the partition that had been dropped when this one was offered

	batched, batchedFrames int // samples and frames in the batch that is not acknowledged yet
	lost                   int // samples that were dropped
	reason                 error
}

// ErrDropped is wrapped by what [Unit.Done] gets for a unit that was dropped.
var ErrDropped = errors.New("dropped")

// DroppedError says what of a unit is not in the stream, and why. It wraps [ErrDropped] and the reason.
type DroppedError struct {
	// Samples is how many of the unit's are not in the stream, as far as the process knows: an acknowledgement may have been lost. It is 0 for a barrier, whose own
	// frames are there.
	Samples int
	// Reason is why.
	Reason error
}

func (e *DroppedError) Error() string {
	if e.Samples == 0 {
		return fmt.Sprintf("%v: %v", ErrDropped, e.Reason)
	}
	return fmt.Sprintf("%d samples %v: %v", e.Samples, ErrDropped, e.Reason)
}

// Unwrap makes errors.Is find [ErrDropped] and the reason.
func (e *DroppedError) Unwrap() []error { return []error{ErrDropped, e.Reason} }

// drop notes that samples of the unit are not published.
func (u *Unit) drop(samples int, reason error) {
	u.lost += samples
	if u.reason == nil {
		u.reason = reason
	}
}

// left returns how many samples the frames hold that are in no batch yet.
func (u *Unit) left() int {
	n := 0
	for i := range u.Frames {
		n += u.Frames[i].Samples
	}
	return n
}

// Budget bounds what the units of a service take of memory. It is safe for concurrent use.
type Budget struct {
	limit   int64
	pending atomic.Int64
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Limit returns how many bytes may be taken.
func (b *Budget) Limit() int64 { return b.limit }

// Pending returns how many bytes are taken: of units that are neither acknowledged nor dropped.
func (b *Budget) Pending() int64 { return b.pending.Load() }

// Take takes n bytes, or none where that many are not left. [Publishers.Offer] takes the unit's and gives them back when it is done; a service calls Take itself for
// what it holds besides.
func (b *Budget) Take(n int64) bool {
	for {
		have := b.pending.Load()
		if have+n > b.limit {
			return false
		}
		if b.pending.CompareAndSwap(have, have+n) {
			return true
		}
	}
}

// Give gives back what Take has taken.
func (b *Budget) Give(n int64) { b.pending.Add(-n) }
