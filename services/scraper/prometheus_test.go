package scraper

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"

	"github.com/millrace/millrace/bench/loadgen"
)

// pace is the interval of the scrapes by Prometheus of which a benchmark measures how much time of the processors they take. A timer drives them, so there are as many
// targets as it takes to keep the processors awake: one that sleeps in between makes all look expensive.
const pace = 50 * time.Millisecond

// comparedBodies are what Prometheus's loop and that of this package are compared on, with how many targets.
func comparedBodies(b *testing.B, run func(b *testing.B, list []step, targets int)) {
	b.Run("unchanged", func(b *testing.B) { run(b, answers(b, loadgen.Config{}, "", 16), 40) })
	b.Run("5%changed", func(b *testing.B) { run(b, alternating(answers(b, loadgen.Config{}, "", 16), 20), 40) })
	b.Run("5%new", func(b *testing.B) { run(b, answers(b, loadgen.Config{ChurnPercent: 5}, "", 256), 30) })
	b.Run("allnew", func(b *testing.B) { run(b, answers(b, loadgen.Config{ChurnPercent: 100}, "", 64), 12) })
}

// warming is how many scrapes of each target go before those that are measured.
const warming = 10

// BenchmarkVisit is a scrape by this package, from the request to the frame, of the targets of [BenchmarkPrometheus].
func BenchmarkVisit(b *testing.B) {
	comparedBodies(b, func(b *testing.B, list []step, targets int) {
		r := newRig(b)
		var loops []*loop
		for i := range targets {
			cfg := *differentialConfig(b).ScrapeConfigs[0]
			cfg.JobName = numbered("job", i) // so that each has its own source
			loops = append(loops, r.newLoopTo(&cfg, ready(b, "identity", list), i))
			defer loops[i].fetch.client.CloseIdleConnections()
		}
		scrapes, at := 0, int64(1_750_000_000_000)
		scrape := func() int {
			at++
			scrapes++
			return r.visit(loops[scrapes%targets], at).Samples
		}
		measureScrapes(b, targets, scrape)
	})
}

// measureScrapes reports what scrapes cost, each of which returns its samples.
func measureScrapes(b *testing.B, targets int, scrape func() int) {
	for range warming * targets {
		scrape()
	}
	samples, scrapes, before := 0, 0, processorTime()
	for b.Loop() {
		samples += scrape()
		scrapes++
	}
	spent := float64(processorTime() - before)
	b.ReportMetric(spent/float64(samples), "cpu-ns/sample")
	b.ReportMetric(spent/float64(scrapes)/1000, "cpu-µs/scrape")
	b.ReportMetric(float64(samples)/float64(scrapes), "samples/scrape")
}

// BenchmarkPrometheus is a scrape by the loops of Prometheus's own manager, into the same appender and so into the same frames.
func BenchmarkPrometheus(b *testing.B) { comparedBodies(b, benchmarkPrometheus) }

func benchmarkPrometheus(b *testing.B, list []step, targets int) {
	p, loops := prometheusLoops{}, sync.Mutex{}
	r, scraped := newRig(b), make(chan int)
	ended, end := context.WithCancel(context.Background())
	manager, err := scrape.NewManager(&scrape.Options{
		DiscoveryReloadInterval: model.Duration(10 * time.Millisecond), DiscoveryReloadOnStartup: true, PassMetadataInContext: true,
	}, slog.New(slog.DiscardHandler), nil, nil, p, prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	cfg := differentialConfig(b)
	cfg.ScrapeConfigs = cfg.ScrapeConfigs[:1]
	if err := manager.ApplyConfig(cfg); err != nil {
		b.Fatal(err)
	}
	group := &targetgroup.Group{Source: "0"}
	for i := range targets {
		instance := numbered("target", i)
		p[instance] = &prometheusLoop{testAppender: r.appender(newTarget(instance)), r: r, loops: &loops, scraped: scraped, ended: ended}
		group.Targets = append(group.Targets, model.LabelSet{
			model.AddressLabel: model.LabelValue(ready(b, "identity", list)), model.InstanceLabel: model.LabelValue(instance),
			model.ScrapeIntervalLabel: model.LabelValue(model.Duration(pace).String()), model.ScrapeTimeoutLabel: model.LabelValue(model.Duration(pace).String()),
		})
	}
	feed, over := make(chan map[string][]*targetgroup.Group), make(chan error, 1)
	go func() { over <- manager.Run(feed) }()
	feed <- map[string][]*targetgroup.Group{cfg.ScrapeConfigs[0].JobName: {group}}
	measureScrapes(b, targets, func() int { return <-scraped })
	end()
	manager.Stop()
	if err := <-over; err != nil {
		b.Fatal(err)
	}
}

// prometheusLoops are a [storage.AppendableV2], by the label "instance" of targets.
type prometheusLoops map[string]*prometheusLoop

// AppenderV2 returns the appender of a target.
func (p prometheusLoops) AppenderV2(ctx context.Context) storage.AppenderV2 {
	t, _ := scrape.TargetFromContext(ctx)
	return p[t.GetValue(model.InstanceLabel)]
}

// prometheusLoop takes what the loop of one target of Prometheus appends.
type prometheusLoop struct {
	*testAppender
	r           *rig
	loops       *sync.Mutex
	compactions uint64     // of the source: references from before one mean nothing
	scraped     chan<- int // the samples of each scrape
	ended       context.Context
}

// Append goes by the reference that it has returned for the series, as Prometheus's storage does.
func (p *prometheusLoop) Append(ref storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AOptions) (storage.SeriesRef, error) {
	p.begun()
	opts = storage.AOptions{RejectOutOfOrder: opts.RejectOutOfOrder, Exemplars: opts.Exemplars}
	i := uint32(ref) - 1
	if ref == 0 || uint64(ref)>>32 != p.compactions {
		var err error
		if i, err = p.number(ls, &opts); err != nil {
			return 0, err
		}
	}
	i, err := p.append(i, scraped{t: t, st: st, v: v, h: h, fh: fh}, &opts)
	return storage.SeriesRef(p.compactions<<32 | uint64(i+1)), err
}

func (p *prometheusLoop) Commit() error {
	p.begun()
	series, n := len(p.src.series), p.n
	p.loops.Lock() // the shelf is one for all
	_, err := p.commit()
	p.r.unitOf(p.to)
	p.loops.Unlock()
	if len(p.to.series) < series {
		p.compactions = (p.compactions + 1) & math.MaxUint32
	}
	select {
	case p.scraped <- n:
	case <-p.ended.Done():
	}
	return err
}
