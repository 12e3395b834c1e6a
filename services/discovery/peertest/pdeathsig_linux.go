package peertest

import "syscall"

// childAttributes let children die with the tests, even where those are killed.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
