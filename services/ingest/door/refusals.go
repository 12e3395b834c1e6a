package door

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// logEvery is how often a door writes a line about refusals of one reason.
const logEvery = 5 * time.Second

// refusals logs what a door refuses: the first of each reason at once, and then a line every few seconds that says how
// many there were.
type refusals struct {
	logger *slog.Logger

	mu      sync.Mutex
	reasons map[string]*refused // few: the names of the faults
}

type refused struct {
	logged  time.Time
	skipped int // since then
}

// log notes a refusal of the reason. The attributes are those of the request that makes the line.
func (r *refusals) log(level slog.Level, reason, text string, attrs ...slog.Attr) {
	if n := r.due(reason, time.Now()); n > 0 {
		r.logger.LogAttrs(context.Background(), level, text, append(attrs, slog.String("reason", reason), slog.Int("requests", n))...)
	}
}

// due counts a refusal, and returns how many there were since the last line where another one is due, else 0.
func (r *refusals) due(reason string, now time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.reasons[reason]
	if one == nil {
		one = new(refused)
		r.reasons[reason] = one
	}
	one.skipped++
	if now.Sub(one.logged) < logEvery {
		return 0
	}
	n := one.skipped
	one.logged, one.skipped = now, 0
	return n
}
