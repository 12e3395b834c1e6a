package stream

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A stream of the server's file store that has met a write error, such as a full file system, takes no messages any more until JetStream is
// started again, and neither do publishers get an answer. What is here notices that, says so, and starts JetStream again once the storage
// path can be written. What was acknowledged is on disk; readers and publishers go on by themselves.

const (
	// lookEvery is how often the server's health is looked at.
	lookEvery = 2 * time.Second
	// maxMendPause bounds the time between two tries to start JetStream again.
	maxMendPause = time.Minute
	// sayEvery is the time between two log lines about the same failure.
	sayEvery = time.Minute
	// mendRoom is how many bytes the storage path has to take before JetStream is started again.
	mendRoom = 2 << 20
)

// mend keeps JetStream working until ctx ends.
func (s *Server) mend(ctx context.Context) {
	defer close(s.mended)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var said, next time.Time
	pause := lookEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		failure := s.unhealthy()
		if failure == "" {
			if s.failure.Swap(nil) != nil {
				s.log.Info("JetStream stores messages again", "storage_path", s.dir)
			}
			if time.Since(next) > maxMendPause {
				pause = lookEvery
			}
			continue
		}
		s.failure.Store(&failure)
		if time.Since(said) > sayEvery {
			said = time.Now()
			s.log.Error("JetStream cannot store messages", "storage_path", s.dir, "err", failure,
				"remedy", "make room in the storage path, or make it writable; work goes on by itself then")
		}
		if time.Now().Before(next) || s.writable() != nil {
			continue
		}
		if err := s.restart(ctx); err != nil {
			s.log.Error("Starting JetStream again failed, trying again", "storage_path", s.dir, "err", err, "next_try", pause)
		}
		next = time.Now().Add(pause)
		pause = min(2*pause, maxMendPause)
	}
}

// unhealthy says why a stream cannot be written; "" while all is well.
func (s *Server) unhealthy() string {
	h := s.ns.Healthz(&server.HealthzOptions{Details: true})
	for _, e := range h.Errors {
		if e.Type == server.HealthzErrorJetStream || e.Type == server.HealthzErrorStream {
			return e.Error
		}
	}
	return ""
}

// writable tries the storage path.
func (s *Server) writable() (err error) {
	path := filepath.Join(s.dir, "room")
	defer os.Remove(path)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, mendRoom)); err != nil {
		return err
	}
	return f.Sync()
}

// restart stops JetStream and starts it again from what is on disk.
func (s *Server) restart(ctx context.Context) error {
	s.log.Info("The storage path can be written again; starting JetStream again", "storage_path", s.dir)
	if err := s.ns.ShutdownJetStream(); err != nil {
		return fmt.Errorf("stopping JetStream: %w", err)
	}
	// The server itself may have begun to stop it.
	for wait := time.NewTicker(20 * time.Millisecond); s.ns.JetStreamConfig() != nil; {
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
	}
	if err := s.ns.EnableJetStream(s.jetstream()); err != nil {
		return fmt.Errorf("starting JetStream: %w", err)
	}
	// Consumers are gone with the old JetStream. Readers make new ones at once when they reconnect, and late where they have to find out.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, nc := range s.conns {
		if !nc.IsClosed() {
			if err := nc.ForceReconnect(); err != nil {
				s.log.Warn("Reconnecting after JetStream was started again failed; readers find out by themselves", "err", err)
			}
		}
	}
	return nil
}

// opened notes a connection of this process.
func (s *Server) opened(nc *nats.Conn) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, nc)
}

// jetstream returns the configuration with which the server has started JetStream itself.
func (s *Server) jetstream() *server.JetStreamConfig {
	return &server.JetStreamConfig{
		StoreDir: s.opts.StoreDir, SyncInterval: s.opts.SyncInterval, SyncAlways: s.opts.SyncAlways, Strict: !s.opts.NoJetStreamStrict,
		MaxMemory: s.opts.JetStreamMaxMemory, MaxStore: s.opts.JetStreamMaxStore, CompressOK: true,
	}
}

// because adds to a publisher's error why the server gives no answer, where that is known.
func (s *Server) because(err error) error {
	if s != nil {
		if why := s.failure.Load(); why != nil {
			return fmt.Errorf("%s: %w", *why, err)
		}
	}
	return err
}
