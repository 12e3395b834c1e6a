// Package e2e holds the tests of the whole command: they build millrace and Prometheus, run them as processes with real targets and real
// endpoints, and compare what a user of either would see.
//
// They read the READMEs of the whole repository as well: every configuration in them is checked, those of the guides are run, links are followed, and
// flags compared with the help. Where a guide has Consul or Kubernetes, the servers that .ci/peers builds take part.
//
// The environment variable MILLRACE_TEST_BIN may name a folder that keeps the built binaries from one run to the next.
// With MILLRACE_TEST_LONG=1, careless targets are scraped at the default interval, for 10 minutes, the speed of
// replays is measured over an hour of samples, and an endpoint that gets new samples first is away for 10 minutes.
package e2e
