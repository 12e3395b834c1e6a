package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	smallestBuffer = 4 << 10
	// firstBuffer is the most that a request gets before it has sent or unpacked anything: what headers announce is
	// no reason to hold memory.
	firstBuffer = 64 << 10
	bufferSizes = 20 // 4 KiB, 8 KiB, … 2 GiB
)

// memory is the budget of the bodies of all requests of a door, and the buffers that they use again.
type memory struct {
	limit int64
	used  atomic.Int64
	gauge prometheus.Gauge
	pools [bufferSizes]sync.Pool // of *[]byte whose capacity is smallestBuffer << index
}

// errFull says that the budget of a door is used up.
var errFull = errors.New("too many bytes in flight")

// errTooLarge says that a body is beyond its limit.
var errTooLarge = errors.New("body too large")

func (m *memory) reserve(n int64) error {
	if m.used.Add(n) > m.limit {
		m.used.Add(-n)
		return errFull
	}
	m.gauge.Add(float64(n))
	return nil
}

func (m *memory) free(n int64) {
	m.used.Add(-n)
	m.gauge.Sub(float64(n))
}

// buffer is bytes within the budget. The zero one is empty; whoever grows one releases it.
type buffer struct {
	memory *memory
	room   *[]byte // from a pool
	b      []byte  // what is filled of it
	size   int     // index of the pool
}

// grow makes room for at least n bytes in all, keeping what is there.
func (b *buffer) grow(n int) error {
	if b.room != nil && n <= cap(b.b) {
		return nil
	}
	size := max(0, bits.Len(uint(max(n, 1)-1))-bits.Len(uint(smallestBuffer-1)))
	if size >= bufferSizes {
		return errTooLarge
	}
	// Old and new are both held while one is copied to the other, and so both count.
	if err := b.memory.reserve(smallestBuffer << size); err != nil {
		return err
	}
	room, _ := b.memory.pools[size].Get().(*[]byte)
	if room == nil {
		fresh := make([]byte, smallestBuffer<<size)
		room = &fresh
	}
	filled := (*room)[:copy(*room, b.b)]
	b.release()
	b.room, b.b, b.size = room, filled, size
	return nil
}

func (b *buffer) release() {
	if b.room == nil {
		return
	}
	b.memory.pools[b.size].Put(b.room)
	b.memory.free(smallestBuffer << b.size)
	b.room, b.b = nil, nil
}

// fill reads r to its end, of which at most limit bytes are taken: errTooLarge beyond. The hint is how many bytes are
// expected; it may be wrong.
func (b *buffer) fill(ctx context.Context, r io.Reader, limit, hint int64) error {
	// A byte more than is expected, so that the end is found without growing.
	if err := b.grow(int(min(max(hint, 0), limit, firstBuffer-1)) + 1); err != nil {
		return err
	}
	for {
		if int64(len(b.b)) == limit {
			return atEnd(r)
		}
		if len(b.b) == cap(b.b) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.grow(len(b.b) + 1); err != nil {
				return err
			}
		}
		n, err := r.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if int64(len(b.b)) > limit {
			return errTooLarge
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// atEnd returns nil if r has no more bytes.
func atEnd(r io.Reader) error {
	var more [1]byte
	n, err := io.ReadFull(r, more[:])
	switch {
	case n > 0:
		return errTooLarge
	case err == io.EOF:
		return nil
	}
	return err
}

// readable is a size as the texts of refusals say it.
func readable(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
