// Package await lets tests wait for what must come: they poll, with a deadline, and conclude nothing from how long it takes.
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
	for deadline := time.Now().Add(Patience); !ok(); time.Sleep(pause) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not so after %v", what, Patience)
		}
	}
}
