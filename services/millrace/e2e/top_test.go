package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"
)

// pane is a terminal with a shell in it.
type pane struct {
	t      *testing.T
	socket string
}

// newPane starts a shell in a terminal of 80 by 24 characters. Without tmux, the test is left out; in CI it fails.
func newPane(t *testing.T) *pane {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("tmux is missing: .ci/run installs it")
		}
		t.Skip("TMUX IS MISSING: millrace top is not tried in a terminal; install Debian's tmux")
	}
	dir, err := os.MkdirTemp("", "pane") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	p := &pane{t: t, socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		_ = exec.Command("tmux", "-S", p.socket, "kill-server").Run()
		_ = os.RemoveAll(dir)
	})
	p.tmux("-f", "/dev/null", "-u", "new-session", "-d", "-x", "80", "-y", "24", "-s", "t", "env", "PS1=$ ", "LC_ALL=C.UTF-8", "bash", "--norc", "--noprofile")
	return p
}

func (p *pane) tmux(args ...string) string {
	p.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", p.socket}, args...)...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// keys presses keys, by the names that tmux has for them.
func (p *pane) keys(keys ...string) {
	p.t.Helper()
	p.tmux(append([]string{"send-keys", "-t", "t"}, keys...)...)
}

// screen returns what is seen.
func (p *pane) screen() string { p.t.Helper(); return p.tmux("capture-pane", "-p", "-t", "t") }

// shows waits until all of some texts are seen, and none of others, and returns the screen.
func (p *pane) shows(what string, texts []string, not ...string) (screen string) {
	p.t.Helper()
	eventually(p.t, startTimeout, what, func() error {
		screen = p.screen()
		for _, s := range texts {
			if !strings.Contains(screen, s) {
				return fmt.Errorf("%q is not there:\n%s", s, screen)
			}
		}
		for _, s := range not {
			if strings.Contains(screen, s) {
				return fmt.Errorf("%q is there:\n%s", s, screen)
			}
		}
		return nil
	})
	return screen
}

// fits waits until what is seen fills the terminal: a title and a last line, no line longer than it is wide, and a chart. A terminal that was resized takes a moment.
func (p *pane) fits(width, height int) (screen string) {
	p.t.Helper()
	p.tmux("resize-window", "-t", "t", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height))
	eventually(p.t, startTimeout, fmt.Sprintf("a screen of %d by %d", width, height), func() error {
		screen = p.screen()
		lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
		longest := 0
		for _, l := range lines {
			longest = max(longest, utf8.RuneCountInString(l))
		}
		title, last := utf8.RuneCountInString(strings.TrimRight(lines[0], " ")), lines[len(lines)-1]
		if len(lines) != height || longest > width || title < width-2 || !strings.HasPrefix(last, " q quit") || !strings.ContainsAny(screen, "▂▃▄▅▆▇█") {
			return fmt.Errorf("%d lines, the longest of %d, and the title of %d characters:\n%s", len(lines), longest, title, screen)
		}
		return nil
	})
	return screen
}

// TestTopInATerminal drives `millrace top` as a person does, who looks at a fleet of separate processes of which one endpoint is dead, and checks that the terminal is afterwards as it was.
func TestTopInATerminal(t *testing.T) {
	p := newPane(t)
	c := newCrew(t, 1, 4, 10)
	dead := fmt.Sprintf("http://127.0.0.1:%d/api/v1/write", freePort(t))
	c.config = c.rig.config(fmt.Sprintf("  nats: {url: %q}\n  streams: {partitions: 4}\n", c.nats.URL), remoteWrite("main", c.end.URL), remoteWrite("dead", dead))
	procs := []*proc{c.join("discovery"), c.join("scraper"), c.join("relabel,writer")}
	dir, bin := t.TempDir(), build(t, millraceBinary)
	settings := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	run := func(name, args string) {
		p.keys(fmt.Sprintf("clear; cd %s; echo earlier content; stty -a > before; sh -c 'echo $$ > pid; exec %s top %s'; stty -a > after; echo %s: code $?", dir, bin, args, name), "Enter")
	}
	gone := func(name string) {
		t.Helper()
		p.shows("the shell, and what was there before", []string{"earlier content", name + ": code 0", "\n$"}, "millrace top  ")
		// What is typed before it has ended is not the shell's.
		eventually(t, startTimeout, name+": the process to be gone", func() error {
			if pid, err := strconv.Atoi(strings.TrimSpace(settings("pid"))); err != nil || syscall.Kill(pid, 0) == nil {
				return fmt.Errorf("process %d is there (%v)", pid, err)
			}
			return nil
		})
		if before, after := settings("before"), settings("after"); before != after {
			t.Errorf("%s: the terminal's settings were\n%s\nand are\n%s", name, before, after)
		}
	}

	run("quit", "--interval=1s --web.url="+procs[1].URL)
	p.shows("the fleet", []string{" millrace top  " + procs[1].URL, "3 ready", "taken", "endpoints 2", "\ndead ", "waiting", "dial tcp 127.0.0.1:", "refused", "\nmain ", "█"}, "earlier content")
	t.Logf("80x24:\n%s", p.fits(80, 24))
	t.Logf("200x50:\n%s", p.fits(200, 50))
	p.shows("all of it on a large screen", []string{"\nMEMBER ", "\nSHARES ", "\nFRAMES ", "max "})
	p.fits(80, 24)
	p.keys("m")
	p.shows("the members", []string{"\nMEMBER "}, "\nENDPOINT ")
	p.fits(80, 24)
	p.keys("?")
	p.shows("help", []string{"this page; any key leaves it"})
	p.keys("x", "p")
	p.shows("that it is paused", []string{"PAUSED", "\nMEMBER "})
	p.keys("C-z")
	p.shows("the shell, while it is stopped", []string{"earlier content", "Stopped"}, "millrace top  ")
	p.keys("fg", "Enter")
	p.shows("it again", []string{" millrace top  ", "\nMEMBER "}, "earlier content")
	p.keys("q")
	gone("quit")

	run("killed", "--interval=1s --nats.url="+c.nats.URL)
	p.shows("the fleet over NATS", []string{" millrace top  NATS at ", "3 ready", "\ndead "})
	pid, err := strconv.Atoi(strings.TrimSpace(settings("pid")))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone("killed")

	run("interrupted", "--interval=1s --web.url="+procs[0].URL)
	p.shows("the fleet from another process", []string{"3 ready"})
	procs[0].Kill9()
	p.shows("that nobody answers", []string{"! no answer for ", "trying every 1 s", "refused", "as of "})
	procs[0].Again()
	p.shows("the fleet again", []string{"3 ready"}, "! no answer")
	p.keys("C-c")
	gone("interrupted")
}

// TestTopWithoutATerminal says what to use instead.
func TestTopWithoutATerminal(t *testing.T) {
	if _, stderr, code := runMillrace(t, "top"); code != 2 || !strings.Contains(stderr, "millrace status") {
		t.Errorf("it ends with %d: %s", code, stderr)
	}
}
