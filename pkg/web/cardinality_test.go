package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestCardinalityAnswersWhatIsAsked(t *testing.T) {
	s := newServer(t, func(c *Config) {
		c.Cardinality = func(_ context.Context, parameters url.Values) (any, error) {
			switch parameters.Get("window") {
			case "x":
				return nil, fmt.Errorf("window: %w: %q is no duration", ErrBadParameter, "x")
			case "slow":
				return nil, context.DeadlineExceeded
			case "broken":
				return nil, errors.New("the stream is away")
			}
			return map[string]string{"top": parameters.Get("top")}, nil
		}
	})
	for _, c := range []struct {
		query string
		code  int
		body  string
	}{
		{"?top=5", http.StatusOK, `{"status":"success","data":{"top":"5"}}`},
		{"?window=x", http.StatusBadRequest, `"errorType":"bad_data","error":"window: bad parameter:`},
		{"?window=slow", http.StatusServiceUnavailable, `"errorType":"timeout"`},
		{"?window=broken", http.StatusInternalServerError, `"errorType":"internal","error":"the stream is away"`},
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
