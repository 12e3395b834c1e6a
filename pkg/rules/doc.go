// Package rules is what happens to a series on its way to an endpoint: external labels, then write_relabel_configs, as Prometheus's
// remote write does it. The relabel service applies rules to dictionaries; the writer knows by their hash whether a relabelled dictionary
// is the one that its configuration asks for.
package rules
