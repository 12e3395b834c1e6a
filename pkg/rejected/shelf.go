package rejected

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/stream"
)

// Batch is a part of a request that was refused, without its samples.
type Batch struct {
	// Message is the number of its message in the stream.
	Message  uint64 `json:"message"`
	Endpoint string `json:"endpoint"`
	// Time is when the answer came.
	Time time.Time `json:"time,omitzero"`
	// Protocol is as in "remote_write 2.0".
	Protocol string `json:"protocol"`
	Samples  int    `json:"samples"`
	// Bytes is the size of the message.
	Bytes int `json:"bytes"`
	// Status and Answer are what the endpoint answered.
	Status int    `json:"status"`
	Answer string `json:"answer"`
	// Unreadable says why there is nothing but the message's number, endpoint and size.
	Unreadable string `json:"unreadable,omitempty"`
}

// Page is a part of the list of batches, the newest first.
type Page struct {
	Batches []Batch `json:"batches"`
	// Older is what to list before for older ones; 0 where there are none.
	Older uint64 `json:"older"`
	// Messages and Bytes are what the stream holds of all endpoints.
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
}

// ErrGone is returned for a batch that the stream does not hold, or no longer.
var ErrGone = errors.New("the stream REJECTED does not hold it, or no longer")

const (
	// maxBatches bounds a page; maxRead how many messages are read for it that are not known yet: they are as large as requests are.
	maxBatches = 100
	maxRead    = 100
	// maxKnown bounds the batches that are held.
	maxKnown = 4096
	// maxAnswer bounds the answer that a page shows, in bytes.
	maxAnswer = 2048
)

// Shelf reads the stream. What it has listed once it does not read again: a message never changes. It is safe for concurrent use.
type Shelf struct {
	// Conn reaches the stream.
	Conn *stream.Conn

	mu    sync.Mutex
	known map[uint64]Batch
}

// List returns up to n batches of an endpoint, or of all where there is none given: those before a message's number, or the newest where it is 0. There may be fewer although
// there are older ones, where others lie between.
func (s *Shelf) List(ctx context.Context, endpoint string, before uint64, n int) (*Page, error) {
	st, err := s.Conn.State(ctx, stream.Rejected)
	if err != nil {
		return nil, err
	}
	p := &Page{Batches: []Batch{}, Messages: st.Messages, Bytes: st.Bytes}
	if st.Messages == 0 {
		return p, nil
	}
	s.forget(st.First)
	seq := st.Last
	if before > 0 {
		seq = min(seq, before-1)
	}
	read := 0
	for ; seq >= st.First && seq > 0; seq-- {
		if len(p.Batches) == min(n, maxBatches) || read == maxRead {
			p.Older = seq + 1
			break
		}
		b, known := s.recall(seq)
		if !known {
			read++
			if b, err = s.read(ctx, seq); errors.Is(err, ErrGone) {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		if endpoint == "" || b.Endpoint == endpoint {
			p.Batches = append(p.Batches, b)
		}
	}
	return p, nil
}

// read reads what is not known yet.
func (s *Shelf) read(ctx context.Context, seq uint64) (Batch, error) {
	msg, err := s.message(ctx, seq)
	if err != nil {
		return Batch{}, err
	}
	b, _ := s.describe(&msg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[uint64]Batch{}
	}
	if len(s.known) < maxKnown {
		s.known[seq] = b
	}
	return b, nil
}

func (s *Shelf) recall(seq uint64) (Batch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.known[seq]
	return b, ok
}

// forget lets go of what the stream no longer holds; where too many are known, of all.
func (s *Shelf) forget(first uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxKnown {
		clear(s.known)
	}
	for seq := range s.known {
		if seq < first {
			delete(s.known, seq)
		}
	}
}

func (s *Shelf) message(ctx context.Context, seq uint64) (stream.Message, error) {
	msg, err := s.Conn.Get(ctx, stream.Rejected, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return msg, fmt.Errorf("message %d: %w", seq, ErrGone)
	}
	return msg, err
}

// describe returns what a message says of itself, and the request in it; none where it cannot be read.
func (s *Shelf) describe(msg *stream.Message) (Batch, *stream.Rejection) {
	b := Batch{Message: msg.Seq, Endpoint: strings.TrimPrefix(msg.Subject, s.Conn.Rejected("")), Time: msg.Time.UTC(), Bytes: len(msg.Data)}
	r, err := stream.ReadRejection(msg.Data)
	if err != nil {
		b.Unreadable = err.Error()
		return b, nil
	}
	b.Time, b.Samples, b.Status, b.Answer = time.UnixMilli(r.Time).UTC(), r.Samples, r.Status, r.Answer
	b.Protocol = fmt.Sprintf("remote_write %d.0", r.Protocol)
	if len(b.Answer) > maxAnswer {
		b.Answer = strings.ToValidUTF8(b.Answer[:maxAnswer], "") + "…"
	}
	return b, r
}
