package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/millrace/millrace/pkg/tail"
)

const (
	// maxTails is how many clients may see samples pass at a time.
	maxTails = 4
	// tailBeat is how often something is sent to them at least, an empty line: a client that is gone or does not read is noticed by it.
	tailBeat = 15 * time.Second
	// tailPatience is how long a client may not read before its connection is closed.
	tailPatience = 30 * time.Second
	// tailBuffer is how much is sent at once.
	tailBuffer = 16 << 10
)

var errManyTails = errors.New("others watch samples pass already, as many as may; try again later, or ask another process")

// tail sends samples as they pass, a line of JSON each, until the client goes or the limit is reached.
func (s *Server) tail() http.Handler {
	places := make(chan struct{}, maxTails)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse := func(e *apiError) { s.answer(func(*http.Request) (any, *apiError) { return nil, e }).ServeHTTP(w, r) }
		q, err := tail.ParseQuery(r.URL.Query())
		if err != nil {
			refuse(&apiError{errorBadData, err})
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		default:
			refuse(&apiError{errorTimeout, errManyTails})
			return
		}
		opening, cancel := context.WithTimeout(r.Context(), s.cfg.ProviderTimeout)
		t, err := s.cfg.Tail(opening, q)
		cancel()
		switch {
		case errors.Is(err, tail.ErrUnknownEndpoint):
			refuse(&apiError{errorNotFound, err})
		case errors.Is(err, ErrNotReady):
			refuse(&apiError{errorTimeout, err})
		case err != nil:
			refuse(providerError(opening, err))
		default:
			defer t.Close()
			s.sendTail(w, r, t)
		}
	})
}

// sendTail sends what passes.
func (s *Server) sendTail(w http.ResponseWriter, r *http.Request, t *tail.Tail) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // it may go on for longer than other requests
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // of a proxy
	w.WriteHeader(http.StatusOK)
	flush := func(b []byte) error {
		_ = control.SetWriteDeadline(time.Now().Add(tailPatience))
		if _, err := w.Write(b); err != nil {
			return err
		}
		return control.Flush()
	}
	err := flush([]byte("\n"))
	var buf []byte
	for err == nil {
		waiting, cancel := context.WithTimeout(r.Context(), tailBeat)
		event, nextErr := t.Next(waiting)
		cancel()
		switch {
		case nextErr == nil:
		case r.Context().Err() != nil:
			return // the client has gone
		case errors.Is(nextErr, context.DeadlineExceeded):
			err = flush([]byte("\n"))
			continue
		case errors.Is(nextErr, io.EOF):
			_ = flush(buf) // what waited for more to be sent with
			return
		default:
			event = tail.Event{Error: tail.Reason(nextErr)}
		}
		line, encodeErr := event.Encode()
		if encodeErr != nil {
			s.cfg.Logger.Error("Encoding a sample failed", "err", encodeErr)
			return
		}
		buf = append(buf, line...)
		if nextErr != nil || len(buf) >= tailBuffer || !t.Waiting() {
			err = flush(buf)
			buf = buf[:0]
		}
		if nextErr != nil {
			return
		}
	}
	s.cfg.Logger.Debug("A client that watched samples pass has gone", "err", err)
}
