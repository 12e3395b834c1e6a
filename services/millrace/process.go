package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"
	"k8s.io/klog/v2"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/pkg/rejected"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/web"
	"github.com/millrace/millrace/services/discovery"
	"github.com/millrace/millrace/services/ingest"
	"github.com/millrace/millrace/services/ingest/delta"
	"github.com/millrace/millrace/services/relabel"
	"github.com/millrace/millrace/services/scraper"
	"github.com/millrace/millrace/services/writer"
)

// process is a running `millrace run`: the wiring of everything.
type process struct {
	opts     *runOptions
	services []string
	// replaysOnly leaves the endpoints alone: only replays are sent.
	replaysOnly bool
	log         *slog.Logger
	reg         *prometheus.Registry
	metrics     *processMetrics
	started     time.Time
	system      *actor.System
	web         *web.Server

	waiting atomic.Pointer[string] // what starting waits for; nil once all services run
	self    fleet.Member
	nats    atomic.Pointer[stream.Conn] // nil until NATS is reached
	conn    atomic.Pointer[stream.Conn] // the same, nil until there are streams
	shared  status.Shared[status.Document]
	listed  listedTargets

	partitions atomic.Int64 // of the streams; 0 until there are any

	recorder  status.Recorder               // of the endpoints
	histories status.Shared[status.History] // of the whole fleet
	shelf     atomic.Pointer[rejected.Shelf]
	surveying chan struct{} // holds one token while series are counted

	reloading sync.Mutex
	cfg       atomic.Pointer[loaded]
	rates     atomic.Pointer[rates]

	fleet      *fleet.Fleet
	publishers *publish.Publishers // of frames; nil where no service makes any
	deltas     *publish.Publishers // of frames that hold deltas; nil where none are taken
	discovery  *discovery.Service
	scraper    *scraper.Service
	ingest     *ingest.Service
	delta      *delta.Service
	doors      doors
	relabel    *relabel.Service
	writer     *writer.Service
}

// loaded is a configuration and when it came.
type loaded struct {
	*config.Config
	at time.Time
}

// run is `millrace run`: it returns when ctx ends, or when going on makes no sense.
func (o *runOptions) run(ctx context.Context, _, stderr io.Writer) error {
	o.log.Writer = stderr
	p := &process{opts: o, log: promslog.New(o.log), reg: prometheus.NewRegistry(), started: time.Now(), surveying: make(chan struct{}, 1)}
	var err error
	if p.services, err = parseServices(o.services); err != nil {
		return usageError{err}
	}
	cfg, err := p.load()
	if err != nil {
		return usageError{fmt.Errorf("loading the configuration: %w", err)}
	}
	if cfg.Millrace.NATS.IsEmbedded() && ctx.Err() == nil {
		relaxTimers() // not over a cluster: there, consumers that are made anew after a node's end then wait for minutes
	}
	p.cfg.Store(&loaded{cfg, time.Now()})
	p.self = p.describe()
	p.shared.Collect, p.shared.Fresh = p.document, status.DocumentFresh
	p.histories.Collect, p.histories.Fresh = p.history, status.HistoryFresh
	klog.SetSlogLogger(p.log.With("component", "kubernetes client"))
	p.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), versioncollector.NewCollector("millrace"))
	p.metrics = newProcessMetrics(p)
	p.metrics.loaded(true)
	p.system = actor.NewSystem("millrace", p.log, p.reg)
	if err := p.startWeb(); err != nil {
		return usageError{err}
	}
	p.log.Info("Starting Millrace", "version", version.Info(), "services", strings.Join(p.services, ","), "config", o.configFile)
	for _, w := range cfg.Warnings() {
		p.log.Warn(w)
	}
	tuneGC(p.doors.taker.pushes.Load)
	p.rates.Store(&rates{})
	return p.serve(ctx)
}

func parseServices(list string) ([]string, error) {
	var services []string
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if !slices.Contains(allServices, s) {
			return nil, fmt.Errorf("--services=%s: there is no service %q; choose from %s", list, s, strings.Join(allServices, ", "))
		}
		if !slices.Contains(services, s) {
			services = append(services, s)
		}
	}
	return services, nil
}

func (p *process) has(service string) bool { return slices.Contains(p.services, service) }

// load reads the configuration file, with the flags that override it.
func (p *process) load() (*config.Config, error) {
	return config.Load(p.opts.configFile, p.log, p.opts.override)
}

// The process lets go of the parts of its own program that it does not use after coldTime for the first time, and then after twice the time each, up to coldMost: what it needs again comes back
// by a page fault for each 8 KiB, and in a virtual machine those of every three seconds were a fifth of all CPU.
const (
	coldTime = 3 * time.Second
	coldMost = 2 * time.Minute
)

// serve brings the process up in order, runs it, and takes it down in the reverse order: services first, the embedded server last.
func (p *process) serve(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var beside sync.WaitGroup
	defer beside.Wait()
	// The page outlives the services, so that it can be seen on what a stopping process waits.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	beside.Go(func() {
		if err := p.web.Serve(serving); err != nil {
			stop(err)
		}
	})
	beside.Go(func() { p.reloadOnHangup(ctx) })
	beside.Go(func() { p.measureRates(ctx) })
	defer stop(nil)

	m := p.cfg.Load().Millrace
	var server *stream.Server
	if m.NATS.IsEmbedded() {
		p.wait("the embedded NATS server")
		var err error
		if server, err = startServer(p.opts.storagePath, &m, p.log); err != nil {
			return err
		}
		defer server.Shutdown()
	}
	conn, err := p.connect(ctx, server, &m)
	if err != nil {
		return endOr(ctx, err)
	}
	defer conn.Close()
	p.nats.Store(conn)
	silence, err := status.Answer(conn, status.Answers{Member: p.self.ID, Report: p.report, History: p.ownHistory, Failed: p.unanswered})
	if err != nil {
		return endOr(ctx, err)
	}
	defer silence()
	p.shelf.Store(&rejected.Shelf{Conn: conn})
	if p.has("writer") {
		desk, err := p.openDesk(conn)
		if err != nil {
			return endOr(ctx, err)
		}
		defer desk.Close()
	}
	deafen, err := p.answerTargets()
	if err != nil {
		return endOr(ctx, err)
	}
	defer deafen()
	if err := p.ensure(ctx, conn, &m); err != nil {
		return endOr(ctx, err)
	}
	p.conn.Store(conn)
	// The process is a member of the fleet for as long as its services have something to hand on.
	members := p.system.Detached("fleet")
	p.fleet = p.newFleet(conn, &m)
	members.Spawn("fleet", p.fleet)
	leave := outlive(ctx, stop, members)
	defer leave()
	// What the services have made is published after they have ended, while the process is still a member.
	publishAll := p.startPublishers(ctx, stop, conn, &m)
	defer publishAll()
	if err := p.startServices(ctx, conn, &m); err != nil {
		return err
	}
	p.waiting.Store(nil)
	p.log.Info("Ready", "partitions", m.Streams.Partitions)
	p.system.Spawn("cold pages", actor.Func(p.releaseColdPages))
	p.system.Spawn("processors", actor.Func(p.tuneProcs))
	err = p.system.Serve(ctx)
	publishAll()
	p.log.Info("Stopped")
	return endOr(ctx, err)
}

// releaseColdPages lets go of the parts of the program that are not in use, ever more rarely, until ctx ends.
func (p *process) releaseColdPages(ctx context.Context) error {
	pages, err := findProgramPages()
	if err == nil {
		if err := pages.divide(); err != nil {
			p.log.Debug("More memory of the program stays than is in use", "err", err)
		}
	}
	for wait := coldTime; err == nil; wait = min(2*wait, coldMost) {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			err = pages.release()
		}
	}
	p.log.Debug("Memory of the program that is not in use stays", "err", err)
	<-ctx.Done()
	return nil
}

// outlive runs a beside the services, whose end does not end it. The function that it returns does, and waits for that; it may be called again. Where a fails, stop is called.
func outlive(ctx context.Context, stop context.CancelCauseFunc, a actor.Actor) func() {
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := a.Serve(living); err != nil {
			stop(err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// endOr returns why ctx ended where that was a failure, nil where the user ended it, and err where it goes on.
func endOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) {
			return nil
		}
		return cause
	}
	return err
}

func (p *process) wait(what string) { p.waiting.Store(&what) }

// describe returns what the fleet is told of this process.
func (p *process) describe() fleet.Member {
	host, _ := os.Hostname()
	return fleet.Member{
		ID: fleet.NewID(host), Host: host, Address: strings.Join(p.opts.listen, ","), Services: p.services, Version: version.Version,
		ConfigHash: p.cfg.Load().Hash, Started: p.started,
	}
}

// newFleet makes this process a member of the fleet that is not there yet.
func (p *process) newFleet(conn *stream.Conn, m *config.Millrace) *fleet.Fleet {
	return fleet.New(fleet.Config{
		Conn: conn, TTL: time.Duration(m.Fleet.LeaseTTL), Logger: p.log.With("component", "fleet"), Registerer: p.reg, Self: p.self,
	})
}

// startPublishers starts what publishes the frames of all services of this process, so that they share batches. The function that it returns ends it.
func (p *process) startPublishers(ctx context.Context, stop context.CancelCauseFunc, conn *stream.Conn, m *config.Millrace) (end func()) {
	base := publish.Config{
		Conn: conn, Partitions: m.Streams.Partitions, MaxBatchBytes: int(m.Scraper.MaxBatchBytes), DictAge: time.Duration(m.Streams.Dictionaries.MaxAge),
		AnnounceEvery: announceEvery(&m.Cardinality), Logger: p.log.With("component", "publisher"), Registerer: p.reg,
	}
	var ends []func()
	if p.has("scraper") || p.has("ingest") {
		frames := base
		frames.Name, frames.Stream, frames.Subject = "frames", stream.Frames, conn.Frames
		if !m.NATS.IsEmbedded() {
			frames.Publisher = stream.NewPublisher() // there may be others
		}
		p.publishers = publish.New(frames, p.system)
		ends = append(ends, outlive(ctx, stop, p.publishers))
	}
	if p.has("ingest") && m.Ingest.Delta.Enabled {
		deltas := base
		deltas.Name, deltas.Stream, deltas.Subject, deltas.Publisher = "deltas", stream.Deltas, conn.Deltas, stream.NewPublisher()
		p.deltas = publish.New(deltas, p.system)
		ends = append(ends, outlive(ctx, stop, p.deltas))
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// startServices makes the chosen services, gives them the configuration, and hands them to the supervisor.
func (p *process) startServices(ctx context.Context, conn *stream.Conn, m *config.Millrace) error {
	parts := m.Streams.Partitions
	var err error
	if p.has("discovery") {
		p.discovery, err = discovery.New(discovery.Config{Conn: conn, Fleet: p.fleet, Actors: p.system, Logger: p.log.With("service", "discovery"), Registerer: p.reg})
		if err != nil {
			return err
		}
	}
	if p.has("scraper") {
		p.scraper = scraper.New(scraper.Config{
			Conn: conn, Partitions: parts, Publishers: p.publishers, Fleet: p.fleet, Linger: time.Duration(m.Scraper.Linger),
			MaxPendingBytes: int64(m.Scraper.MaxPendingBytes), MaxBodyBytes: int64(m.Scraper.MaxBodyBytes), DictAge: time.Duration(m.Streams.Dictionaries.MaxAge),
			StartTimestamps: m.Scraper.StartTimestamps, LoopbackIdentity: m.Scraper.LoopbackIdentity, SeriesIdle: seriesIdle(&m.Cardinality),
			Logger: p.log.With("service", "scraper"), Registerer: p.reg,
		}, p.system)
	}
	if p.has("ingest") {
		p.makeIngest(conn, m)
	}
	if p.has("relabel") {
		p.relabel = relabel.New(relabel.Config{
			Conn: conn, Partitions: parts, Fleet: p.fleet, Limits: seriesLimits(&m.Cardinality), DictAge: time.Duration(m.Streams.Dictionaries.MaxAge),
			Logger: p.log.With("service", "relabel"), Registerer: p.reg,
		}, p.system)
	}
	if p.has("writer") {
		p.writer = writer.New(writer.Config{
			Conn: conn, Partitions: parts, Fleet: p.fleet, CacheBytes: int(m.Writer.LabelCacheBytes), ReadAhead: readAhead(m),
			ReplaysOnly: p.replaysOnly,
			Logger:      p.log.With("service", "writer"), Registerer: p.reg,
		}, p.system)
	}
	if err := p.firstApply(ctx); err != nil {
		return err
	}
	p.reloading.Lock()
	defer p.reloading.Unlock()
	for _, s := range []struct {
		name string
		a    actor.Actor
	}{{"writer", orNil(p.writer)}, {"relabel", orNil(p.relabel)}, {"delta", orNil(p.delta)}, {"ingest", orNil(p.ingest)}, {"scraper", orNil(p.scraper)}, {"discovery", orNil(p.discovery)}} {
		if s.a != nil {
			p.system.Spawn(s.name+"-service", s.a)
		}
	}
	return p.openDoors()
}

// firstApply gives the services the configuration. While NATS does not store where the endpoints begin, it tries again.
func (p *process) firstApply(ctx context.Context) error {
	for {
		err := p.apply(ctx, p.cfg.Load().Config)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, writer.ErrNotStored):
			return usageError{fmt.Errorf("applying the configuration: %w", err)}
		}
		p.wait("NATS to store where the endpoints begin")
		p.log.Warn("Cannot store where the endpoints begin, trying again", "err", err)
		select {
		case <-ctx.Done():
			return endOr(ctx, err)
		case <-time.After(retryPause):
		}
	}
}

// orNil makes a nil pointer a nil actor.
func orNil[T any, P interface {
	*T
	actor.Actor
}](p P) actor.Actor {
	if p == nil {
		return nil
	}
	return p
}

// readAhead turns the bytes that a partition may read ahead into messages of the largest batch.
func readAhead(m *config.Millrace) int {
	return max(int(m.Writer.ReadAheadBytes/m.Scraper.MaxBatchBytes), 2)
}

// reloadOnHangup reloads on SIGHUP until ctx ends.
func (p *process) reloadOnHangup(ctx context.Context) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if err := p.reload(ctx); err != nil {
				p.log.Error("Reloading the configuration failed; the old one stays", "err", err)
			}
		}
	}
}
