package scraper

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"
	"unsafe"

	"github.com/prometheus/common/model"
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

// begin starts a scrape, and reports whether the last one has changed anything: that may have been behind the series.
func (m *metadataStore) begin() (changed bool) {
	changed, m.changed = m.changed, false
	m.scrape++
	return changed
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

// describe adds to opts what the target says of the family of the series with a name.
func (m *metadataStore) describe(series string, opts *storage.AOptions) {
	name := series
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
			name = series
		}
	}
	if ok {
		opts.MetricFamilyName, opts.Metadata = name, f.Metadata
	}
}

// describe adds to opts what the target says of the family of the series with a name. In a text format, it looks at the last comments before the line first.
func (c *collector) describe(name string, opts *storage.AOptions) {
	c.needMetadata()
	all := c.hasComments()
	if !all && c.block < c.commented {
		c.block = c.commented
		c.meta.read(c.format, c.draft.appendComments(nil, c.block))
	}
	c.meta.describe(name, opts)
	if all || opts.MetricFamilyName != "" && opts.Metadata.Type != model.MetricTypeUnknown && opts.Metadata.Help != "" && !c.redescribe {
		return
	}
	c.readComments()
	c.meta.describe(name, opts)
}

// hasComments reports whether meta has all comments of the body up to the end of what is in memory.
func (c *collector) hasComments() bool {
	return c.format == formatParsed || c.metaLines == len(c.draft.lines) && c.metaTo >= c.gone+len(c.body)
}

// readComments notes all comments of the body up to the end of what is in memory. Each is read only once, or when the line behind it has become one of the draft again.
func (c *collector) readComments() {
	var comments []byte
	for ; c.metaLines < len(c.draft.lines); c.metaLines++ {
		comments = c.draft.appendComments(comments, c.metaLines)
	}
	if end := c.gone + len(c.body); c.metaTo < end {
		comments = appendComments(comments, c.body[c.at:])
		c.metaTo = end
	}
	c.meta.read(c.format, comments)
}

// appendComments appends the comments before line k.
func (d *draft) appendComments(to []byte, k int) []byte {
	line := &d.lines[k]
	if !line.described {
		return to
	}
	from := uint32(0)
	if k > 0 {
		from = d.lines[k-1].end
	}
	return appendComments(to, d.text[from:line.met])
}

func (c *collector) needMetadata() {
	if c.meta == nil {
		c.meta = newMetadataStore()
	}
}

// endOfBody is the last line of an OpenMetrics body.
var endOfBody = []byte("# EOF\n")

// appendComments appends the comments of a text, which begins with a line, in one of the text formats.
func appendComments(to, text []byte) []byte {
	for len(text) > 0 {
		line := text
		if n := bytes.IndexByte(text, '\n'); n >= 0 {
			line = text[:n+1]
		}
		text = text[len(line):]
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] == '#' && !bytes.HasPrefix(line, endOfBody) {
			to = append(to, line...)
		}
	}
	return to
}

// read notes what comments say.
func (m *metadataStore) read(f format, comments []byte) {
	if len(comments) == 0 {
		return
	}
	p := textparse.NewPromParser(comments, nil, false)
	if f == formatOpenMetrics {
		p = textparse.NewOpenMetricsParser(append(comments, endOfBody...), nil)
	}
	for {
		entry, err := p.Next()
		if err != nil {
			return // whoever reads the samples meets a faulty comment too
		}
		m.take(p, entry)
	}
}

// commentSet are the comments of a template, by their hashes.
type commentSet struct {
	filled bool
	hashes map[uint64]struct{}
}

func (s *commentSet) reset() {
	if s.filled = false; len(s.hashes) > 10_000 {
		s.hashes = nil
	}
	clear(s.hashes)
}

// isCommentOfTemplate reports whether the last body had the comment too in which name stands.
func (c *collector) isCommentOfTemplate(name []byte) bool {
	s, seed := &c.described, c.shared.seed
	if !s.filled {
		s.filled = true
		if s.hashes == nil {
			s.hashes = map[uint64]struct{}{}
		}
		for k := range c.old.lines {
			if line := &c.old.lines[k]; line.described {
				for text := range strings.Lines(c.old.text[c.old.start(k):line.met]) {
					s.hashes[maphash.String(seed, strings.TrimSuffix(text, "\n"))] = struct{}{}
				}
			}
		}
		for text := range strings.Lines(c.old.tail()) {
			s.hashes[maphash.String(seed, strings.TrimSuffix(text, "\n"))] = struct{}{}
		}
	}
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(name))) - uintptr(unsafe.Pointer(unsafe.SliceData(c.body))))
	if at < c.at || at > len(c.body) {
		return false
	}
	from := c.at + bytes.LastIndexByte(c.body[c.at:at], '\n') + 1
	to := len(c.body)
	if n := bytes.IndexByte(c.body[at:], '\n'); n >= 0 {
		to = at + n
	}
	_, ok := s.hashes[maphash.Bytes(seed, c.body[from:to])]
	return ok
}
