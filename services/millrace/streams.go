package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/stream"
)

// retryPause is the time between tries of the start at what NATS does not do yet.
const retryPause = 2 * time.Second

// startServer starts the embedded server.
func startServer(dir string, m *config.Millrace, log *slog.Logger) (*stream.Server, error) {
	s := m.Streams
	storage := int64(m.NATS.Embedded.MaxStorage)
	if storage == 0 {
		storage = int64(s.Frames.MaxBytes+s.Deltas.MaxBytes+2*s.Dictionaries.MaxBytes+s.Rejected.MaxBytes) + 1<<30
	}
	return stream.StartServer(stream.ServerConfig{
		Dir: dir, Listen: m.NATS.Embedded.Listen, SyncAlways: s.Sync.Always(), SyncInterval: s.Sync.Interval(),
		MaxMemory: int64(m.NATS.Embedded.MaxMemory), MaxStorage: storage, Logger: log,
	})
}

// ensure makes the streams, and tells m how many partitions they have. In a fleet discovery makes them; the other services wait for it, so that they need no
// right to. While a cluster is not able to, it tries again.
func (p *process) ensure(ctx context.Context, conn *stream.Conn, m *config.Millrace) error {
	makes := m.NATS.IsEmbedded() || p.has("discovery")
	step, failed := conn.Check, "Cannot use the streams, which discovery makes; trying again"
	p.wait("the streams, which discovery makes")
	if makes {
		step, failed = conn.Ensure, "Cannot make the streams, trying again"
		p.wait("the streams")
	}
	keep := func(r config.Retention) stream.Keep {
		return stream.Keep{Age: time.Duration(r.MaxAge), Bytes: int64(r.MaxBytes)}
	}
	layout := stream.Layout{
		Replicas: m.Streams.Replicas,
		LeaseTTL: time.Duration(m.Fleet.LeaseTTL), Frames: keep(m.Streams.Frames), Deltas: keep(m.Streams.Deltas), Dicts: keep(m.Streams.Dictionaries),
		Rejected: keep(m.Streams.Rejected), Verdicts: m.Cardinality.Enabled() && (makes || p.has("relabel")),
	}
	for {
		var err error
		if layout.Partitions, err = choosePartitions(ctx, conn, m); err == nil {
			err = step(ctx, layout)
		}
		if err == nil {
			m.Streams.Partitions = layout.Partitions
			p.partitions.Store(int64(layout.Partitions))
			return nil
		}
		if errors.Is(err, stream.ErrDisagrees) || errors.Is(err, stream.ErrServer) {
			return err
		}
		if m.NATS.IsEmbedded() {
			return fmt.Errorf("%w; check that the storage path %q can be written and has room, or choose another with --storage.path", err, p.opts.storagePath)
		}
		p.log.Warn(failed, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPause):
		}
	}
}

// choosePartitions returns the number of partitions that the configuration sets, or else that of the streams that exist, or else that of new ones.
func choosePartitions(ctx context.Context, conn *stream.Conn, m *config.Millrace) (int, error) {
	if m.Streams.Partitions != 0 {
		return m.Streams.Partitions, nil
	}
	n, err := conn.Partitions(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return m.NewPartitions(), nil
	}
	return n, err
}

// partitionCount returns how many partitions the streams have, and what new ones would have while they are waited for.
func (p *process) partitionCount() int {
	if n := p.partitions.Load(); n != 0 {
		return int(n)
	}
	return p.cfg.Load().Millrace.NewPartitions()
}
