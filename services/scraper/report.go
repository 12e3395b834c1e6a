package scraper

import (
	"errors"
	"math"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// reportSample is a series that tells of the scrape itself, see "Automatically generated labels and time series" in Prometheus's documentation.
type reportSample struct {
	name, help, unit string
	extra            bool // only with extra_scrape_metrics
}

var reportSamples = [...]reportSample{
	{name: "up", help: "Health of the scrape target. 1 means the target is healthy, 0 if the scrape failed.", unit: "targets"},
	{name: "scrape_duration_seconds", help: "Duration of the last scrape in seconds.", unit: "seconds"},
	{name: "scrape_samples_scraped", help: "Number of samples last scraped.", unit: "samples"},
	{name: "scrape_samples_post_metric_relabeling", help: "Number of samples remaining after metric relabeling was applied.", unit: "samples"},
	{name: "scrape_series_added", help: "Number of series in the last scrape.", unit: "series"},
	{name: "scrape_timeout_seconds", help: "The configured scrape timeout for a target.", unit: "seconds", extra: true},
	{name: "scrape_sample_limit", help: "The configured sample limit for a target. Returns zero if there is no limit configured.", unit: "samples", extra: true},
	{name: "scrape_body_size_bytes", help: "The uncompressed size of the last scrape response, if successful. Scrapes failing because body_size_limit is exceeded report -1, other scrape failures report 0.", unit: "bytes", extra: true},
}

// outcome is how a scrape went.
type outcome struct {
	duration                    time.Duration
	scraped, added, seriesAdded int
	bytes                       int
	err                         error
}

// report appends the report samples of a scrape at the time t, in milliseconds.
func (c *collector) report(t int64, o *outcome) error {
	up := 0.0
	if o.err == nil {
		up = 1
	}
	values := [len(reportSamples)]float64{
		up, o.duration.Seconds(), float64(o.scraped), float64(o.added), float64(o.seriesAdded),
		c.rules.timeout.Seconds(), float64(c.rules.sampleLimit), float64(o.bytes),
	}
	return c.appendReports(t, func(k int) float64 { return values[k] }, false)
}

// reportStale ends the report series at the time t.
func (c *collector) reportStale(t int64) error {
	return c.appendReports(t, func(int) float64 { return math.Float64frombits(value.StaleNaN) }, true)
}

func (c *collector) appendReports(t int64, value func(int) float64, rejectOutOfOrder bool) error {
	for k := range reportSamples {
		r := &reportSamples[k]
		if r.extra && !c.rules.extraMetrics {
			continue
		}
		opts := storage.AOptions{
			MetricFamilyName: r.name, Metadata: metadata.Metadata{Type: model.MetricTypeGauge, Help: r.help, Unit: r.unit}, RejectOutOfOrder: rejectOutOfOrder,
		}
		i := c.view.reports[k]
		if i == unknown {
			var err error
			if i, err = c.a.number(c.rules.reportLabels(labels.FromStrings(model.MetricNameLabel, r.name)), &opts); err != nil {
				return err
			}
		}
		i, err := c.a.append(i, scraped{t: t, v: value(k)}, &opts)
		switch {
		case err == nil:
			c.view.reports[k] = i
		case errors.Is(err, storage.ErrOutOfOrderSample), errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
			// Expected where the target has come back with a new loop.
		default:
			return err
		}
	}
	return nil
}
