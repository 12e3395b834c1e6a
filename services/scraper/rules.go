package scraper

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/model/textparse"
)

// rules is what a scrape config, and its target's labels, say about samples.
type rules struct {
	targetLabels labels.Labels // the public ones
	config       *promconfig.ScrapeConfig

	timeout          time.Duration
	sampleLimit      int
	bucketLimit      int
	maxSchema        int32
	honorTimestamps  bool
	trackTimestamps  bool // staleness of series with timestamps of their own
	startTimestamps  bool
	extraMetrics     bool
	relabelConfigs   []*relabel.Config
	validationScheme model.ValidationScheme
	parser           textparse.ParserOptions
}

// Labels with which target relabelling overrides options of the scrape config.
const (
	convertClassicLabel = "__convert_classic_histograms_to_nhcb__"
	alwaysClassicLabel  = "__always_scrape_classic_histograms__"
	nativeLabel         = "__scrape_native_histograms__"
)

func newRules(cfg *promconfig.ScrapeConfig, target labels.Labels, timeout time.Duration, startTimestamps bool) *rules {
	option := func(label string, byConfig bool) bool {
		if b, err := strconv.ParseBool(target.Get(label)); err == nil {
			return b
		}
		return byConfig
	}
	return &rules{
		targetLabels: publicLabels(target), config: cfg, timeout: timeout,
		sampleLimit: int(cfg.SampleLimit), bucketLimit: int(cfg.NativeHistogramBucketLimit), maxSchema: schemaOf(cfg.NativeHistogramMinBucketFactor),
		honorTimestamps: cfg.HonorTimestamps, trackTimestamps: cfg.TrackTimestampsStaleness, startTimestamps: startTimestamps,
		extraMetrics: cfg.ExtraScrapeMetricsEnabled(), relabelConfigs: cfg.MetricRelabelConfigs, validationScheme: cfg.MetricNameValidationScheme,
		parser: textparse.ParserOptions{
			IgnoreNativeHistograms:                  !option(nativeLabel, cfg.ScrapeNativeHistogramsEnabled()),
			ConvertClassicHistogramsToNHCB:          option(convertClassicLabel, cfg.ConvertClassicHistogramsToNHCBEnabled()),
			KeepClassicOnClassicAndNativeHistograms: option(alwaysClassicLabel, cfg.AlwaysScrapeClassicHistogramsEnabled()),
			OpenMetricsSkipSTSeries:                 startTimestamps,
			FallbackContentType:                     cfg.ScrapeFallbackProtocol.HeaderMediaType(),
		},
	}
}

// publicLabels returns the labels of a target that its series get.
func publicLabels(target labels.Labels) labels.Labels {
	b := labels.NewBuilder(target)
	target.Range(func(l labels.Label) {
		if len(l.Name) >= len(model.ReservedLabelPrefix) && l.Name[:len(model.ReservedLabelPrefix)] == model.ReservedLabelPrefix {
			b.Del(l.Name)
		}
	})
	return b.Labels()
}

// schemaOf returns the finest schema whose buckets are at least by the factor wider each.
func schemaOf(factor float64) int32 {
	if factor <= 1 {
		return histogram.ExponentialSchemaMax
	}
	schema := math.Floor(-math.Log2(math.Log2(factor)))
	return int32(min(max(schema, float64(histogram.ExponentialSchemaMin)), float64(histogram.ExponentialSchemaMax)))
}

// finalLabels returns the labels of a series from those that the target exposes: with the target's own, and relabelled. Empty means that
// the series is dropped. b is used for the work.
func (r *rules) finalLabels(b *labels.Builder, exposed labels.Labels) labels.Labels {
	b.Reset(exposed)
	var displaced []labels.Label
	r.targetLabels.Range(func(l labels.Label) {
		have := exposed.Get(l.Name)
		if r.config.HonorLabels {
			if !exposed.Has(l.Name) {
				b.Set(l.Name, l.Value)
			}
			return
		}
		if have != "" {
			displaced = append(displaced, labels.Label{Name: l.Name, Value: have})
		}
		b.Set(l.Name, l.Value)
	})
	// Shorter names first, so that exported_x is not in the way of what x becomes.
	slices.SortStableFunc(displaced, func(x, y labels.Label) int { return len(x.Name) - len(y.Name) })
	for _, l := range displaced {
		name := model.ExportedLabelPrefix + l.Name
		for b.Get(name) != "" {
			name = model.ExportedLabelPrefix + name
		}
		b.Set(name, l.Value)
	}
	if !relabel.ProcessBuilder(b, r.relabelConfigs...) {
		return labels.EmptyLabels()
	}
	return b.Labels()
}

// reportLabels returns the labels of a report series.
func (r *rules) reportLabels(ls labels.Labels) labels.Labels {
	b := labels.NewBuilder(ls)
	r.targetLabels.Range(func(l labels.Label) {
		b.Set(model.ExportedLabelPrefix+l.Name, ls.Get(l.Name))
		b.Set(l.Name, l.Value)
	})
	return b.Labels()
}

var errNoName = fmt.Errorf("missing metric name (%s label)", model.MetricNameLabel)

// errLabelLimit marks errors of label limits.
var errLabelLimit = errors.New("label limit")

// check returns an error for final labels with which the whole scrape fails.
func (r *rules) check(ls labels.Labels) error {
	if !ls.Has(model.MetricNameLabel) {
		return errNoName
	}
	if !ls.IsValid(r.validationScheme) {
		return fmt.Errorf("invalid metric name or label names: %s", ls.String())
	}
	if err := r.checkLimits(ls); err != nil {
		return labelLimitError{err}
	}
	return nil
}

// labelLimitError is an error that is errLabelLimit too.
type labelLimitError struct{ error }

func (labelLimitError) Is(target error) bool { return target == errLabelLimit }

func (r *rules) checkLimits(ls labels.Labels) error {
	count, nameLength, valueLength := int(r.config.LabelLimit), int(r.config.LabelNameLengthLimit), int(r.config.LabelValueLengthLimit)
	if count == 0 && nameLength == 0 && valueLength == 0 {
		return nil
	}
	name := ls.Get(model.MetricNameLabel)
	if n := ls.Len(); count > 0 && n > count {
		return fmt.Errorf("label_limit exceeded (metric: %.50s, number of labels: %d, limit: %d)", name, n, count)
	}
	return ls.Validate(func(l labels.Label) error {
		if n := len(l.Name); nameLength > 0 && n > nameLength {
			return fmt.Errorf("label_name_length_limit exceeded (metric: %.50s, label name: %.50s, length: %d, limit: %d)", name, l.Name, n, nameLength)
		}
		if n := len(l.Value); valueLength > 0 && n > valueLength {
			return fmt.Errorf("label_value_length_limit exceeded (metric: %.50s, label name: %.50s, value: %.50q, length: %d, limit: %d)", name, l.Name, l.Value, n, valueLength)
		}
		return nil
	})
}

var (
	errSampleLimit = errors.New("sample limit exceeded")
	errBucketLimit = errors.New("histogram bucket limit exceeded")
)

// limitBuckets reduces the resolution of a native histogram to what the scrape config allows.
func (r *rules) limitBuckets(h *histogram.Histogram, fh *histogram.FloatHistogram) error {
	switch {
	case h != nil:
		return limitBuckets(r, h, h.Schema, func() (int32, int) { return h.Schema, len(h.PositiveBuckets) + len(h.NegativeBuckets) })
	case fh != nil:
		return limitBuckets(r, fh, fh.Schema, func() (int32, int) { return fh.Schema, len(fh.PositiveBuckets) + len(fh.NegativeBuckets) })
	default:
		return nil
	}
}

func limitBuckets(r *rules, h interface{ ReduceResolution(int32) error }, schema int32, state func() (schema int32, buckets int)) error {
	if r.maxSchema < histogram.ExponentialSchemaMax && histogram.IsExponentialSchemaReserved(schema) && schema > r.maxSchema {
		if err := h.ReduceResolution(r.maxSchema); err != nil {
			return err
		}
	}
	if r.bucketLimit == 0 {
		return nil
	}
	for {
		schema, buckets := state()
		if buckets <= r.bucketLimit {
			return nil
		}
		if !histogram.IsExponentialSchema(schema) || schema <= histogram.ExponentialSchemaMin {
			return errBucketLimit
		}
		if err := h.ReduceResolution(schema - 1); err != nil {
			return err
		}
	}
}
