//go:build !linux

package discovery

import "syscall"

func childAttributes() *syscall.SysProcAttr { return nil }
