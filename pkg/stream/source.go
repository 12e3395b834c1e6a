package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// source is an ordered consumer that is read from.
type source struct {
	conn   *Conn
	stream string
	oc     jetstream.Consumer
	it     jetstream.MessagesContext
	first  uint64        // of a mailbox: the number of the first message that it delivers, or one before
	asking chan struct{} // has room for the one Pending that waits for its answer
}

// delivery is what a source brings.
type delivery struct {
	from *source
	msg  jetstream.Msg
	err  error
}

// open makes a source, which fetches as many messages ahead.
func (c *Conn) open(ctx context.Context, stream string, ahead int, cfg jetstream.OrderedConsumerConfig) (*source, error) {
	oc, err := c.Ordered(ctx, stream, cfg)
	if err != nil {
		return nil, err
	}
	it, err := oc.Messages(jetstream.PullMaxMessages(ahead))
	if err != nil {
		return nil, err
	}
	return &source{conn: c, stream: stream, oc: oc, it: it, asking: make(chan struct{}, 1)}, nil
}

// pump takes the messages from JetStream, until one is an error, the source is not current any more, or closing is closed. The client waits for as long as the server is away,
// whatever a reader's context says, so readers wait for pump instead.
func (s *source) pump(to chan<- delivery, closing <-chan struct{}, current func(*source) bool) {
	for {
		msg, err := Next(s.it)
		if !current(s) {
			return
		}
		select {
		case to <- delivery{s, msg, err}:
		case <-closing:
			return
		}
		if err != nil {
			return
		}
	}
}

// removeTime is how long a consumer's removal may take. Its reader has gone on.
const removeTime = 5 * time.Second

// letGo ends the source, and removes its consumer from the server, which would else keep it until it has been idle for long. The client may wait for the server in that.
func (s *source) letGo() {
	s.it.Stop()
	info := s.oc.CachedInfo()
	if info == nil || !s.conn.NC.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTime)
	defer cancel()
	_ = s.conn.JS.DeleteConsumer(ctx, s.conn.Stream(s.stream), info.Name)
}

// messageOf returns a message and what JetStream says of its delivery.
func messageOf(msg jetstream.Msg) (Message, *jetstream.MsgMetadata, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Message{}, nil, err
	}
	return Message{
		Subject: msg.Subject(), Header: msg.Headers(), Data: msg.Data(), Seq: meta.Sequence.Stream, Time: meta.Timestamp, Pending: meta.NumPending,
	}, meta, nil
}

// idleConsumer is how long JetStream keeps the consumer of a reader that asks for nothing because its endpoint takes nothing. A reader that comes
// back later gets a new one, but finds out only after missing heartbeats, some 10 s later.
const idleConsumer = time.Hour

// consume makes a consumer of what is behind the last message that Next has returned.
func (m *Mailbox) consume(ctx context.Context) (*source, error) {
	m.mu.Lock()
	first := m.last + 1
	m.mu.Unlock()
	s, err := m.conn.open(ctx, m.cfg.Stream, m.cfg.ReadAhead, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{m.cfg.Filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: first,
		InactiveThreshold: idleConsumer,
	})
	if err != nil {
		return nil, fmt.Errorf("reading %s from %d: %w", m.cfg.Filter, first, err)
	}
	s.first = first
	return s, nil
}

// reads reports whether the mailbox reads from a source.
func (m *Mailbox) reads(s *source) bool { return m.source.Load() == s }

const (
	// guardEvery is how often a mailbox looks whether its reader waits in vain, and vainTime for how long it does before the consumer is given up.
	guardEvery = 5 * time.Second
	vainTime   = 15 * time.Second
)

// guard gives the consumer up where the reader waits for messages that are there, or nobody can tell whether there are any, although the connection stands. The client makes an ordered
// consumer anew by itself, under a name that it keeps until it has succeeded. Where the cluster has put that consumer on a server that was lost
// just then, it does not succeed before the server is back.
func (m *Mailbox) guard(ctx context.Context) {
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	well := time.Now()
	for last := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		read := m.last
		m.mu.Unlock()
		if !m.awaited.Load() || read != last || !m.conn.NC.IsConnected() {
			well, last = time.Now(), read
			continue
		}
		asked, cancel := context.WithTimeout(ctx, guardEvery)
		n, err := m.Pending(asked)
		cancel()
		m.mu.Lock()
		read = m.last
		m.mu.Unlock()
		if err == nil && n == 0 || read != last {
			well, last = time.Now(), read
		}
		if time.Since(well) < vainTime || ctx.Err() != nil {
			continue
		}
		m.log.Warn("Waiting in vain for messages; reading by another consumer", "filter", m.cfg.Filter, "unread", n, "err", err)
		if err := m.renew(ctx); err != nil {
			m.log.Warn("Cannot make another consumer, trying again", "err", err)
		}
		well = time.Now()
	}
}

// renew goes on with another consumer, unless the reader has meanwhile got on by the one that it has.
func (m *Mailbox) renew(ctx context.Context) error {
	m.renewing.Lock()
	defer m.renewing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, vainTime)
	defer cancel()
	s, err := m.consume(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	behind := m.last+1 == s.first
	old := s
	if behind {
		old = m.source.Swap(s)
	}
	m.mu.Unlock()
	if behind {
		go s.pump(m.messages, m.closing, m.reads)
	}
	go old.letGo()
	return nil
}

// errAsking is returned by Pending while an earlier question has no answer.
var errAsking = errors.New("an earlier question has no answer yet")

// Pending asks JetStream how many messages of the filter are behind the last one that Next returned.
func (m *Mailbox) Pending(ctx context.Context) (uint64, error) {
	type answer struct {
		info *jetstream.ConsumerInfo
		err  error
	}
	s := m.source.Load()
	select {
	case s.asking <- struct{}{}: // several ask at the same times, and most answers come at once
	case <-ctx.Done():
		return 0, fmt.Errorf("asking how much of %s is unread: %w", m.cfg.Filter, errAsking)
	}
	answers := make(chan answer, 1)
	go func() { // the client waits for a consumer that is being made anew, whatever ctx says
		defer func() { <-s.asking }()
		info, err := s.oc.Info(ctx)
		answers <- answer{info, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	if a.err != nil {
		return 0, fmt.Errorf("asking how much of %s is unread: %w", m.cfg.Filter, a.err)
	}
	m.mu.Lock()
	consumer, read := m.consumer, m.read
	m.mu.Unlock()
	// What is delivered and not read is fetched ahead. (Delivered.Stream does not tell: it passes over messages of other subjects.)
	ahead := a.info.Delivered.Consumer
	if consumer == a.info.Name {
		ahead -= min(read, ahead)
	}
	return a.info.NumPending + ahead, nil
}
