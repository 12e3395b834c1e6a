package scraper

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	samples, frames, dictionaries, batches, batchBytes, retries, droppedScrapes, droppedSamples prometheus.Counter
}

func newMetrics(s *Service, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "scraper", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "millrace", Subsystem: "scraper", Name: name, Help: help}, value))
	}
	gauge("pending_bytes", "Bytes of frames held in memory until the stream has acknowledged them.", func() float64 { return float64(s.pending.Load()) })
	gauge("pending_limit_bytes", "Bytes of frames that may be held in memory.", func() float64 { return float64(s.cfg.MaxPendingBytes) })
	gauge("sources", "Sources (targets with their own label set) that the scraper knows.", func() float64 { n, _ := s.sources.counts(); return float64(n) })
	gauge("series", "Series that the scraper knows, including ones that have just gone.", func() float64 { _, n := s.sources.counts(); return float64(n) })
	return &metrics{
		samples:        counter("samples_total", "Samples handed to the publishers."),
		frames:         counter("frames_total", "Frames handed to the publishers."),
		dictionaries:   counter("dictionaries_published_total", "Dictionaries published, new ones and ones announced again."),
		batches:        counter("batches_published_total", "Batches that the stream has acknowledged."),
		batchBytes:     counter("batch_bytes_total", "Bytes of the batches that the stream has acknowledged."),
		retries:        counter("publish_retries_total", "Failed tries to publish."),
		droppedScrapes: counter("dropped_scrapes_total", "Whole scrapes dropped because the stream did not take frames and memory for waiting ones was full, or frames because no message holds them."),
		droppedSamples: counter("dropped_samples_total", "Samples of dropped scrapes."),
	}
}
