// Package terminal gives a program the whole of a terminal, and gives it back as it was: at the end, after a panic, and for the time in which the program is stopped (Ctrl-Z).
package terminal

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// ErrNone is returned by [Open] where there is no terminal.
var ErrNone = errors.New("this is no terminal")

// What is written to take the terminal and to give it back: another screen, so that the old one comes back; no cursor; no new line where one is full.
const (
	enter = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	leave = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// Terminal is a terminal that a program has for itself. Draw and Size are for one goroutine.
type Terminal struct {
	in, out *os.File
	keys    chan Key
	redraw  chan struct{}
	signals signals

	mu    sync.Mutex
	state *term.State // how it was; nil while it is given back
	over  bool        // Close was called
	shown []string    // what stands on it
}

// Open takes the terminal. The caller calls Close, also after a panic.
func Open(in, out *os.File) (*Terminal, error) {
	if !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil, ErrNone
	}
	t := &Terminal{in: in, out: out, keys: make(chan Key, 16), redraw: make(chan struct{}, 1)}
	if err := t.take(); err != nil {
		t.giveBack()
		return nil, err
	}
	t.watch()
	go t.read()
	return t, nil
}

// take puts the terminal into raw mode and onto another screen.
func (t *Terminal) take() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != nil || t.over {
		return nil
	}
	state, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return fmt.Errorf("setting the terminal up: %w", err)
	}
	t.state, t.shown = state, nil
	_, err = t.out.WriteString(enter)
	return err
}

// Close gives the terminal back. It may be called again, and from any goroutine.
func (t *Terminal) Close() {
	t.signals.stop()
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.giveBack()
}

func (t *Terminal) giveBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == nil {
		return
	}
	_, _ = t.out.WriteString(leave) // where the terminal is gone, there is nobody to tell
	_ = term.Restore(int(t.in.Fd()), t.state)
	t.state = nil
}

// Keys returns the keys that are pressed. It is closed when the terminal has gone.
func (t *Terminal) Keys() <-chan Key { return t.keys }

// Redraw tells that everything has to be drawn anew: the size has changed, or the program goes on after it was stopped.
func (t *Terminal) Redraw() <-chan struct{} { return t.redraw }

// Size returns width and height in characters.
func (t *Terminal) Size() (width, height int) {
	width, height, err := term.GetSize(int(t.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// Draw shows lines from the top on, which are as wide as the screen. Those that stand there already are not written again.
func (t *Terminal) Draw(lines []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == nil {
		return nil
	}
	var b strings.Builder
	for i, line := range lines {
		if i < len(t.shown) && t.shown[i] == line {
			continue
		}
		fmt.Fprintf(&b, "\x1b[%d;1H%s", i+1, line)
	}
	t.shown = append(t.shown[:0], lines...)
	if b.Len() == 0 {
		return nil
	}
	_, err := t.out.WriteString(b.String())
	return err
}

// Forget has everything drawn anew.
func (t *Terminal) Forget() {
	t.mu.Lock()
	t.shown = nil
	if t.state != nil {
		_, _ = t.out.WriteString("\x1b[2J")
	}
	t.mu.Unlock()
	select {
	case t.redraw <- struct{}{}:
	default:
	}
}
