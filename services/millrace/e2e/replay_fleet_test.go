package e2e_test

import (
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/millrace/millrace/bench/receiver"
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
	first.Kill9()
	stdout, stderr := c.wait(2 * time.Minute)
	t.Logf("%s%s", stderr, stdout)
	says(t, stdout, "sent     750,000 samples", "refused  0 samples", "skipped  0 samples")
	if rep := rcv.Report(); rep.Samples != seconds*hourJob || rep.Reordered+rep.Changed != 0 {
		t.Errorf("%d samples arrived, want %d; %d repeated, %d reordered, %d changed", rep.Samples, seconds*hourJob, rep.Repeated, rep.Reordered, rep.Changed)
	}
}
