package scraper

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/alecthomas/units"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/logging"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/target"
)

// plan is what a configuration asks of the service.
type plan struct {
	jobs     map[string]*jobPlan
	failures map[string]*logging.JSONFileLogger // scrape_failure_log_file by its path
	seed     uint64                             // of the beats
}

type jobPlan struct {
	config  *promconfig.ScrapeConfig
	clients *clients
}

// newPlan opens what the jobs need. It takes over what is the same as in the plan before, which may be nil.
func newPlan(before *plan, global promconfig.GlobalConfig, jobs []*promconfig.ScrapeConfig, maxBody int64) (_ *plan, err error) {
	p := &plan{jobs: map[string]*jobPlan{}, failures: map[string]*logging.JSONFileLogger{}, seed: global.ExternalLabels.Hash()}
	defer func() {
		if err != nil {
			p.close(before)
		}
	}()
	for _, j := range jobs {
		cfg := *j
		if cfg.BodySizeLimit == 0 {
			cfg.BodySizeLimit = units.Base2Bytes(maxBody)
		}
		// The file is opened again, since it may have been moved away.
		if file := cfg.ScrapeFailureLogFile; file != "" && p.failures[file] == nil {
			f, err := logging.NewJSONFileLogger(file)
			if err != nil {
				return nil, fmt.Errorf("scrape_failure_log_file of job %q: %w", cfg.JobName, err)
			}
			p.failures[file] = f
		}
		if before != nil {
			if old := before.jobs[cfg.JobName]; old != nil && reflect.DeepEqual(old.config, &cfg) {
				p.jobs[cfg.JobName] = old
				continue
			}
		}
		c, err := newClients(&cfg)
		if err != nil {
			return nil, err
		}
		p.jobs[cfg.JobName] = &jobPlan{config: &cfg, clients: c}
	}
	return p, nil
}

// close closes what the plan has open, but for what the other plan uses, which may be nil.
func (p *plan) close(other *plan) {
	for name, j := range p.jobs {
		if other == nil || other.jobs[name] != j {
			j.clients.close()
		}
	}
	for _, f := range p.failures {
		f.Close()
	}
}

// job scrapes the targets of one scrape config. It belongs to the watcher.
type job struct {
	*jobPlan
	w     *watcher
	name  string
	loops map[uint64]*loop // by the target's ID
}

// sync makes the loops those of the given targets.
func (j *job) sync(targets map[uint64]*target.Target) {
	for id, t := range targets {
		if l := j.loops[id]; l != nil {
			l.discovered = t
			continue
		}
		l := j.newLoop(t)
		l.failures.Store(newFailureLog(j.w.plan.failures[j.config.ScrapeFailureLogFile], j.name, l.target))
		j.loops[id] = l
		j.w.start(l)
	}
	for id, l := range j.loops {
		if targets[id] == nil {
			delete(j.loops, id)
			j.w.stop(l, nil)
		}
	}
	j.limit()
}

// limit makes all scrapes fail while there are more targets than target_limit allows.
func (j *job) limit() {
	var forced *error
	limit := int(j.config.TargetLimit)
	if limit > 0 && len(j.loops) > limit {
		err := fmt.Errorf("target_limit exceeded (number of targets: %d, limit: %d)", len(j.loops), limit)
		forced = &err
		j.w.svc.scrapeMetrics.targetLimitExceeded.Inc()
	}
	for _, l := range j.loops {
		l.forced.Store(forced)
	}
	m := j.w.svc.scrapeMetrics
	m.targetLimit.WithLabelValues(j.name).Set(float64(limit))
	m.targets.WithLabelValues(j.name).Set(float64(len(j.loops)))
}

// replan gives the job another configuration: its loops go on with it.
func (j *job) replan(p *jobPlan) {
	keep := sameSeries(j.config, p.config)
	j.jobPlan = p
	for id, old := range j.loops {
		l := j.newLoop(old.discovered)
		if keep {
			j.w.svc.sources.detach(l.source, l.view)
			l.source, l.view = old.source, old.view
			j.w.stop(old, l)
		} else {
			j.w.start(l)
			j.w.stop(old, nil)
		}
		j.loops[id] = l
	}
}

// reopen gives the loops the failure log of the plan.
func (j *job) reopen(failures map[string]*logging.JSONFileLogger) {
	file := failures[j.config.ScrapeFailureLogFile]
	for _, l := range j.loops {
		l.failures.Store(newFailureLog(file, j.name, l.target))
	}
}

func (j *job) stop() {
	for id, l := range j.loops {
		delete(j.loops, id)
		j.w.stop(l, nil)
	}
	m := j.w.svc.scrapeMetrics
	m.targetLimit.DeleteLabelValues(j.name)
	m.targets.DeleteLabelValues(j.name)
}

// sameSeries reports whether two configurations of a job make the same series of the same exposition.
func sameSeries(a, b *promconfig.ScrapeConfig) bool {
	essence := func(c *promconfig.ScrapeConfig) *promconfig.ScrapeConfig {
		e := *c
		e.ScrapeInterval, e.ScrapeTimeout, e.SampleLimit, e.ScrapeFailureLogFile = 0, 0, 0, ""
		e.HTTPClientConfig = commonconfig.HTTPClientConfig{}
		e.ServiceDiscoveryConfigs, e.RelabelConfigs = nil, nil
		return &e
	}
	return reflect.DeepEqual(essence(a), essence(b))
}

// newLoop makes a loop that does not run yet.
func (j *job) newLoop(t *target.Target) *loop {
	svc := j.w.svc
	l := &loop{
		svc: svc, id: t.ID, discovered: t, started: make(chan struct{}),
		target:   scrape.NewTarget(t.Labels, j.config, nil, nil),
		interval: durationOf(t, model.ScrapeIntervalLabel, j.config.ScrapeInterval),
		timeout:  durationOf(t, model.ScrapeTimeoutLabel, j.config.ScrapeTimeout),
	}
	url := l.target.URL().String()
	l.log = svc.cfg.Logger.With("scrape_pool", j.name, "target", l.target.URL().Redacted())
	l.rules = newRules(j.config, t.Labels, l.timeout, svc.cfg.StartTimestamps)
	l.stopping, l.move = context.WithCancel(j.w.stopping)
	l.source, l.view = svc.sources.attach(t.Labels)
	client, err := j.clients.of(l.target)
	if err == nil {
		l.fetch, err = newFetcher(j.config, client, url, l.timeout, svc.cfg.LoopbackIdentity && isLocal(l.target))
	}
	l.broken = err
	return l
}

// durationOf reads a label that target relabelling may have set.
func durationOf(t *target.Target, label string, byConfig model.Duration) time.Duration {
	if d, err := model.ParseDuration(t.Labels.Get(label)); err == nil && d > 0 {
		return time.Duration(d)
	}
	return time.Duration(byConfig)
}

// start runs a loop.
func (w *watcher) start(l *loop) {
	l.ref = w.loops.Spawn("target "+l.target.URL().Redacted(), l)
	close(l.started)
}

// stop ends a loop without waiting for it. Then next takes its place, or, where it is nil, its series end.
func (w *watcher) stop(l, next *loop) {
	w.handovers.Go(func() {
		if !l.end() {
			return
		}
		if next != nil {
			if next.last, next.size = l.last, l.size; next.stopping.Err() == nil {
				w.start(next)
			}
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.stopping.Err() == nil {
			w.endings[l] = w.loops.Spawn("ending "+l.target.URL().Redacted(), ending{l, w})
		}
	})
}

// end waits until the loop has ended; false where it is to leave all as it is, since the service stops or another process scrapes the target now.
func (l *loop) end() bool {
	select {
	case <-l.started:
	case <-l.stopping.Done():
		return false
	}
	return l.ref.Stop(l.stopping) == nil && l.stopping.Err() == nil
}

// release ends the loops of shards that another process will scrape. Their series go on.
func (w *watcher) release(given map[int]bool) {
	var leaving sync.WaitGroup
	leave := func(l *loop, ref func() *actor.Ref) {
		l.move()
		leaving.Go(func() {
			if r := ref(); r != nil {
				ctx, cancel := context.WithTimeout(context.Background(), stopGrace+time.Second)
				defer cancel()
				if err := r.Stop(ctx); err != nil {
					l.log.Warn("A scrape goes on although another process scrapes the target now; what it brings is dropped", "err", err)
				}
			}
		})
	}
	var left []*loop
	for _, j := range w.jobs {
		for id, l := range j.loops {
			if !given[l.discovered.Shard()] {
				continue
			}
			delete(j.loops, id)
			left = append(left, l)
			leave(l, func() *actor.Ref {
				select {
				case <-l.started:
					return l.ref
				case <-time.After(stopGrace):
					return nil // it waits for one before it, which ends as well
				}
			})
		}
		j.limit()
	}
	w.mu.Lock()
	for l, ref := range w.endings {
		if given[l.discovered.Shard()] {
			delete(w.endings, l)
			leave(l, func() *actor.Ref { return ref })
		}
	}
	w.mu.Unlock()
	leaving.Wait()
	for _, l := range left {
		w.svc.keeper.leave(l.source, l.view)
	}
}
