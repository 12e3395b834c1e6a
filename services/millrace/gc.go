package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// tuneGC keeps the garbage collector cheap for small heaps and tight for large ones: before it is collected, a heap may grow by a room, or
// by gcLeast percent where that is more. The room follows the garbage: it grows where collections come soon one after the other, and shrinks where they are rare, which is so
// where nothing but scraping is done. What the heap does not need for that goes back to the system at once, by a memory limit that
// follows what is in use; by itself the runtime keeps a tenth of the heap for later. Both are set anew after every
// collection, since a heap that grows fast, as at the start, would otherwise be allowed to grow by a multiple. Where the environment
// sets GOGC or GOMEMLIMIT, that holds.
//
// A process that is pushed to makes garbage with every push, and has what all series were pushed with to look through at each collection: it gets a larger room. pushes counts them.
func tuneGC(pushes func() uint64) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	a := &afterGC{room: gcRoomFirst, slack: gcSlack, at: time.Now(), pushes: pushes}
	a.adjust()
	runtime.SetFinalizer(a, (*afterGC).collected)
}

const (
	gcRoomFirst = 16 << 20 // bytes
	gcRoomLeast = 8 << 20
	gcRoomPush  = 24 << 20 // the least while pushes come
	gcRoomMost  = 32 << 20
	gcSoon      = time.Second
	gcRare      = 2500 * time.Millisecond
	gcLeast     = 7        // percent
	gcMost      = 400      // percent
	gcSlack     = 4 << 20  // least bytes between what a heap at its goal takes and the memory limit
	gcSlackPush = 24 << 20 // the same while pushes come: to give memory back and to take it again at the next push costs more than to keep it
)

// afterGC is garbage from the beginning, so that its finalizer runs after the next collection.
type afterGC struct {
	room   uint64
	slack  uint64
	at     time.Time // of the last collection
	pushes func() uint64
	pushed uint64 // until the last collection
}

func (a *afterGC) collected() {
	since := time.Since(a.at)
	a.at = a.at.Add(since)
	least, pushed := uint64(gcRoomLeast), a.pushes()
	a.slack = gcSlack
	if pushed != a.pushed {
		least, a.slack, a.pushed = gcRoomPush, gcSlackPush, pushed
	}
	switch {
	case since < gcSoon:
		a.room = min(2*a.room, gcRoomMost)
	case since > gcRare:
		a.room /= 2
	}
	a.room = max(a.room, least)
	a.adjust()
	runtime.SetFinalizer(a, (*afterGC).collected)
}

func (a *afterGC) adjust() {
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
	percent := min(max(a.room*100/max(read(s, live), 1), gcLeast), gcMost)
	debug.SetGCPercent(int(percent))
	goal := read(s, live) * (100 + percent) / 100
	rest := read(s, total) - read(s, objects) - read(s, unused) - read(s, free) - read(s, released)
	debug.SetMemoryLimit(int64(goal + read(s, unused) + rest + max(a.slack, goal/40)))
}
