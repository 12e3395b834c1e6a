// Package web is the HTTP face of a Millrace process: its metrics, health, reload, profiles, read-only API and status page.
//
// It knows none of the services. What it shows comes from the functions of [Config], which the command fills in; they
// are called once per request, possibly concurrently, and must honour their context.
//
//	GET       /                          the status page, for people
//	GET       /metrics                   Prometheus and OpenMetrics exposition
//	GET, HEAD /-/healthy                 200 while the process lives
//	GET, HEAD /-/ready                   200 once nothing is waited for, else 503 and one reason per line
//	POST, PUT /-/reload                  reads the configuration again
//	GET       /debug/pprof/              Go profiles
//	GET       /api/v1/targets            targets, in Prometheus's format (state, scrapePool)
//	GET       /api/v1/status/config      the running configuration, in Prometheus's format
//	GET       /api/v1/status/buildinfo   version, in Prometheus's format
//	GET       /api/v1/status             [Status], in the same envelope
//
// TLS, client certificates, basic authentication, extra headers and rate limits come from the web configuration file
// of the Prometheus exporter-toolkit and hold for every path. Each listen address has its own rate limit.
package web
