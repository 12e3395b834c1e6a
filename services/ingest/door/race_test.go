//go:build race

package door

// raceDetector says whether the tests run with it: sync.Pool then drops a part of what is given to it.
const raceDetector = true
