// Package counter reads Prometheus counters of this process back, for pages that show what the metrics count.
package counter
