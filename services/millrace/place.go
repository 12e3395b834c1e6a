package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/alecthomas/kingpin/v2"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
)

// place is where a fleet is asked: at the page of one of its processes, or over NATS.
type place struct {
	runOptions
	server, httpConfig       string
	serverGiven, configGiven bool
}

func newPlace(log *promslog.Config) place { return place{runOptions: runOptions{log: log}} }

// flags are those that say where it is.
func (o *place) flags(c *kingpin.CmdClause) {
	c.Flag("web.url", "Where the page of any running Millrace of the fleet is. User and password may stand in it.").Default(defaultServer).IsSetByUser(&o.serverGiven).StringVar(&o.server)
	c.Flag("http.config.file", "File with TLS and authentication for --web.url (Prometheus's HTTP client configuration).").PlaceHolder("FILE").StringVar(&o.httpConfig)
	c.Flag("config.file", "Configuration file whose millrace.nats says where the fleet's NATS is, in place of --nats.url.").PlaceHolder("FILE").IsSetByUser(&o.configGiven).StringVar(&o.configFile)
	natsFlags(c, &o.runOptions)
}

// defaultServer is where the page is of a Millrace on this machine.
const defaultServer = "http://localhost:9474"

// overNATS reports whether the fleet is to be asked over NATS.
func (o *place) overNATS() bool {
	for _, f := range []string{o.natsURL, o.natsCreds, o.natsSeed, o.natsUser, o.natsPassword, o.natsCA, o.natsCert, o.natsKey, o.natsSNI} {
		if f != "" {
			return true
		}
	}
	return o.configGiven || o.natsInsecure
}

// check finds flags that contradict each other.
func (o *place) check() error {
	if o.overNATS() && (o.serverGiven || o.httpConfig != "") {
		return usageError{errors.New("--web.url asks a process and --nats.url or --config.file the NATS cluster: give one of them")}
	}
	return nil
}

// newClient asks the process.
func (o *place) newClient() (*client, error) {
	c, err := newClient(o.server, o.httpConfig, "start it, or give --web.url with the address of a process that runs, or --nats.url")
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// dial connects to NATS, once, as a user with the rights of what name says.
func (o *place) dial(ctx context.Context, name string) (*stream.Conn, *config.Millrace, error) {
	quiet := slog.New(slog.DiscardHandler)
	p := &process{opts: &o.runOptions, services: []string{name}, log: quiet}
	load := p.load
	if !o.configGiven {
		load = func() (*config.Config, error) { return config.Defaults("the command line", quiet, o.override) }
	}
	loaded, err := load()
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("loading the configuration: %w", err)}
	}
	m := &loaded.Millrace
	switch {
	case m.NATS.IsEmbedded() && o.configGiven:
		return nil, nil, usageError{fmt.Errorf("--config.file=%s: it has no millrace.nats.url, so its streams are inside of the process that runs: ask that with --web.url", o.configFile)}
	case m.NATS.IsEmbedded():
		return nil, nil, usageError{errors.New("the flags about NATS need --nats.url, or a --config.file that has millrace.nats.url")}
	}
	cfg, err := p.natsConfig(m)
	if err != nil {
		return nil, nil, usageError{err}
	}
	cfg.Once = true
	conn, err := stream.Connect(ctx, cfg)
	if errors.Is(err, stream.ErrAuth) {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w; start NATS, or give its address with --nats.url", err)
	}
	return conn, m, nil
}

// denied says what a user lacks whom NATS has refused something; nil where it has not.
func denied(conn *stream.Conn, m *config.Millrace, permissions string) error {
	if err := conn.NC.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return fmt.Errorf("NATS at %s does not let this user ask: %w; give it the permissions %s of deploy/compose/nats/permissions.conf, or ask a process with --web.url",
			stream.Redact(m.NATS.URL), err, permissions)
	}
	return nil
}

// statusAsker asks how a fleet stands. It keeps the connection for the next time.
type statusAsker struct {
	place  *place
	client *client
	conn   *stream.Conn
	m      *config.Millrace
}

// ask returns the status document.
func (a *statusAsker) ask(ctx context.Context) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	if a.place.overNATS() {
		d, err := a.overNATS(ctx)
		if err != nil {
			a.close() // a new connection may fare better, as another user
			return nil, err
		}
		return json.Marshal(d)
	}
	if a.client == nil {
		var err error
		if a.client, err = a.place.newClient(); err != nil {
			return nil, err
		}
	}
	return a.client.get(ctx, "/api/v1/status/fleet", nil)
}

// overNATS asks the members themselves.
func (a *statusAsker) overNATS(ctx context.Context) (*status.Document, error) {
	if a.conn == nil {
		var err error
		if a.conn, a.m, err = a.place.dial(ctx, "status"); err != nil {
			return nil, err
		}
	}
	conn := a.conn
	d, err := status.Collect(ctx, status.Source{Conn: conn, View: func(ctx context.Context) (fleet.View, error) { return fleet.Look(ctx, conn) }})
	if err := denied(conn, a.m, "STATUS"); err != nil {
		return nil, err
	}
	if errors.Is(err, status.ErrNothing) {
		return nil, fmt.Errorf("NATS at %s: %w there with the prefix %q; start a process with the service discovery, or set millrace.nats.prefix in a --config.file",
			stream.Redact(a.m.NATS.URL), err, a.m.NATS.Prefix)
	}
	return d, err
}

func (a *statusAsker) close() {
	if a.client != nil {
		a.client.http.CloseIdleConnections()
	}
	if a.conn != nil {
		a.conn.NC.Close()
		a.conn = nil
	}
}

// readStatus reads the status document.
func readStatus(body []byte) (*status.Document, error) {
	var d status.Document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if d.Version != status.DocumentVersion {
		return nil, fmt.Errorf("the answer has version %d, this build shows version %d: use the millrace command of the version that runs, or `millrace status --json`", d.Version, status.DocumentVersion)
	}
	return &d, nil
}
