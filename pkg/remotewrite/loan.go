package remotewrite

import (
	"bytes"
	"io"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
)

// loan is a copy of a body for net/http. Its transport may go on reading after Send has returned an early answer or an error, when the body is already in use for the next
// request. What it reads is of the standard library's own kind, since only such a body goes out with the header in one piece.
type loan struct {
	body []byte
	open atomic.Int64 // connections that were found for the request, less those that it was written to
}

var loans = sync.Pool{New: func() any { return new(loan) }}

// maxLoan is the largest memory in bytes that is kept for the next body.
const maxLoan = 1 << 20

func lend(body []byte) *loan {
	l := loans.Get().(*loan)
	l.body = append(l.body[:0], body...)
	l.open.Store(0)
	return l
}

func (l *loan) reader() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l.body)), nil }

func (l *loan) gotConn(httptrace.GotConnInfo) { l.open.Add(1) }

func (l *loan) wroteRequest(httptrace.WroteRequestInfo) { l.open.Add(-1) }

// end lets the next body have the memory, unless somebody may still read this one.
func (l *loan) end() {
	if l.open.Load() == 0 && cap(l.body) <= maxLoan {
		loans.Put(l)
	}
}
