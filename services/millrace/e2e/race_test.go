//go:build race

package e2e_test

// raceDetector says whether millrace is built with it too.
const raceDetector = true
