package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child process. Its output goes to a file.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	done   chan struct{}
	result error
}

// startTimeout is how long a child may take until it listens.
const startTimeout = 30 * time.Second

// startProcess starts a child that is ended when ctx is: by SIGTERM, and 10 s later by SIGKILL. Its output goes to log.
func startProcess(ctx context.Context, name, log, binary string, args ...string) (*process, error) {
	p, _, err := start(ctx, name, log, false, binary, args...)
	return p, err
}

// startServer starts this program's own binary as a child and returns the address on which it listens.
func startServer(ctx context.Context, name, log string, args ...string) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", fmt.Errorf("finding the own binary: %w", err)
	}
	p, stdout, err := start(ctx, name, log, true, self, args...)
	if err != nil {
		return nil, "", err
	}
	address := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			if a, ok := strings.CutPrefix(lines.Text(), listeningPrefix); ok {
				address <- a
				break
			}
		}
		io.Copy(io.Discard, stdout)
	}()
	select {
	case a := <-address:
		return p, a, nil
	case <-p.done:
		return nil, "", fmt.Errorf("%s ended before it listened: %w", name, p.failure())
	case <-time.After(startTimeout):
		p.stop()
		return nil, "", fmt.Errorf("%s did not listen within %s", name, startTimeout)
	case <-ctx.Done():
		p.stop()
		return nil, "", ctx.Err()
	}
}

func start(ctx context.Context, name, log string, pipe bool, binary string, args ...string) (*process, io.Reader, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// Its own process group, so that an interrupt from the terminal reaches only this program, which ends its children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stdout io.Reader
	var writer *os.File
	if pipe {
		reader, w, err := os.Pipe()
		if err != nil {
			return nil, nil, fmt.Errorf("starting %s: %w", name, err)
		}
		cmd.Stdout, stdout, writer = w, reader, w
	}
	err = cmd.Start()
	if writer != nil {
		writer.Close()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.result = cmd.Wait()
		close(p.done)
	}()
	return p, stdout, nil
}

// stop ends the child: by SIGTERM, and 10 s later by SIGKILL.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

// kill ends the child by SIGKILL.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// alive returns an error if the child has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %w", p.name, p.failure())
	default:
		return nil
	}
}

// failure says how an ended child ended, with the last of its output.
func (p *process) failure() error {
	result := p.result
	if result == nil {
		result = errors.New("without an error")
	}
	return fmt.Errorf("%w; its last output:\n%s", result, p.output())
}

// output returns the last of the child's output.
func (p *process) output() string {
	output, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	const shown = 2000
	return string(output[max(len(output)-shown, 0):])
}

// usage is what a process has used.
type usage struct {
	// cpu is user and system time of all threads.
	cpu time.Duration
	// rss is the resident set now, and peak the largest so far, in bytes.
	rss, peak int64
}

// clockTick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every Linux architecture that Go supports.
const clockTick = 10 * time.Millisecond

// usage reads /proc.
func (p *process) usage() (usage, error) {
	directory := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(directory + "/stat")
	if err != nil {
		return usage{}, fmt.Errorf("reading the CPU time of %s: %w", p.name, err)
	}
	status, err := os.ReadFile(directory + "/status")
	if err != nil {
		return usage{}, fmt.Errorf("reading the memory of %s: %w", p.name, err)
	}
	return parseUsage(stat, status)
}

// parseUsage reads the texts of /proc/PID/stat and /proc/PID/status (proc(5)).
func parseUsage(stat, status []byte) (usage, error) {
	var u usage
	// The second field, the command's name in parentheses, may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const utime, stime = 14 - 3, 15 - 3 // counted from 1 in proc(5); the first here is its third
	if len(fields) <= stime {
		return u, fmt.Errorf("parsing /proc/PID/stat: %d fields after the name", len(fields))
	}
	for _, field := range [][]byte{fields[utime], fields[stime]} {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return u, fmt.Errorf("parsing /proc/PID/stat: %w", err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(string(line), ":")
		to := map[string]*int64{"VmRSS": &u.rss, "VmHWM": &u.peak}[name]
		if to == nil {
			continue
		}
		kibibytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return u, fmt.Errorf("parsing %s of /proc/PID/status: %w", name, err)
		}
		*to = kibibytes << 10
	}
	if u.rss == 0 {
		return u, errors.New("parsing /proc/PID/status: no VmRSS")
	}
	return u, nil
}
