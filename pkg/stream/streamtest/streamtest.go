// Package streamtest gives tests an embedded NATS server that has the streams.
package streamtest

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/stream"
)

// Server starts a server in the folder dir, which ends with the test.
func Server(t testing.TB, dir string) *stream.Server {
	t.Helper()
	s, err := stream.StartServer(stream.ServerConfig{
		Dir: filepath.Join(dir, "nats"), MaxMemory: 64 << 20, MaxStorage: 1 << 30, SyncInterval: time.Minute, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

// Connect returns a connection to a server, which is closed with the test. All names have the prefix "test".
func Connect(t testing.TB, s *stream.Server, log *slog.Logger) *stream.Conn {
	t.Helper()
	c, err := stream.Connect(t.Context(), stream.Config{Names: stream.Names{Prefix: "test"}, Server: s, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// New returns a connection to a new server with streams of the given number of partitions.
func New(t testing.TB, partitions int) *stream.Conn {
	t.Helper()
	c := Connect(t, Server(t, t.TempDir()), slog.New(slog.DiscardHandler))
	if err := c.Ensure(t.Context(), stream.Layout{Partitions: partitions, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	return c
}
