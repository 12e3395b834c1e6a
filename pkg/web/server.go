package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	toolkit "github.com/prometheus/exporter-toolkit/web"
)

// Server serves the pages and the API of one process. Its methods are safe for concurrent use.
type Server struct {
	cfg       Config
	metrics   *metrics
	handler   http.Handler
	reloading chan struct{} // holds one token while a reload runs
	surveying chan struct{} // holds one token while series are counted
	surveys   surveys

	replayRates replayRates

	mu        sync.Mutex
	listeners []net.Listener
	serving   bool
}

// New checks the configuration, including the web configuration file and the files it names, and registers the
// metrics. It does not listen yet.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, metrics: m, reloading: make(chan struct{}, 1), surveying: make(chan struct{}, 1)}
	s.handler = s.routes()
	return s, nil
}

// Listen opens all listen addresses, or none and an error that names the address and a remedy. Serve does it if it was
// not done; calling it first makes a failure known at start-up. While the addresses are open it does nothing. Who
// listens must call Serve or Close.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listen()
}

func (s *Server) listen() error {
	if len(s.listeners) > 0 {
		return nil
	}
	listeners := make([]net.Listener, 0, len(s.cfg.ListenAddresses))
	for _, address := range s.cfg.ListenAddresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, open := range listeners {
				_ = open.Close() // the first error is the one to report
			}
			return listenError(address, err)
		}
		listeners = append(listeners, l)
	}
	s.listeners = listeners
	return nil
}

func listenError(address string, err error) error {
	remedy := "choose another with --web.listen-address"
	var dnsErr *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("web server cannot listen on %s: address in use: another process listens there; stop it or %s: %w", address, remedy, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("web server cannot listen on %s: no interface of this machine has this address; %s: %w", address, remedy, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("web server cannot listen on %s: not permitted (ports below 1024 need CAP_NET_BIND_SERVICE); %s: %w", address, remedy, err)
	case errors.As(err, &dnsErr):
		return fmt.Errorf("web server cannot listen on %s: the host name does not resolve; %s: %w", address, remedy, err)
	}
	return fmt.Errorf("web server cannot listen on %s; %s: %w", address, remedy, err)
}

// Addrs returns the addresses that are open, in the order of Config.ListenAddresses, with the real ports in place of
// 0. Before Listen, and after Serve or Close, there are none.
func (s *Server) Addrs() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Close closes what Listen opened. It is for a process that fails between Listen and Serve; while serving, end Serve's
// context instead.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving {
		return errors.New("closing the web server: it is serving; end Serve's context instead")
	}
	return s.closeListeners()
}

func (s *Server) closeListeners() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("closing the web listener %s: %w", l.Addr(), err))
		}
	}
	s.listeners = nil
	return errors.Join(errs...)
}

// String names the server in the supervisor's log.
func (s *Server) String() string { return "web" }

// Serve listens if Listen has not been called, and serves until the context ends; then it takes no new requests, gives
// those running up to ShutdownTimeout, cuts off the rest and returns nil. It returns early with an error when an address
// cannot be opened or stops working. It may be called again after it returned, not while it runs.
func (s *Server) Serve(ctx context.Context) error {
	listeners, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()

	// Requests live as long as the servers, not as long as ctx: a graceful end lets them finish.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	servers := make([]*http.Server, len(listeners))
	ended := make(chan error, len(listeners))
	for i, l := range listeners {
		// A server of its own for each listener: the toolkit changes the server that it serves.
		servers[i] = s.httpServer(base)
		go func() {
			err := toolkit.Serve(l, servers[i], &toolkit.FlagConfig{WebConfigFile: &s.cfg.WebConfigFile}, s.cfg.Logger)
			if err != nil && !errors.Is(err, http.ErrServerClosed) {
				err = fmt.Errorf("serving HTTP on %s: %w", l.Addr(), err)
			} else {
				err = nil
			}
			ended <- err
		}()
	}

	running := len(servers)
	select {
	case <-ctx.Done():
	case err = <-ended:
		running--
	}
	s.shutdown(servers)
	cancel()
	s.surveys.stop()
	for range running {
		err = errors.Join(err, <-ended)
	}
	return err
}

func (s *Server) begin() ([]net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving {
		return nil, errors.New("web server: Serve is already running")
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	s.serving = true
	return slices.Clone(s.listeners), nil
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving = false
	if err := s.closeListeners(); err != nil {
		s.cfg.Logger.Warn("Closing the web server failed", "err", err)
	}
}

func (s *Server) httpServer(base context.Context) *http.Server {
	return &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.cfg.ReadHeaderTimeout,
		ReadTimeout:       s.cfg.ReadTimeout,
		IdleTimeout:       s.cfg.IdleTimeout,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
}

// shutdown ends all servers at once, gracefully while the time lasts.
func (s *Server) shutdown(servers []*http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
	defer cancel()
	start := time.Now()
	var wg sync.WaitGroup
	for _, server := range servers {
		wg.Go(func() {
			if err := server.Shutdown(ctx); err != nil {
				s.cfg.Logger.Warn("Cutting off HTTP requests that did not end", "waited", time.Since(start), "err", err)
				_ = server.Close() // only ever repeats the listener's error
			}
		})
	}
	wg.Wait()
}
