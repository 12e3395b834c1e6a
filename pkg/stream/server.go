package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// ServerConfig configures the embedded server.
type ServerConfig struct {
	// Dir is where the streams are stored. It is made where it does not exist.
	Dir string
	// Listen is a host:port for NATS clients; empty for none but this process.
	Listen string
	// SyncAlways makes an acknowledged message one that has been fsynced.
	SyncAlways bool
	// SyncInterval is the time between fsyncs where SyncAlways is off.
	SyncInterval time.Duration
	// MaxMemory and MaxStorage limit JetStream, in bytes.
	MaxMemory, MaxStorage int64
	// Logger receives the server's own log.
	Logger *slog.Logger
}

// Server is a NATS server with JetStream inside this process.
type Server struct {
	ns   *server.Server
	opts *server.Options
	dir  string
	lock *os.File
	log  *slog.Logger

	failure atomic.Pointer[string] // why streams cannot be written; nil while they can

	mu    sync.Mutex
	conns []*nats.Conn // of this process

	stopMending context.CancelFunc
	mended      chan struct{} // closed when mend has ended
}

// StartServer starts the embedded server and waits until it takes connections.
// A directory that is used by another process, cannot be written, or has no room is an error that says so.
func StartServer(cfg ServerConfig) (*Server, error) {
	if err := os.MkdirAll(cfg.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("making the storage path %q: %w; choose a writable one with --storage.path", cfg.Dir, err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	opts := &server.Options{
		ServerName: "millrace", JetStream: true, StoreDir: cfg.Dir,
		JetStreamMaxMemory: cfg.MaxMemory, JetStreamMaxStore: cfg.MaxStorage,
		SyncAlways: cfg.SyncAlways, SyncInterval: cfg.SyncInterval,
		DontListen: true, NoSigs: true, NoSystemAccount: true, DisableJetStreamBanner: true,
	}
	if cfg.Listen != "" {
		if err := setListen(opts, cfg.Listen); err != nil {
			lock.Close()
			return nil, err
		}
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("configuring the embedded NATS server: %w", err)
	}
	log := &serverLog{log: cfg.Logger.With("component", "nats-server"), fatal: make(chan string, 1)}
	ns.SetLoggerV2(log, false, false, false)
	if err := start(ns, log); err != nil {
		ns.Shutdown()
		ns.WaitForShutdown()
		lock.Close()
		return nil, fmt.Errorf("starting the embedded NATS server in %q: %w", cfg.Dir, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{
		ns: ns, opts: opts, dir: cfg.Dir, lock: lock, log: cfg.Logger.With("component", "nats-server"), stopMending: stop, mended: make(chan struct{}),
	}
	go s.mend(ctx)
	return s, nil
}

// start runs the server and waits until it takes connections, or says why it never will.
func start(ns *server.Server, log *serverLog) error {
	go ns.Start()
	ready := false
	for end := time.Now().Add(time.Minute); !ready && time.Now().Before(end); {
		ready = ns.ReadyForConnections(200 * time.Millisecond)
		select {
		case reason := <-log.fatal:
			return errors.New(reason)
		default:
		}
	}
	switch {
	case !ready && log.lastError() != "":
		return errors.New(log.lastError())
	case !ready:
		return errors.New("not ready after a minute")
	case !ns.JetStreamEnabled():
		return fmt.Errorf("JetStream is off: %s", log.lastError())
	}
	return nil
}

// Shutdown stops the server once all that it took is stored.
func (s *Server) Shutdown() {
	s.stopMending()
	<-s.mended
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
	s.lock.Close()
}

func setListen(opts *server.Options, listen string) error {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("millrace.nats.embedded.listen %q: %w; want host:port", listen, err)
	}
	p, err := strconv.Atoi(port)
	if err != nil || p < 0 || p > 65535 {
		return fmt.Errorf("millrace.nats.embedded.listen %q: port %q is not a number from 0 to 65535", listen, port)
	}
	if p == 0 {
		p = server.RANDOM_PORT
	}
	l, err := net.Listen("tcp", listen) // a clear error now, where the server would end the process
	if err != nil {
		return fmt.Errorf("millrace.nats.embedded.listen %q: %w", listen, err)
	}
	l.Close()
	opts.DontListen, opts.Host, opts.Port = false, host, p
	return nil
}

// lockDir takes the storage path for this process and shows that it can be written.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("storage path %q cannot be written: %w; choose another with --storage.path", dir, err)
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("storage path %q is in use by another process: %w; stop it, or choose another with --storage.path", dir, err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err == nil {
		err = f.Truncate(int64(len(strconv.Itoa(os.Getpid()))) + 1) // the last one's may be longer
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("storage path %q cannot be written: %w; free some room, or choose another with --storage.path", dir, err)
	}
	return f, nil
}

// serverLog passes the server's log on to slog. It keeps the last error for a failed start.
type serverLog struct {
	log   *slog.Logger
	last  atomic.Pointer[string]
	fatal chan string // the first reason for which the server's own logger would have ended the process
}

func (l *serverLog) Noticef(format string, v ...any) { l.log.Debug(message(format, v)) }
func (l *serverLog) Debugf(format string, v ...any)  { l.log.Debug(message(format, v)) }
func (l *serverLog) Tracef(format string, v ...any)  {}
func (l *serverLog) Warnf(format string, v ...any)   { l.log.Warn(message(format, v)) }

func (l *serverLog) Errorf(format string, v ...any) {
	m := message(format, v)
	l.last.Store(&m)
	l.log.Error(m)
}

// Fatalf would end the process in the server's own logger. Here the start fails instead.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.Errorf(format, v...)
	select {
	case l.fatal <- message(format, v):
	default:
	}
}

func (l *serverLog) lastError() string {
	if m := l.last.Load(); m != nil {
		return *m
	}
	return ""
}

func message(format string, v []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, v...))
}
