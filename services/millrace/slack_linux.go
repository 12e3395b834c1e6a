package main

import (
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much the system may let this process wake up late from a wait with a timeout, so that wake-ups come together. The system's default is 50 µs.
const timerSlack = 4 * time.Millisecond

// relaxTimers starts the program anew, as the same process, with its timers relaxed to timerSlack. Threads have the slack of the thread that started them, and the Go runtime has
// started some before main: only a new program has it in all of them. The runtime's monitor, which looks every 20 µs what the others do as long as one of them does
// anything, took a seventh of the CPU of a Millrace that is pushed to; so it looks every four milliseconds. It returns where that was done before, or cannot be done; then Millrace works the
// same, for more CPU.
func relaxTimers() {
	slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || time.Duration(slack) >= timerSlack {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	runtime.LockOSThread() // the slack is that of the thread that starts the program
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) != nil {
		return
	}
	_ = unix.Exec(self, os.Args, os.Environ()) // it returns only where it fails
}
