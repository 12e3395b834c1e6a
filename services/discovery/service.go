package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/stream"
)

const (
	// updateEvery is the longest pause between two states of the manager while much changes. After a quiet time a change passes in 150 ms.
	updateEvery = 500 * time.Millisecond
	// stopTimeout is how long a job's actor may take to end.
	stopTimeout = 10 * time.Second

	defaultSettle = 3 * time.Second
	defaultGrace  = time.Hour
)

// Config configures a [Service].
type Config struct {
	// Conn reaches the stream TARGETS, which exists.
	Conn *stream.Conn
	// Actors is the system that runs the job actors, in a group of their own. It should be the one that runs the service.
	Actors *actor.System
	// Fleet says whether this process is the one that discovers.
	Fleet *fleet.Fleet
	// Logger receives what people should know about.
	Logger *slog.Logger
	// Registerer takes the service's metrics and those of Prometheus's mechanisms.
	Registerer prometheus.Registerer
	// Settle is how long a discovery mechanism must have found nothing new, after its first result, before targets of an earlier run that it has
	// not found again are removed; most mechanisms deliver their first result in parts. 0 for 3 s.
	Settle time.Duration
	// Grace is how long targets of an earlier run are kept where a mechanism delivers nothing at all, be it that it fails or that it has nothing to
	// tell. 0 for 1 h; negative for ever.
	Grace time.Duration
}

// Service is the discovery service, an actor. Make it with [New], give it a configuration with [Service.ApplyConfig].
type Service struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	sd      *discovery.SDMetrics
	actors  *actor.System

	applyMu sync.Mutex // one ApplyConfig at a time
	config  atomic.Pointer[scrapeConfigs]
	changed chan struct{} // config has changed
	orders  chan order
	empty   *actor.Mailbox[emptied]

	// For readers outside.
	jobs    atomic.Pointer[map[string]*job]
	waiting atomic.Pointer[string]
}

// emptied says that a job which is not configured in this epoch has no target left in the stream.
type emptied struct {
	job   string
	epoch uint64
}

// scrapeConfigs is the configuration by job.
type scrapeConfigs map[string]*promconfig.ScrapeConfig

// New returns a service that is not running. It registers the metrics of all mechanisms that the program has imported.
func New(cfg Config) (*Service, error) {
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	sd, err := discovery.CreateAndRegisterSDMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of service discovery: %w", err)
	}
	if err := discovery.RegisterK8sClientMetricsWithPrometheus(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("registering the metrics of service discovery: %w", err)
	}
	s := &Service{
		cfg: cfg, log: cfg.Logger, sd: sd, metrics: newMetrics(cfg.Registerer),
		changed: make(chan struct{}, 1), orders: make(chan order), empty: actor.NewMailbox[emptied](16),
	}
	s.actors = cfg.Actors.Group("discovery-jobs")
	s.setWaiting("the configuration")
	return s, nil
}

// ApplyConfig replaces the scrape jobs. It may be called before [Service.Serve] and at any time while it runs. It checks the whole and then
// returns; the running service takes the newest configuration up soon after, all of it or, after an error, nothing.
// The caller must not change scrapeConfigs afterwards.
func (s *Service) ApplyConfig(configs []*promconfig.ScrapeConfig) error {
	byJob := make(scrapeConfigs, len(configs))
	for _, c := range configs {
		if c.JobName == "" {
			return errors.New("a scrape config has no job_name; give it one")
		}
		if _, ok := byJob[c.JobName]; ok {
			return fmt.Errorf("found multiple scrape configs with job name %q; rename one", c.JobName)
		}
		byJob[c.JobName] = c
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	s.config.Store(&byJob)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// order makes the service begin or end to discover.
type order struct {
	lead bool
	done chan struct{}
}

// Take makes this process the one that discovers.
func (s *Service) Take(map[int]uint64) { s.tell(true) }

// Give makes it a standby.
func (s *Service) Give([]int, bool) { s.tell(false) }

func (s *Service) tell(lead bool) {
	o := order{lead, make(chan struct{})}
	s.orders <- o
	<-o.done
}

// Serve runs discovery while this process is the one that does so, until ctx ends.
func (s *Service) Serve(ctx context.Context) error {
	return s.cfg.Fleet.Hold(ctx, s.cfg.Actors, "discovery", 1, s, s.work)
}

// work leads when it is told to. Leading runs in an actor of its own, which starts again when it fails.
func (s *Service) work(ctx context.Context) error {
	s.setWaiting("its turn: another process discovers")
	leaders := s.cfg.Actors.Detached("leader")
	ended := make(chan error, 1)
	go func() { ended <- leaders.Serve(ctx) }()
	var leader *actor.Ref
	for {
		select {
		case <-ctx.Done():
			return <-ended
		case o := <-s.orders:
			switch {
			case o.lead && leader == nil:
				s.log.Info("This process discovers targets now")
				leader = leaders.Spawn("leader", actor.Func(s.lead))
			case !o.lead && leader != nil:
				stopping, cancel := context.WithTimeout(ctx, 2*stopTimeout)
				if err := leader.Stop(stopping); err != nil {
					s.log.Error("Discovery does not stop in time", "err", err)
				}
				cancel()
				leader = nil
				s.setWaiting("its turn: another process discovers")
			}
			close(o.done)
		}
	}
}

// lead discovers until ctx ends.
func (s *Service) lead(ctx context.Context) error {
	s.setWaiting("the configuration")
	for s.config.Load() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		}
	}
	stored, err := s.readStored(ctx)
	if err != nil {
		return err
	}
	r, err := s.start(ctx, stored)
	if err != nil {
		return err
	}
	defer r.stop()
	s.setWaiting("")
	return r.run(ctx)
}

// run is the state of one call of Serve.
type run struct {
	*Service
	manager *discovery.Manager
	cancel  context.CancelFunc
	ended   chan struct{} // the manager has ended
	jobs    map[string]*runningJob
	applied *scrapeConfigs
}

type runningJob struct {
	*job
	ref *actor.Ref
	in  input // what the job was sent last
}

// start starts the manager, and an actor for each job that is configured or has targets in the stream.
func (s *Service) start(ctx context.Context, stored map[string][]storedTarget) (*run, error) {
	mctx, cancel := context.WithCancel(ctx)
	manager := discovery.NewManager(mctx, s.log.With("component", "discovery manager"), s.cfg.Registerer, s.sd,
		discovery.Name("scrape"), discovery.Updatert(updateEvery))
	if manager == nil {
		cancel()
		return nil, errors.New("starting Prometheus's discovery manager failed; the log says why")
	}
	r := &run{Service: s, manager: manager, cancel: cancel, ended: make(chan struct{}), jobs: map[string]*runningJob{}}
	go func() {
		defer close(r.ended)
		_ = manager.Run() // returns the context's error
	}()
	for name, targets := range stored {
		r.spawn(name, targets)
	}
	r.apply()
	return r, nil
}

func (r *run) stop() {
	r.cancel()
	<-r.ended
	for range r.manager.SyncCh() { // until its sender has ended
	}
	r.manager.UnregisterMetrics()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for name, j := range r.jobs {
		if err := j.ref.Stop(ctx); err != nil {
			r.log.Error("A job does not stop", "job", name, "err", err)
		}
	}
}

func (r *run) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
			r.apply()
		case state, ok := <-r.manager.SyncCh():
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("the discovery manager of Prometheus has ended")
			}
			r.dispatch(state)
		case e := <-r.empty.C():
			r.reap(ctx, e)
		}
	}
}

// apply brings manager and jobs to the newest configuration.
func (r *run) apply() {
	configs := r.config.Load()
	if configs == r.applied {
		return
	}
	r.applied = configs
	sd := make(map[string]discovery.Configs, len(*configs))
	for name, c := range *configs {
		for _, d := range c.ServiceDiscoveryConfigs {
			sd[name] = append(sd[name], observed{Config: d, settle: r.cfg.Settle, grace: r.cfg.Grace})
		}
		if sd[name] == nil {
			sd[name] = discovery.Configs{}
		}
	}
	if err := r.manager.ApplyConfig(sd); err != nil {
		// The manager has no errors to return so far; the jobs below are right in any case.
		r.log.Error("Applying the service discovery configuration failed in parts", "err", err)
	}
	for name, c := range *configs {
		j := r.jobs[name]
		if j == nil {
			j = r.spawn(name, nil)
		}
		providers, missing := r.providers(sd[name])
		in := input{config: c, providers: providers, missing: missing, epoch: j.in.epoch}
		if j.in.config != nil && slices.Equal(j.in.providers, providers) {
			in.groups, in.received = j.in.groups, j.in.received
		} else {
			in.epoch++ // the groups so far are not of these providers
		}
		j.send(in)
	}
	for name, j := range r.jobs {
		if (*configs)[name] == nil {
			epoch := j.in.epoch
			if j.in.config != nil || epoch == 0 {
				epoch++
			}
			j.send(input{epoch: epoch})
		}
	}
	r.log.Info("Discovery has taken up the configuration", "jobs", len(*configs))
}

// providers returns what runs in the manager for a job's configs, and the mechanisms that could not be made.
func (r *run) providers(configs discovery.Configs) (running []*provider, missing []string) {
	all := r.manager.Providers()
	for _, c := range configs {
		at := slices.IndexFunc(all, func(p *discovery.Provider) bool { return reflect.DeepEqual(p.Config(), c) })
		if at < 0 {
			missing = append(missing, c.Name())
			continue
		}
		running = append(running, all[at].Discoverer().(*provider))
	}
	return running, missing
}

func (r *run) dispatch(state map[string][]*targetgroup.Group) {
	now := time.Now()
	for name, groups := range state {
		j := r.jobs[name]
		if j == nil || j.in.config == nil {
			continue // a state from before a reload
		}
		in := j.in
		in.groups, in.received = groups, now
		j.send(in)
	}
}

// send replaces what the job has not taken yet.
func (j *runningJob) send(in input) {
	j.in = in
	for !j.inbox.Offer(in) {
		select {
		case <-j.inbox.C():
		default:
		}
	}
}

func (r *run) spawn(name string, stored []storedTarget) *runningJob {
	j := &runningJob{job: newJob(r.Service, name, stored)}
	j.ref = r.actors.Spawn("discovery-job "+name, j.job)
	r.jobs[name] = j
	r.publishJobs()
	return j
}

// reap ends the actor of a job that is no longer configured and has no target left in the stream.
func (r *run) reap(ctx context.Context, e emptied) {
	name := e.job
	j := r.jobs[name]
	if j == nil || j.in.config != nil || j.in.epoch != e.epoch {
		return // configured again meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := j.ref.Stop(ctx); err != nil {
		r.log.Error("A job does not stop", "job", name, "err", err)
		return
	}
	delete(r.jobs, name)
	r.metrics.forget(name)
	r.publishJobs()
}

// publishJobs shows the set of jobs to readers outside.
func (r *run) publishJobs() {
	all := make(map[string]*job, len(r.jobs))
	for name, j := range r.jobs {
		all[name] = j.job
	}
	r.Service.jobs.Store(&all)
}

func (s *Service) setWaiting(what string) { s.waiting.Store(&what) }
