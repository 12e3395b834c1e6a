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
	// Note is the reader's own, see [Mailbox.SetNote].
	Note []byte `msgpack:"note,omitempty"`
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
	kv         jetstream.KeyValue // nil: nothing is stored
	key        string
	generation uint64
	owner      uint64
	lost       chan struct{} // closed when another reader has written the entry

	mu       sync.Mutex // held while the entry is written: one write at a time
	present  bool       // the entry exists at revision
	revision uint64
	written  Position
	noted    []byte
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

// load returns what is stored, where that is of this generation.
func (e *positionEntry) load(ctx context.Context) (have storedPosition, found bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kv == nil {
		return storedPosition{}, false, nil
	}
	entry, err := e.kv.Get(ctx, e.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return storedPosition{}, false, nil
	}
	if err != nil {
		return storedPosition{}, false, err
	}
	if have, err = decodePosition(entry.Value()); err != nil {
		return storedPosition{}, false, err
	}
	e.revision = entry.Revision()
	if have.Generation != e.generation {
		return storedPosition{}, false, nil
	}
	e.present, e.written, e.noted, e.since = true, Position{have.Seq, have.Mark}, have.Note, have.Since
	return have, true, nil
}

// store writes the position and the note, unless that is what the entry has. Where another reader has written the entry in the meantime, it returns
// [ErrMoved], now and ever after.
func (e *positionEntry) store(ctx context.Context, pos Position, marks, note []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.lost:
		return ErrMoved
	default:
	}
	if e.kv == nil || e.present && e.written == pos && bytes.Equal(e.noted, note) {
		return nil
	}
	if !e.present && e.since == 0 {
		e.since = time.Now().UnixMilli()
	}
	value := encodePosition(storedPosition{Seq: pos.Seq, Mark: pos.Mark, Marks: marks, Note: note, Since: e.since, Generation: e.generation, Owner: e.owner})
	ctx, cancel := context.WithTimeout(ctx, conflictTime)
	defer cancel()
	for pause := firstConflictPause; ; pause = min(2*pause, maxConflictPause) {
		revision, err := e.write(ctx, value)
		if err == nil {
			e.present, e.revision, e.written, e.noted = true, revision, pos, note
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

// StoredPosition returns how far the reader of a mailbox has come by what is stored, and its note. found is false where there is none.
func (c *Conn) StoredPosition(ctx context.Context, key string) (pos Position, note []byte, found bool, err error) {
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return pos, nil, false, fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	entry, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return pos, nil, false, nil
	}
	if err != nil {
		return pos, nil, false, fmt.Errorf("position of %s: %w", key, err)
	}
	have, err := decodePosition(entry.Value())
	if err != nil {
		return pos, nil, false, fmt.Errorf("position of %s: %w", key, err)
	}
	return Position{have.Seq, have.Mark}, have.Note, true, nil
}

// RemovePosition removes a stored position, which no reader uses any more. That there is none is no error.
func (c *Conn) RemovePosition(ctx context.Context, key string) error {
	kv, err := c.JS.KeyValue(ctx, c.Bucket(positions))
	if err != nil {
		return fmt.Errorf("opening the bucket %s: %w", c.Bucket(positions), err)
	}
	if err := kv.Delete(ctx, key); err != nil {
		return fmt.Errorf("removing the position of %s: %w", key, err)
	}
	return nil
}
