package limit

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

const askVersion = 1

// ask is what a partition says to the accountant, behind a version byte: how many series it has, and how many more it wants places for. Numbers of series are whole ones, not changes, so
// that an ask may be repeated.
type ask struct {
	// Epoch is the accountant's that the partition is known to; 0 where to none.
	Epoch uint64 `msgpack:"epoch"`
	// Partition is the partition's number, Lease the epoch of its lease, and Session a number that its owner has drawn when it began.
	Partition int    `msgpack:"partition"`
	Lease     uint64 `msgpack:"lease"`
	Session   uint64 `msgpack:"session"`
	// Reset begins a full account of what the partition has, and Last ends it.
	Reset bool `msgpack:"reset,omitempty"`
	Last  bool `msgpack:"last,omitempty"`
	// Have are the partition's numbers of series.
	Have []count `msgpack:"have,omitempty"`
	// Job is whose series Want is for: groups by metric.
	Job  string `msgpack:"job,omitempty"`
	Want []want `msgpack:"want,omitempty"`
	// StandIns is whether they go without labels.
	StandIns bool `msgpack:"standins,omitempty"`
}

// count is a number of series.
type count struct {
	Kind Kind   `msgpack:"kind"`
	Name string `msgpack:"name"` // "" for all
	N    int    `msgpack:"n"`
}

type want struct {
	Metric string `msgpack:"metric"`
	N      int    `msgpack:"n"`
}

// status is how an ask ended.
type status uint8

const (
	// granted: Grants are the answer.
	granted status = iota
	// unknown: the accountant wants a full account first.
	unknown
	// incomplete: the accountant does not know yet what other partitions have.
	incomplete
	// moved: another process has the partition now.
	moved
)

// reply is the accountant's answer.
type reply struct {
	Epoch  uint64  `msgpack:"epoch"`
	Status status  `msgpack:"status"`
	Grants []grant `msgpack:"grants,omitempty"` // one for each of Want
	// Missing are the partitions that the accountant waits for.
	Missing []int `msgpack:"missing,omitempty"`
}

// grant says how many places there are for a group.
type grant struct {
	N int `msgpack:"n"`
	// By is the limit that leaves no more; 0 where there are enough.
	By Kind `msgpack:"by,omitempty"`
	// Over is by how many limits that only warn are exceeded, by kind.
	Over []over `msgpack:"over,omitempty"`
}

type over struct {
	Kind Kind `msgpack:"kind"`
	N    int  `msgpack:"n"`
}

func encodeMessage(v any) []byte {
	b, err := msgpack.Marshal(v)
	if err != nil {
		panic(err) // numbers and texts
	}
	return append([]byte{askVersion}, b...)
}

func decodeMessage(b []byte, into any) error {
	if len(b) < 2 {
		return errors.New("empty message")
	}
	if b[0] != askVersion {
		return fmt.Errorf("message of version %d, this build reads version %d", b[0], askVersion)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields(true) // to pass over one, the decoder would take what memory its length claims
	return dec.Decode(into)
}
