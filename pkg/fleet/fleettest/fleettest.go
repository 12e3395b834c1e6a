// Package fleettest gives tests of services a fleet to be members of.
package fleettest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/stream"
)

// Join returns a member that runs the given services. It leaves when the test ends, or when leave is called: after its services.
func Join(t testing.TB, conn *stream.Conn, services ...string) (f *fleet.Fleet, leave func()) {
	t.Helper()
	f = fleet.New(fleet.Config{
		Conn: conn, TTL: 5 * time.Second, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewPedanticRegistry(),
		Self: fleet.Member{ID: fleet.NewID("test"), Services: services},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := f.Serve(ctx); err != nil && conn.NC.IsConnected() {
			t.Errorf("the member ended with %v", err)
		}
	}()
	leave = func() {
		cancel()
		<-ended
	}
	t.Cleanup(leave)
	return f, leave
}
