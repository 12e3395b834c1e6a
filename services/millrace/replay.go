package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/web"
)

// replayOptions are the flags of `millrace replay`.
type replayOptions struct {
	runOptions
	spec               replay.Spec
	server, httpConfig string
	configGiven        bool
	stdout, stderr     io.Writer
	terminal           bool
	pollEvery          time.Duration // how often it is asked how the replay goes
}

func replayCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &replayOptions{runOptions: runOptions{log: log}}
	c := app.Command("replay", "Send again what was collected between two times, to any endpoint.")
	s := &o.spec
	c.Flag("from", "Send samples from this time on: 2026-01-31T15:00:00Z, or -2h for two hours ago.").PlaceHolder("TIME").StringVar(&s.From)
	c.Flag("to", "Send samples up to this time; now by default.").PlaceHolder("TIME").StringVar(&s.To)
	c.Flag("match", `Send only series that this selector matches, as the endpoint gets them: {job="api"}. Repeatable: one of them has to match.`).PlaceHolder("SELECTOR").StringsVar(&s.Match)
	c.Flag("endpoint", "Send to this endpoint of the configuration, with its authentication and relabelling.").PlaceHolder("NAME").StringVar(&s.Endpoint)
	c.Flag("url", "Send to this address instead, by remote_write 1.0 and with the external labels only.").PlaceHolder("URL").StringVar(&s.URL)
	c.Flag("name", "Name of the replay. One that was begun under this name goes on where it was.").PlaceHolder("NAME").StringVar(&s.Name)
	c.Flag("rate", "Send at most so many samples a second.").PlaceHolder("N").Float64Var(&s.Rate)
	c.Flag("dry-run", "Count series, samples and bytes, and send nothing.").BoolVar(&s.DryRun)
	c.Flag("rejected", "Send what the endpoint has refused for good, in place of what was collected.").BoolVar(&s.Rejected)
	c.Flag("raw", "Send series with the external labels only, without the endpoint's relabelling and limits.").BoolVar(&s.Raw)

	c.Flag("web.url", "Where the page of a running Millrace is, which is asked to replay. User and password may stand in it.").Default("http://localhost:9474").StringVar(&o.server)
	c.Flag("http.config.file", "File with TLS and authentication for --web.url (Prometheus's HTTP client configuration).").PlaceHolder("FILE").StringVar(&o.httpConfig)
	c.Flag("storage.path", "Replay from the storage of a Millrace that does not run.").PlaceHolder("DIR").StringVar(&o.storagePath)
	c.Flag("config.file", "Configuration file; needed with --storage.path and --nats.url.").Default("prometheus.yml").IsSetByUser(&o.configGiven).StringVar(&o.configFile)
	natsFlags(c, &o.runOptions)
	return subcommand{c, o.run}
}

// run is `millrace replay`: it returns when the replay is over, or when ctx ends, which stops it.
func (o *replayOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	o.log.Writer = stderr
	o.stdout, o.stderr, o.terminal, o.pollEvery = stdout, stderr, isTerminal(stderr), 500*time.Millisecond
	if err := o.check(); err != nil {
		return usageError{err}
	}
	log := promslog.New(o.log)
	p := &process{opts: &o.runOptions, services: []string{"relabel", "writer"}, replaysOnly: true, log: log, reg: prometheus.NewRegistry(), started: time.Now()}
	if o.storagePath == "" && o.natsURL == "" && !o.configGiven {
		return o.overHTTP(ctx, log)
	}
	cfg, err := p.load()
	if err != nil {
		return usageError{fmt.Errorf("loading the configuration: %w", err)}
	}
	p.cfg.Store(&loaded{cfg, time.Now()})
	p.self = p.describe()
	p.system = actor.NewSystem("millrace", log, p.reg)
	switch embedded := cfg.Millrace.NATS.IsEmbedded(); {
	case o.storagePath != "" && !embedded:
		return usageError{errors.New("--storage.path: the configuration has its streams in a NATS cluster; leave the flag out, or give a configuration without millrace.nats.url")}
	case o.storagePath != "":
		return o.overStorage(ctx, p)
	case !embedded:
		return o.overNATS(ctx, p)
	}
	return o.overHTTP(ctx, log)
}

// check finds what is wrong with the flags before anything is asked. The rest is known where the replay stands already.
func (o *replayOptions) check() error {
	s := o.spec
	if only := (replay.Spec{Name: s.Name, Rate: s.Rate}); s.Name != "" && s.From == "" && s.To == "" && len(s.Match) == 0 && s.Endpoint == "" && s.URL == "" && !s.DryRun && !s.Rejected && !s.Raw {
		only.From, only.URL = "now", "http://localhost" // it may go on: only the name and the rate can be wrong
		s = only
	}
	if s.Name == "" {
		s.Name = "any"
	}
	_, err := s.Select(time.Now())
	return asFlags(err)
}

// asFlags makes the field of an error a flag.
func asFlags(err error) error {
	if field, ok := errors.AsType[*replay.FieldError](err); ok {
		return errors.New("--" + field.Error())
	}
	return err
}

// overHTTP asks a running Millrace.
func (o *replayOptions) overHTTP(ctx context.Context, log *slog.Logger) error {
	client, err := newReplayClient(o.server, o.httpConfig)
	if err != nil {
		return usageError{err}
	}
	defer client.http.CloseIdleConnections()
	return o.follow(ctx, client, log)
}

// overNATS asks a fleet: its writers do the work.
func (o *replayOptions) overNATS(ctx context.Context, p *process) error {
	p.services = []string{"writer"} // whose rights it needs
	m := p.cfg.Load().Millrace
	conn, err := p.openStreams(ctx, nil, &m)
	if err != nil {
		return endOr(ctx, err)
	}
	defer conn.Close()
	return o.follow(ctx, p.manager(), p.log)
}

// openStreams connects to NATS, or to a server of this process, makes sure of the streams, and tells m how many partitions they have.
func (p *process) openStreams(ctx context.Context, server *stream.Server, m *config.Millrace) (*stream.Conn, error) {
	conn, err := p.connect(ctx, server, m)
	if err != nil {
		return nil, err
	}
	if err := p.ensure(ctx, conn, m); err != nil {
		conn.Close()
		return nil, err
	}
	p.conn.Store(conn)
	return conn, nil
}

// overStorage replays in this process, from streams that no other process has open.
func (o *replayOptions) overStorage(ctx context.Context, p *process) error {
	if _, err := os.Stat(o.storagePath); err != nil {
		return usageError{fmt.Errorf("--storage.path: %w; give the directory that `millrace run` had, or leave the flag out to ask a running one at --web.url", err)}
	}
	m := p.cfg.Load().Millrace
	server, err := startServer(o.storagePath, &m, p.log)
	if err != nil {
		return fmt.Errorf("%w; a running Millrace is asked at --web.url, without --storage.path", err)
	}
	defer server.Shutdown()
	conn, err := p.openStreams(ctx, server, &m)
	if err != nil {
		return endOr(ctx, err)
	}
	defer conn.Close()
	tuneGC(func() uint64 { return 0 })
	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	members := p.system.Detached("fleet")
	p.fleet = p.newFleet(conn, &m)
	members.Spawn("fleet", p.fleet)
	defer outlive(work, stop, members)()
	if err := p.startServices(work, conn, &m); err != nil {
		return err
	}
	defer outlive(work, stop, p.system)()
	following, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(work, end)() // when a service fails for good
	if err := o.follow(following, p.manager(), p.log); err != nil {
		return endOr(work, err)
	}
	return nil
}

// manager returns the replays of the streams that the process is connected to.
func (p *process) manager() *replay.Manager {
	return &replay.Manager{Conn: p.conn.Load(), Partitions: p.partitionCount(), Endpoints: p.endpointNames}
}

// ownReplays are the replays of a running process, as its API shows them.
type ownReplays struct{ p *process }

func (r ownReplays) manager() (*replay.Manager, error) {
	if r.p.waiting.Load() != nil {
		return nil, web.ErrNotReady
	}
	return r.p.manager(), nil
}

// Start implements [web.Replays].
func (r ownReplays) Start(ctx context.Context, spec replay.Spec, hold bool) (replay.Status, error) {
	m, err := r.manager()
	if err != nil {
		return replay.Status{}, err
	}
	st, err := m.Start(ctx, spec, hold)
	if err == nil {
		r.p.log.Info("A replay was asked for", "replay", st.Name, "state", st.State, "messages", st.AllMessages)
	}
	return st, err
}

// Stop implements [web.Replays].
func (r ownReplays) Stop(ctx context.Context, name string) (replay.Status, error) {
	m, err := r.manager()
	if err != nil {
		return replay.Status{}, err
	}
	st, err := m.Stop(ctx, name)
	if err == nil {
		r.p.log.Info("A replay was ended", "replay", name, "state", st.State, "sent", st.Sent)
	}
	return st, err
}

// Get implements [web.Replays].
func (r ownReplays) Get(ctx context.Context, name string) (replay.Status, error) {
	m, err := r.manager()
	if err != nil {
		return replay.Status{}, err
	}
	return m.Get(ctx, name)
}

// List implements [web.Replays].
func (r ownReplays) List(ctx context.Context) ([]replay.Status, error) {
	m, err := r.manager()
	if err != nil {
		return nil, err
	}
	return m.List(ctx)
}

// replays returns what the pages and the API show: where this process runs no writer, without which it has no right to, what a writer tells.
func (p *process) replays() web.Replays {
	if p.has("writer") {
		return ownReplays{p}
	}
	return askedReplays{p}
}
