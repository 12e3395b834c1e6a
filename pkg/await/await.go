package await

import (
	"testing"
	"time"
)

// Patience is how long tests wait.
const Patience = 60 * time.Second

// pause is the time between two looks.
const pause = 5 * time.Millisecond

// True returns when ok has returned true. The test ends with what was waited for where that takes longer than [Patience].
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Within(t, Patience, what, ok)
}

// Within is [True] with a patience of its own.
func Within(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %v", what, patience)
		}
	}
}
