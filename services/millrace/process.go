package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
	log      *slog.Logger
	reg      *prometheus.Registry
	metrics  *processMetrics
	started  time.Time
	system   *actor.System
	web      *web.Server

	waiting atomic.Pointer[string] // what starting waits for; nil once all services run
	conn    atomic.Pointer[stream.Conn]

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
func (o *runOptions) run(ctx context.Context, stderr io.Writer) error {
	o.log.Writer = stderr
	p := &process{opts: o, log: promslog.New(o.log), reg: prometheus.NewRegistry(), started: time.Now()}
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
	tuneGC()
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
	o := p.opts
	return config.Load(o.configFile, p.log, func(m *config.Millrace) {
		for _, f := range []struct {
			flag string
			to   *string
		}{
			{o.natsURL, &m.NATS.URL}, {o.natsCreds, &m.NATS.CredentialsFile}, {o.natsSeed, &m.NATS.NKeySeedFile}, {o.natsUser, &m.NATS.Username},
			{o.natsPassword, &m.NATS.PasswordFile}, {o.natsCA, &m.NATS.TLS.CAFile}, {o.natsCert, &m.NATS.TLS.CertFile},
			{o.natsKey, &m.NATS.TLS.KeyFile}, {o.natsSNI, &m.NATS.TLS.ServerName},
		} {
			if f.flag != "" {
				*f.to = f.flag
			}
		}
		m.NATS.TLS.InsecureSkipVerify = m.NATS.TLS.InsecureSkipVerify || o.natsInsecure
	})
}

// coldTime is how often the process lets go of the parts of its own program that it does not use.
const coldTime = 3 * time.Second

// retryPause is the time between tries of the start at what NATS does not do yet.
const retryPause = 2 * time.Second

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
	err = p.system.Serve(ctx)
	publishAll()
	p.log.Info("Stopped")
	return endOr(ctx, err)
}

// releaseColdPages lets go of the parts of the program that are not in use every coldTime, until ctx ends.
func (p *process) releaseColdPages(ctx context.Context) error {
	pages, err := findProgramPages()
	ticker := time.NewTicker(coldTime)
	defer ticker.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
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

func startServer(dir string, m *config.Millrace, log *slog.Logger) (*stream.Server, error) {
	s := m.Streams
	storage := int64(m.NATS.Embedded.MaxStorage)
	if storage == 0 {
		storage = int64(s.Frames.MaxBytes+s.Deltas.MaxBytes+2*s.Dictionaries.MaxBytes+s.Rejected.MaxBytes) + 1<<30
	}
	return stream.StartServer(stream.ServerConfig{
		Dir: dir, Listen: m.NATS.Embedded.Listen, SyncAlways: s.Sync.Always(), SyncInterval: s.Sync.Interval(),
		MaxMemory: int64(m.NATS.Embedded.MaxMemory), MaxStorage: storage, Logger: log,
	})
}

func (p *process) connect(ctx context.Context, server *stream.Server, m *config.Millrace) (*stream.Conn, error) {
	p.wait("NATS at " + stream.Redact(m.NATS.URL))
	password, err := m.NATS.ReadPassword()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := natsTLS(m.NATS.TLS)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	return stream.Connect(ctx, stream.Config{
		Names: stream.Names{Prefix: m.NATS.Prefix}, Server: server, URL: m.NATS.URL, CredentialsFile: m.NATS.CredentialsFile,
		NKeySeedFile: m.NATS.NKeySeedFile, Username: m.NATS.Username, Password: password, TLS: tlsConfig,
		Client: "millrace " + strings.Join(p.services, ",") + " on " + host, Inbox: stream.Names{Prefix: m.NATS.Prefix}.Inbox(p.services...), Logger: p.log,
	})
}

// natsTLS returns the TLS configuration, or nil where nothing of it is set.
func natsTLS(t config.TLS) (*tls.Config, error) {
	if t == (config.TLS{}) {
		return nil, nil
	}
	c := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify, MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading millrace.nats.tls.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("millrace.nats.tls.ca_file %q holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading millrace.nats.tls.cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// ensure makes the streams, which in a fleet discovery does; the other services wait for it, so that they need no right to. While a cluster is
// not able to, it tries again.
func (p *process) ensure(ctx context.Context, conn *stream.Conn, m *config.Millrace) error {
	makes := m.NATS.IsEmbedded() || p.has("discovery")
	step, failed := conn.Check, "Cannot use the streams, which discovery makes; trying again"
	p.wait("the streams, which discovery makes")
	if makes {
		step, failed = conn.Ensure, "Cannot make the streams, trying again"
		p.wait("the streams")
	}
	keep := func(r config.Retention) stream.Keep {
		return stream.Keep{Age: time.Duration(r.MaxAge), Bytes: int64(r.MaxBytes)}
	}
	layout := stream.Layout{
		Partitions: m.Streams.Partitions, Replicas: m.Streams.Replicas,
		LeaseTTL: time.Duration(m.Fleet.LeaseTTL), Frames: keep(m.Streams.Frames), Deltas: keep(m.Streams.Deltas), Dicts: keep(m.Streams.Dictionaries),
		Rejected: keep(m.Streams.Rejected),
	}
	for {
		err := step(ctx, layout)
		if err == nil || errors.Is(err, stream.ErrDisagrees) || errors.Is(err, stream.ErrServer) {
			return err
		}
		if m.NATS.IsEmbedded() {
			return fmt.Errorf("%w; check that the storage path %q can be written and has room, or choose another with --storage.path", err, p.opts.storagePath)
		}
		p.log.Warn(failed, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryPause):
		}
	}
}

// newFleet makes this process a member of the fleet that is not there yet.
func (p *process) newFleet(conn *stream.Conn, m *config.Millrace) *fleet.Fleet {
	host, _ := os.Hostname()
	return fleet.New(fleet.Config{
		Conn: conn, TTL: time.Duration(m.Fleet.LeaseTTL), Logger: p.log.With("component", "fleet"), Registerer: p.reg,
		Self: fleet.Member{
			ID: fleet.NewID(host), Host: host, Address: strings.Join(p.opts.listen, ","), Services: p.services, Version: version.Version,
			ConfigHash: p.cfg.Load().Hash, Started: p.started,
		},
	})
}

// startPublishers starts what publishes the frames of all services of this process, so that they share batches. The function that it returns ends it.
func (p *process) startPublishers(ctx context.Context, stop context.CancelCauseFunc, conn *stream.Conn, m *config.Millrace) (end func()) {
	base := publish.Config{
		Conn: conn, Partitions: m.Streams.Partitions, MaxBatchBytes: int(m.Scraper.MaxBatchBytes), DictAge: time.Duration(m.Streams.Dictionaries.MaxAge),
		Logger: p.log.With("component", "publisher"), Registerer: p.reg,
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
			StartTimestamps: m.Scraper.StartTimestamps, LoopbackIdentity: m.Scraper.LoopbackIdentity, Logger: p.log.With("service", "scraper"), Registerer: p.reg,
		}, p.system)
	}
	if p.has("ingest") {
		p.makeIngest(conn, m)
	}
	if p.has("relabel") {
		p.relabel = relabel.New(relabel.Config{Conn: conn, Partitions: parts, Fleet: p.fleet, Logger: p.log.With("service", "relabel"), Registerer: p.reg}, p.system)
	}
	if p.has("writer") {
		p.writer = writer.New(writer.Config{
			Conn: conn, Partitions: parts, Fleet: p.fleet, CacheBytes: int(m.Writer.LabelCacheBytes), ReadAhead: readAhead(m),
			Logger: p.log.With("service", "writer"), Registerer: p.reg,
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
