package web

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

//go:embed assets
var assets embed.FS

// Content security policies: the pages load their own style sheets, script and icon, themselves again, and nothing else; no script or style stands in them. The index of
// profiles comes from the standard library with a style sheet inside.
const (
	csp = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; " +
		"frame-ancestors 'none'"
	cspPprof = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// metrics are the HTTP metrics, by path.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_web_requests_total",
			Help: "HTTP requests answered, by path and status code.",
		}, []string{"handler", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_web_request_duration_seconds",
			Help:    "Time to answer an HTTP request, by path.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"handler"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering the web server's metrics: %w", err)
		}
	}
	return m, nil
}

// instrument counts and times requests under the name of a route, never under a path that a client made up.
func (m *metrics) instrument(name string, h http.Handler) http.Handler {
	l := prometheus.Labels{"handler": name}
	return promhttp.InstrumentHandlerDuration(m.duration.MustCurryWith(l),
		promhttp.InstrumentHandlerCounter(m.requests.MustCurryWith(l), h))
}

// Handler returns the handler of all paths, without the TLS and authentication of the web configuration file. It is
// safe for concurrent use.
func (s *Server) Handler() http.Handler { return s.handler }

// routes builds the handler of all paths.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h http.Handler) {
		path := pattern[strings.IndexByte(pattern, ' ')+1:] // without the method
		mux.Handle(pattern, s.metrics.instrument(strings.TrimSuffix(path, "{$}"), h))
	}
	s.pageRoutes(handle)
	handle("GET /assets/", cached(http.FileServerFS(assets)))
	handle("GET /metrics", s.exposition())
	handle("GET /-/healthy", http.HandlerFunc(s.healthy))
	handle("GET /-/ready", http.HandlerFunc(s.ready))
	if s.cfg.Reload != nil {
		// A page of another site must not be able to make a visitor's browser reload this process.
		reload := http.NewCrossOriginProtection().Handler(http.HandlerFunc(s.reload))
		handle("POST /-/reload", reload)
		handle("PUT /-/reload", reload)
	}
	handle("GET /api/v1/targets", s.api(s.targets))
	handle("GET /api/v1/status", s.api(s.status))
	if s.cfg.Fleet != nil {
		handle("GET /api/v1/status/fleet", s.api(s.statusFleet))
	}
	handle("GET /api/v1/status/config", s.api(s.statusConfig))
	handle("GET /api/v1/status/buildinfo", s.api(s.statusBuildInfo))
	if s.cfg.Cardinality != nil {
		handle("GET /api/v1/cardinality", s.cardinality())
	}
	if s.cfg.Tail != nil {
		handle("GET /api/v1/tail", s.tail())
	}
	s.replayRoutes(handle)
	handle("GET /debug/pprof/", http.HandlerFunc(pprof.Index))
	handle("GET /debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	handle("GET /debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	handle("POST /debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	handle("GET /debug/pprof/trace", http.HandlerFunc(pprof.Trace))

	other := s.metrics.instrument("other", mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.RemoteWrite != nil && r.URL.Path == "/api/v1/write" {
			s.cfg.RemoteWrite.ServeHTTP(w, r) // it counts and answers everything itself, for senders and not for browsers
			return
		}
		setSecurityHeaders(w, r)
		if _, pattern := mux.Handler(r); pattern == "" {
			other.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// setSecurityHeaders leaves alone what the web configuration file has set.
func setSecurityHeaders(w http.ResponseWriter, r *http.Request) {
	policy := csp
	if strings.HasPrefix(r.URL.Path, "/debug/pprof/") {
		policy = cspPprof
	}
	for name, value := range map[string]string{
		"Content-Security-Policy": policy,
		"X-Content-Type-Options":  "nosniff",
		"X-Frame-Options":         "deny",
		// With "no-referrer", browsers would say of a form that it comes from nowhere, and it would be refused.
		"Referrer-Policy": "same-origin",
	} {
		if w.Header().Get(name) == "" {
			w.Header().Set(name, value)
		}
	}
}

// cached lets browsers keep assets for ever: the pages ask for them with a hash of all assets in the URL.
func cached(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") || strings.HasSuffix(r.URL.Path, ".html") {
			http.NotFound(w, r) // no listings, and the pages' templates are no assets
			return
		}
		if r.URL.Query().Get("v") == assetsHash() {
			w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		}
		h.ServeHTTP(w, r)
	})
}

// exposition serves the gatherer's metrics. A collector that fails is logged and left out, so that it does not hide
// the others.
func (s *Server) exposition() http.Handler {
	return promhttp.HandlerFor(s.cfg.Gatherer, promhttp.HandlerOpts{
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelError),
		ErrorHandling:     promhttp.ContinueOnError,
		EnableOpenMetrics: true,
	})
}

func (s *Server) healthy(w http.ResponseWriter, r *http.Request) {
	s.text(w, r, http.StatusOK, "Millrace is healthy.\n")
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	reasons := s.cfg.Ready()
	if len(reasons) == 0 {
		s.text(w, r, http.StatusOK, "Millrace is ready.\n")
		return
	}
	var body strings.Builder
	for _, reason := range reasons {
		body.WriteString(strings.Join(strings.Fields(reason), " ")) // one line each, whatever is in it
		body.WriteByte('\n')
	}
	s.text(w, r, http.StatusServiceUnavailable, body.String())
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	select {
	case s.reloading <- struct{}{}:
		defer func() { <-s.reloading }()
	case <-r.Context().Done():
		return // gone while another reload ran
	}
	if err := s.cfg.Reload(context.WithoutCancel(r.Context())); err != nil {
		s.text(w, r, http.StatusInternalServerError, fmt.Sprintf("reloading the configuration: %v\n", err))
		return
	}
	s.text(w, r, http.StatusOK, "The configuration was reloaded.\n")
}

func (s *Server) text(w http.ResponseWriter, r *http.Request, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	s.write(w, r, []byte(body))
}

// write sends a body, of which net/http keeps only the length for HEAD. That the client has gone is worth no more than a debug line.
func (s *Server) write(w http.ResponseWriter, r *http.Request, body []byte) {
	if _, err := w.Write(body); err != nil {
		s.cfg.Logger.Debug("Writing an HTTP answer failed", "path", r.URL.Path, "err", err)
	}
}
