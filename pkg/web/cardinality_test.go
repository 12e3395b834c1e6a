package web

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/millrace/millrace/pkg/cardinality"
)

func TestCardinalityAnswersWhatIsAsked(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Cardinality = func(_ context.Context, q cardinality.Query) (*cardinality.Report, error) {
			switch q.Metric {
			case "slow":
				return nil, context.DeadlineExceeded
			case "broken":
				return nil, errors.New("the stream is away")
			case "early":
				return nil, ErrNotReady
			}
			return &cardinality.Report{Series: q.Top}, nil
		}
	})
	for _, c := range []struct {
		query string
		code  int
		body  string
	}{
		{"?top=5", http.StatusOK, `"series":5,`},
		{"?window=x", http.StatusBadRequest, `"errorType":"bad_data","error":"window: bad parameter:`},
		{"?metric=early", http.StatusServiceUnavailable, `"errorType":"timeout"`},
		{"?metric=slow", http.StatusServiceUnavailable, `"errorType":"timeout"`},
		{"?metric=broken", http.StatusInternalServerError, `"errorType":"internal","error":"the stream is away"`},
	} {
		w := do(t, s, http.MethodGet, "/api/v1/cardinality"+c.query)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s", c.query, w.Code, w.Body)
		}
	}
	if w := do(t, newServer(t, nil), http.MethodGet, "/api/v1/cardinality"); w.Code != http.StatusNotFound {
		t.Errorf("without anybody who counts: %d", w.Code)
	}
}
