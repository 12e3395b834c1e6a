package e2e_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/creack/pty"

	"github.com/millrace/millrace/bench/receiver"
)

// terminal is a pseudo-terminal in which a command runs.
type terminal struct {
	keys *os.File
	done chan error

	mu   sync.Mutex
	text []byte
}

// inTerminal runs a command as a shell does: in a session of its own, with the terminal for input and all output.
func inTerminal(t *testing.T, width uint16, binary string, args ...string) *terminal {
	t.Helper()
	keys, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if err := pty.Setsize(keys, &pty.Winsize{Rows: 24, Cols: width}); err != nil {
		t.Fatal(err)
	}
	x := &terminal{keys: keys, done: make(chan error, 1)}
	cmd := exec.Command(binary, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	if cmd.SysProcAttr = childAttributes(); cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := fork(cmd); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	t.Cleanup(func() { cmd.Process.Kill() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			x.mu.Lock()
			x.text = append(x.text, buf[:n]...)
			x.mu.Unlock()
			if err != nil { // the last one that had the terminal open has ended
				x.done <- cmd.Wait()
				return
			}
		}
	}()
	return x
}

func (x *terminal) all() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return string(x.text)
}

// bars returns the text of each bar that was drawn, one over the other.
func (x *terminal) bars() (list []string) {
	parts := strings.Split(x.all(), "\r")
	for _, part := range parts[:len(parts)-1] { // the last one may not be there in full
		if line, _, _ := strings.Cut(part, "\x1b"); strings.Contains(line, "% |") {
			list = append(list, strings.TrimRight(line, " "))
		}
	}
	return list
}

// shows waits until a bar was drawn that a pattern matches.
func (x *terminal) shows(t *testing.T, pattern string) (bar string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	eventually(t, time.Minute, "a bar like "+pattern, func() error {
		for _, b := range x.bars() {
			if re.MatchString(b) {
				bar = b
				return nil
			}
		}
		return fmt.Errorf("the terminal has got %q", tail(x.all(), 5))
	})
	return bar
}

// TestAReplayShowsABarOnATerminal follows a replay on a terminal, where Ctrl-C stops it, and then in a pipe, where there are log lines in place of the bar.
func TestAReplayShowsABarOnATerminal(t *testing.T) {
	const width = 80
	dir, rcv := newHour(t), receiver.New(receiver.Config{})
	server := httptest.NewServer(rcv)
	t.Cleanup(server.Close)
	p := startMillrace(t, replayConfig(remoteWrite("bench", server.URL+"/api/v1/write")), inDir(dir), asShipped())
	args := []string{"replay", "--web.url=" + p.URL, "--from=" + secondOf(0), "--to=" + secondOf(middleFrom), "--endpoint=bench", "--name=seen", "--rate=200000"}
	x := inTerminal(t, width, build(t, shippedBinary), args...)
	t.Log(x.shows(t, `^ +\d+% \|█+ *\| +[\d,]+ samples, [1-9][\d,]*/s, (\d+m)?\d+s left$`))
	if err := rcv.Control(receiver.Control{Mode: receiver.Unavailable}); err != nil {
		t.Fatal(err)
	}
	t.Log(x.shows(t, `left; waiting: .*…$`)) // the reason is longer than the line
	if err := rcv.Control(receiver.Control{Mode: receiver.OK}); err != nil {
		t.Fatal(err)
	}
	for _, bar := range x.bars() {
		if n := utf8.RuneCountInString(bar); n >= width {
			t.Errorf("a bar of %d characters on a terminal of %d: %s", n, width, bar)
		}
	}
	if _, err := x.keys.WriteString("\x03"); err != nil { // Ctrl-C
		t.Fatal(err)
	}
	select {
	case err := <-x.done:
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(stopTimeout):
		t.Fatal("it does not end")
	}
	says(t, x.all(), "Stopped; it goes on with: millrace replay --name=seen")

	stdout, stderr := startCommand(t, build(t, shippedBinary), "replay", "--web.url="+p.URL, "--name=seen", "--rate=600000").wait(2 * time.Minute)
	says(t, stderr, "msg=Replaying replay=seen done=", " samples_per_second=", " left=")
	if strings.ContainsAny(stderr+stdout, "\x1b\r█") {
		t.Errorf("there is a bar in a pipe:\n%s", stderr)
	}
	says(t, stdout, "seen: done after", "refused  0 samples", "skipped  0 samples")
}
