package e2e_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/millrace/millrace/bench/receiver"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

// TestReplayInAFleet asks a fleet over NATS, and kills one of its two writers on the way.
func TestReplayInAFleet(t *testing.T) {
	dir, rcv := newHour(t), receiver.New(receiver.Config{})
	endpoint := httptest.NewServer(rcv)
	t.Cleanup(endpoint.Close)
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(dir, "data"), NoSigs: true, NoSystemAccount: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(startTimeout) {
		t.Fatal("NATS is not ready")
	}
	config := replayConfig(remoteWrite("bench", endpoint.URL+"/api/v1/write")) +
		"millrace: {streams: {partitions: 4, frames: {max_bytes: 1GiB}, deltas: {max_bytes: 1GiB}, dictionaries: {max_bytes: 1GiB}}}\n"
	services := func(list string) option {
		return withArgs("--nats.url="+ns.ClientURL(), "--services="+list)
	}
	startMillrace(t, config, services("discovery,relabel"), asShipped())
	first := startMillrace(t, config, services("writer"), asShipped())
	second := startMillrace(t, config, services("writer"), asShipped())
	eventually(t, 30*time.Second, "each writer has two partitions", func() error {
		for _, p := range []*proc{first, second} {
			if n := p.Metric("millrace_fleet_shares", map[string]string{"service": "writer"}); n != 2 {
				return fmt.Errorf("%v", n)
			}
		}
		return nil
	})
	const seconds = 300
	c := startCommand(t, build(t, shippedBinary), "replay", "--config.file="+configFile(first.Dir, "millrace"), "--nats.url="+ns.ClientURL(), "--from="+secondOf(middleFrom),
		"--to="+secondOf(middleFrom+seconds-1), `--match={job="api"}`, "--endpoint=bench", "--name=fleet", "--rate=150000")
	beyond(t, second, "fleet", seconds*hourJob/4)
	for _, place := range []string{"--nats.url=" + ns.ClientURL(), "--web.url=" + second.URL} { // one of which does not read the bucket itself
		eventually(t, startTimeout, "the replay in the status of the fleet", func() error {
			d := statusOf(t, place)
			if len(d.Replays) != 1 || d.Replays[0].Name != "fleet" || d.Replays[0].State != replay.Running || d.Replays[0].Sent == 0 {
				return fmt.Errorf("from %s: %+v", place, d.Replays)
			}
			return nil
		})
	}
	first.Kill9()
	stdout, stderr := c.wait(2 * time.Minute)
	t.Logf("%s%s", stderr, stdout)
	says(t, stdout, "sent     750,000 samples", "refused  0 samples", "skipped  0 samples")
	if rep := rcv.Report(); rep.Samples != seconds*hourJob || rep.Reordered+rep.Changed != 0 {
		t.Errorf("%d samples arrived, want %d; %d repeated, %d reordered, %d changed", rep.Samples, seconds*hourJob, rep.Repeated, rep.Reordered, rep.Changed)
	}
}

// TestReplaySurvivesTheLossOfNATSNodes kills the node that leads the stream, and then the one that leads it after that, while 20 minutes are replayed from a cluster of three.
func TestReplaySurvivesTheLossOfNATSNodes(t *testing.T) {
	const samples = middleFrom * hourJob * 2
	nodes, rcv := startNATS(t, 3), receiver.New(receiver.Config{History: middleFrom})
	endpoint := httptest.NewServer(rcv)
	t.Cleanup(endpoint.Close)
	conn, err := stream.Connect(t.Context(), stream.Config{Names: stream.Names{Prefix: "millrace"}, URL: nodes.URL, Client: "test", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	publishHour(t, conn, 3, middleFrom)
	conn.Close()
	config := replayConfig(remoteWrite("bench", endpoint.URL+"/api/v1/write")) + fmt.Sprintf("millrace: {nats: {url: %q}, writer: {read_ahead_bytes: 1MiB}, "+
		"streams: {partitions: 4, replicas: 3, frames: {max_bytes: 1GiB}, deltas: {max_bytes: 1GiB}, dictionaries: {max_bytes: 1GiB}}}\n", nodes.URL)
	p := startMillrace(t, config, asShipped(), withArgs("--services=discovery,relabel,writer"))
	c := startCommand(t, build(t, shippedBinary), "replay", "--config.file="+configFile(p.Dir, "millrace"), "--from="+secondOf(0), "--to="+secondOf(middleFrom-1), "--endpoint=bench",
		"--name=nodes", "--rate=300000")
	for kill := range 2 {
		beyond(t, p, "nodes", uint64(kill+1)*samples/4)
		node := nodes.leader()
		t.Logf("killing %s, which leads the stream", node.name)
		node.kill()
		if kill == 0 {
			node.start()
			nodes.ready()
		}
	}
	stdout, stderr := c.wait(3 * time.Minute)
	t.Logf("%s%s", stderr, stdout)
	says(t, stdout, "sent     6,000,000 samples", "refused  0 samples", "skipped  0 samples")
	if rep := rcv.Report(); rep.Samples != samples || rep.Reordered+rep.Changed+rep.BeyondHistory != 0 {
		t.Errorf("%d samples arrived, want %d; %d repeated, %d reordered, %d changed, %d beyond history", rep.Samples, samples, rep.Repeated, rep.Reordered, rep.Changed, rep.BeyondHistory)
	} else {
		t.Logf("%d samples arrived, %d repeated", rep.Samples, rep.Repeated)
	}
}
