package scraper

import "math"

// view is what one scrape loop knows of its source: how its target's exposition looks, and which series that exposed last. The source's
// lock guards it.
type view struct {
	format      format
	contentType string // that has format

	template *template
	packed   *packed  // in place of template, where the interval is long; nil otherwise
	series   []uint32 // for each line of the template the number of its series in the source, or one of the constants below
	// spare holds the series of lines that only scrapes which failed have shown, by their text.
	spare map[string]uint32
	gone  goneLines
	// retyped says that there may be lines whose labels were made under another TYPE comment than the one under which the template has them.
	retyped bool
	size    int // lines at the last success
	meta    *metadataStore

	exposed bitmap // series in the last scrape, without those that have timestamps of their own; they end with a staleness marker
	current bitmap // the same for the scrape that is being collected; from markStale to its end, for the one before

	reports [len(reportSamples)]uint32
}

const (
	// unknown stands for a line whose series the source does not have (yet): its labels are to be read.
	unknown = math.MaxUint32
	// dropped stands for a line that relabelling drops.
	dropped = math.MaxUint32 - 1
	// created stands for a line that tells a start timestamp, and is no sample.
	created = math.MaxUint32 - 2
)

// noTemplate is the template of a target that was not read yet, or has a packed one.
var noTemplate = &template{}

func newView() *view {
	v := &view{}
	v.forget()
	return v
}

// forget drops all that refers to series of the source.
func (v *view) forget() {
	v.template, v.packed, v.series, v.spare, v.gone, v.retyped = noTemplate, nil, nil, nil, goneLines{}, false
	v.exposed.reset()
	v.current.reset()
	for i := range v.reports {
		v.reports[i] = unknown
	}
}

// renumber follows a compaction: numbers holds the new number of each series.
func (v *view) renumber(numbers []uint32) {
	number := func(i uint32) uint32 {
		if i >= created {
			return i
		}
		return numbers[i]
	}
	for k, i := range v.series {
		v.series[k] = number(i)
	}
	for met, i := range v.spare {
		v.spare[met] = number(i)
	}
	for met, line := range v.gone.lines {
		if line.series = number(line.series); line.series == unknown {
			delete(v.gone.lines, met)
			continue
		}
		v.gone.lines[met] = line
	}
	for k, i := range v.reports {
		v.reports[k] = number(i)
	}
	var exposed bitmap
	v.exposed.each(func(i uint32) {
		if n := numbers[i]; n != unknown {
			exposed.set(n)
		}
	})
	v.exposed = exposed
}
