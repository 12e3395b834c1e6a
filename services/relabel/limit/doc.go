// Package limit holds limits on the number of active series over the whole fleet. A [Partition] knows which series of its dictionaries have a place;
// places within limits that concern several partitions are granted by one [Accountant]. The README of this folder says how.
package limit

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kind is what a limit counts the series of.
type Kind uint8

// The kinds of limits.
const (
	Target Kind = iota + 1
	Job
	Metric
	All
)

// String returns the kind as the configuration calls it.
func (k Kind) String() string {
	return [...]string{"", "target", "job", "metric", "all"}[k]
}

// Action is what is done with new series beyond a limit.
type Action uint8

// The actions.
const (
	// Refuse keeps new series from the endpoints.
	Refuse Action = iota
	// DropLabel takes labels from new series. Those that would become equal are refused.
	DropLabel
	// Warn only says so.
	Warn
)

// String returns the action as the configuration calls it.
func (a Action) String() string { return [...]string{"refuse", "drop_label", "warn"}[a] }

// Rule is one limit.
type Rule struct {
	// MaxSeries is the most series; 0 for no limit.
	MaxSeries int
	// Action is what is done beyond it.
	Action Action
	// Labels are those that DropLabel takes away.
	Labels []string
}

// Limits are all limits of a fleet. The zero value has none.
type Limits struct {
	Target, Job, Metric, All Rule
	// FreeAfter is how long after its last announcement the series of a dictionary keep their places.
	FreeAfter time.Duration
}

// Enabled reports whether there is any limit.
func (l *Limits) Enabled() bool { return l.Target.MaxSeries > 0 || l.shared() }

// shared reports whether a limit concerns several partitions.
func (l *Limits) shared() bool {
	return l.Job.MaxSeries > 0 || l.Metric.MaxSeries > 0 || l.All.MaxSeries > 0
}

// Hash names what the limits do; "" where there are none.
func (l *Limits) Hash() string {
	if !l.Enabled() {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %v %v %v", l.Target, l.Job, l.Metric, l.All))
	return hex.EncodeToString(sum[:8])
}

func (l *Limits) rule(k Kind) *Rule {
	switch k {
	case Target:
		return &l.Target
	case Job:
		return &l.Job
	case Metric:
		return &l.Metric
	}
	return &l.All
}

// room returns how many more series a limit takes where it has n; refused tells that it does not take all of want. A limit that only warns takes all.
// Of a limit that drops labels, a hundredth is kept for the series that go without them.
func (r *Rule) room(n, want int, standIns bool) int {
	if r.MaxSeries == 0 || r.Action == Warn {
		return want
	}
	limit := r.MaxSeries
	if r.Action == DropLabel && !standIns {
		limit -= max(limit/100, 1)
	}
	return min(want, max(limit-n, 0))
}

// over returns how many of the last added series are beyond a limit that only warns, where there are n now.
func (r *Rule) over(n, added int) int {
	if r.MaxSeries == 0 || r.Action != Warn {
		return 0
	}
	return min(max(n-r.MaxSeries, 0), added)
}

// ErrMoved is returned where another process has the partition now.
var ErrMoved = errors.New("another process has taken the partition over")

// dropped returns the labels that any limit drops, in order.
func (l *Limits) dropped() []string {
	var all []string
	for _, r := range []*Rule{&l.Target, &l.Job, &l.Metric, &l.All} {
		if r.MaxSeries > 0 && r.Action == DropLabel {
			all = append(all, r.Labels...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
