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

// chunk is the size in bytes of the parts that come back together.
const chunk = 8 << 10

// divide makes the system see the program's pages in chunks. A page that is touched comes with those around it that are in the page cache, 64 KiB by default, but not across the end of
// a mapping. What is in use is strewn over all of the program, above all the tables by which the garbage collector reads stacks: with 64 KiB around each, twice as much stays in memory.
// Mappings that lie side by side stay apart where one of their flags differs. This one says that a page is not written to core dumps, in which a program's pages never are.
func (p programPages) divide() error {
	for _, r := range p {
		for at := r[0]; at+chunk <= r[1]; at += 2 * chunk {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, at, chunk, unix.MADV_DONTDUMP); errno != 0 {
				return fmt.Errorf("dividing %x-%x of the program's file: %w", r[0], r[1], errno)
			}
		}
	}
	return nil
}

// release gives back the memory of what is not in use: the initialisation of all service
// discovery mechanisms reads some 50 MiB, most for the only time, and a page that is looked at once would stay for ever. The pages are read-only and backed by the program's
// file, so those that are in use come back from the page cache by themselves, a chunk at a time.
func (p programPages) release() error {
	for _, r := range p {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r[0], r[1]-r[0], unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("releasing %x-%x of the program's file: %w", r[0], r[1], errno)
		}
	}
	return nil
}
