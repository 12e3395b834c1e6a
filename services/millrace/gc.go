package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// tuneGC keeps the garbage collector cheap for small heaps and tight for large ones: a heap may grow by gcRoom, or by gcLeast percent
// where that is more, before it is collected. Where the environment sets GOGC, that holds.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	set := func() {
		live := liveHeap()
		debug.SetGCPercent(int(min(max(gcRoom*100/max(live, 1), gcLeast), gcMost)))
	}
	set()
	go func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				set()
			}
		}
	}()
}

const (
	gcRoom  = 32 << 20 // bytes
	gcLeast = 35       // percent
	gcMost  = 400      // percent
)

// liveHeap returns the bytes that the last collection found in use.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
