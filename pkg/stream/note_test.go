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

func TestATimeCutsASubject(t *testing.T) {
	c := newConn(t)
	check := func(what string, at time.Time, want Cut) {
		t.Helper()
		if cut, err := c.CutAt(t.Context(), Frames, c.Frames(1), at); err != nil || cut != want {
			t.Errorf("%s: %+v, %v, want %+v", what, cut, err, want)
		}
	}
	check("an empty stream", time.Unix(0, 0), Cut{})
	publish(t, c, c.Frames(0), "other")
	publish(t, c, c.Frames(1), "a")
	publish(t, c, c.Frames(0), "other")
	publish(t, c, c.Frames(1), "b", "c")
	check("before all", time.Unix(0, 0), Cut{Before: 1, Later: 3})
	b, err := c.Next(t.Context(), Frames, c.Frames(1), 3)
	if err != nil {
		t.Fatal(err)
	}
	check("the second", b.Time, Cut{Before: 3, Later: 2})
	check("behind all", time.Now().Add(time.Hour), Cut{})
}
