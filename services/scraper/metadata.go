package scraper

import (
	"bytes"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/storage"
)

// metadataStore holds what a target says of its metric families.
type metadataStore struct {
	families map[string]*familyMetadata
	scrape   int
	changed  bool // since the scrape began
}

type familyMetadata struct {
	metadata.Metadata
	scrape int // the last one that showed it
}

func newMetadataStore() *metadataStore { return &metadataStore{families: map[string]*familyMetadata{}} }

// keepMetadata is how many scrapes a family's metadata outlives the family.
const keepMetadata = 10

// begin starts a scrape.
func (m *metadataStore) begin() {
	m.changed = false
	m.scrape++
}

// expire forgets families that have not been there for some scrapes.
func (m *metadataStore) expire() {
	for name, f := range m.families {
		if m.scrape-f.scrape > keepMetadata {
			delete(m.families, name)
		}
	}
}

// take notes the comment at which p stands, if it is metadata.
func (m *metadataStore) take(p textparse.Parser, entry textparse.Entry) {
	switch entry {
	case textparse.EntryType:
		name, t := p.Type()
		if f := m.family(name); f.Type != t {
			f.Type, m.changed = t, true
		}
	case textparse.EntryHelp:
		name, help := p.Help()
		if f := m.family(name); f.Help != string(help) {
			f.Help, m.changed = string(help), true
		}
	case textparse.EntryUnit:
		name, unit := p.Unit()
		if f := m.family(name); f.Unit != string(unit) {
			f.Unit, m.changed = string(unit), true
		}
	}
}

func (m *metadataStore) family(name []byte) *familyMetadata {
	f, ok := m.families[string(name)]
	if !ok {
		f = &familyMetadata{Metadata: metadata.Metadata{Type: model.MetricTypeUnknown}}
		m.families[string(name)] = f
		m.changed = true
	}
	f.scrape = m.scrape
	return f
}

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

// describe adds to opts what the target says of the family of a series.
func (m *metadataStore) describe(ls labels.Labels, opts *storage.AOptions) {
	name := ls.Get(model.MetricNameLabel)
	f, ok := m.families[name]
	for i := 0; !ok && i < len(suffixes); i++ {
		base, cut := strings.CutSuffix(name, suffixes[i].suffix)
		if !cut {
			continue
		}
		name = base
		f, ok = m.families[base]
		ok = ok && slices.Contains(suffixes[i].types, f.Type)
		if !ok {
			name = ls.Get(model.MetricNameLabel)
		}
	}
	if ok {
		opts.MetricFamilyName, opts.Metadata = name, f.Metadata
	}
}

// readComments returns the metadata of a whole body in the text format.
func readComments(body []byte) *metadataStore {
	m := newMetadataStore()
	var comments []byte
	for line := range bytes.Lines(body) {
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] == '#' {
			comments = append(comments, line...)
		}
	}
	p := textparse.NewPromParser(comments, nil, false)
	for {
		entry, err := p.Next()
		if err != nil {
			return m // whoever reads the samples meets a faulty comment too
		}
		m.take(p, entry)
	}
}
