package stream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/vmihailenco/msgpack/v5"
)

// ErrMoved is returned where another reader has taken over a mailbox's position.
var ErrMoved = errors.New("another reader has taken the position over")

// ErrUnreadable is wrapped by the error for a position that is there and cannot be read.
var ErrUnreadable = errors.New("position cannot be read")

// Position is how far a reader has come.
type Position struct {
	// Seq is the sequence number of the last message handled.
	Seq uint64
	// Mark is the reader's own count, kept with Seq.
	Mark uint64
}

const positionVersion = 1

// storedPosition is an entry of the bucket of positions after its version byte.
type storedPosition struct {
	Seq  uint64 `msgpack:"seq"`
	Mark uint64 `msgpack:"mark"`
	// Generation is MailboxConfig's.
	Generation uint64 `msgpack:"gen,omitempty"`
	// Marks are the reader's counts by source, see [Mailbox.HandledFrom]: pairs of eight bytes, big endian.
	Marks []byte `msgpack:"marks,omitempty"`
	// Since is when the position was made, in milliseconds since 1970.
	Since int64 `msgpack:"since,omitempty"`
	// Owner is a number that the reader which wrote the entry has drawn for itself. By it, the reader knows an entry as its own
	// that was written by a try whose answer was lost.
	Owner uint64 `msgpack:"owner,omitempty"`
}

func encodePosition(p storedPosition) []byte {
	b, err := msgpack.Marshal(&p)
	if err != nil {
		panic(err) // a few integers
	}
	return append([]byte{positionVersion}, b...)
}

func decodePosition(b []byte) (p storedPosition, err error) {
	if len(b) == 0 || b[0] != positionVersion {
		return p, fmt.Errorf("%w: entry %.100x is not of version %d; it was written by a newer Millrace: upgrade this one", ErrUnreadable, b, positionVersion)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields(true) // to pass over one, the decoder would take what memory its length claims
	if err := dec.Decode(&p); err != nil {
		return storedPosition{}, fmt.Errorf("%w: entry %.100x: %w", ErrUnreadable, b, err)
	}
	return p, nil
}

// positionEntry is a position's entry in the bucket, as one reader writes it. It is safe for concurrent use.
type positionEntry struct {
	kv         jetstream.KeyValue
	key        string
	generation uint64
	owner      uint64
	lost       chan struct{} // closed when another reader has written the entry

	mu       sync.Mutex // held while the entry is written: one write at a time
	present  bool       // the entry exists at revision
	revision uint64
	written  Position
	since    int64
}

func newPositionEntry(kv jetstream.KeyValue, key string, generation uint64) *positionEntry {
	return &positionEntry{kv: kv, key: key, generation: generation, owner: rand.Uint64() | 1, lost: make(chan struct{})}
}

// maxMarks is how many counts a position keeps; those of the sources that were heard of longest ago go first.
const maxMarks = 1024

func packMarks(marks map[uint64]uint64) []byte {
	var b []byte
	for _, source := range slices.Sorted(maps.Keys(marks)) {
		b = binary.BigEndian.AppendUint64(b, source)
		b = binary.BigEndian.AppendUint64(b, marks[source])
	}
	return b
}

func unpackMarks(b []byte) map[uint64]uint64 {
	marks := make(map[uint64]uint64, len(b)/16)
	for ; len(b) >= 16; b = b[16:] {
		marks[binary.BigEndian.Uint64(b)] = binary.BigEndian.Uint64(b[8:])
	}
	return marks
}

// load returns the stored position and counts, where there are some of this generation.
func (e *positionEntry) load(ctx context.Context) (pos Position, marks map[uint64]uint64, found bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	entry, err := e.kv.Get(ctx, e.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Position{}, nil, false, nil
	}
	if err != nil {
		return Position{}, nil, false, err
	}
	have, err := decodePosition(entry.Value())
	if err != nil {
		return Position{}, nil, false, err
	}
	e.revision = entry.Revision()
	if have.Generation != e.generation {
		return Position{}, nil, false, nil
	}
	e.present, e.written, e.since = true, Position{have.Seq, have.Mark}, have.Since
	return e.written, unpackMarks(have.Marks), true, nil
}

// store writes the position, unless that is what the entry has. Where another reader has written the entry in the meantime, it returns
// [ErrMoved], now and ever after.
func (e *positionEntry) store(ctx context.Context, pos Position, marks []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.lost:
		return ErrMoved
	default:
	}
	if e.present && e.written == pos {
		return nil
	}
	if !e.present && e.since == 0 {
		e.since = time.Now().UnixMilli()
	}
	value := encodePosition(storedPosition{Seq: pos.Seq, Mark: pos.Mark, Marks: marks, Since: e.since, Generation: e.generation, Owner: e.owner})
	ctx, cancel := context.WithTimeout(ctx, conflictTime)
	defer cancel()
	for pause := firstConflictPause; ; pause = min(2*pause, maxConflictPause) {
		revision, err := e.write(ctx, value)
		if err == nil {
			e.present, e.revision, e.written = true, revision, pos
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) && !errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return err
		}
		adopted, adoptErr := e.adopt(ctx)
		switch {
		case adoptErr != nil:
			return adoptErr
		case adopted:
			continue
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// What another reader has just written may not be read yet, since any replica of the bucket answers. These say how long it is waited for.
const (
	firstConflictPause, maxConflictPause = 10 * time.Millisecond, 500 * time.Millisecond

	conflictTime = 10 * time.Second
)

func (e *positionEntry) write(ctx context.Context, value []byte) (revision uint64, err error) {
	if e.revision == 0 {
		return e.kv.Create(ctx, e.key, value)
	}
	return e.kv.Update(ctx, e.key, value, e.revision)
}

// adopt looks at the entry after a write that has met an unexpected revision. It takes the entry as the one to write over, if this reader has written it itself; if
// another has, it returns [ErrMoved]. It reports false where it does not find what the write has met: a replica has answered that does not have it yet, or somebody has deleted the entry to
// start afresh, and the reader that runs makes it again.
func (e *positionEntry) adopt(ctx context.Context) (bool, error) {
	entry, err := e.kv.Get(ctx, e.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		e.revision = 0
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if entry.Revision() == e.revision {
		return false, nil
	}
	if have, err := decodePosition(entry.Value()); err != nil || have.Owner != e.owner {
		close(e.lost)
		return false, ErrMoved
	}
	if entry.Revision() < e.revision {
		return false, nil
	}
	e.revision = entry.Revision()
	return true, nil
}
