package tail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

const (
	// queueLength is how many samples wait for whoever takes them, some 100 bytes each.
	queueLength = 8192
	// MaxPerSecond is how many samples a tail shows in a second: more than anybody reads, and few enough to cost a service little. The rest is left out and counted.
	MaxPerSecond = 20_000
	// maxBehind is how many messages the tail may be behind. Then it goes on at the stream's end.
	maxBehind = 1024
	// sayEvery is how often it is said at most what was left out.
	sayEvery = time.Second
	// idleTime is how long an unused consumer stays, should the one who made it be killed.
	idleTime = time.Minute
)

// ErrUnknownEndpoint is returned by [Open] for an endpoint that has never got anything.
var ErrUnknownEndpoint = errors.New("no series have ever been relabelled for it; `millrace status` lists the endpoints")

// Tail shows samples as they pass. Next is for one goroutine.
type Tail struct {
	query Query
	dicts *dictionaries
	conn  *stream.Conn
	items chan item
	shown uint64
	said  time.Time

	samples, unlabelled, messages atomic.Uint64 // what was left out and has not been said

	second  time.Time // of the reader: when it began to count
	counted int       // samples since

	cancel context.CancelFunc
	ended  chan struct{}
	err    error // why the reader ended, once ended is closed
	once   sync.Once
}

// Open begins with what is stored from now on. The caller calls Close.
func Open(ctx context.Context, conn *stream.Conn, q Query) (*Tail, error) {
	match, err := q.check()
	if err != nil {
		return nil, err
	}
	if q.Endpoint != "" {
		_, err := conn.Last(ctx, stream.Relabelled, conn.AllRelabelled(q.Endpoint))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil, fmt.Errorf("endpoint %q: %w", q.Endpoint, ErrUnknownEndpoint)
		}
		if err != nil {
			return nil, err
		}
	}
	t := &Tail{query: q, dicts: newDictionaries(conn, q.Endpoint, match), conn: conn, items: make(chan item, queueLength), ended: make(chan struct{}), said: time.Now()}
	stop, err := t.dicts.follow()
	if err != nil {
		return nil, fmt.Errorf("following what is relabelled: %w", err)
	}
	it, err := t.consume(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t.cancel = cancel
	go func() {
		defer close(t.ended)
		defer stop()
		t.err = t.read(reading, it)
	}()
	return t, nil
}

// Close ends it.
func (t *Tail) Close() { t.once.Do(t.cancel) }

// consume makes a consumer that begins at the stream's end.
func (t *Tail) consume(ctx context.Context) (jetstream.MessagesContext, error) {
	oc, err := t.conn.Ordered(ctx, stream.Frames, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{t.conn.AllFrames()}, DeliverPolicy: jetstream.DeliverNewPolicy, InactiveThreshold: idleTime,
	})
	if err != nil {
		return nil, fmt.Errorf("reading frames from the end of the stream on: %w", err)
	}
	return oc.Messages(jetstream.PullMaxMessages(16))
}

// read reads frames until ctx ends.
func (t *Tail) read(ctx context.Context, it jetstream.MessagesContext) error {
	release := stopAfter(ctx, it)
	defer func() { release() }()
	var buf []byte
	var f frame.Frame
	for {
		msg, err := stream.Next(it)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("reading frames: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("reading frames: %w", err)
		}
		if meta.NumPending > maxBehind {
			t.messages.Add(meta.NumPending + 1)
			release()
			if it, err = t.consume(ctx); err != nil {
				return err
			}
			release = stopAfter(ctx, it)
			continue
		}
		partition, err := t.conn.PartitionIn(msg.Subject())
		if err != nil {
			return err
		}
		if buf, err = frame.Each(msg.Data(), buf, &f, func(f *frame.Frame) error { return t.frame(ctx, partition, f) }); err != nil {
			return err
		}
	}
}

// stopAfter lets a consumer go when ctx ends, or when the function that it returns is called. While the server is away, the client does so only after some time, for which nobody waits.
func stopAfter(ctx context.Context, it jetstream.MessagesContext) (release func()) {
	cancel := context.AfterFunc(ctx, it.Stop)
	return func() {
		if cancel() {
			go it.Stop()
		}
	}
}

// frame takes over the samples of a frame that are selected.
func (t *Tail) frame(ctx context.Context, partition int, f *frame.Frame) error {
	for i := range f.Sections {
		s := &f.Sections[i]
		e, err := t.dicts.get(ctx, partition, s.Dict)
		if err != nil {
			return err
		}
		if e == nil || len(e.series) > 0 && len(e.series) != s.Series {
			t.unlabelled.Add(uint64(len(s.Values) + len(s.Histograms)))
			continue
		}
		if e.series != nil {
			t.section(e.series, f, s)
		}
	}
	return nil
}

// section takes over the samples of a section that are selected.
func (t *Tail) section(series []labels.Labels, f *frame.Frame, s *frame.Section) {
	for k, v := range s.Values {
		i, at, start := s.At(f, k)
		if ls := series[i]; !ls.IsEmpty() {
			t.put(item{labels: ls, time: at, start: start, value: v})
		}
	}
	for k := range s.Histograms {
		h := s.Histograms[k]
		if ls := series[h.Index]; !ls.IsEmpty() {
			t.put(item{labels: ls, time: h.Time, start: h.Start, histogram: &h})
		}
	}
	for k := range s.Exemplars {
		x := s.Exemplars[k]
		if ls := series[x.Index]; !ls.IsEmpty() {
			at := x.Ts
			if !x.HasTs {
				at = f.Time
			}
			t.put(item{labels: ls, time: at, exemplar: &x.Exemplar})
		}
	}
}

// put hands an item over, unless there are too many.
func (t *Tail) put(i item) {
	if now := time.Now(); now.Sub(t.second) >= time.Second {
		t.second, t.counted = now, 0
	}
	if t.counted++; t.counted > MaxPerSecond {
		t.samples.Add(1)
		return
	}
	select {
	case t.items <- i:
	default:
		t.samples.Add(1)
	}
}

// Next waits for the next event. It returns [io.EOF] where as many were shown as were asked for, the context's error where that ends first, and another where the stream cannot be read any more.
func (t *Tail) Next(ctx context.Context) (Event, error) {
	if t.query.Limit > 0 && t.shown >= t.query.Limit {
		return Event{}, io.EOF
	}
	for {
		wait := sayEvery - time.Since(t.said)
		if wait <= 0 {
			t.said = time.Now()
			if m := t.missed(); m != nil {
				return Event{Missed: m}, nil
			}
			wait = sayEvery
		}
		select { // what waits comes first
		case i := <-t.items:
			return t.show(&i), nil
		default:
		}
		timer := time.NewTimer(wait)
		select {
		case i := <-t.items:
			timer.Stop()
			return t.show(&i), nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Event{}, ctx.Err()
		case <-t.ended:
			timer.Stop()
			select {
			case i := <-t.items:
				return t.show(&i), nil
			default:
				return Event{}, t.err
			}
		}
	}
}

func (t *Tail) show(i *item) Event {
	if i.exemplar == nil {
		t.shown++
	}
	return i.event()
}

// missed returns what was left out since the last time; nil, where nothing was.
func (t *Tail) missed() *Missed {
	m := Missed{Samples: t.samples.Swap(0), Unlabelled: t.unlabelled.Swap(0), Messages: t.messages.Swap(0)}
	if m == (Missed{}) {
		return nil
	}
	return &m
}

// Waiting reports whether there is an event that Next returns at once.
func (t *Tail) Waiting() bool { return len(t.items) > 0 }

// Reason says in a sentence why a tail has ended.
func Reason(err error) string {
	if errors.Is(err, jetstream.ErrMsgIteratorClosed) || strings.Contains(err.Error(), "connection closed") {
		return "the process that was asked stops"
	}
	return err.Error()
}
