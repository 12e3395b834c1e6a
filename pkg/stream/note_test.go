package stream

import (
	"testing"
	"time"
)

func TestANoteIsKeptWithThePosition(t *testing.T) {
	c := newConn(t)
	publish(t, c, c.Frames(0), texts(0, 5)...)
	cfg := MailboxConfig{Stream: Frames, Filter: c.Frames(0), Key: "replay.x.0", After: 2}
	open := func() *Mailbox {
		t.Helper()
		m, err := c.OpenMailbox(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	if n := m.Note(); n != nil {
		t.Errorf("a new mailbox has the note %q", n)
	}
	msg := expect(t, m, "message 2", "message 3")
	m.HandledNoted(msg.Seq, 7, map[uint64]uint64{1: 2}, []byte("so far"))
	m.Close()
	pos, note, found, err := c.StoredPosition(t.Context(), cfg.Key)
	if want := (Position{Seq: 4, Mark: 7}); err != nil || !found || pos != want || string(note) != "so far" {
		t.Errorf("stored: %+v %q %t %v, want %+v", pos, note, found, err, want)
	}

	m = open()
	if n := m.Note(); string(n) != "so far" {
		t.Errorf("the next reader finds the note %q", n)
	}
	m.SetNote([]byte("waiting"))
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	pos, note, _, err = c.StoredPosition(t.Context(), cfg.Key)
	if err != nil || pos.Seq != 4 || string(note) != "waiting" {
		t.Errorf("with a new note: %+v %q %v", pos, note, err)
	}
	expect(t, m, "message 4")
	m.Close()

	if err := c.RemovePosition(t.Context(), cfg.Key); err != nil {
		t.Fatal(err)
	}
	if _, _, found, err := c.StoredPosition(t.Context(), cfg.Key); found || err != nil {
		t.Errorf("a removed position: found %t, %v", found, err)
	}
	m = open()
	defer m.Close()
	expect(t, m, "message 2")
}

func TestSinceFindsTheFirstMessageOfASubject(t *testing.T) {
	c := newConn(t)
	if _, found, err := c.Since(t.Context(), Frames, c.Frames(1), time.Unix(0, 0)); found || err != nil {
		t.Errorf("in an empty stream: %t %v", found, err)
	}
	publish(t, c, c.Frames(1), "a")
	publish(t, c, c.Frames(0), "other")
	publish(t, c, c.Frames(1), "b", "c")
	first, found, err := c.Since(t.Context(), Frames, c.Frames(1), time.Unix(0, 0))
	if err != nil || !found || string(first.Data) != "a" || first.Pending != 2 {
		t.Errorf("since ever: %q and %d more, %t, %v", first.Data, first.Pending, found, err)
	}
	b, err := c.Next(t.Context(), Frames, c.Frames(1), 2)
	if err != nil {
		t.Fatal(err)
	}
	first, found, err = c.Since(t.Context(), Frames, c.Frames(1), b.Time)
	if err != nil || !found || string(first.Data) != "b" || first.Pending != 1 {
		t.Errorf("since b: %q and %d more, %t, %v", first.Data, first.Pending, found, err)
	}
	if _, found, err := c.Since(t.Context(), Frames, c.Frames(1), time.Now().Add(time.Hour)); found || err != nil {
		t.Errorf("since the future: %t %v", found, err)
	}
}
