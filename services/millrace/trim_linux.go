package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// programPages are the parts of the address space that hold the program's own code and constants: from and to an address.
type programPages [][2]uintptr

// findProgramPages looks for them, which stay where they are for as long as the process runs.
func findProgramPages() (programPages, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("finding the program's file: %w", err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, fmt.Errorf("reading the memory map: %w", err)
	}
	defer f.Close()
	var pages programPages
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[5] != self || len(fields[1]) < 4 || fields[1][0] != 'r' || fields[1][1] == 'w' || fields[1][3] != 'p' {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return nil, fmt.Errorf("reading the memory map line %q: %w", lines.Text(), err)
		}
		pages = append(pages, [2]uintptr{from, to})
	}
	return pages, lines.Err()
}

// release gives back the memory of what is not in use: the initialisation of all service
// discovery mechanisms reads some 50 MiB, most for the only time, and a page that is looked at once would stay for ever. The pages are read-only and backed by the program's
// file, so those that are in use come back from the page cache by themselves, some 16 at a time: about a hundred times a few microseconds.
func (p programPages) release() error {
	for _, r := range p {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("releasing %x-%x of the program's file: %w", r[0], r[1], errno)
		}
	}
	return nil
}
