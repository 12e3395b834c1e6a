package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"

	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/replay"
)

// Replays starts, shows and stops replays, as [replay.Manager] does.
type Replays interface {
	Start(ctx context.Context, spec replay.Spec, hold bool) (replay.Status, error)
	Stop(ctx context.Context, name string) (replay.Status, error)
	Get(ctx context.Context, name string) (replay.Status, error)
	List(ctx context.Context) ([]replay.Status, error)
}

// maxReplayBytes bounds the body of a request for a replay.
const maxReplayBytes = 1 << 20

// replayRoutes adds the API of replays.
func (s *Server) replayRoutes(handle func(pattern string, h http.Handler)) {
	if s.cfg.Replays == nil {
		return
	}
	// A page of another site must not be able to make a visitor's browser start or stop one.
	own := http.NewCrossOriginProtection()
	handle("GET /api/v1/replays", s.api(func(r *http.Request) (any, *apiError) {
		return replayAnswer(s.cfg.Replays.List(r.Context()))
	}))
	handle("POST /api/v1/replays", own.Handler(s.api(s.startReplay)))
	handle("GET /api/v1/replays/{name}", s.api(func(r *http.Request) (any, *apiError) {
		return replayAnswer(s.cfg.Replays.Get(r.Context(), r.PathValue("name")))
	}))
	handle("DELETE /api/v1/replays/{name}", own.Handler(s.api(func(r *http.Request) (any, *apiError) {
		return replayAnswer(s.cfg.Replays.Stop(r.Context(), r.PathValue("name")))
	})))
}

// ReplayRequest is the body of a POST to /api/v1/replays.
type ReplayRequest struct {
	replay.Spec
	// Hold makes the replay and does not start it: the answer tells what the stream no longer holds, and another POST without hold starts it.
	Hold bool `json:"hold,omitempty"`
}

func (s *Server) startReplay(r *http.Request) (any, *apiError) {
	var req ReplayRequest
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxReplayBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return nil, &apiError{errorBadData, fmt.Errorf("reading the request: %w", err)}
	}
	if req.URL != "" && !s.trusts(r) {
		return nil, &apiError{errorForbidden, errUntrusted}
	}
	return replayAnswer(s.cfg.Replays.Start(r.Context(), req.Spec, req.Hold))
}

var errUntrusted = errors.New("url: whoever may have samples sent to any address could read them all, so this is only taken from this machine, to localhost, or where --web.config.file asks for a password or a " +
	"client certificate; add the endpoint to the configuration and use endpoint")

// trusts reports whether a request comes from this machine, or from somebody whom the web configuration file has made show who it is.
func (s *Server) trusts(r *http.Request) bool {
	if isLocal(r) {
		return true
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	if s.cfg.WebConfigFile == "" {
		return false
	}
	content, err := os.ReadFile(s.cfg.WebConfigFile)
	if err != nil {
		return false
	}
	var file struct {
		Users map[string]string `yaml:"basic_auth_users"`
	}
	return yaml.Unmarshal(content, &file) == nil && len(file.Users) > 0 // which every request has passed
}

// isLocal reports whether a request comes from this machine, and is meant for it. A page of another site whose name leads a browser here asks for that name, and a proxy
// says for whom it asks.
func isLocal(r *http.Request) bool {
	return isLoopback(r.RemoteAddr) && isLoopback(r.Host) && r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == ""
}

// isLoopback reports whether an address, with or without a port, is one of this machine only.
func isLoopback(address string) bool {
	host := (&url.URL{Host: address}).Hostname()
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func replayAnswer[T any](data T, err error) (any, *apiError) {
	var field *replay.FieldError
	switch {
	case err == nil:
		return data, nil
	case errors.As(err, &field):
		return nil, &apiError{errorBadData, err}
	case errors.Is(err, replay.ErrUnknown):
		return nil, &apiError{errorNotFound, err}
	case errors.Is(err, replay.ErrTaken), errors.Is(err, replay.ErrMany):
		return nil, &apiError{errorConflict, err}
	case errors.Is(err, ErrNotReady):
		return nil, &apiError{errorTimeout, err}
	}
	return nil, providerError(context.Background(), err)
}
