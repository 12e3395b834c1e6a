// Package discovery is the service that finds what to scrape: it runs Prometheus service discovery, relabels the targets once for the whole
// fleet, and publishes them for the scrapers.
//
// A [Service] is an actor. It runs Prometheus's discovery manager and one actor per scrape job. The manager's state goes to the
// jobs' mailboxes, where only the latest counts; a job relabels what has changed and publishes the difference from what the stream TARGETS
// holds. The README says what happens at a restart, at a reload and while discovery fails.
//
// The mechanisms (file, kubernetes and so on) register themselves where they are imported. This package imports none, so that the command
// decides which there are.
package discovery
