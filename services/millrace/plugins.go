package main

// Prometheus's service discovery mechanisms register themselves. The build tags of this package leave them out one by one.
import _ "github.com/prometheus/prometheus/plugins"
