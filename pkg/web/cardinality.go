package web

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// CardinalityTimeout is how long it may take to count series.
const CardinalityTimeout = 2 * time.Minute

// ErrBadParameter is wrapped by errors of providers for what the client has asked.
var ErrBadParameter = errors.New("bad parameter")

// errorBadData is Prometheus's type of such an error.
const errorBadData = "bad_data"

// cardinality counts series for one client at a time.
func (s *Server) cardinality() http.Handler {
	turn := make(chan struct{}, 1)
	return s.apiWithin(CardinalityTimeout, func(r *http.Request) (any, *apiError) {
		ctx := r.Context()
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return nil, providerError(ctx, ctx.Err())
		}
		data, err := s.cfg.Cardinality(ctx, r.URL.Query())
		switch {
		case errors.Is(err, ErrBadParameter):
			return nil, &apiError{errorBadData, err}
		case err != nil:
			return nil, providerError(ctx, err)
		}
		return data, nil
	})
}

// apiWithin is api for what takes longer.
func (s *Server) apiWithin(limit time.Duration, get func(r *http.Request) (any, *apiError)) http.Handler {
	return s.answer(func(r *http.Request) (any, *apiError) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		return get(r.WithContext(ctx))
	})
}
