//go:build race

package e2e_test

// raceDetector says whether the tests run with it.
const raceDetector = true
