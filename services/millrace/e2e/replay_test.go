package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/receiver"
	"github.com/millrace/millrace/pkg/replay"
)

// The middle 20 minutes of the hour.
const (
	middleFrom = 20 * 60
	middleTo   = 40 * 60
)

// secondOf returns a second of the hour as the commands take it.
func secondOf(second int) string {
	return time.UnixMilli(hourStart + int64(second)*1000).UTC().Format(time.RFC3339)
}

func replayConfig(endpoint string) string {
	return "global: {external_labels: {cluster: demo}}\nremote_write:\n" + endpoint
}

// emptyPrometheus is one that takes old samples.
func emptyPrometheus(t *testing.T) *proc {
	t.Helper()
	return startPrometheus(t, "storage: {tsdb: {out_of_order_time_window: 3h}}\n")
}

// command is a millrace command that runs.
type command struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	done           chan error
}

func startCommand(t *testing.T, binary string, args ...string) *command {
	t.Helper()
	c := &command{t: t, cmd: exec.Command(binary, args...), done: make(chan error, 1)}
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = &c.stdout, &c.stderr, childAttributes()
	if err := fork(c.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { c.done <- c.cmd.Wait() }()
	t.Cleanup(func() { c.cmd.Process.Kill() })
	return c
}

// wait waits for the command's end and returns what it printed.
func (c *command) wait(within time.Duration) (stdout, stderr string) {
	c.t.Helper()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Errorf("%q: %v\n%s%s", c.cmd.Args[1:], err, c.stdout.String(), c.stderr.String())
		}
	case <-time.After(within):
		c.t.Fatalf("%q has not ended within %s", c.cmd.Args[1:], within)
	}
	return c.stdout.String(), c.stderr.String()
}

// replayStatus asks a process how a replay stands; it may be starting or dead.
func replayStatus(p *proc, name string) (st replay.Status, err error) {
	res, err := http.Get(p.URL + "/api/v1/replays/" + name)
	if err != nil {
		return st, err
	}
	defer res.Body.Close()
	var answer struct {
		Status, Error string
		Data          *replay.Status
	}
	answer.Data = &st
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return st, err
	}
	if answer.Status != "success" {
		return st, fmt.Errorf("%s: %s", res.Status, answer.Error)
	}
	return st, nil
}

// beyond waits until a replay has sent so many samples.
func beyond(t *testing.T, p *proc, name string, samples uint64) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprint(samples, " samples replayed"), func() error {
		st, err := replayStatus(p, name)
		if err == nil && st.Sent < samples {
			err = fmt.Errorf("%d were sent: %+v", st.Sent, st)
		}
		return err
	})
}

const middleSamples = (middleTo - middleFrom) * hourJob

// TestReplayOfTheMiddleIsExact replays 20 minutes of a job into an empty Prometheus, and compares sample by sample.
func TestReplayOfTheMiddleIsExact(t *testing.T) {
	prom, dir := emptyPrometheus(t), newHour(t)
	p := startMillrace(t, replayConfig(remoteWrite("prom", prom.URL+"/api/v1/write")), inDir(dir), asShipped())
	c := startCommand(t, build(t, shippedBinary), "replay", "--web.url="+p.URL, "--from="+secondOf(middleFrom), "--to="+secondOf(middleTo-1), `--match={job="api"}`,
		"--endpoint=prom", "--name=middle")
	stdout, stderr := c.wait(2 * time.Minute)
	t.Logf("%s%s", stderr, stdout)
	says(t, stdout, "sent     3,000,000 samples", "refused  0 samples", "skipped  0 samples")
	holdsExactly(t, prom, "api", middleFrom, middleTo)
}

// TestReplayGoesOnThroughKills kills the process twice on the way.
func TestReplayGoesOnThroughKills(t *testing.T) {
	prom, dir := emptyPrometheus(t), newHour(t)
	p := startMillrace(t, replayConfig(remoteWrite("prom", prom.URL+"/api/v1/write")), inDir(dir), asShipped())
	c := startCommand(t, build(t, shippedBinary), "replay", "--web.url="+p.URL, "--from="+secondOf(middleFrom), "--to="+secondOf(middleTo-1), `--match={job="api"}`,
		"--endpoint=prom", "--name=middle", "--rate=400000")
	for kill := range 2 {
		beyond(t, p, "middle", uint64(kill+1)*middleSamples/4)
		p.Kill9()
		p.Again()
	}
	stdout, _ := c.wait(2 * time.Minute)
	t.Log(stdout)
	says(t, stdout, "sent     3,000,000 samples", "refused  0 samples", "skipped  0 samples")
	st, err := replayStatus(p, "middle")
	if err != nil || st.State != replay.Done || st.Sent != middleSamples {
		t.Errorf("told as %+v, %v", st, err)
	}
	holdsExactly(t, prom, "api", middleFrom, middleTo)
}

// TestReplayFromStorage replays what a Millrace has left that does not run, after a dry run. The command is killed on the way and started again.
func TestReplayFromStorage(t *testing.T) {
	prom, dir := emptyPrometheus(t), newHour(t)
	config := configFile(dir, "millrace")
	writeFile(t, config, replayConfig(remoteWrite("prom", prom.URL+"/api/v1/write")))
	args := []string{"replay", "--config.file=" + config, "--storage.path=" + filepath.Join(dir, "data"), "--from=" + secondOf(middleFrom), "--to=" + secondOf(middleFrom+299),
		`--match={job="db"}`, "--endpoint=prom"}
	stdout, stderr := startCommand(t, build(t, shippedBinary), append(args, "--dry-run")...).wait(time.Minute)
	says(t, stdout, "series   2,500", "samples  750,000")
	t.Logf("%s%s", stderr, stdout)

	args = append(args, "--name=minutes")
	c := startCommand(t, build(t, shippedBinary), append(args, "--rate=200000")...)
	eventually(t, time.Minute, "some samples", func() error {
		if n := prom.Metric("prometheus_tsdb_head_series", nil); n < hourJob {
			return fmt.Errorf("%v series", n)
		}
		return nil
	})
	c.cmd.Process.Kill()
	<-c.done
	stdout, _ = startCommand(t, build(t, shippedBinary), args...).wait(time.Minute)
	says(t, stdout, "sent     750,000 samples", "refused  0 samples", "skipped  0 samples")
	holdsExactly(t, prom, "db", middleFrom, middleFrom+300)
}

// TestReplaySpeed replays into the verifying receiver as fast as it goes, with MILLRACE_TEST_LONG=1 the whole hour. How fast that is depends on the machine, and is only logged.
func TestReplaySpeed(t *testing.T) {
	dir, rcv, seconds := newHour(t), receiver.New(receiver.Config{}), middleFrom
	if longTest {
		seconds = hourSeconds
	}
	server := httptest.NewServer(rcv)
	t.Cleanup(server.Close)
	p := startMillrace(t, replayConfig(remoteWrite("bench", server.URL+"/api/v1/write")), inDir(dir), asShipped())
	c := startCommand(t, build(t, shippedBinary), "replay", "--web.url="+p.URL, "--from="+secondOf(0), "--to="+secondOf(seconds-1), "--endpoint=bench")
	stdout, _ := c.wait(2 * time.Minute)
	t.Log(stdout)
	if rep, want := rcv.Report(), seconds*2*hourJob; rep.Samples != want || rep.Repeated+rep.Reordered+rep.Changed != 0 {
		t.Errorf("%d samples arrived, want %d; %d repeated, %d reordered, %d changed", rep.Samples, want, rep.Repeated, rep.Reordered, rep.Changed)
	}
}

// TestLiveTrafficGoesFirst measures the latency of what is collected before and while something else is replayed.
func TestLiveTrafficGoesFirst(t *testing.T) {
	dir, r, e, rcv := newHour(t), newRig(t, 20, 500), newEndpoint(t), receiver.New(receiver.Config{})
	server := httptest.NewServer(rcv)
	t.Cleanup(server.Close)
	p := startMillrace(t, r.config("", remoteWrite("live", e.URL), remoteWrite("bench", server.URL+"/api/v1/write")), inDir(dir), asShipped())
	measure := func(during func()) float64 {
		e.ResetWindow()
		during()
		return e.Report().Latency.P99
	}
	scrapes := func() {
		for range 5 {
			r.arrived(e, 30*time.Second)
		}
	}
	replay := func(args ...string) {
		args = append([]string{"replay", "--web.url=" + p.URL, "--url=" + server.URL + "/api/v1/write"}, args...)
		stdout, _ := startCommand(t, build(t, shippedBinary), args...).wait(2 * time.Minute)
		says(t, stdout, "refused  0 samples", "skipped  0 samples")
		t.Log(stdout)
	}
	r.arrived(e, 30*time.Second)
	before := measure(scrapes)
	limited := measure(func() {
		replay("--from="+secondOf(0), "--to="+secondOf(99), "--rate=100000")
	})
	after := measure(scrapes)
	unlimited := measure(func() { replay("--from="+secondOf(0), "--to="+secondOf(middleFrom-1)) })
	t.Logf("p99 of live samples: %.2f s and %.2f s without a replay, %.2f s beside one of 100,000 samples/s, %.2f s beside one without a rate", before, after, limited, unlimited)
	if most := max(2*max(before, after), 1); limited > most {
		t.Errorf("beside a replay with a rate, the p99 is %.2f s; want at most %.2f s", limited, most)
	}
	p.Stop()
	e.inOrder(t)
}

// TestReplayIsAskedForInVain shows what is said where a replay cannot be.
func TestReplayIsAskedForInVain(t *testing.T) {
	p := startMillrace(t, replayConfig(remoteWrite("prom", "http://"+refusingAddress(t)+"/api/v1/write")))
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--from=-1h", "--endpoint=prod"}, 2, `--endpoint: there is no endpoint "prod"; choose from prom, or give --url`},
		{[]string{"--from=1h", "--endpoint=prom"}, 2, `--from: "1h" is no time; write a time such as 2026-01-31T15:00:00Z, a duration before now such as -2h, or now`},
		{[]string{"--from=-1h", "--to=-2h", "--endpoint=prom"}, 2, "--from: -1h is after --to=-2h; exchange the two"},
		{[]string{"--from=-1h", "--match={", "--endpoint=prom"}, 2, `--match: "{" is no selector`},
		{[]string{"--from=-1h", "--endpoint=prom", "--url=http://x/"}, 2, "--url: it stands beside --endpoint=prom; leave one of the two out"},
		{[]string{"--from=-1h", "--url=http://me:secret@x/"}, 2, "--url: it holds a secret"},
		{[]string{"--from=-1h", "--endpoint=prom", "--rate=-3"}, 2, "--rate: -3 is no rate"},
		{[]string{"--name=unheard"}, 2, `--name: there is no replay "unheard" that could go on; say with --from`},
		{[]string{"--from=-1h", "--endpoint=prom", "--web.url=http://" + refusingAddress(t)}, 1, "connection refused; start it, give --web.url, or --storage.path"},
		{[]string{"--from=-1h", "--endpoint=prom", "--storage.path=/nowhere", "--config.file=" + configFile(p.Dir, "millrace")}, 2, "--storage.path: stat /nowhere: no such file"},
		{[]string{"--from=-1h", "--endpoint=prom", "--storage.path=" + filepath.Join(p.Dir, "data"), "--config.file=" + configFile(p.Dir, "millrace")}, 1, "is in use by another process"},
	} {
		args := append([]string{"replay"}, c.args...)
		if !strings.HasPrefix(args[len(args)-1], "--web.url=") {
			args = append(args, "--web.url="+p.URL)
		}
		_, stderr, code := runMillrace(t, args...)
		if code != c.code || !strings.Contains(stderr, c.says) || strings.Contains(stderr, "secret@") {
			t.Errorf("%q ends with %d: %s; want %d: %s", c.args, code, stderr, c.code, c.says)
		}
	}
}
