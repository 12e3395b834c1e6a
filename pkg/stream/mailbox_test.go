package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
)

func open(t *testing.T, c *Conn, change ...func(*MailboxConfig)) *Mailbox {
	t.Helper()
	cfg := MailboxConfig{Stream: Frames, Filter: c.Frames(0), Key: "reader.0"}
	for _, f := range change {
		f(&cfg)
	}
	m, err := c.OpenMailbox(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// kill ends a mailbox as the end of its process does: nothing is stored.
func kill(m *Mailbox) {
	m.stop()
	<-m.done
	close(m.closing)
	m.source.Load().it.Stop()
}

func next(t *testing.T, m *Mailbox) Message {
	t.Helper()
	msg, err := m.Next(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func expect(t *testing.T, m *Mailbox, texts ...string) (last Message) {
	t.Helper()
	for _, want := range texts {
		if last = next(t, m); string(last.Data) != want {
			t.Fatalf("got %q, want %q", last.Data, want)
		}
	}
	return last
}

// position returns what is stored under the key that open uses.
func position(t *testing.T, c *Conn) (p storedPosition, revision uint64) {
	t.Helper()
	kv, err := c.JS.KeyValue(t.Context(), c.Bucket(positions))
	if err != nil {
		t.Fatal(err)
	}
	entry, err := kv.Get(t.Context(), "reader.0")
	if err != nil {
		t.Fatal(err)
	}
	if p, err = decodePosition(entry.Value()); err != nil {
		t.Fatal(err)
	}
	return p, entry.Revision()
}

func texts(from, to int) (list []string) {
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprint("message ", i))
	}
	return list
}

func TestAMailboxDeliversItsSubjectInOrder(t *testing.T) {
	c := newConn(t)
	want := texts(0, 50)
	for i, text := range want[:40] {
		publish(t, c, c.Frames(i%2), "of partition "+fmt.Sprint(i%2))
		publish(t, c, c.Frames(0), text)
	}
	m := open(t, c)
	defer m.Close()
	var got []string
	var last uint64
	for len(got) < 40 {
		msg := next(t, m)
		if msg.Seq <= last || msg.Subject != c.Frames(0) || msg.Time.IsZero() {
			t.Fatalf("message %d after %d on %s", msg.Seq, last, msg.Subject)
		}
		last = msg.Seq
		if string(msg.Data) != "of partition 0" {
			got = append(got, string(msg.Data))
		}
	}
	publish(t, c, c.Frames(0), want[40:]...)
	for len(got) < len(want) {
		got = append(got, string(next(t, m).Data))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAMailboxGoesOnWhereItsReaderEnded(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*Mailbox)
		want string
	}{
		"closed": {(*Mailbox).Close, "message 3"},
		"killed": {kill, "message 1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(t)
			publish(t, c, c.Frames(0), texts(0, 5)...)
			m := open(t, c)
			m.Handled(expect(t, m, "message 0").Seq, 10)
			if err := m.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			kill(m)
			m = open(t, c)
			if p := m.Position(); p != (Position{Seq: 1, Mark: 10}) {
				t.Errorf("position %+v", p)
			}
			m.Handled(expect(t, m, "message 1", "message 2").Seq, 30)
			expect(t, m, "message 3") // read, but not handled
			test.end(m)
			m = open(t, c)
			defer m.Close()
			// A killed reader may have stored its position within the second, or not.
			if msg := next(t, m); string(msg.Data) != test.want && string(msg.Data) != "message 3" {
				t.Errorf("goes on with %q, want %q", msg.Data, test.want)
			}
		})
	}
}

func TestAMailboxCanBeginAtTheEnd(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), "old")
	fromEnd := func(cfg *MailboxConfig) { cfg.FromEnd = true }
	// The beginning does not depend on when the reader handles something.
	kill(open(t, c, fromEnd))
	publish(t, c, c.Frames(0), "new")
	kill(open(t, c, fromEnd))
	m := open(t, c, fromEnd)
	defer m.Close()
	expect(t, m, "new")
}

func TestThePositionIsStoredOnceASecond(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 1)...)
	m := open(t, c)
	defer m.Close()
	_, before := position(t, c)
	start := time.Now()
	mark := uint64(0)
	await.True(t, "a stored position", func() bool {
		mark++
		m.Handled(1, mark)
		p, _ := position(t, c)
		return p.Mark > 0
	})
	_, after := position(t, c)
	// Revisions are numbers of the bucket's messages, which nobody else writes.
	if writes, seconds := after-before, uint64(time.Since(start)/time.Second); writes > seconds+1 {
		t.Errorf("%d positions were stored in %d s", writes, seconds)
	}
	m.Handled(1, 1<<40)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := position(t, c); p.Seq != 1 || p.Mark != 1<<40 {
		t.Errorf("Flush stored %+v", p)
	}
	_, before = position(t, c)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, after := position(t, c); after != before {
		t.Error("Flush stored a position that had not changed")
	}
}

func TestOfTwoReadersOneLearnsThatItsPositionHasMoved(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 3)...)
	paused := open(t, c)
	defer paused.Close()
	expect(t, paused, "message 0")
	m := open(t, c)
	defer m.Close()
	expect(t, m, "message 0", "message 1")
	m.Handled(2, 2)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	paused.Handled(1, 1)
	if err := paused.Flush(t.Context()); !errors.Is(err, ErrMoved) {
		t.Errorf("Flush of the paused reader returned %v", err)
	}
	if _, err := paused.Next(t.Context()); !errors.Is(err, ErrMoved) {
		t.Errorf("Next of the paused reader returned %v", err)
	}
	if p, _ := position(t, c); p.Seq != 2 || p.Mark != 2 {
		t.Errorf("the stored position is %+v", p)
	}
	m.Handled(expect(t, m, "message 2").Seq, 3)
	if err := m.Flush(t.Context()); err != nil {
		t.Errorf("Flush of the other reader returned %v", err)
	}
}

func TestAReaderThatWaitsLearnsThatItsPositionHasMoved(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 1)...)
	paused, m := open(t, c), open(t, c)
	defer paused.Close()
	defer m.Close()
	expect(t, paused, "message 0")
	m.Handled(1, 1)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	paused.Handled(1, 2)
	if _, err := paused.Next(patient(t)); !errors.Is(err, ErrMoved) {
		t.Errorf("Next returned %v", err)
	}
}

func TestAPositionWhoseAnswerWasLostIsTheReadersOwn(t *testing.T) {
	c := newConn(t)
	m := open(t, c)
	defer m.Close()
	// As if earlier tries had been stored without this reader's knowledge.
	for mark := range uint64(2) {
		value := encodePosition(storedPosition{Seq: 1, Mark: mark, Owner: m.stored.owner})
		if _, err := m.stored.kv.Put(t.Context(), "reader.0", value); err != nil {
			t.Fatal(err)
		}
	}
	m.Handled(2, 7)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := position(t, c); p.Seq != 2 || p.Mark != 7 {
		t.Errorf("the stored position is %+v", p)
	}
}

func TestPositionsCanBeStoredFromSeveralGoroutines(t *testing.T) {
	c := newConn(t)
	m := open(t, c)
	defer m.Close()
	done := make(chan error)
	for g := range uint64(4) {
		go func() {
			for i := range uint64(20) {
				m.Handled(1, g<<32|i+1)
				if err := m.Flush(t.Context()); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestADeletedPositionIsStoredAgain(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 2)...)
	m := open(t, c)
	if err := m.stored.kv.Delete(t.Context(), "reader.0"); err != nil {
		t.Fatal(err)
	}
	m.Handled(1, 1)
	m.Close()
	if p, _ := position(t, c); p.Seq != 1 {
		t.Errorf("the stored position is %+v", p)
	}
	if err := m.stored.kv.Delete(t.Context(), "reader.0"); err != nil {
		t.Fatal(err)
	}
	m = open(t, c)
	defer m.Close()
	expect(t, m, "message 0")
}

func TestAnotherGenerationReadsAllAgain(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 2)...)
	generation := func(g uint64) func(*MailboxConfig) {
		return func(cfg *MailboxConfig) { cfg.Generation = g }
	}
	// The third is the first again: what it had done was done over by the second.
	for _, g := range []uint64{1, 2, 1} {
		m := open(t, c, generation(g))
		m.Handled(expect(t, m, "message 0", "message 1").Seq, 0)
		m.Close()
	}
	publish(t, c, c.Frames(0), "message 2")
	m := open(t, c, generation(1))
	defer m.Close()
	expect(t, m, "message 2")
}

func TestAStreamMadeAnewIsReadFromItsBeginning(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 5)...)
	m := open(t, c)
	m.Handled(expect(t, m, texts(0, 5)...).Seq, 5)
	m.Close()
	if err := c.JS.DeleteStream(t.Context(), c.Stream(Frames)); err != nil {
		t.Fatal(err)
	}
	ensure(t, c)
	publish(t, c, c.Frames(0), "first", "second")
	m = open(t, c)
	defer m.Close()
	if p := m.Position(); p != (Position{}) {
		t.Errorf("position %+v in a new stream", p)
	}
	expect(t, m, "first", "second")
}

func TestAMailboxBeginsBehindWhatRetentionHasTaken(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 5)...)
	s, err := c.JS.Stream(t.Context(), c.Stream(Frames))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	m := open(t, c)
	defer m.Close()
	expect(t, m, "message 3", "message 4")
}

func TestAMailboxOutlivesItsServer(t *testing.T) {
	o := newOutside(t)
	c, publisher := connect(t, Config{URL: o.url()}), connect(t, Config{URL: o.url()})
	ensure(t, c)
	const all, each = 60, 20
	published := make(chan error, 1)
	go func() {
		for _, text := range texts(0, all) {
			if _, err := publisher.Publish(t.Context(), &nats.Msg{Subject: c.Frames(0), Data: []byte(text)}, nil); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	m := open(t, c)
	defer m.Close()
	var got []string
	for len(got) < all {
		msg := next(t, m)
		m.Handled(msg.Seq, 0)
		// A publisher whose answer was lost publishes again.
		if text := string(msg.Data); len(got) == 0 || got[len(got)-1] != text {
			got = append(got, text)
			if len(got)%each == 0 && len(got) < all {
				o.stop()
				o.start()
			}
		}
	}
	if err := <-published; err != nil {
		t.Error(err)
	}
	if want := texts(0, all); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNobodyWaitsForAServerThatIsAway(t *testing.T) {
	o := newOutside(t)
	c := connect(t, Config{URL: o.url()})
	ensure(t, c)
	publish(t, c, c.Frames(0), "message 0")
	m := open(t, c)
	expect(t, m, "message 0")
	o.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next returned %v", err)
	}
	for range 2 {
		if _, err := m.Pending(ctx); err == nil {
			t.Error("Pending knows how much waits on a server that is away")
		}
	}
	o.start()
	await.True(t, "an answer from the server that is back", func() bool {
		n, err := m.Pending(patient(t))
		return err == nil && n == 0
	})
	m.Close()
}

// Readers and the guard of a mailbox ask at the same times: that none of them takes it for a consumer that does not answer.
func TestAllThatAskAtOnceAreAnswered(t *testing.T) {
	m := open(t, newConn(t))
	defer m.Close()
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			if n, err := m.Pending(patient(t)); n != 0 || err != nil {
				t.Errorf("%d messages unread, %v", n, err)
			}
		})
	}
	asking.Wait()
}

func TestPendingCountsWhatWasNotRead(t *testing.T) {
	c := newConn(t)
	m := open(t, c, func(cfg *MailboxConfig) { cfg.ReadAhead = 3 })
	defer m.Close()
	pending := func(want uint64) {
		t.Helper()
		await.True(t, fmt.Sprint(want, " messages unread"), func() bool {
			n, err := m.Pending(patient(t))
			return err == nil && n == want
		})
	}
	pending(0)
	publish(t, c, c.Frames(0), texts(0, 10)...)
	publish(t, c, c.Frames(1), "of another partition")
	pending(10)
	expect(t, m, texts(0, 4)...)
	pending(6)
	expect(t, m, texts(4, 9)...)
	pending(1)
	if msg := next(t, m); msg.Pending != 0 {
		t.Errorf("the last message says that %d follow", msg.Pending)
	}
	pending(0)
}

// TestNoConsumerIsLeftBehind counts what the server keeps of mailboxes that have another consumer, or are closed, and of a past that was read.
func TestNoConsumerIsLeftBehind(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), "a", "b")
	consumers := func(n int) func() bool {
		return func() bool {
			info, err := c.streamInfo(t.Context(), Frames)
			return err == nil && info.State.Consumers == n
		}
	}
	m := open(t, c)
	expect(t, m, "a")
	if err := m.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	await.True(t, "one consumer", consumers(1))
	expect(t, m, "b")
	m.Close()
	await.True(t, "no consumer", consumers(0))
	if err := c.Past(t.Context(), Frames, c.Frames(0), time.Unix(0, 0), func(Message) error { return nil }); err != nil {
		t.Fatal(err)
	}
	await.True(t, "no consumer", consumers(0))
}

func TestAPositionOfANewerMillraceIsLeftAlone(t *testing.T) {
	c := newConn(t)
	kv, err := c.JS.KeyValue(t.Context(), c.Bucket(positions))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "reader.0", []byte{positionVersion + 1, 0x80}); err != nil {
		t.Fatal(err)
	}
	if m, err := c.OpenMailbox(t.Context(), MailboxConfig{Stream: Frames, Filter: c.Frames(0), Key: "reader.0"}); err == nil {
		m.Close()
		t.Error("the mailbox opened")
	}
	if entry, err := kv.Get(t.Context(), "reader.0"); err != nil || entry.Value()[0] != positionVersion+1 {
		t.Errorf("the entry has changed: %v", err)
	}
}

func TestAnotherConsumerGoesOnWhereTheLastWas(t *testing.T) {
	c := newConn(t)
	m := open(t, c)
	defer m.Close()
	for i := range 40 {
		publish(t, c, c.Frames(0), fmt.Sprint(i))
	}
	for i := range 40 {
		expect(t, m, fmt.Sprint(i))
		if i%7 == 0 {
			if err := m.renew(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n, err := m.Pending(t.Context()); n != 0 || err != nil {
		t.Errorf("%d messages are unread: %v", n, err)
	}
}
