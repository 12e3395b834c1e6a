package scraper

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// window is what is in memory of a body: whole lines, unless it is the end of it. A body that came as a whole is one window.
type window struct {
	body []byte
	at   int // what of body is read
	gone int // bytes of the body that were before

	rest   io.Reader   // brings what follows; nil where body is the end
	locked sync.Locker // is let go of while rest is read
	filled int         // body[:filled] was read; what is behind the window is the beginning of a line
	behind byte        // body[len(body)], over which a parser may write
	whole  bool        // what follows cannot be read in pieces
	err    error       // with which rest has failed: there is no body then
}

// lookBack is how many bytes that were read stay before what follows: a comment for the parser has room there.
const lookBack = 32

// open begins with a body, or with the beginning of one.
func (w *window) open(x *exposition, locked sync.Locker) {
	*w = window{body: x.body, rest: x.rest, locked: locked}
	w.whole = w.rest != nil && bytes.IndexByte(w.body, 0) >= 0
	w.shape()
}

// place returns how many bytes of the body are read.
func (w *window) place() int { return w.gone + w.at }

// more moves the window on: what is read goes, and at least a line more comes. It reports false at the end of the body.
func (w *window) more() bool {
	if w.rest == nil {
		return false
	}
	w.locked.Unlock()
	defer w.locked.Lock()
	w.body[:cap(w.body)][len(w.body)] = w.behind
	w.body = w.body[:w.filled]
	gone := max(w.at-lookBack, 0)
	if len(w.body)-gone > cap(w.body)/2 {
		w.enlarge(gone)
	} else {
		w.body = append(w.body[:0], w.body[gone:]...)
	}
	w.gone, w.at = w.gone+gone, w.at-gone
	from := len(w.body)
	for w.rest != nil {
		if cap(w.body)-len(w.body) < 2 {
			if !w.whole && bytes.IndexByte(w.body[from:], '\n') >= 0 {
				break
			}
			w.enlarge(0)
		}
		w.read()
	}
	w.shape()
	return true
}

// enlarge gives the window twice the memory, without the first bytes.
func (w *window) enlarge(without int) {
	larger := bodies.Get(2 * cap(w.body)).([]byte)
	larger = append(larger, w.body[without:]...)
	bodies.Put(w.body[:0])
	w.body = larger
}

// read reads once, into the room that there is but for one byte.
func (w *window) read() {
	n, err := w.rest.Read(w.body[len(w.body) : cap(w.body)-1])
	w.body = w.body[:len(w.body)+n]
	w.whole = w.whole || bytes.IndexByte(w.body[len(w.body)-n:], 0) >= 0 // the text parser may take it for the end
	if err != nil {
		w.rest = nil
		if !errors.Is(err, io.EOF) {
			w.err = err
		}
	}
}

// shape makes the window end behind its last line break, while more follows.
func (w *window) shape() {
	if w.filled = len(w.body); w.rest != nil {
		n := bytes.LastIndexByte(w.body, '\n') + 1
		w.body, w.behind = w.body[:n], w.body[:cap(w.body)][n]
	}
}

// drain reads the body to its end without keeping it, for how the fetch ends.
func (w *window) drain() {
	if w.rest == nil {
		return
	}
	w.locked.Unlock()
	defer w.locked.Lock()
	for w.rest != nil {
		w.body = w.body[:0]
		w.read()
	}
	w.at = 0
}
