package main

import (
	"testing"
	"time"
)

func TestProcs(t *testing.T) {
	p := procs{all: true}
	step := func(what string, used float64, turns, late uint64, changed, all bool) {
		t.Helper()
		if got := p.next(time.Second, used, turns, late); got != changed || p.all != all {
			t.Errorf("%s: changed %t, all %t; want %t, %t", what, got, p.all, changed, all)
		}
	}
	for range 9 {
		step("calm", 0.1, 1000, 0, false, true)
	}
	step("between", 0.4, 1000, 0, false, true)
	for range 9 {
		step("calm again", 0.1, 1000, 0, false, true)
	}
	step("calm long enough", 0.1, 1000, 0, true, false)
	step("between on one", 0.4, 1000, 50, false, false)
	step("busy", 0.6, 1000, 0, true, true)
	for range 9 {
		step("calm after it was busy", 0, 0, 0, false, true)
	}
	step("nothing to do", 0, 0, 0, true, false)
	step("late turns", 0.1, 1000, 51, true, true)
}

func TestTurns(t *testing.T) {
	var turns turnsSoFar
	if all, late := turns.add(); all == 0 || late > all {
		t.Errorf("%d turns, %d of them late", all, late)
	}
	done := make(chan struct{})
	for range 100 {
		go func() { done <- struct{}{} }()
	}
	for range 100 {
		<-done
	}
	if all, late := turns.add(); late > all {
		t.Errorf("%d turns, %d of them late", all, late)
	}
	if used, ok := cpuTime(); ok && used <= 0 {
		t.Errorf("%s of CPU used", used)
	}
}
