package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// tuneGC keeps the garbage collector cheap for small heaps and tight for large ones: before it is collected, a heap may grow by gcRoom, or
// by gcLeast percent where that is more. What the heap does not need for that goes back to the system at once, by a memory limit that
// follows what is in use; by itself the runtime keeps a tenth of the heap for later. Both are set anew after every
// collection, since a heap that grows fast, as at the start, would otherwise be allowed to grow by a multiple. Where the environment
// sets GOGC or GOMEMLIMIT, that holds.
func tuneGC() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	adjustGC()
	runtime.SetFinalizer(&afterGC{}, (*afterGC).collected)
}

const (
	gcRoom  = 16 << 20 // bytes
	gcLeast = 7        // percent
	gcMost  = 400      // percent
	gcSlack = 8 << 20  // least bytes between what a heap at its goal takes and the memory limit
)

// afterGC is garbage from the beginning, so that its finalizer runs after the next collection.
type afterGC struct{ _ byte }

func (a *afterGC) collected() {
	adjustGC()
	runtime.SetFinalizer(a, (*afterGC).collected)
}

func adjustGC() {
	read := func(s []metrics.Sample, name string) uint64 {
		for i := range s {
			if s[i].Name == name && s[i].Value.Kind() == metrics.KindUint64 {
				return s[i].Value.Uint64()
			}
		}
		return 0
	}
	const (
		live, unused, free = "/gc/heap/live:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes"
		objects, released  = "/memory/classes/heap/objects:bytes", "/memory/classes/heap/released:bytes"
		total              = "/memory/classes/total:bytes"
	)
	s := []metrics.Sample{{Name: live}, {Name: unused}, {Name: free}, {Name: objects}, {Name: released}, {Name: total}}
	metrics.Read(s)
	percent := min(max(gcRoom*100/max(read(s, live), 1), gcLeast), gcMost)
	debug.SetGCPercent(int(percent))
	goal := read(s, live) * (100 + percent) / 100
	rest := read(s, total) - read(s, objects) - read(s, unused) - read(s, free) - read(s, released)
	debug.SetMemoryLimit(int64(goal + read(s, unused) + rest + max(gcSlack, goal/40)))
}
