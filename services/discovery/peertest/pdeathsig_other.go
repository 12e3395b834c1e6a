//go:build !linux

package peertest

import "syscall"

func childAttributes() *syscall.SysProcAttr { return nil }
