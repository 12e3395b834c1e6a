// Package e2e holds the tests of the whole command: they build millrace and Prometheus, run them as processes with real targets and real
// endpoints, and compare what a user of either would see.
//
// The environment variable MILLRACE_TEST_BIN may name a folder that keeps the built binaries from one run to the next.
package e2e
