package door

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of all doors of a process.
type Metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	bytes    *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them, where there is a registerer.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := newMetrics()
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.bytes, m.inFlight} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of the ingest doors: %w", err)
		}
	}
	return m, nil
}

func newMetrics() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_requests_total",
			Help: "Requests answered, by door and by the code of the answer (HTTP status or gRPC code).",
		}, []string{"door", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_ingest_request_duration_seconds",
			Help:    "Time from a request's headers to its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"door"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_request_bytes_total",
			Help: "Bytes of request bodies received, before decompression.",
		}, []string{"door"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_ingest_in_flight_bytes",
			Help: "Bytes of memory that the bodies of the requests in progress hold.",
		}, []string{"door"}),
	}
}
