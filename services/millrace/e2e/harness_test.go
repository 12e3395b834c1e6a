package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// startTimeout is how long a process may take until it is ready, stopTimeout how long until it has ended.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// The packages of the two commands.
const (
	millracePackage   = "github.com/millrace/millrace/services/millrace"
	prometheusPackage = "github.com/prometheus/prometheus/cmd/prometheus"
)

// raceBuild says whether millrace is built with the race detector: where the tests run with it, and where MILLRACE_TEST_RACE=1 asks for it. The latter
// leaves the tests' own receivers fast enough for the load.
var raceBuild = raceDetector || os.Getenv("MILLRACE_TEST_RACE") == "1"

// longTest makes tests take the time that what they show takes.
var longTest = os.Getenv("MILLRACE_TEST_LONG") == "1"

// binDir is where the binaries of this run are built.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		binDir = os.Getenv("MILLRACE_TEST_BIN")
		if binDir == "" {
			dir, err := os.MkdirTemp("", "millrace-e2e-")
			if err != nil {
				fmt.Fprintln(os.Stderr, "making a folder for binaries:", err)
				return 1
			}
			defer os.RemoveAll(dir)
			binDir = dir
		}
		go forkFromHere()
		return m.Run()
	}())
}

// build returns the path of a command's binary, which it builds when it is asked for the first time.
func build(t testing.TB, binary func() (string, error)) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	millraceBinary   = sync.OnceValues(func() (string, error) { return goBuild(millracePackage, "millrace", raceBuild) })
	shippedBinary    = sync.OnceValues(func() (string, error) { return goBuild(millracePackage, "millrace-as-shipped", false) })
	prometheusBinary = sync.OnceValues(func() (string, error) { return goBuild(prometheusPackage, "prometheus", false) })
)

func goBuild(pkg, name string, race bool) (string, error) {
	path, err := filepath.Abs(filepath.Join(binDir, name))
	if err != nil {
		return "", fmt.Errorf("building %s: %w", pkg, err)
	}
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, pkg)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", pkg, err, out)
	}
	return path, nil
}

// proc is a running process with a web address.
type proc struct {
	// URL is the base of its web address, without a slash at the end.
	URL string
	// Dir is its folder: configuration, storage and log.
	Dir string

	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait, once done is closed
}

// option changes how a process is started.
type option func(*startOptions)

type startOptions struct {
	dir     string
	address string
	args    []string
	ready   bool
	shipped bool
}

// asShipped runs millrace without the race detector also where the tests run with it: for tests of its memory, or of more load than the detector
// bears.
func asShipped() option { return func(o *startOptions) { o.shipped = true } }

// inDir gives the process a folder, so that it finds there what an earlier one left. Default: a new one.
func inDir(dir string) option { return func(o *startOptions) { o.dir = dir } }

// onAddress gives the process its web address. Default: a free port.
func onAddress(address string) option { return func(o *startOptions) { o.address = address } }

// withArgs adds command line arguments.
func withArgs(args ...string) option {
	return func(o *startOptions) { o.args = append(o.args, args...) }
}

// withoutWaiting returns from the start at once instead of waiting for /-/ready.
func withoutWaiting() option { return func(o *startOptions) { o.ready = false } }

// startMillrace runs `millrace run` with a configuration until the test ends.
func startMillrace(t testing.TB, config string, opts ...option) *proc {
	t.Helper()
	var o startOptions
	for _, opt := range opts {
		opt(&o)
	}
	binary := millraceBinary
	if o.shipped {
		binary = shippedBinary
	}
	return startProc(t, "millrace", build(t, binary), config, runArgs, opts)
}

// runArgs are those of `millrace run`.
func runArgs(dir, address string) []string {
	return []string{"run", "--config.file=" + configFile(dir, "millrace"), "--storage.path=" + filepath.Join(dir, "data"), "--web.listen-address=" + address}
}

// startPrometheus runs Prometheus with a configuration until the test ends. It takes remote_write, and keeps exemplars.
func startPrometheus(t testing.TB, config string, opts ...option) *proc {
	t.Helper()
	return startProc(t, "prometheus", build(t, prometheusBinary), config, func(dir, address string) []string {
		return []string{
			"--config.file=" + configFile(dir, "prometheus"), "--storage.tsdb.path=" + filepath.Join(dir, "tsdb"), "--web.listen-address=" + address,
			"--web.enable-remote-write-receiver", "--web.enable-lifecycle", "--enable-feature=exemplar-storage,metadata-wal-records",
		}
	}, opts)
}

// runMillrace runs a millrace command to its end and returns what it printed and its exit code.
func runMillrace(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	binary := build(t, millraceBinary) // which may take longer than it to run
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("running millrace %q: %v\n%s", args, err, errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func configFile(dir, name string) string { return filepath.Join(dir, name+".yml") }

// startProc starts a process. Another process may take the port between its choice and its use; then it starts again with another one.
func startProc(t testing.TB, name, binary, config string, args func(dir, address string) []string, opts []option) *proc {
	t.Helper()
	o := startOptions{ready: true}
	for _, opt := range opts {
		opt(&o)
	}
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	writeFile(t, configFile(o.dir, name), config)
	for try := 1; ; try++ {
		address := o.address
		if address == "" {
			address = fmt.Sprintf("127.0.0.1:%d", freePort(t))
		}
		p := &proc{t: t, name: name, URL: "http://" + address, Dir: o.dir, done: make(chan struct{})}
		p.cmd = exec.Command(binary, append(args(o.dir, address), o.args...)...)
		p.start()
		if !o.ready {
			return p
		}
		err := p.waitReady()
		if err == nil {
			return p
		}
		p.Kill9()
		if try < 3 && strings.Contains(p.Logs(), address+": bind: address already in use") {
			continue
		}
		t.Fatal(err)
	}
}

func (p *proc) start() {
	p.launch()
	p.t.Cleanup(func() {
		if _, race, found := strings.Cut(p.Logs(), "WARNING: DATA RACE\n"); found {
			race, _, _ = strings.Cut(race, "==================")
			p.t.Errorf("data race in %s:\n%s", p.name, race)
		}
		if p.t.Failed() {
			p.t.Logf("the last of the log of %s in %s:\n%s", p.name, p.URL, tail(p.Logs(), 15))
		}
		p.Kill9()
	})
}

// Again starts the process once more after its end: same arguments, same addresses, same folder. It returns when the process is ready.
func (p *proc) Again() {
	p.t.Helper()
	<-p.done
	p.cmd, p.done = exec.Command(p.cmd.Path, p.cmd.Args[1:]...), make(chan struct{})
	p.launch()
	if err := p.waitReady(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *proc) launch() {
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = childAttributes()
	if err := fork(p.cmd); err != nil {
		p.t.Fatalf("starting %s: %v", p.name, err)
	}
	cmd, done := p.cmd, p.done
	go func() {
		p.err = cmd.Wait()
		close(done)
	}()
}

// waitReady polls /-/ready.
func (p *proc) waitReady() error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := p.readiness()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %w", p.name, startTimeout, err)
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %v", p.name, p.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *proc) readiness() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/-/ready", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}

// Kill9 kills the process, and returns when it has ended. On an ended process it does nothing.
func (p *proc) Kill9() {
	p.cmd.Process.Kill()
	<-p.done
}

// Stop ends the process by SIGTERM and returns its exit code.
func (p *proc) Stop() int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.Wait()
}

// Wait waits for the process's own end and returns its exit code.
func (p *proc) Wait() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.t.Fatalf("%s has not ended after %s", p.name, stopTimeout)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Signal sends a signal, such as SIGHUP for a reload.
func (p *proc) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("sending %s to %s: %v", s, p.name, err)
	}
}

// SetConfig replaces the configuration file. It does not reload it.
func (p *proc) SetConfig(config string) {
	p.t.Helper()
	writeFile(p.t, configFile(p.Dir, p.name), config)
}

// Logs returns the whole log of all processes of this kind in Dir.
func (p *proc) Logs() string {
	log, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	return string(log)
}

func (p *proc) logFile() string { return filepath.Join(p.Dir, p.name+".log") }

// Get returns the status code and the body of an answer. path begins with a slash.
func (p *proc) Get(path string) (int, []byte) {
	p.t.Helper()
	return get(p.t, p.URL+path)
}

// Metric returns the sum of the samples of /metrics that have a name and at least these labels: counters, gauges, and the
// _count and _sum of histograms. No such sample is 0.
func (p *proc) Metric(name string, labels map[string]string) float64 {
	p.t.Helper()
	sum := 0.0
	for _, s := range p.samples() {
		if s.name == name && hasLabels(s.metric, labels) {
			sum += s.value
		}
	}
	return sum
}

type sample struct {
	name   string
	metric *dto.Metric
	value  float64
}

// samples returns what /metrics says.
func (p *proc) samples() []sample {
	p.t.Helper()
	code, body := p.Get("/metrics")
	if code != http.StatusOK {
		p.t.Fatalf("%s/metrics: status %d: %s", p.URL, code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		p.t.Fatalf("%s/metrics: %v", p.URL, err)
	}
	var list []sample
	for name, f := range families {
		for _, m := range f.Metric {
			switch {
			case m.Counter != nil:
				list = append(list, sample{name, m, m.Counter.GetValue()})
			case m.Gauge != nil:
				list = append(list, sample{name, m, m.Gauge.GetValue()})
			case m.Untyped != nil:
				list = append(list, sample{name, m, m.Untyped.GetValue()})
			case m.Histogram != nil:
				list = append(list, sample{name + "_count", m, float64(m.Histogram.GetSampleCount())}, sample{name + "_sum", m, m.Histogram.GetSampleSum()})
			}
		}
	}
	return list
}

func hasLabels(m *dto.Metric, labels map[string]string) bool {
	found := 0
	for _, l := range m.Label {
		if v, ok := labels[l.GetName()]; ok && v == l.GetValue() {
			found++
		}
	}
	return found == len(labels)
}

// eventually calls check until it returns nil, and fails the test if that takes longer than within.
func eventually(t testing.TB, within time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// freePort returns a TCP port of 127.0.0.1 that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func get(t testing.TB, url string) (int, []byte) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("reading %s: %v", url, err)
	}
	return res.StatusCode, body
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tail returns the last n lines.
func tail(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(len(lines)-n-1, 0):], "")
}

// The signal that ends children comes when the thread ends that forked them, so one goroutine that keeps its thread forks them all.
var forks = make(chan forkRequest)

type forkRequest struct {
	cmd *exec.Cmd
	err chan<- error
}

func forkFromHere() {
	runtime.LockOSThread()
	for r := range forks {
		r.err <- r.cmd.Start()
	}
}

func fork(cmd *exec.Cmd) error {
	err := make(chan error)
	forks <- forkRequest{cmd, err}
	return <-err
}

// replaceFile writes a file such that nobody reads half of it.
func replaceFile(t testing.TB, path, content string) {
	t.Helper()
	writeFile(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
