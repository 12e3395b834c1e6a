package door

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	readHeaderTimeout = 10 * time.Second
	shutdownTimeout   = 5 * time.Second
	// cutOffTimeout is how long the requests that are cut off have for their answer.
	cutOffTimeout  = time.Second
	maxHeaderBytes = 64 << 10
	// pingAfter is how long a connection of HTTP/2 may be silent before it is asked whether it is still there.
	pingAfter = 30 * time.Second
)

// listener is a door that has an address of its own.
type listener struct {
	gate    *gate
	tls     *tls.Config // nil: plain text
	setting string      // that says where to listen

	mu      sync.Mutex
	open    net.Listener // nil before Listen and after Serve
	serving bool
}

func (d *listener) init(cfg Config, setting string, p func(*gate) protocol) error {
	if err := cfg.validate(true); err != nil {
		return err
	}
	d.setting = setting
	var err error
	if d.tls, err = serverTLS(cfg.TLS, cfg.Name, cfg.Logger); err != nil {
		return fmt.Errorf("configuring the door %s: %w", cfg.Name, err)
	}
	if d.gate, err = newGate(cfg, nil); err != nil {
		return err
	}
	d.gate.protocol = p(d.gate)
	return nil
}

// Listen opens the address, or returns an error that names it and a remedy. Serve does it if it was not done; calling
// it first makes a failure known at start-up. While the address is open it does nothing. Who listens must call Serve or
// Close.
func (d *listener) Listen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.listen()
}

func (d *listener) listen() error {
	if d.open != nil {
		return nil
	}
	l, err := net.Listen("tcp", d.gate.cfg.Listen)
	if err != nil {
		return d.listenError(err)
	}
	d.open = l
	return nil
}

func (d *listener) listenError(err error) error {
	what := fmt.Sprintf("ingest door %s cannot listen on %s", d.gate.cfg.Name, d.gate.cfg.Listen)
	remedy := fmt.Sprintf("choose another with %s, or turn the door off with \"\"", d.setting)
	var dnsErr *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: address in use: another process listens there; stop it or %s: %w", what, remedy, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: no interface of this machine has this address; %s: %w", what, remedy, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: not permitted (ports below 1024 need CAP_NET_BIND_SERVICE); %s: %w", what, remedy, err)
	case errors.As(err, &dnsErr):
		return fmt.Errorf("%s: the host name does not resolve; %s: %w", what, remedy, err)
	}
	return fmt.Errorf("%s; %s: %w", what, remedy, err)
}

// Addr returns the address that is open, with the real port in place of 0. Before Listen, and after Serve or Close, it
// is nil.
func (d *listener) Addr() net.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil {
		return nil
	}
	return d.open.Addr()
}

// Close closes what Listen opened. It is for a process that fails between Listen and Serve; while serving, end Serve's
// context instead.
func (d *listener) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.serving {
		return fmt.Errorf("closing the ingest door %s: it is serving; end Serve's context instead", d.gate.cfg.Name)
	}
	return d.closeListener()
}

func (d *listener) closeListener() error {
	if d.open == nil {
		return nil
	}
	err := d.open.Close()
	d.open = nil
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("closing the ingest door %s: %w", d.gate.cfg.Name, err)
	}
	return nil
}

// String names the door in the supervisor's log.
func (d *listener) String() string { return "door " + d.gate.cfg.Name }

// Serve listens if Listen has not been called, and serves until the context ends; then it takes no new requests, gives
// those running up to 5 seconds, answers the rest that they may come again, and returns nil. It returns early with an
// error when the address cannot be opened or stops working. It may be called again after it returned, not while it runs.
func (d *listener) Serve(ctx context.Context) error {
	l, err := d.begin()
	if err != nil {
		return err
	}
	defer d.end()
	// Requests live as long as the server, not as long as ctx: a graceful end lets them finish.
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errClosing)
	server := d.server(base)
	ended := make(chan error, 1)
	go func() {
		var err error
		if d.tls != nil {
			err = server.ServeTLS(l, "", "")
		} else {
			err = server.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		} else {
			err = fmt.Errorf("serving the ingest door %s on %s: %w", d.gate.cfg.Name, l.Addr(), err)
		}
		ended <- err
	}()
	select {
	case <-ctx.Done():
		d.shutdown(server, cancel)
		return <-ended
	case err := <-ended:
		d.shutdown(server, cancel)
		return err
	}
}

func (d *listener) begin() (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.serving {
		return nil, fmt.Errorf("ingest door %s: Serve is already running", d.gate.cfg.Name)
	}
	if err := d.listen(); err != nil {
		return nil, err
	}
	d.serving = true
	return d.open, nil
}

func (d *listener) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serving = false
	if err := d.closeListener(); err != nil {
		d.gate.cfg.Logger.Warn("Closing a listener failed", "err", err)
	}
}

func (d *listener) server(base context.Context) *http.Server {
	limits := d.gate.cfg.Limits
	protocols := new(http.Protocols)
	// HTTP/1 at the door of gRPC, too: what comes that way is told where it belongs.
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           d.gate,
		ReadHeaderTimeout: min(readHeaderTimeout, limits.ReadTimeout),
		ReadTimeout:       limits.ReadTimeout,
		IdleTimeout:       limits.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: limits.MaxConcurrentRequests, SendPingTimeout: pingAfter, WriteByteTimeout: answerTimeout},
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(d.gate.cfg.Logger.Handler(), slog.LevelDebug),
	}
	if d.tls != nil {
		server.TLSConfig = d.tls.Clone()
	}
	return server
}

// shutdown ends the server, gracefully while the time lasts.
func (d *listener) shutdown(server *http.Server, cancel context.CancelCauseFunc) {
	err := endWithin(server, shutdownTimeout)
	if err == nil {
		return
	}
	d.gate.cfg.Logger.Warn("Cutting off pushes that did not end", "door", d.gate.cfg.Name, "waited", shutdownTimeout, "err", err)
	cancel(errClosing)
	if endWithin(server, cutOffTimeout) != nil { // whoever does not read the answer
		_ = server.Close() // only ever repeats the listener's error
	}
}

func endWithin(server *http.Server, timeout time.Duration) error {
	ctx, done := context.WithTimeout(context.Background(), timeout)
	defer done()
	return server.Shutdown(ctx)
}
