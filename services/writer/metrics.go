package writer

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/counter"
)

type metrics struct {
	svc *Service

	samples, histograms, exemplars, metadata, metadataFailed, bytes, retried, rejected, lost, aged, unsupported, repeated *prometheus.CounterVec
	requests, replayed                                                                                                    *prometheus.CounterVec
	duration                                                                                                              *prometheus.HistogramVec
}

// endpointMetrics are the metrics of one endpoint.
type endpointMetrics struct {
	samples, histograms, exemplars, metadata, metadataFailed, bytes, retried, rejected, lost, aged, unsupported, repeated prometheus.Counter
	requests                                                                                                              func(status int) prometheus.Counter
	duration                                                                                                              prometheus.Observer
}

func newMetrics(s *Service, reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "writer", Name: name, Help: help}, append([]string{"endpoint"}, labels...))
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		svc:            s,
		samples:        counter("sent_samples_total", "Samples, floats and histograms, that the endpoint has accepted."),
		histograms:     counter("sent_histograms_total", "Native histogram samples among them."),
		exemplars:      counter("sent_exemplars_total", "Exemplars that the endpoint has accepted."),
		metadata:       counter("sent_metadata_total", "Metadata entries of metric families that the endpoint has accepted (remote write 1.0)."),
		metadataFailed: counter("failed_metadata_total", "Metadata entries that the endpoint did not take; they are sent again."),
		bytes:          counter("sent_bytes_total", "Bytes of accepted request bodies, compressed."),
		retried:        counter("retried_samples_total", "Samples in requests that failed and were to be sent again."),
		rejected:       counter("rejected_samples_total", "Samples that the endpoint refused for good. The stream REJECTED keeps them."),
		lost:           counter("lost_samples_total", "Samples that the stream's retention passed before the endpoint took them."),
		aged:           counter("aged_samples_total", "Samples dropped because they were older than sample_age_limit."),
		unsupported:    counter("unsupported_samples_total", "Histograms dropped because the endpoint's protocol cannot carry them."),
		repeated:       counter("repeated_frames_total", "Frames dropped because they were read a second time, or came from a former owner."),
		replayed:       counter("replayed_samples_total", "Samples of replays that the endpoint has accepted or refused for good."),
		requests:       counter("requests_total", "Requests by the endpoint's answer; code 0 stands for none.", "code"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "millrace", Subsystem: "writer", Name: "request_duration_seconds", Help: "Time from sending a request to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"endpoint"}),
	}
	reg.MustRegister(m.duration, m)
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "millrace", Subsystem: "writer", Name: "label_cache_bytes", Help: "Bytes of label sets held encoded for the wire.",
	}, func() float64 { return float64(s.cache.size()) }))
	return m
}

func (m *metrics) vecs() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.samples, m.histograms, m.exemplars, m.metadata, m.metadataFailed, m.bytes, m.retried, m.rejected, m.lost, m.aged, m.unsupported, m.repeated}
}

func (m *metrics) endpoint(name string) *endpointMetrics {
	return &endpointMetrics{
		samples: m.samples.WithLabelValues(name), histograms: m.histograms.WithLabelValues(name), exemplars: m.exemplars.WithLabelValues(name),
		metadata: m.metadata.WithLabelValues(name), metadataFailed: m.metadataFailed.WithLabelValues(name), bytes: m.bytes.WithLabelValues(name),
		retried: m.retried.WithLabelValues(name), rejected: m.rejected.WithLabelValues(name), lost: m.lost.WithLabelValues(name),
		aged: m.aged.WithLabelValues(name), unsupported: m.unsupported.WithLabelValues(name), repeated: m.repeated.WithLabelValues(name),
		requests: func(status int) prometheus.Counter { return m.requests.WithLabelValues(name, strconv.Itoa(status)) },
		duration: m.duration.WithLabelValues(name),
	}
}

// forget removes the metrics of an endpoint that is gone.
func (m *metrics) forget(name string) {
	for _, v := range m.vecs() {
		v.DeleteLabelValues(name)
	}
	m.requests.DeletePartialMatch(prometheus.Labels{"endpoint": name})
	m.duration.DeleteLabelValues(name)
}

var (
	lagSeconds = prometheus.NewDesc("millrace_writer_lag_seconds", "Age of the oldest sample that is read or passed over and not accepted; 0 where there is none.", []string{"endpoint"}, nil)
	lagBatches = prometheus.NewDesc("millrace_writer_lag_messages", "Messages of the stream that the endpoint has not got all of.", []string{"endpoint"}, nil)
	backlogged = prometheus.NewDesc("millrace_writer_backlog_messages", "Messages among them that were passed over for newer ones, and are sent beside those.", []string{"endpoint"}, nil)
	oldestTime = prometheus.NewDesc("millrace_writer_oldest_unsent_timestamp_seconds", "Timestamp of the oldest sample that is read or passed over and not accepted; 0 where there is none.", []string{"endpoint"}, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- lagSeconds
	ch <- lagBatches
	ch <- backlogged
	ch <- oldestTime
}

// Collect implements prometheus.Collector: the lag of each endpoint is worked out when it is asked for.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, st := range m.svc.Status() {
		oldest := 0.0
		if !st.Oldest.IsZero() {
			oldest = float64(st.Oldest.UnixMilli()) / 1000
		}
		ch <- prometheus.MustNewConstMetric(lagSeconds, prometheus.GaugeValue, st.Lag.Seconds(), st.Name)
		ch <- prometheus.MustNewConstMetric(lagBatches, prometheus.GaugeValue, float64(st.Messages), st.Name)
		ch <- prometheus.MustNewConstMetric(backlogged, prometheus.GaugeValue, float64(st.Backlog), st.Name)
		ch <- prometheus.MustNewConstMetric(oldestTime, prometheus.GaugeValue, oldest, st.Name)
	}
}

// Status is how an endpoint stands.
type Status struct {
	Name, URL, Protocol string
	// Lag is the age of the oldest sample that is read or passed over and not accepted, Oldest its timestamp; both zero where all is sent.
	Lag    time.Duration
	Oldest time.Time
	// Messages is how many messages the endpoint has not got all of. Samples is an estimate of how many samples are in them: as many for each message as in those read so far.
	Messages, Samples uint64
	// Backlog is how many of the messages were passed over for newer ones, and are sent beside those.
	Backlog uint64
	// Sent, Retried, Rejected and Lost count samples since the process started.
	Sent, Retried, Rejected, Lost float64
	// Waiting says on what; empty while samples flow.
	Waiting string
	// LastError and LastErrorAt are the newest failure or refusal.
	LastError   string
	LastErrorAt time.Time
}

// Status returns how each endpoint stands, in the order of the configuration.
func (s *Service) Status() []Status {
	s.mu.Lock()
	list := append([]*running(nil), s.endpoints...)
	s.mu.Unlock()
	var out []Status
	for _, r := range list {
		st := Status{
			Name: r.name, URL: r.client.URL(), Protocol: r.protocol.String(),
			Sent: counter.Value(r.metrics.samples), Retried: counter.Value(r.metrics.retried), Rejected: counter.Value(r.metrics.rejected),
			Lost: counter.Value(r.metrics.lost),
		}
		read, samples := uint64(0), uint64(0)
		for _, p := range r.partitions {
			st.Messages += p.unhandled()
			read, samples = read+p.readMessages.Load(), samples+p.readSamples.Load()
			if t := p.oldest(); t != 0 && (st.Oldest.IsZero() || t < st.Oldest.UnixMilli()) {
				st.Oldest = time.UnixMilli(t)
			}
			if w := p.waits(); w != "" {
				st.Waiting = w
			}
			st.Backlog += p.back.Load().messages()
		}
		if read > 0 {
			st.Samples = uint64(float64(st.Messages) * float64(samples) / float64(read))
		}
		if !st.Oldest.IsZero() {
			st.Lag = max(time.Since(st.Oldest), 0)
		}
		r.mu.Lock()
		st.LastError, st.LastErrorAt = r.lastError, r.lastAt
		r.mu.Unlock()
		out = append(out, st)
	}
	return out
}
