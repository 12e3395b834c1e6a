package discovery

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	targets, dropped            *prometheus.GaugeVec
	failed                      *prometheus.CounterVec
	published, removed, retries prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_discovery_" + name, Help: help})
	}
	gauges := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "millrace_discovery_" + name, Help: help}, []string{"job"})
	}
	m := &metrics{
		targets: gauges("targets", "Targets to scrape."),
		dropped: gauges("dropped_targets", "Targets that relabelling drops."),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_discovery_failed_targets_total", Help: "Malformed targets that were left out, counted each time they are relabelled.",
		}, []string{"job"}),
		published: counter("published_total", "Targets that were published because they are new or have changed."),
		removed:   counter("removed_total", "Targets whose removal was published."),
		retries:   counter("publish_retries_total", "Publishes that failed and were tried again."),
	}
	reg.MustRegister(m.targets, m.dropped, m.failed, m.published, m.removed, m.retries)
	return m
}

// forget ends the series of a job.
func (m *metrics) forget(job string) {
	m.targets.DeleteLabelValues(job)
	m.dropped.DeleteLabelValues(job)
	m.failed.DeleteLabelValues(job)
}
