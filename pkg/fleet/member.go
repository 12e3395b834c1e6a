package fleet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"
)

// Member is a process of the fleet, as it describes itself.
type Member struct {
	// ID names the process. A process that starts again has another.
	ID string `msgpack:"id"`
	// Host is the machine's name, Address where the process serves its page and metrics.
	Host    string `msgpack:"host"`
	Address string `msgpack:"address"`
	// Services are what it runs.
	Services []string `msgpack:"services"`
	// Version is that of the program, ConfigHash that of its configuration.
	Version    string `msgpack:"version"`
	ConfigHash string `msgpack:"config"`
	// Started is when the process started.
	Started time.Time `msgpack:"started"`
	// Seen is when its entry was last written, by the clock of NATS.
	Seen time.Time `msgpack:"-"`

	revision uint64 // of its entry
}

// NewID returns an ID for a process that starts now on a machine. It can be part of a subject.
func NewID(host string) string {
	var b strings.Builder
	for _, c := range host {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			b.WriteRune(c)
		} else {
			b.WriteByte('_')
		}
	}
	return fmt.Sprintf("%s-%08x", b.String(), rand.Uint32())
}

// Lease is who owns a share.
type Lease struct {
	// Owner is the ID of a member.
	Owner string `msgpack:"owner"`
	// Epoch is greater than that of every owner before.
	Epoch uint64 `msgpack:"-"`
}

const (
	memberVersion = 1
	leaseVersion  = 1
)

func encode(version byte, v any) []byte {
	b, err := msgpack.Marshal(v)
	if err != nil {
		panic(err) // strings and a time
	}
	return append([]byte{version}, b...)
}

// maxEntry is the largest entry of a member or lease that is read, in bytes.
const maxEntry = 64 << 10

func decode(b []byte, version byte, what string, v any) (err error) {
	defer func() { // the msgpack package does so where a list stands for a struct
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %v", what, p)
		}
	}()
	if len(b) == 0 || len(b) > maxEntry {
		return fmt.Errorf("%s of %d bytes", what, len(b))
	}
	if b[0] != version {
		return fmt.Errorf("%s of version %d, this build reads version %d: upgrade this process", what, b[0], version)
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields(true) // to pass over one, the decoder would take what memory its length claims
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// neighbours returns the n members that follow id in the order of their IDs, going round.
func neighbours(id string, members []string, n int) []string {
	sorted := slices.Sorted(slices.Values(members))
	at, found := slices.BinarySearch(sorted, id)
	if found {
		sorted = slices.Delete(sorted, at, at+1)
	}
	var next []string
	for i := range min(n, len(sorted)) {
		next = append(next, sorted[(at+i)%len(sorted)])
	}
	return next
}
