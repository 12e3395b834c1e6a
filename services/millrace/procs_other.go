//go:build !unix

package main

import "time"

// cpuTime reports that the system does not tell how much CPU the process has used.
func cpuTime() (used time.Duration, ok bool) { return 0, false }
