package delta

import "github.com/prometheus/client_golang/prometheus"

// reason is why a point is dropped.
type reason string

const (
	olderStart   reason = "older_start"
	outOfOrder   reason = "out_of_order"
	limit        reason = "limit"
	noDictionary reason = "no_dictionary"
	unreadable   reason = "unreadable"
	invalid      reason = "invalid"
	tooLarge     reason = "too_large"
)

var reasons = []reason{olderStart, outOfOrder, limit, noDictionary, unreadable, invalid, tooLarge}

type metrics struct {
	points, lost, messages, skipped, recoveries prometheus.Counter
	dropped                                     map[reason]prometheus.Counter
}

func newMetrics(s *Service, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "ingest_delta", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "millrace", Subsystem: "ingest_delta", Name: name, Help: help}, value))
	}
	m := &metrics{
		points:     counter("points_total", "Points of delta temporality that were made cumulative."),
		messages:   counter("messages_total", "Messages of delta values that were handled."),
		skipped:    counter("unreadable_messages_total", "Messages of delta values that could not be read, at least in part; they stay in the stream."),
		lost:       counter("lost_points_total", "Points that passed with the stream's retention before they were made cumulative."),
		recoveries: counter("recoveries_total", "Times that the sums of a partition were read back from the stream of frames."),
		dropped:    map[reason]prometheus.Counter{},
	}
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "millrace", Subsystem: "ingest_delta", Name: "dropped_points_total", Help: "Points that were not made cumulative, by reason.",
	}, []string{"reason"})
	reg.MustRegister(dropped)
	for _, r := range reasons {
		m.dropped[r] = dropped.WithLabelValues(string(r))
	}
	gauge("streams", "Series that are accumulated now.", func() float64 { return float64(s.budget.used.Load()) })
	gauge("lag_messages", "Messages of delta values in the stream that are not cumulative yet.", func() float64 { return float64(s.Status().Behind) })
	return m
}
