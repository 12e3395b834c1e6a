package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	toolkit "github.com/prometheus/exporter-toolkit/web"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/tail"
)

// Defaults of the optional fields of [Config].
const (
	DefaultListenAddress     = ":9474"
	DefaultReadHeaderTimeout = 10 * time.Second
	DefaultReadTimeout       = 5 * time.Minute
	DefaultIdleTimeout       = 2 * time.Minute
	DefaultShutdownTimeout   = 5 * time.Second
	DefaultProviderTimeout   = 5 * time.Second
)

// Config says where a [Server] listens and where it gets what it shows. Only Gatherer is required.
type Config struct {
	// ListenAddresses are the host:port pairs to listen on, an empty host meaning all interfaces. Default: :9474.
	ListenAddresses []string
	// WebConfigFile is the path of an exporter-toolkit web configuration file (TLS, basic auth, headers, rate limit).
	// Its certificates and users are read again while serving. Default: none, plain HTTP without authentication.
	WebConfigFile string
	// ExternalURL is how others reach this process; it makes the globalUrl of targets on localhost.
	// Default: http:// with the machine's name and the port of the first listen address.
	ExternalURL *url.URL

	// Logger takes what goes wrong while serving. Default: nothing is logged.
	Logger *slog.Logger
	// Gatherer is what /metrics exposes. Required.
	Gatherer prometheus.Gatherer
	// Registerer takes this package's own metrics. Default: they are not registered.
	Registerer prometheus.Registerer
	// Version is shown on the page and at /api/v1/status/buildinfo.
	Version VersionInfo

	// Ready returns what the process still waits for, a short sentence each; nothing when it is ready.
	// Default: always ready.
	Ready func() []string
	// Reload reads the configuration again and makes it the running one, or leaves all as it was and returns why.
	// Only one call runs at a time. Its context does not end when the client goes away, so that a reload is not left
	// half done. Default: /-/reload does not exist.
	Reload func(ctx context.Context) error
	// RemoteWrite takes what is posted to /api/v1/write. Default: that path does not exist.
	RemoteWrite http.Handler
	// Replays starts, shows and stops replays. Default: /replays and /api/v1/replays do not exist.
	Replays Replays
	// ConfigYAML returns the running configuration with its secrets already redacted. Default: empty.
	ConfigYAML func() string
	// Targets returns the targets being scraped, those that relabelling dropped, and how many were dropped per scrape
	// pool (which may be more than are listed). The caller does not change what it gets. Default: no targets.
	Targets func(ctx context.Context) ([]Target, []DroppedTarget, map[string]int, error)
	// Status returns the state of services, streams and endpoints. The caller does not change what it gets.
	// Default: an empty status.
	Status func(ctx context.Context) Status
	// Fleet returns how the whole fleet stands. Default: /api/v1/status/fleet does not exist.
	Fleet func(ctx context.Context) (*status.Document, error)
	// FleetTargets finds targets of the whole fleet. An error that wraps [status.ErrQuery] is about the question. Default: /targets does not exist.
	FleetTargets func(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error)

	// Cardinality counts series, for GET /api/v1/cardinality and its page; one call runs at a time. It has CardinalityTimeout. Default: neither
	// exists.
	Cardinality func(ctx context.Context, q cardinality.Query) (*cardinality.Report, error)

	// History returns how the endpoints of the whole fleet stood over the last hour. Default: the page of streams shows no charts.
	History func(ctx context.Context) (*status.History, error)
	// Rejected finds what endpoints have refused for good. Default: /rejected does not exist.
	Rejected Rejected
	// Endpoints returns the names of the configuration's endpoints, to which replays can go. Default: none.
	Endpoints func() []string
	// Rules returns the rules of the running configuration that can be tried, in its order. Default: none.
	Rules func() []RuleSet
	// SeriesLimits returns the limits on series of the running configuration. Default: none.
	SeriesLimits func() []SeriesLimit

	// Tail answers GET /api/v1/tail with samples as they pass. Default: that path does not exist.
	Tail func(ctx context.Context, q tail.Query) (*tail.Tail, error)

	// ReadHeaderTimeout limits the time to read a request's headers. Default: 10 s.
	ReadHeaderTimeout time.Duration
	// ReadTimeout limits the time to read a whole request, and how long one may run (a long profile). Default: 5 min.
	ReadTimeout time.Duration
	// IdleTimeout limits how long an idle connection is kept. Default: 2 min.
	IdleTimeout time.Duration
	// ShutdownTimeout limits how long requests may go on after Serve's context ended. Default: 5 s.
	ShutdownTimeout time.Duration
	// ProviderTimeout limits each request's calls of Targets, Status and Fleet. Default: 5 s.
	ProviderTimeout time.Duration
}

// VersionInfo is what was built, when and from what, with the JSON names of Prometheus's build information.
type VersionInfo struct {
	// Version is the release, such as 1.2.3.
	Version string `json:"version"`
	// Revision is the commit.
	Revision string `json:"revision"`
	// Branch is the branch of the commit.
	Branch string `json:"branch"`
	// BuildUser is who built it.
	BuildUser string `json:"buildUser"`
	// BuildDate is when it was built.
	BuildDate string `json:"buildDate"`
	// GoVersion is the Go release it was built with.
	GoVersion string `json:"goVersion"`
}

// withDefaults returns the configuration with its optional fields filled in, so that no caller tests for nil.
func (c Config) withDefaults() Config {
	if len(c.ListenAddresses) == 0 {
		c.ListenAddresses = []string{DefaultListenAddress}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Ready == nil {
		c.Ready = func() []string { return nil }
	}
	if c.ConfigYAML == nil {
		c.ConfigYAML = func() string { return "" }
	}
	if c.Endpoints == nil {
		c.Endpoints = func() []string { return nil }
	}
	if c.SeriesLimits == nil {
		c.SeriesLimits = func() []SeriesLimit { return nil }
	}
	if c.Rules == nil {
		c.Rules = func() []RuleSet { return nil }
	}
	if c.Targets == nil {
		c.Targets = func(context.Context) ([]Target, []DroppedTarget, map[string]int, error) { return nil, nil, nil, nil }
	}
	if c.Status == nil {
		c.Status = func(context.Context) Status { return Status{} }
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.ReadHeaderTimeout, DefaultReadHeaderTimeout},
		{&c.ReadTimeout, DefaultReadTimeout},
		{&c.IdleTimeout, DefaultIdleTimeout},
		{&c.ShutdownTimeout, DefaultShutdownTimeout},
		{&c.ProviderTimeout, DefaultProviderTimeout},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c
}

// validate reports everything that is known to be wrong before listening, the web configuration file included.
func (c Config) validate() error {
	if c.Gatherer == nil {
		return errors.New("web server: Config.Gatherer is missing")
	}
	var errs []error
	seen := make(map[string]bool, len(c.ListenAddresses))
	for _, address := range c.ListenAddresses {
		if err := validateAddress(address); err != nil {
			errs = append(errs, err)
			continue
		}
		_, port, _ := net.SplitHostPort(address)
		if seen[address] && port != "0" {
			errs = append(errs, fmt.Errorf("web listen address %q is given twice; remove one --web.listen-address", address))
		}
		seen[address] = true
	}
	if err := toolkit.Validate(c.WebConfigFile); err != nil {
		errs = append(errs, fmt.Errorf("web configuration file %q: %w; mend the file or choose another with --web.config.file "+
			"(passwords in it are bcrypt hashes, file names in it are relative to its folder)", c.WebConfigFile, err))
	}
	return errors.Join(errs...)
}

func validateAddress(address string) error {
	const remedy = "write --web.listen-address as host:port, such as " + DefaultListenAddress + " or 127.0.0.1:9474"
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("web listen address %q: %w; %s", address, withoutAddress(err), remedy)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("web listen address %q: %q is not a port from 0 to 65535; %s", address, port, remedy)
	}
	return nil
}

// withoutAddress takes the address out of an error that is about to be reported with it.
func withoutAddress(err error) error {
	var addrErr *net.AddrError
	if errors.As(err, &addrErr) {
		return errors.New(addrErr.Err)
	}
	return err
}
