package web

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/millrace/millrace/pkg/cardinality"
)

// CardinalityTimeout is how long it may take to count series.
const CardinalityTimeout = 2 * time.Minute

// ErrBadParameter is wrapped by errors of providers for what the client has asked.
var ErrBadParameter = cardinality.ErrBad

// cardinality counts series for one client at a time.
func (s *Server) cardinality() http.Handler {
	return s.apiWithin(CardinalityTimeout, func(r *http.Request) (any, *apiError) {
		ctx := r.Context()
		q, err := cardinality.Parse(r.URL.Query())
		if err != nil {
			return nil, &apiError{errorBadData, err}
		}
		report, err := s.survey(ctx, q)
		switch {
		case errors.Is(err, ErrNotReady):
			return nil, &apiError{errorTimeout, err}
		case err != nil:
			return nil, providerError(ctx, err)
		}
		return report, nil
	})
}

// survey counts when nobody else does.
func (s *Server) survey(ctx context.Context, q cardinality.Query) (*cardinality.Report, error) {
	select {
	case s.surveying <- struct{}{}:
		defer func() { <-s.surveying }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.cfg.Cardinality(ctx, q)
}

// apiWithin is api for what takes longer.
func (s *Server) apiWithin(limit time.Duration, get func(r *http.Request) (any, *apiError)) http.Handler {
	return s.answer(func(r *http.Request) (any, *apiError) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		return get(r.WithContext(ctx))
	})
}
