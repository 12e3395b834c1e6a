package web

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
)

// apiError is an error of the API with the type that Prometheus gives it, from which follows the status code.
type apiError struct {
	errorType string
	err       error
}

// The error types of Prometheus's API that occur here.
const (
	errorTimeout  = "timeout"
	errorInternal = "internal"
	errorBadData  = "bad_data"
	errorNotFound = "not_found"
	// These are not of Prometheus.
	errorConflict  = "conflict"
	errorForbidden = "forbidden"
)

// ErrNotReady is returned by a provider of a process that is still starting.
var ErrNotReady = errors.New("still starting; try again when /-/ready says so")

func (e *apiError) code() int {
	switch e.errorType {
	case errorTimeout:
		return http.StatusServiceUnavailable
	case errorBadData:
		return http.StatusBadRequest
	case errorNotFound:
		return http.StatusNotFound
	case errorConflict:
		return http.StatusConflict
	case errorForbidden:
		return http.StatusForbidden
	}
	return http.StatusInternalServerError
}

// providerError tells a provider that ran out of time from one that failed.
func providerError(ctx context.Context, err error) *apiError {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &apiError{errorTimeout, err}
	}
	return &apiError{errorInternal, err}
}

// apiResponse is the envelope of every answer, as in Prometheus.
type apiResponse struct {
	Status    string `json:"status"`
	Data      any    `json:"data,omitempty"`
	ErrorType string `json:"errorType,omitempty"`
	Error     string `json:"error,omitempty"`
}

// api makes a handler of a function that returns data or an error; providers get ProviderTimeout.
func (s *Server) api(get func(r *http.Request) (any, *apiError)) http.Handler {
	return s.apiWithin(s.cfg.ProviderTimeout, get)
}

// answer makes a handler of a function that returns data or an error.
func (s *Server) answer(get func(r *http.Request) (any, *apiError)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, response := http.StatusOK, apiResponse{Status: "success"}
		data, apiErr := get(r)
		if apiErr != nil {
			code = apiErr.code()
			response = apiResponse{Status: "error", ErrorType: apiErr.errorType, Error: apiErr.err.Error()}
		} else {
			response.Data = data
		}
		body, err := json.Marshal(response)
		if err != nil {
			s.cfg.Logger.Error("Encoding an API answer failed", "path", r.URL.Path, "err", err)
			http.Error(w, "encoding the answer: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(code)
		s.write(w, r, body)
	})
}

func (s *Server) statusConfig(*http.Request) (any, *apiError) {
	return struct {
		YAML string `json:"yaml"`
	}{s.cfg.ConfigYAML()}, nil
}

func (s *Server) statusBuildInfo(*http.Request) (any, *apiError) {
	return s.cfg.Version, nil
}

func (s *Server) status(r *http.Request) (any, *apiError) {
	return s.cfg.Status(r.Context()).presentable(), nil
}

func (s *Server) statusFleet(r *http.Request) (any, *apiError) {
	d, err := s.cfg.Fleet(r.Context())
	if err != nil {
		return nil, providerError(r.Context(), err)
	}
	return d, nil
}
