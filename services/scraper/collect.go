package scraper

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
)

// format is how a body is read.
type format uint8

const (
	formatUnknown     format = iota
	formatText               // the text format: read against the last body, and parsed only where it differs
	formatOpenMetrics        // OpenMetrics text: read against the last body, or parsed as a whole
	formatParsed             // always parsed: protobuf, and where the parser joins lines
)

// maxAhead is how far in the future a timestamp may be that a target gives.
const maxAhead = 10 * time.Minute

// collector reads the body of one scrape into an appender. It means what Prometheus's scrape loop means, but it reads a body against the
// template of the last one: where the text is the same, a sample costs no more than its value.
type collector struct {
	a       *appender
	view    *view
	rules   *rules
	log     *slog.Logger
	metrics *scrapeMetrics
	shared  *templates

	body   []byte
	now    int64 // the scrape's timestamp in milliseconds
	latest int64 // the greatest that samples may have

	old     *template // of the last body
	next    int       // the line of old that is expected
	lines   int       // parsed so far, while the body is as the last one
	at      int       // what of body is read
	mtype   metricType
	differs bool // from old: draft is its successor
	draft   draft
	strange bool // the parser's lines are not where they are expected
	scratch []byte

	index map[string]uint32 // IDs of lines by their series; filled when it is needed
	fresh []uint32          // the series of lines that old does not have; their IDs follow those of old
	seen  bitmap            // IDs in this body

	meta       *metadataStore // nil until it is needed
	redescribe bool           // metadata has changed: known series are looked up too

	total, added, seriesAdded int
	counted                   int // against the sample limit
	limitErr, bucketErr       error
	problems                  problems

	ls   labels.Labels
	ex   exemplar.Exemplar
	exs  []exemplar.Exemplar
	opts storage.AOptions
}

// problems counts samples that were refused.
type problems struct {
	outOfOrder, duplicates, outOfBounds, exemplars int
}

// begin makes the collector ready for a scrape at the time now. It holds the lock of the source until end.
func (c *collector) begin(l *loop, now int64) {
	c.a.begin(l.source)
	c.view, c.rules, c.log = l.view, l.rules, l.log
	c.now, c.latest = now, time.Now().Add(maxAhead).UnixMilli()
	c.total, c.added, c.seriesAdded = 0, 0, 0
}

// commit hands the scrape on.
func (c *collector) commit() error { return c.a.commit() }

// restart forgets what was collected, for another try within the same scrape.
func (c *collector) restart() {
	src := c.a.src
	c.a.rollback()
	c.a.begin(src)
}

// collect reads a body and appends its samples, and staleness markers for the series that are not in it any more. After an error the
// scrape is to be given up: [collector.restart].
func (c *collector) collect(body []byte, contentType string) error {
	f, err := c.formatOf(contentType)
	if err != nil {
		return err
	}
	defer c.reset()
	c.body, c.old = body, c.view.template
	c.strange = len(body) > maxTemplate
	if err := c.read(f, contentType); err != nil {
		c.spare()
		return c.concluded(err)
	}
	if err := c.concluded(nil); err != nil {
		c.spare()
		return err
	}
	if err := c.markStale(); err != nil {
		c.spare()
		return err
	}
	c.learn(f)
	return nil
}

// collectNothing appends staleness markers for all series of the last scrape.
func (c *collector) collectNothing() error { return c.markStale() }

// formatOf returns how bodies of a content type are read.
func (c *collector) formatOf(contentType string) (format, error) {
	if c.view.format != formatUnknown && c.view.contentType == contentType {
		return c.view.format, nil
	}
	p, err := textparse.New([]byte{}, contentType, nil, c.rules.parser)
	if p == nil {
		return formatUnknown, err
	}
	if err != nil {
		c.log.Debug("Unusual content type, falling back", "content_type", contentType, "err", err)
	}
	f := formatParsed
	switch p.(type) {
	case *textparse.PromParser:
		f = formatText
	case *textparse.OpenMetricsParser:
		if !c.rules.startTimestamps { // start timestamps are looked up in other lines
			f = formatOpenMetrics
		}
	}
	c.view.format, c.view.contentType = f, contentType
	return f, nil
}

func (c *collector) read(f format, contentType string) error {
	if f == formatText {
		return c.readText()
	}
	if f == formatOpenMetrics && c.old.format == f && len(c.old.lines) > 0 {
		if c.matchLines(f); c.next == len(c.old.lines) && string(c.body[c.at:]) == c.old.tail() {
			return nil
		}
		c.startOver()
	}
	if f == formatOpenMetrics {
		c.differ(0)
	}
	if c.view.meta == nil {
		c.view.meta = newMetadataStore()
	}
	c.meta = c.view.meta
	c.meta.begin()
	p, err := textparse.New(c.body, contentType, nil, c.rules.parser)
	if p == nil {
		return err
	}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			if c.lines < len(c.old.lines) {
				c.differ(c.lines)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if entry != textparse.EntrySeries && entry != textparse.EntryHistogram {
			c.meta.take(p, entry)
			c.redescribe = c.meta.changed
			continue
		}
		if err := c.take(p, entry, f); err != nil {
			return err
		}
	}
}

// startOver forgets what was read of the body.
func (c *collector) startOver() {
	c.restart()
	c.view.current.reset()
	c.next, c.at, c.total, c.added, c.counted, c.limitErr, c.problems = 0, 0, 0, 0, 0, nil, problems{}
}

// take appends the sample at which p stands.
func (c *collector) take(p textparse.Parser, entry textparse.Entry, f format) error {
	c.total++
	var met []byte
	var timestamp *int64
	x := scraped{t: c.now}
	if entry == textparse.EntryHistogram {
		met, timestamp, x.h, x.fh = p.Histogram()
	} else {
		met, timestamp, x.v = p.Series()
	}
	id := c.find(met)
	series := c.seriesOf(id)
	again := id != unknown && c.seen.has(id)
	if id != unknown {
		c.seen.set(id)
	}
	if series != dropped {
		if timestamp != nil && c.rules.honorTimestamps {
			x.t = *timestamp
		} else {
			timestamp = nil
		}
		var err error
		if series, err = c.takeSample(p, entry, met, series, x, timestamp != nil, again); err != nil {
			return err
		}
	}
	if id == unknown && series != unknown {
		c.remember(met, series)
	}
	c.record(met, p, f, series, again)
	return nil
}

// takeSample appends the sample of a series and returns the series' number: dropped where relabelling drops it, unknown where the series
// is new and its sample was refused.
func (c *collector) takeSample(p textparse.Parser, entry textparse.Entry, met []byte, series uint32, x scraped, explicit, again bool) (uint32, error) {
	known := series != unknown
	if !known {
		p.Labels(&c.ls)
		if c.ls = c.rules.finalLabels(c.ls); c.ls.IsEmpty() {
			return dropped, nil
		}
		if err := c.rules.check(c.ls); err != nil {
			if errors.Is(err, errLabelLimit) {
				c.metrics.labelLimits.Inc()
			}
			return unknown, err
		}
	}
	c.exs = c.exs[:0]
	var err error
	if again && !explicit {
		err = storage.ErrDuplicateSampleForTimestamp
	} else {
		if entry == textparse.EntryHistogram && !x.isHistogram() {
			return unknown, fmt.Errorf("the parser returned no histogram for the series %s", met)
		}
		if c.rules.startTimestamps {
			x.st = p.StartTimestamp()
		}
		c.readExemplars(p, x.isHistogram(), x.t)
		series, err = c.offer(series, x)
	}
	taken, err := c.judge(met, err)
	if err != nil {
		return unknown, err
	}
	if !known && taken && c.limitErr == nil && c.bucketErr == nil {
		c.seriesAdded++
	}
	if taken && (!explicit || c.rules.trackTimestamps) {
		c.view.current.set(series)
	}
	c.added++
	if !known && !taken {
		series = unknown
	}
	return series, nil
}

// offer gives a sample to the appender if it is within the limits. A series that is unknown has the labels c.ls.
func (c *collector) offer(series uint32, x scraped) (uint32, error) {
	if x.isHistogram() {
		if err := c.rules.limitBuckets(x.h, x.fh); err != nil {
			return series, err
		}
	}
	if c.rules.sampleLimit > 0 && (series == unknown || x.isHistogram() || !value.IsStaleNaN(x.v)) {
		if c.counted++; c.counted > c.rules.sampleLimit {
			return series, errSampleLimit
		}
	}
	if x.t > c.latest {
		return series, storage.ErrOutOfBounds
	}
	opts := &c.opts
	*opts = storage.AOptions{Exemplars: c.exs}
	if series == unknown {
		c.metadata().describe(c.ls, opts)
		var err error
		if series, err = c.a.number(c.ls, opts); err != nil {
			return unknown, err
		}
	} else if c.redescribe {
		c.metadata().describe(c.a.src.series[c.a.src.resolve(series)].labels, opts)
	}
	return c.a.append(series, x, opts)
}

func (c *collector) metadata() *metadataStore {
	if c.meta == nil {
		c.meta = readComments(c.body)
	}
	return c.meta
}

// readExemplars reads the exemplars of a sample. Those of native histograms need timestamps of their own.
func (c *collector) readExemplars(p textparse.Parser, isHistogram bool, t int64) {
	for p.Exemplar(&c.ex) {
		if c.ex.HasTs || !isHistogram {
			if !c.ex.HasTs {
				c.ex.Ts = t
			}
			c.exs = append(c.exs, c.ex)
		}
		c.ex = exemplar.Exemplar{}
	}
	if len(c.exs) > 1 {
		slices.SortFunc(c.exs, exemplar.Compare)
	}
}

// judge sorts out what became of a sample: taken, refused (which is counted), or an error with which the scrape fails.
func (c *collector) judge(met []byte, err error) (taken bool, fatal error) {
	var partial *storage.AppendPartialError
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, errSampleLimit):
		c.limitErr = err
	case errors.Is(err, errBucketLimit):
		c.bucketErr = err
	case errors.Is(err, storage.ErrOutOfOrderSample):
		c.problems.outOfOrder++
	case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
		c.problems.duplicates++
	case errors.Is(err, storage.ErrOutOfBounds):
		c.problems.outOfBounds++
	case errors.As(err, &partial):
		n := 0
		for _, e := range partial.ExemplarErrors {
			if errors.Is(e, storage.ErrOutOfOrderExemplar) {
				n++
			}
		}
		if n == len(c.exs) { // otherwise it is an update of some
			c.problems.exemplars += n
		}
		return true, nil
	default:
		c.log.Debug("The scrape is given up", "series", string(met), "err", err)
		return false, err
	}
	return false, nil
}

// concluded counts and logs what was refused, and returns the error with which the scrape fails, given what reading the body returned.
func (c *collector) concluded(err error) error {
	if c.limitErr != nil {
		c.metrics.sampleLimit.Inc()
		if err == nil {
			err = c.limitErr
		}
	}
	if c.bucketErr != nil {
		c.metrics.bucketLimit.Inc()
		if err == nil {
			err = c.bucketErr
		}
	}
	c.problems.report(c.log, c.metrics)
	return err
}

func (p *problems) report(log *slog.Logger, m *scrapeMetrics) {
	if *p == (problems{}) {
		return
	}
	m.outOfOrder.Add(float64(p.outOfOrder))
	m.duplicates.Add(float64(p.duplicates))
	m.outOfBounds.Add(float64(p.outOfBounds))
	m.exemplars.Add(float64(p.exemplars))
	log.Warn("Samples were refused", "out_of_order", p.outOfOrder, "duplicates", p.duplicates, "out_of_bounds", p.outOfBounds, "exemplars_out_of_order", p.exemplars)
}

// markStale ends the series of the last scrape that this one does not have.
func (c *collector) markStale() error {
	v, src := c.view, c.a.src
	var err error
	v.exposed.each(func(i uint32) {
		if err != nil || v.current.has(i) {
			return
		}
		if i = src.resolve(i); v.current.has(i) {
			return // with new metadata
		}
		src.changed = true
		_, e := c.a.append(i, scraped{t: c.now, v: math.Float64frombits(value.StaleNaN)}, &storage.AOptions{RejectOutOfOrder: true})
		if !errors.Is(e, storage.ErrOutOfOrderSample) && !errors.Is(e, storage.ErrDuplicateSampleForTimestamp) {
			err = e
		} // otherwise the target has come back with a new loop
	})
	if err != nil {
		return fmt.Errorf("writing staleness markers: %w", err)
	}
	v.exposed, v.current = v.current, v.exposed
	v.current.reset()
	return nil
}
