package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// releaseColdPages gives back the memory of the program's own code and constants that is not in use: the initialisation of all service
// discovery mechanisms reads some 50 MiB of them, most for the only time, and a page that is looked at once would stay for ever. The pages are read-only and backed by the program's
// file, so those that are in use come back from the page cache by themselves, some 16 at a time: about a hundred times a few microseconds.
func releaseColdPages() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("finding the program's file: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("reading the memory map: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != self || len(fields[1]) < 4 || fields[1][0] != 'r' || fields[1][1] == 'w' || fields[1][3] != 'p' {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("reading the memory map line %q: %w", lines.Text(), err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("releasing %s of the program's file: %w", fields[0], errno)
		}
	}
	return lines.Err()
}
