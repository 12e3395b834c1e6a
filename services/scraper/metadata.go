package scraper

import (
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/storage"
)

// metadataEvery is the number of scrapes after which the metadata of known series is looked up again; new series get theirs at once. Prometheus's scrape
// loop can bring it with every sample (AppendMetadata), which costs more than all else that is done here with a sample.
const metadataEvery = 10

// suffixes are what the series of a family may have behind its name, by type, as in Prometheus's scrape loop.
var suffixes = []struct {
	suffix string
	types  []model.MetricType
}{
	{"_total", []model.MetricType{model.MetricTypeCounter}},
	{"_bucket", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeGaugeHistogram}},
	{"_sum", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeSummary}},
	{"_count", []model.MetricType{model.MetricTypeHistogram, model.MetricTypeSummary}},
	{"_gsum", []model.MetricType{model.MetricTypeGaugeHistogram}},
	{"_gcount", []model.MetricType{model.MetricTypeGaugeHistogram}},
	{"_info", []model.MetricType{model.MetricTypeInfo}},
}

// describe adds to opts what the target exposes about the family of a series.
func (a *appender) describe(ls labels.Labels, opts *storage.AOptions) {
	name := ls.Get(model.MetricNameLabel)
	m, ok := a.store.GetMetadata(name)
	for i := 0; !ok && i < len(suffixes); i++ {
		base, cut := strings.CutSuffix(name, suffixes[i].suffix)
		if !cut {
			continue
		}
		m, ok = a.store.GetMetadata(base)
		ok = ok && slices.Contains(suffixes[i].types, m.Type)
	}
	if ok {
		opts.MetricFamilyName, opts.Metadata = m.MetricFamily, metadata.Metadata{Type: m.Type, Unit: m.Unit, Help: m.Help}
	}
}
