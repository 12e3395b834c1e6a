package main

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"time"
)

// A process that has little to do costs less where Go runs one goroutine at a time: with more, the scheduler wakes a thread up for each that becomes ready while another one runs,
// and a second one that looks for work in vain, which was a sixth of the CPU of a Millrace that is pushed to. So the process uses one processor as long as that is enough, and all
// that it may as soon as it is not: where much is to do, or goroutines wait for their turn, as they do behind a slow disk.
const (
	procsEvery = 250 * time.Millisecond
	// procsBusy is the share of one processor above which all are used.
	procsBusy = 0.5
	// procsCalm is the share of one processor up to which one is enough, where it has not been above for calmTime.
	procsCalm = 0.3
	calmTime  = 10 * time.Second
	// A turn that a goroutine has waited for longer than lateTurn was late; all processors are used where more than one of mostLate were.
	lateTurn = 5e-3 // seconds
	mostLate = 20
)

// procs decides between one processor and all.
type procs struct {
	all  bool
	calm time.Duration // for how long all were not needed
}

// next takes what has happened in a time: how much of one processor was used, and how many of the turns were late. It reports whether that changes anything.
func (p *procs) next(in time.Duration, used float64, turns, late uint64) (changed bool) {
	needed := used > procsBusy || late*mostLate > turns
	switch {
	case needed, used > procsCalm:
		p.calm = 0
	default:
		p.calm += in
	}
	switch {
	case needed && !p.all:
		p.all = true
		return true
	case p.all && p.calm >= calmTime:
		p.all = false
		return true
	}
	return false
}

// tuneProcs uses as many processors as are needed until ctx ends. Where the environment sets GOMAXPROCS, that holds.
func (p *process) tuneProcs(ctx context.Context) error {
	last, ok := cpuTime()
	if os.Getenv("GOMAXPROCS") != "" || !ok || runtime.GOMAXPROCS(0) == 1 {
		<-ctx.Done()
		return nil
	}
	defer runtime.SetDefaultGOMAXPROCS()
	at, state, turns := time.Now(), procs{all: true}, turnsSoFar{}
	turns.add()
	ticker := time.NewTicker(procsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		used, _ := cpuTime()
		now := time.Now()
		share := float64(used-last) / float64(max(now.Sub(at), 1))
		all, late := turns.add()
		if state.next(now.Sub(at), share, all, late) {
			if state.all {
				runtime.SetDefaultGOMAXPROCS()
			} else {
				runtime.GOMAXPROCS(1)
			}
			p.log.Debug("Using other processors", "GOMAXPROCS", runtime.GOMAXPROCS(0), "cpu", share, "turns", all, "late", late)
		}
		last, at = used, now
	}
}

// turnsSoFar counts the turns of goroutines.
type turnsSoFar struct {
	sample    [1]metrics.Sample
	all, late uint64
}

// add returns how many turns there were since the last call, and how many of them were late.
func (t *turnsSoFar) add() (all, late uint64) {
	t.sample[0].Name = "/sched/latencies:seconds"
	metrics.Read(t.sample[:])
	if t.sample[0].Value.Kind() != metrics.KindFloat64Histogram {
		return 0, 0
	}
	h := t.sample[0].Value.Float64Histogram()
	for i, n := range h.Counts {
		if all += n; h.Buckets[i] >= lateTurn {
			late += n
		}
	}
	before := *t
	t.all, t.late = all, late
	return all - before.all, late - before.late
}
