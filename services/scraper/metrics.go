package scraper

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	samples, frames, droppedScrapes, droppedSamples prometheus.Counter
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
	gauge("pending_bytes", "Bytes of frames held in memory until the stream has acknowledged them.", func() float64 { return float64(s.budget.Pending()) })
	gauge("pending_limit_bytes", "Bytes of frames that may be held in memory.", func() float64 { return float64(s.budget.Limit()) })
	gauge("template_bytes", "Bytes of the templates of expositions, packed or not, including ones whose memory is not freed yet.", func() float64 { return float64(s.templates.bytes.Load()) })
	reg.MustRegister(newUsageCollector(s.sources))
	return &metrics{
		samples:        counter("samples_total", "Samples handed to the publishers."),
		frames:         counter("frames_total", "Frames handed to the publishers."),
		droppedScrapes: counter("dropped_scrapes_total", "Whole scrapes dropped because the stream did not take frames and memory for waiting ones was full, or that are not, or not wholly, in the stream because no message holds them or the process stopped first."),
		droppedSamples: counter("dropped_samples_total", "Samples of dropped scrapes that are not in the stream."),
	}
}

// usageCollector tells what sources hold. It looks at them once for all its metrics.
type usageCollector struct {
	of                                            *sources
	sources, series, seriesBytes, dictionaryBytes *prometheus.Desc
}

func newUsageCollector(of *sources) *usageCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("millrace", "scraper", name), help, nil, nil)
	}
	return &usageCollector{
		of:              of,
		sources:         desc("sources", "Sources (targets with their own label set) that the scraper knows."),
		series:          desc("series", "Series that the scraper knows, including ones that have just gone."),
		seriesBytes:     desc("series_bytes", "Bytes of what the scraper knows of series, without their dictionaries and templates."),
		dictionaryBytes: desc("dictionary_bytes", "Bytes of the dictionaries that hold the labels of series."),
	}
}

// Describe is that of [prometheus.Collector].
func (c *usageCollector) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect is that of [prometheus.Collector].
func (c *usageCollector) Collect(to chan<- prometheus.Metric) {
	u := c.of.usage()
	gauge := func(d *prometheus.Desc, n int) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n))
	}
	gauge(c.sources, u.sources)
	gauge(c.series, u.series)
	gauge(c.seriesBytes, u.seriesBytes)
	gauge(c.dictionaryBytes, u.dictionaryBytes)
}

// scrapeMetrics are those that Prometheus has of its scrape loops, under the same names: dashboards and alerts know them.
type scrapeMetrics struct {
	intervals                                                  *prometheus.SummaryVec
	targets, targetLimit                                       *prometheus.GaugeVec
	targetLimitExceeded, labelLimits, sampleLimit, bucketLimit prometheus.Counter
	bodySizeLimit                                              prometheus.Counter
	outOfOrder, duplicates, outOfBounds, exemplars             prometheus.Counter
}

func newScrapeMetrics(reg prometheus.Registerer) *scrapeMetrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "prometheus", Subsystem: "target", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "prometheus", Subsystem: "target", Name: name, Help: help}, []string{"scrape_job"})
		reg.MustRegister(g)
		return g
	}
	m := &scrapeMetrics{
		intervals: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Namespace: "prometheus", Subsystem: "target", Name: "interval_length_seconds", Help: "Actual intervals between scrapes.",
			Objectives: map[float64]float64{0.01: 0.001, 0.05: 0.005, 0.5: 0.05, 0.90: 0.01, 0.99: 0.001},
		}, []string{"interval"}),
		targets:             gauge("scrape_pool_targets", "Current number of targets in this scrape pool."),
		targetLimit:         gauge("scrape_pool_target_limit", "Maximum number of targets allowed in this scrape pool."),
		targetLimitExceeded: counter("scrape_pool_exceeded_target_limit_total", "Total number of times scrape pools hit the target limit, during sync or config reload."),
		labelLimits:         counter("scrape_pool_exceeded_label_limits_total", "Total number of times scrape pools hit the label limits, during sync or config reload."),
		sampleLimit:         counter("scrapes_exceeded_sample_limit_total", "Total number of scrapes that hit the sample limit and were rejected."),
		bucketLimit:         counter("scrapes_exceeded_native_histogram_bucket_limit_total", "Total number of scrapes that hit the native histogram bucket limit and were rejected."),
		bodySizeLimit:       counter("scrapes_exceeded_body_size_limit_total", "Total number of scrapes that hit the body size limit."),
		outOfOrder:          counter("scrapes_sample_out_of_order_total", "Total number of samples rejected due to not being out of the expected order."),
		duplicates:          counter("scrapes_sample_duplicate_timestamp_total", "Total number of samples rejected due to duplicate timestamps but different values."),
		outOfBounds:         counter("scrapes_sample_out_of_bounds_total", "Total number of samples rejected due to timestamp falling outside of the time bounds."),
		exemplars:           counter("scrapes_exemplar_out_of_order_total", "Total number of exemplar rejected due to not being out of the expected order."),
	}
	reg.MustRegister(m.intervals)
	return m
}

func (m *scrapeMetrics) interval(d time.Duration) prometheus.Observer {
	return m.intervals.WithLabelValues(d.String())
}
