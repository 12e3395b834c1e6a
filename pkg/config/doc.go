// Package config loads Millrace's one configuration file: any Prometheus agent configuration, unchanged, plus an
// optional top-level block named millrace.
//
// Everything outside the block means what Prometheus says it means and is parsed by Prometheus's own package. The
// millrace block is cut out of the text by its lines (so that line numbers stay those of the file), decoded strictly,
// filled with defaults and validated. Whatever is wrong is reported as an [Error], "file:line: what: remedy", and all
// that can be found in one pass is reported at once.
//
// The files of the package follow the data: config.go reads and assembles, document.go finds and cuts the block,
// decode.go reads it into [Millrace] (millrace.go), validate.go checks it, prometheus.go runs Prometheus's parser and
// gives its errors a line and a remedy, endpoints.go names the remote_write endpoints, warnings.go lists what has no
// effect here, redact.go prints the result without its secrets.
package config
