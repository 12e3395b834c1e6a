package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// processMetrics are what no single service can tell: the configuration and the streams.
type processMetrics struct {
	p       *process
	success prometheus.Gauge
	when    prometheus.Gauge
}

func newProcessMetrics(p *process) *processMetrics {
	m := &processMetrics{
		p: p,
		success: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_config_last_reload_successful", Help: "Whether the last reload of the configuration succeeded.",
		}),
		when: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_config_last_reload_success_timestamp_seconds", Help: "When the configuration was loaded that is in use.",
		}),
	}
	p.reg.MustRegister(m.success, m.when, m)
	return m
}

func (m *processMetrics) loaded(ok bool) {
	if ok {
		m.success.Set(1)
		m.when.SetToCurrentTime()
	} else {
		m.success.Set(0)
	}
}

func (m *processMetrics) reloaded(err error) { m.loaded(err == nil) }

var (
	streamBytes    = prometheus.NewDesc("millrace_stream_bytes", "Bytes that the stream holds.", []string{"stream"}, nil)
	streamLimit    = prometheus.NewDesc("millrace_stream_limit_bytes", "Bytes that the stream may hold; 0 for no limit.", []string{"stream"}, nil)
	streamAge      = prometheus.NewDesc("millrace_stream_limit_seconds", "How long the stream keeps a message; 0 for ever.", []string{"stream"}, nil)
	streamMessages = prometheus.NewDesc("millrace_stream_messages", "Messages that the stream holds.", []string{"stream"}, nil)
	streamOldest   = prometheus.NewDesc("millrace_stream_oldest_timestamp_seconds", "When the oldest message of the stream was stored; 0 where it is empty.", []string{"stream"}, nil)
)

// Describe implements prometheus.Collector.
func (m *processMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- streamBytes
	ch <- streamLimit
	ch <- streamAge
	ch <- streamMessages
	ch <- streamOldest
}

// Collect implements prometheus.Collector. It asks NATS; while that does not answer, the streams' metrics are absent. Where it is known to be away nobody waits for it: the other metrics
// are wanted then above all.
func (m *processMetrics) Collect(ch chan<- prometheus.Metric) {
	conn := m.p.conn.Load()
	if conn == nil || !conn.NC.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	states, err := conn.States(ctx)
	if err != nil {
		return
	}
	for _, s := range states {
		oldest := 0.0
		if s.Messages > 0 {
			oldest = float64(s.Oldest.UnixMilli()) / 1000
		}
		for desc, v := range map[*prometheus.Desc]float64{
			streamBytes: float64(s.Bytes), streamLimit: float64(s.Limit), streamAge: s.Age.Seconds(), streamMessages: float64(s.Messages), streamOldest: oldest,
		} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, s.Stream)
		}
	}
}
