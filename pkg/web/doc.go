// Package web is the HTTP face of a Millrace process: its pages, metrics, health, reload, profiles and API.
//
// It knows none of the services. What it shows comes from the functions of [Config], which the command fills in; they
// are called once per request, possibly concurrently, and must honour their context.
//
//	GET       /                          how the whole fleet stands, for people
//	GET       /targets                   the targets of the whole fleet, for people
//	GET       /streams                   endpoints with their last hour, and streams, for people
//	GET       /rejected                  batches that endpoints have refused (endpoint, before), and a look inside one (message, from), for people
//	GET, POST /replays                   replays: starts, stops and removes them, for people
//	GET, POST /cardinality               how many series there are, counted when asked with POST, for people
//	GET, POST /relabel                   what rules make of labels; nothing is changed, for people
//	GET       /process                   what this process knows of itself, for people
//	GET       /metrics                   Prometheus and OpenMetrics exposition
//	GET, HEAD /-/healthy                 200 while the process lives
//	GET, HEAD /-/ready                   200 once nothing is waited for, else 503 and one reason per line
//	POST, PUT /-/reload                  reads the configuration again
//	GET       /debug/pprof/              Go profiles
//	GET       /api/v1/targets            this process's targets, in Prometheus's format (state, scrapePool); with
//	                                     fleet=true a [status.TargetPage]
//	GET       /api/v1/status/config      the running configuration, in Prometheus's format
//	GET       /api/v1/status/buildinfo   version, in Prometheus's format
//	GET       /api/v1/status             [Status], in the same envelope
//	GET       /api/v1/status/fleet       [status.Document], likewise
//
// TLS, client certificates, basic authentication, extra headers and rate limits come from the web configuration file
// of the Prometheus exporter-toolkit and hold for every path. Each listen address has its own rate limit.
//
// # Pages
//
// Pages are made here and need no scripts. The only one, assets/page.js, loads the page that is looked at again every few seconds and changes what has changed; without it the browser loads
// the whole page. A page that changes something takes a form with POST, which pages of other sites cannot send. All that is shown is escaped by html/template, and the
// content security policy allows neither scripts nor styles inside a page.
//
// To add a page: a file page_NAME.go with its page and what it shows, a template assets/NAME.html that defines "main", if need be a style sheet assets/NAME.css, and a line in the list
// pages. Templates get the frame as $, what the page's view found as .Content, the functions of pages.go, and the parts "state" and "ago" of assets/layout.html. Tables
// with the class "stack" become cards on a narrow screen, with each cell's data-label as its name; rows whose order may change carry a data-key.
package web
