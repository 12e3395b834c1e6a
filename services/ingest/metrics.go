package ingest

import (
	"github.com/prometheus/client_golang/prometheus"
)

// refusal is why points are refused, as a label of metrics and the beginning of the words to the sender.
type refusal string

const (
	refusedLabels      refusal = "labels"
	refusedSeries      refusal = "too many series"
	refusedFuture      refusal = "too far in the future"
	refusedOutOfOrder  refusal = "out of order"
	refusedDuplicate   refusal = "duplicate for timestamp"
	refusedTime        refusal = "no timestamp"
	refusedType        refusal = "unknown type"
	refusedTemporality refusal = "temporality"
	refusedTranslation refusal = "cannot be translated"
	refusedHistogram   refusal = "invalid histogram"
	refusedExemplar    refusal = "exemplar without sample"
	refusedEmpty       refusal = "empty"
)

var refusals = []refusal{
	refusedLabels, refusedSeries, refusedFuture, refusedOutOfOrder, refusedDuplicate, refusedTime, refusedType, refusedTemporality, refusedTranslation,
	refusedHistogram, refusedExemplar, refusedEmpty,
}

type metrics struct {
	samples  prometheus.Counter
	refusals *prometheus.CounterVec
	warnings *prometheus.CounterVec
	full     prometheus.Counter
	late     prometheus.Counter
}

func newMetrics(s *Service, reg prometheus.Registerer) *metrics {
	m := &metrics{
		samples: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_ingest_samples_total", Help: "Pushed samples that the stream has acknowledged.",
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_refused_points_total", Help: "Pushed points or samples that were refused for good, by reason. Their sender was told.",
		}, []string{"reason"}),
		warnings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_translation_warnings_total", Help: "Warnings of Prometheus's translation of OTLP, by category.",
		}, []string{"category"}),
		full: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_ingest_full_requests_total", Help: "Requests answered 429 because memory for samples that the stream has not taken is full.",
		}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_ingest_late_requests_total", Help: "Requests answered 503 because the stream did not acknowledge in time.",
		}),
	}
	for _, why := range refusals {
		m.refusals.WithLabelValues(string(why))
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	reg.MustRegister(m.samples, m.refusals, m.warnings, m.full, m.late,
		gauge("millrace_ingest_series", "Pushed series that are known.", func() float64 { return float64(s.registry.series.Load()) }),
		gauge("millrace_ingest_sources", "Sources of pushed series.", func() float64 { return float64(s.registry.counts()) }),
		gauge("millrace_ingest_pending_bytes", "Pushed frames held in memory until the stream has acknowledged them.", func() float64 { return float64(s.budget.Pending()) }),
		gauge("millrace_ingest_pending_limit_bytes", "How much of that may be.", func() float64 { return float64(s.budget.Limit()) }),
	)
	return m
}

func (m *metrics) refused(why refusal, n int) {
	if n > 0 {
		m.refusals.WithLabelValues(string(why)).Add(float64(n))
	}
}
