package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
	"github.com/millrace/millrace/services/writer"
)

// TestTheStartWaitsForNATSToStoreWhereEndpointsBegin has NATS go away between the look at the streams and the first position.
func TestTheStartWaitsForNATSToStoreWhereEndpointsBegin(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	log := slog.New(slog.DiscardHandler)
	server := stream.ServerConfig{
		Dir: t.TempDir(), Listen: l.Addr().String(), MaxMemory: 64 << 20, MaxStorage: 1 << 30, SyncInterval: time.Minute, Logger: log,
	}
	serve := func() *stream.Server {
		s, err := stream.StartServer(server)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	nats := serve()
	conn, err := stream.Connect(t.Context(), stream.Config{Names: stream.Names{Prefix: "test"}, URL: "nats://" + server.Listen, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.NC.Close)
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	p := starting(t, conn)

	nats.Shutdown()
	applied := make(chan error, 1)
	go func() { applied <- p.firstApply(t.Context()) }()
	var reason *string
	await.True(t, "the start says that it waits", func() bool {
		select {
		case err := <-applied:
			t.Fatalf("the start ended with %v while NATS was away", err)
		default:
		}
		reason = p.waiting.Load()
		return reason != nil
	})
	if !strings.Contains(*reason, "where the endpoints begin") {
		t.Errorf("the process waits for %s", *reason)
	}
	nats = serve()
	t.Cleanup(nats.Shutdown)
	select {
	case err := <-applied:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(await.Patience):
		t.Fatal("the start does not go on though NATS is back")
	}
}

// TestTheStartDoesNotWaitForAnUnreadablePosition has one of a newer Millrace.
func TestTheStartDoesNotWaitForAnUnreadablePosition(t *testing.T) {
	conn := streamtest.New(t, 2)
	kv, err := conn.JS.KeyValue(t.Context(), conn.Bucket("positions"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "writer.prod.1", []byte{9}); err != nil {
		t.Fatal(err)
	}
	p := starting(t, conn)
	if err := p.firstApply(t.Context()); !errors.As(err, new(usageError)) || !errors.Is(err, stream.ErrUnreadable) {
		t.Errorf("the start ended with %v", err)
	}
}

// starting is a process with a writer that has no configuration yet.
func starting(t *testing.T, conn *stream.Conn) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(file, []byte("remote_write: [{name: prod, url: http://127.0.0.1:1/}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	cfg, err := config.Load(file, log)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{log: log}
	p.cfg.Store(&loaded{cfg, time.Now()})
	p.writer = writer.New(writer.Config{Conn: conn, Partitions: 2, Logger: log, Registerer: registry}, actor.NewSystem("test", log, registry))
	return p
}
