package scraper

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/prometheus/common/model"
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
	formatOpenMetrics        // OpenMetrics text: the same
	formatParsed             // always parsed as a whole: protobuf, and where the parser joins lines
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

	window
	now    int64 // the scrape's timestamp in milliseconds
	latest int64 // the greatest that samples may have

	format   format
	old      *template   // of the last body
	unpacker unpacker    // has the memory of old where that is kept packed
	seldom   bool        // the interval is so long that it is
	next     int         // the line of old that is expected
	lines    int         // parsed so far, while the body is as the last one; only where all are parsed
	known    lineContext // at the place up to which the body is read
	comments lineComments
	differs  bool // from old: draft is its successor
	draft    draft
	strange  bool   // there will be no template
	faultAt  int    // where the parser has met fault last
	fault    string // which is final if it comes again

	index lineIndex
	seen  bitmap // IDs in this body
	ended bool   // markStale is done: until the end of the scrape, view.current has the series that were exposed before

	starts   starts
	group    uint64 // of the line that is read
	kind     metricType
	hasher   maphash.Hash
	exemplar exemplarText
	builder  labels.ScratchBuilder
	final    *labels.Builder

	meta       *metadataStore // nil until it is needed
	metaLines  int            // of how many lines of draft it has the comments
	metaTo     int            // the place in the body up to which it has those behind them
	commented  int            // the line of draft that has the last comments; -1 for none
	block      int            // the last such line whose comments meta has
	described  commentSet     // the comments of old
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
	c.total, c.added, c.seriesAdded, c.ended = 0, 0, 0, false
	c.seldom = l.interval >= l.svc.packFrom
}

// commit hands the scrape on, and reports whether it was taken.
func (c *collector) commit() (taken bool, err error) {
	defer c.a.release()
	defer func() { c.settle(taken) }()
	c.a.at = c.now
	return c.a.handOn()
}

// rollback forgets the scrape.
func (c *collector) rollback() {
	c.settle(false)
	c.a.rollback()
}

// restart forgets what was collected, for another try within the same scrape.
func (c *collector) restart() {
	src := c.a.src
	c.rollback()
	c.a.begin(src)
}

// settle follows markStale when it is known what has become of the scrape. Where it was not taken, nor were its staleness markers: the series that they were to end stay
// exposed, so that the next scrape that is taken ends them. That leaves out series that only scrapes had which were not taken, or a long outage would gather all that come and go.
func (c *collector) settle(taken bool) {
	if !c.ended {
		return
	}
	c.ended = false
	v, src := c.view, c.a.src
	if !taken {
		v.current.each(func(i uint32) {
			if src.series[src.resolve(i)].last != minTime {
				v.exposed.set(i)
			}
		})
	}
	v.current.reset()
}

// collect reads a body and appends its samples, and staleness markers for the series that are not in it any more. After an error the
// scrape is to be given up: [collector.restart]. Where the body cannot be fetched to its end, x.err says so, and the rest of it says nothing.
func (c *collector) collect(x *exposition) error {
	defer c.reset(x)
	c.open(x, &c.a.src.mu)
	if c.old = c.view.template; c.view.packed != nil {
		c.old = c.unpacker.unpack(c.view.packed)
	}
	f, err := c.formatOf(x.contentType)
	if c.format = f; err == nil {
		c.starts.reset(c.rules.startTimestamps && f == formatOpenMetrics)
		err = c.readBody(f, x.contentType)
	}
	c.drain()
	if x.err = c.window.err; x.err != nil {
		c.view.current.reset()
		c.total, c.added, c.seriesAdded = 0, 0, 0
		return x.err
	}
	if err != nil {
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
		f = formatOpenMetrics
	}
	c.view.format, c.view.contentType = f, contentType
	return f, nil
}

func (c *collector) readBody(f format, contentType string) error {
	if f != formatParsed {
		return c.readLines(f)
	}
	c.whole = true
	c.more()
	if c.view.meta == nil {
		c.view.meta = newMetadataStore()
	}
	c.meta = c.view.meta
	c.redescribe = c.meta.begin()
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
			c.redescribe = c.redescribe || c.meta.changed
			continue
		}
		if err := c.take(p, entry, f); err != nil {
			return err
		}
	}
}

// take appends the sample at which p stands.
func (c *collector) take(p textparse.Parser, entry textparse.Entry, f format) error {
	var met []byte
	var timestamp *int64
	x := scraped{t: c.now}
	if entry == textparse.EntryHistogram {
		met, timestamp, x.h, x.fh = p.Histogram()
	} else {
		met, timestamp, x.v = p.Series()
	}
	id := c.find(met)
	if c.starts.on {
		is := false
		if c.group, is = c.groupOf(met); is {
			c.takeCreated(c.group, x.v)
			c.recordLine(met, p, created)
			return nil
		}
		c.kind = c.known.metricType
	}
	c.total++
	series := c.seriesOf(id)
	if series == created || c.isGone(id) { // it was, in another context; or Prometheus does not know it any more
		id, series = unknown, unknown
	}
	again := id != unknown && c.seen.has(id)
	if id != unknown {
		if !again {
			c.noteType(id, met)
		}
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
		if c.ls = c.rules.finalLabels(c.final, c.ls); c.ls.IsEmpty() {
			return dropped, nil
		}
		if err := c.rules.check(c.ls); err != nil {
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
		if c.rules.startTimestamps && !c.starts.on {
			x.st = p.StartTimestamp()
		}
		c.readExemplars(p, x.isHistogram(), x.t)
		n, further := c.a.n, len(c.a.extra)
		series, err = c.offer(series, x)
		if c.starts.on {
			c.awaitStart(series, n, further)
		}
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
		c.describe(c.ls.Get(model.MetricNameLabel), opts)
		var err error
		if series, err = c.a.number(c.ls, opts); err != nil {
			return unknown, err
		}
	} else if c.redescribe {
		c.describe(c.a.src.metricOf(c.a.src.resolve(series)).name, opts)
	}
	return c.a.append(series, x, opts)
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
	if err == nil {
		return true, nil
	}
	var partial *storage.AppendPartialError
	switch {
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
	if errors.Is(err, errLabelLimit) {
		c.metrics.labelLimits.Inc()
	}
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

// reset makes the collector ready for another body, and leaves the memory of this one to x.
func (c *collector) reset(x *exposition) {
	x.body = c.body
	c.window = window{}
	c.old = nil
	c.next, c.lines, c.known, c.comments, c.differs, c.strange, c.faultAt, c.fault = 0, 0, lineContext{}, lineComments{}, false, false, -1, ""
	c.index.reset()
	c.seen.reset()
	c.draft.reset()
	c.starts.reset(false)
	c.meta, c.metaLines, c.metaTo, c.commented, c.block, c.redescribe = nil, 0, 0, -1, -1, false
	c.described.reset()
	c.counted, c.limitErr, c.bucketErr, c.problems = 0, nil, nil, problems{}
	c.ls, c.opts = labels.EmptyLabels(), storage.AOptions{}
	clear(c.exs[:cap(c.exs)])
}

// markStale ends the series of the last scrape that this one does not have. It is followed by settle.
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
	v.exposed, v.current, c.ended = v.current, v.exposed, true
	return nil
}
