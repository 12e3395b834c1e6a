package limit

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/millrace/millrace/pkg/frame"
)

const recordVersion = 1

// record is a message of VERDICTS after its version byte: what a partition has decided. Of the records of a dictionary, the last one holds.
type record struct {
	// Owner is a number that the process which wrote the record has drawn for itself.
	Owner uint64 `msgpack:"owner"`
	// Dict names the dictionary that the verdict is for; empty in records without a verdict.
	Dict []byte `msgpack:"dict,omitempty"`
	// Series is how many it has.
	Series int `msgpack:"n,omitempty"`
	// Refused and Merged have a bit for each series, eight to a byte, the lowest first: those that are refused, and those that go without the labels Drop.
	// None, where it is empty.
	Refused []byte   `msgpack:"refused,omitempty"`
	Merged  []byte   `msgpack:"merged,omitempty"`
	Drop    []string `msgpack:"drop,omitempty"`
	// Stops are the limits that the dictionary has met.
	Stops []stop `msgpack:"stops,omitempty"`
	// Freed names dictionaries whose series have no places any more, 16 bytes each.
	Freed []byte `msgpack:"freed,omitempty"`
}

// stop says that a limit has kept series of a metric out, or would have.
type stop struct {
	Kind   Kind   `msgpack:"kind"`
	Name   string `msgpack:"name"` // of the target, job or metric, like those below no longer than maxName; "" for all
	Metric string `msgpack:"metric"`
	Series int    `msgpack:"n"`
	Label  string `msgpack:"label,omitempty"` // that has grown most
}

// maxStops is how many a record holds, the largest.
const maxStops = 32

func (r *record) encode() []byte {
	b, err := msgpack.Marshal(r)
	if err != nil {
		panic(err) // bytes, texts and numbers
	}
	return append([]byte{recordVersion}, b...)
}

const (
	// maxRecord is how large records are to be, in bytes: half of what NATS takes by default.
	maxRecord = 1 << 19
	// maxRead is the largest that is read. Where max_payload was raised, there are records from before names were bounded.
	maxRead = 8 << 20
)

func decodeRecord(b []byte) (*record, error) {
	if len(b) < 2 || len(b) > maxRead {
		return nil, fmt.Errorf("record of %d bytes", len(b))
	}
	if b[0] != recordVersion {
		return nil, fmt.Errorf("record of version %d, this build reads version %d", b[0], recordVersion)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields(true) // to pass over one, the decoder would take what memory its length claims
	r := &record{}
	if err := dec.Decode(r); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	const id = len(frame.DictID{})
	switch {
	case len(r.Dict) != 0 && len(r.Dict) != id || len(r.Freed)%id != 0:
		return nil, fmt.Errorf("names of dictionaries in %d and %d bytes", len(r.Dict), len(r.Freed))
	case r.Series < 0 || r.Series > frame.MaxSeries:
		return nil, fmt.Errorf("verdict on %d series", r.Series)
	}
	for _, s := range r.Stops {
		if s.Kind < Target || s.Kind > All {
			return nil, errors.New("limit of an unknown kind")
		}
	}
	return r, nil
}

// marks is a set of series by their numbers, as records have it.
type marks []byte

func (b marks) has(i int) bool { return i/8 < len(b) && b[i/8]&(1<<(i%8)) != 0 }

func (b *marks) set(i int) {
	for i/8 >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[i/8] |= 1 << (i % 8)
}
