//go:build unix

package terminal

import (
	"os"
	"os/signal"
	"syscall"
)

// signals are those that a terminal sends.
type signals struct {
	in chan os.Signal
}

// watch follows the size, and gives the terminal back while the program is stopped.
func (t *Terminal) watch() {
	in := make(chan os.Signal, 8)
	t.signals.in = in
	signal.Notify(in, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGCONT)
	go func() {
		for s := range in {
			switch s {
			case syscall.SIGWINCH:
				t.Forget()
			case syscall.SIGTSTP:
				t.giveBack()
				_ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
			case syscall.SIGCONT: // also where nobody had asked before it was stopped
				if t.taken() {
					t.giveBack() // whoever had the terminal in between has set it as a shell wants it
				}
				if t.take() == nil {
					t.Forget()
				}
			}
		}
	}()
}

func (t *Terminal) taken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state != nil
}

func (s *signals) stop() {
	if s.in != nil {
		signal.Stop(s.in)
	}
}

// suspend does what the terminal would do by itself, were it not in raw mode: it stops the whole job.
func (s *signals) suspend() { _ = syscall.Kill(0, syscall.SIGTSTP) }
