package status

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/fleet/fleettest"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// answering has a process answer until the test ends.
func answering(t *testing.T, conn *stream.Conn, r *Report) {
	t.Helper()
	stop, err := Answer(conn, Answers{Report: func() *Report { return r }, Failed: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if err := conn.NC.Flush(); err != nil {
		t.Fatal(err)
	}
}

func from(conn *stream.Conn) Source {
	return Source{Conn: conn, View: func(ctx context.Context) (fleet.View, error) { return fleet.Look(ctx, conn) }}
}

// TestCollectOverNATS asks from a connection that is no member's.
func TestCollectOverNATS(t *testing.T) {
	server := streamtest.Server(t, t.TempDir())
	connect := func() *stream.Conn { return streamtest.Connect(t, server, slog.New(slog.DiscardHandler)) }
	conn := connect()
	if d, err := Collect(t.Context(), from(conn)); !errors.Is(err, ErrNothing) {
		t.Fatalf("without streams: %+v, %v", d, err)
	}
	starting := Member{ID: "starting-1", State: Starting, WaitingFor: []string{"the streams"}}
	answering(t, connect(), &Report{Member: starting})
	d, err := Collect(t.Context(), from(conn))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Members) != 1 || d.Members[0].State != Starting || len(d.Problems) != 1 || !strings.Contains(d.Problems[0], "not known how TARGETS") {
		t.Errorf("before there are streams: members %+v, problems %q", d.Members, d.Problems)
	}
	if !d.Reached {
		t.Error("NATS is not reached")
	}

	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	f, _ := fleettest.Join(t, connect(), "writer")
	silent, _ := fleettest.Join(t, connect(), "scraper")
	id := f.Self().ID
	answering(t, connect(), &Report{Member: Member{ID: id, State: Ready}, Endpoints: []Endpoint{{Name: "prod", State: Idle}}})
	garbled := connect()
	sub, err := garbled.NC.Subscribe(garbled.Status(), func(m *nats.Msg) { _ = m.Respond([]byte("{")) })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	if err := garbled.NC.Flush(); err != nil {
		t.Fatal(err)
	}
	for {
		if d, err = Collect(t.Context(), from(conn)); err != nil {
			t.Fatal(err)
		}
		// Who joins is there a moment later.
		if slices.ContainsFunc(d.Members, func(m Member) bool { return m.ID == id && !m.LastSeen.IsZero() }) && len(d.Members) == 3 {
			break
		}
	}
	states := map[string]Member{}
	for _, m := range d.Members {
		states[m.ID] = m
	}
	if states[id].State != Ready || states[id].LastSeen.IsZero() || states[silent.Self().ID].State != Silent || states["starting-1"].State != Starting {
		t.Errorf("members %+v", d.Members)
	}
	if len(d.Endpoints) != 1 || len(d.Streams) != 11 || d.Streams[3].Name != stream.Frames || d.Streams[3].State != OK {
		t.Errorf("endpoints %+v, streams %+v", d.Endpoints, d.Streams)
	}
	problems := strings.Join(d.Problems, "\n")
	for _, p := range []string{silent.Self().ID + " does not answer", "nobody owns 2 of the 2 shares of writer", "cannot be read"} {
		if !strings.Contains(problems, p) {
			t.Errorf("%q is not among the problems %q", p, d.Problems)
		}
	}
}
