package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// tuneGC keeps the garbage collector cheap for small heaps and tight for large ones: before it is collected, a heap may grow by gcRoom, or
// by gcLeast percent where that is more. The percentage is set anew after every collection, since a heap that grows fast, as at the
// start, would otherwise be allowed to grow by a multiple. Where the environment sets GOGC, that holds.
func tuneGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	debug.SetGCPercent(gcPercent())
	after := &afterGC{}
	runtime.SetFinalizer(after, (*afterGC).collected)
}

const (
	gcRoom  = 16 << 20 // bytes
	gcLeast = 15       // percent
	gcMost  = 400      // percent
)

// afterGC is garbage from the beginning, so that its finalizer runs after the next collection.
type afterGC struct{ _ byte }

func (a *afterGC) collected() {
	debug.SetGCPercent(gcPercent())
	runtime.SetFinalizer(a, (*afterGC).collected)
}

func gcPercent() int {
	return int(min(max(gcRoom*100/max(liveHeap(), 1), gcLeast), gcMost))
}

// liveHeap returns the bytes that the last collection found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
