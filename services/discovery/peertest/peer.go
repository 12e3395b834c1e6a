package peertest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/await"
)

// Program returns the program that an environment variable names. Without it the test is skipped; CI builds the programs first, so there it fails.
func Program(t testing.TB, env string) string {
	t.Helper()
	program := os.Getenv(env)
	switch {
	case program != "":
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is not set: .ci/peers builds what it is to name", env)
	default:
		t.Skipf("NOT TESTED AGAINST THE REAL ONE HERE: %s is not set; .ci/peers builds what it is to name", env)
	}
	return program
}

// startTime is how long a program may take for what is awaited of it.
const startTime = 2 * time.Minute

// Peer is a running server of others.
type Peer struct {
	t    testing.TB
	name string
	log  string // its file
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // why, after done
}

// Start runs a program until it is killed, or the test ends. A failed test shows the end of its log.
func Start(t testing.TB, program string, args ...string) *Peer {
	t.Helper()
	p := &Peer{t: t, name: filepath.Base(program), cmd: exec.Command(program, args...), done: make(chan struct{})}
	log, err := os.CreateTemp(t.TempDir(), p.name+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.log = log.Name()
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = log, log, childAttributes()
	started := make(chan error)
	go func() {
		defer close(p.done)
		// The child dies with the thread that started it: this one ends no sooner than the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting %s: %v", p.name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", p.name, p.tail(100))
		}
		p.Kill()
	})
	return p
}

// Kill ends it as kill -9 does, and waits for that.
func (p *Peer) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func (p *Peer) tail(lines int) string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Await polls until ok returns true, and fails the test where the program ends before.
func (p *Peer) Await(what string, ok func() bool) {
	p.t.Helper()
	await.Within(p.t, startTime, p.name+": "+what, func() bool {
		select {
		case <-p.done:
			p.t.Fatalf("%s: ended before: %v", p.name+": "+what, p.err)
		default:
		}
		return ok()
	})
}

// Loopback returns an address for the servers of this process alone, so that a port that is free stays so until its server takes it: on 127.0.0.1
// connections of everybody take ports.
func Loopback() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.77.%d.%d", pid>>8&0xff, pid&0xff)
}

// FreeAddresses returns addresses with n ports that are free.
func FreeAddresses(t testing.TB, n int) []string {
	t.Helper()
	var free []string
	for range n {
		l, err := net.Listen("tcp", net.JoinHostPort(Loopback(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // after all are found, so that they differ
		free = append(free, l.Addr().String())
	}
	return free
}
