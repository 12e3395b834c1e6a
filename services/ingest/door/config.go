package door

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"time"
)

// Names of the doors: the values of Config.Name and of the label door of the metrics.
const (
	OTLPGRPC    = "otlp_grpc"
	OTLPHTTP    = "otlp_http"
	RemoteWrite = "remote_write"
)

// Config says how a door is guarded and who takes what comes through it. Taker is required, and Listen by [NewHTTP] and
// [NewGRPC].
type Config struct {
	// Name is the value of the label door, and names the door in log lines. Default: the one of the constructor
	// (otlp_http, otlp_grpc, remote_write).
	Name string
	// Listen is the host:port to listen on, an empty host meaning all interfaces. Not used by [NewRemoteWrite].
	Listen string
	// TLS are the files of the listener's certificate. Default: none, plain text. Not used by [NewRemoteWrite].
	TLS TLSFiles
	// Auth says who may push. Default: everybody.
	Auth Auth
	// Limits bound what requests may take. Default of each: that of [DefaultLimits].
	Limits Limits
	// TenantHeader is the header (gRPC: the metadata key) that names the tenant. Default: none is read.
	TenantHeader string
	// Taker makes the bodies safe. Required.
	Taker Taker
	// Logger takes what is refused, at most a line every few seconds for each reason. Default: nothing is logged.
	Logger *slog.Logger
	// Metrics are those that all doors of a process share. Default: nothing is counted.
	Metrics *Metrics
}

// TLSFiles are paths of PEM files. They are read again when they change.
type TLSFiles struct {
	// Cert is the listener's certificate, with its intermediates. Empty: plain text.
	Cert string
	// Key is the private key of Cert.
	Key string
	// ClientCA are the authorities of client certificates; set, every client must show a certificate of one of them.
	// Default: no client certificates.
	ClientCA string
}

// Auth says which credentials are accepted: those of basic authentication and a bearer token; where both are set,
// either. Files are read again when they change; white space around their content does not count.
type Auth struct {
	// Username is the user of basic authentication. Empty: no basic authentication.
	Username string
	// Password belongs to Username.
	Password string
	// PasswordFile is the path of a file that holds the password, in place of Password.
	PasswordFile string
	// BearerToken is the token of `Authorization: Bearer`. Empty, and no BearerTokenFile: no bearer authentication.
	BearerToken string
	// BearerTokenFile is the path of a file that holds the token, in place of BearerToken.
	BearerTokenFile string
}

// Limits bound what the requests of one door may take. Zero means the default, where there is one.
type Limits struct {
	// MaxBodyBytes is the size of a body as received, in bytes. Default: 16 MiB.
	MaxBodyBytes int64
	// MaxDecompressedBytes is the size of a decompressed body, in bytes. Default: 64 MiB.
	MaxDecompressedBytes int64
	// MaxInFlightBytes is the size of the bodies of all requests at a time, and of what the Taker holds for them, in
	// bytes. Default: 256 MiB.
	MaxInFlightBytes int64
	// MaxConcurrentRequests is how many requests may be in progress at a time. Default: 2048.
	MaxConcurrentRequests int
	// MaxSeriesPerRequest is how many points (OTLP) or time series (remote_write) a request may hold; the Taker sees
	// to it. Default: 200,000.
	MaxSeriesPerRequest int
	// MaxLabelNames is how many labels a series may have; the Taker sees to it. Default: 128.
	MaxLabelNames int
	// MaxLabelNameBytes is the length of a label's name, in bytes; the Taker sees to it. Default: 1 KiB.
	MaxLabelNameBytes int
	// MaxLabelValueBytes is the length of a label's value, in bytes; the Taker sees to it. Default: 16 KiB.
	MaxLabelValueBytes int
	// MaxSamplesPerSecond is how many samples, histograms and refused points a sender may push in a second, on
	// average. Default: 0, no limit.
	MaxSamplesPerSecond float64
	// ReadTimeout limits the time to read a whole request. Default: 30 s.
	ReadTimeout time.Duration
	// IdleTimeout limits how long an idle connection is kept. Default: 2 min.
	IdleTimeout time.Duration
}

// DefaultLimits are the limits of a door whose configuration says nothing.
func DefaultLimits() Limits {
	return Limits{
		MaxBodyBytes:          16 << 20,
		MaxDecompressedBytes:  64 << 20,
		MaxInFlightBytes:      256 << 20,
		MaxConcurrentRequests: 2048,
		MaxSeriesPerRequest:   200_000,
		MaxLabelNames:         128,
		MaxLabelNameBytes:     1 << 10,
		MaxLabelValueBytes:    16 << 10,
		ReadTimeout:           30 * time.Second,
		IdleTimeout:           2 * time.Minute,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	or(&l.MaxBodyBytes, d.MaxBodyBytes)
	or(&l.MaxDecompressedBytes, d.MaxDecompressedBytes)
	or(&l.MaxInFlightBytes, d.MaxInFlightBytes)
	or(&l.MaxConcurrentRequests, d.MaxConcurrentRequests)
	or(&l.MaxSeriesPerRequest, d.MaxSeriesPerRequest)
	or(&l.MaxLabelNames, d.MaxLabelNames)
	or(&l.MaxLabelNameBytes, d.MaxLabelNameBytes)
	or(&l.MaxLabelValueBytes, d.MaxLabelValueBytes)
	or(&l.ReadTimeout, d.ReadTimeout)
	or(&l.IdleTimeout, d.IdleTimeout)
	return l
}

func or[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (l Limits) validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value int64
		most  int64
	}{
		{"max_body_bytes", l.MaxBodyBytes, math.MaxInt32},
		{"max_decompressed_bytes", l.MaxDecompressedBytes, math.MaxInt32},
		{"max_in_flight_bytes", l.MaxInFlightBytes, math.MaxInt64},
		{"max_concurrent_requests", int64(l.MaxConcurrentRequests), math.MaxInt32},
		{"max_series_per_request", int64(l.MaxSeriesPerRequest), math.MaxInt32},
		{"max_label_names", int64(l.MaxLabelNames), math.MaxInt32},
		{"max_label_name_bytes", int64(l.MaxLabelNameBytes), math.MaxInt32},
		{"max_label_value_bytes", int64(l.MaxLabelValueBytes), math.MaxInt32},
		{"read_timeout", int64(l.ReadTimeout), math.MaxInt64},
		{"idle_timeout", int64(l.IdleTimeout), math.MaxInt64},
	} {
		switch {
		case f.value < 0:
			errs = append(errs, fmt.Errorf("%s must be positive", f.name))
		case f.value > f.most:
			errs = append(errs, fmt.Errorf("%s must be at most %d", f.name, f.most))
		}
	}
	if l.MaxSamplesPerSecond < 0 || math.IsNaN(l.MaxSamplesPerSecond) || math.IsInf(l.MaxSamplesPerSecond, 0) {
		errs = append(errs, errors.New("max_samples_per_second must be 0 (no limit) or more"))
	}
	return errors.Join(errs...)
}

// withDefaults returns the configuration with its optional fields filled in, so that no caller tests for nil.
func (c Config) withDefaults(name string) Config {
	or(&c.Name, name)
	c.Limits = c.Limits.withDefaults()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = newMetrics()
	}
	c.TenantHeader = http.CanonicalHeaderKey(strings.TrimSpace(c.TenantHeader))
	return c
}

func (c Config) validate(listens bool) error {
	errs := []error{c.Limits.validate(), c.Auth.validate()}
	if c.Taker == nil {
		errs = append(errs, errors.New("no Taker is set"))
	}
	if listens {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			errs = append(errs, fmt.Errorf("listen %q is not host:port, such as localhost:4318: %w", c.Listen, err))
		}
		errs = append(errs, c.TLS.validate())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configuring the door %s: %w", c.Name, err)
	}
	return nil
}

func (f TLSFiles) validate() error {
	switch {
	case f.Cert == "" && f.Key != "":
		return errors.New("tls: key_file is set without cert_file")
	case f.Cert != "" && f.Key == "":
		return errors.New("tls: cert_file is set without key_file")
	case f.Cert == "" && f.ClientCA != "":
		return errors.New("tls: client_ca_file needs cert_file and key_file: client certificates are only asked for over TLS")
	}
	return nil
}

func (a Auth) validate() error {
	var errs []error
	password := a.Password != "" || a.PasswordFile != ""
	switch {
	case a.Password != "" && a.PasswordFile != "":
		errs = append(errs, errors.New("basic_auth: password and password_file are both set; remove one"))
	case a.Username == "" && password:
		errs = append(errs, errors.New("basic_auth: a password is set without username"))
	case a.Username != "" && !password:
		errs = append(errs, errors.New("basic_auth: username is set without password or password_file"))
	case strings.Contains(a.Username, ":"):
		errs = append(errs, errors.New("basic_auth: username cannot contain a colon"))
	}
	if a.BearerToken != "" && a.BearerTokenFile != "" {
		errs = append(errs, errors.New("bearer_token and bearer_token_file are both set; remove one"))
	}
	return errors.Join(errs...)
}
