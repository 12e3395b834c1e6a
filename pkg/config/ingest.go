package config

import (
	"fmt"
	"net"
	"strconv"
	"time"

	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
)

// Ingest configures what is pushed in: OTLP and remote_write.
type Ingest struct {
	// Linger is how long a pushed frame may wait for others of its partition before it is published; its sender waits as
	// long. 0s to 20ms. Default 20ms.
	Linger model.Duration `yaml:"linger"`
	// MaxPendingBytes bounds the frames held in memory while the stream does not take them; beyond it pushes are answered
	// 429. At least 1MiB. Default 64MiB.
	MaxPendingBytes ByteSize `yaml:"max_pending_bytes"`
	// MaxSeries is how many pushed series a process knows at a time; beyond it, points of new series are refused. At least
	// 1. Default 2000000.
	MaxSeries int `yaml:"max_series"`
	// SeriesIdle is how long after its last push a series is forgotten; 1m to 1w. Default 1h.
	SeriesIdle model.Duration `yaml:"series_idle"`
	// OutOfOrderWindow is by how much a sample may be older than the newest of its series; what is older is refused.
	// Default 0s.
	OutOfOrderWindow model.Duration `yaml:"out_of_order_window"`
	// AckTimeout is how long a request waits for the stream before it is answered 503; 1s to 5m. Default 10s.
	AckTimeout model.Duration `yaml:"ack_timeout"`
	// Tenant makes a label of a header.
	Tenant Tenant `yaml:"tenant"`
	// Delta turns delta temporality into cumulative.
	Delta Delta `yaml:"delta"`
	// OTLP are the listeners for OTLP.
	OTLP OTLPListeners `yaml:"otlp"`
	// RemoteWrite bounds and guards /api/v1/write of the web address.
	RemoteWrite Door `yaml:"remote_write"`
}

// Tenant makes a label of a header.
type Tenant struct {
	// Header is the request header, or gRPC metadata key, that names the tenant. Default X-Scope-OrgID.
	Header string `yaml:"header"`
	// Label is the label that each series of the request gets. Empty (the default): the header has no meaning.
	Label string `yaml:"label"`
}

// Delta turns delta temporality into cumulative.
type Delta struct {
	// Enabled accepts points of delta temporality. Default false: they are refused.
	Enabled bool `yaml:"enabled"`
	// MaxStale is how long after its last point a stream begins anew; 1s to 1h. Default 5m.
	MaxStale model.Duration `yaml:"max_stale"`
	// MaxStreams is how many series a process accumulates at a time; at least 1. Default 1000000.
	MaxStreams int `yaml:"max_streams"`
}

// OTLPListeners are the listeners for OTLP.
type OTLPListeners struct {
	// GRPC listens for OTLP/gRPC. Default address localhost:4317.
	GRPC Listener `yaml:"grpc"`
	// HTTP listens for OTLP/HTTP, at /v1/metrics. Default address localhost:4318.
	HTTP Listener `yaml:"http"`
}

// Listener is an address of its own.
type Listener struct {
	// Listen is a host:port. Empty: no listener.
	Listen string `yaml:"listen"`
	// TLS is the server's side of TLS.
	TLS ServerTLS `yaml:"tls"`
	// Door guards and bounds it.
	Door `yaml:",inline"`
}

// ServerTLS is the server's side of TLS. Without cert_file, connections are plain.
type ServerTLS struct {
	// CertFile and KeyFile are the server's PEM certificate and key; relative to the configuration file. They are read
	// again when they change.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// ClientCAFile holds the certificates that those of clients are checked against; with it, clients must have one.
	ClientCAFile string `yaml:"client_ca_file"`
}

// Door says who may push and how much.
type Door struct {
	// BasicAuth asks for a user and password.
	BasicAuth BasicAuth `yaml:"basic_auth"`
	// BearerToken, or the content of BearerTokenFile, is asked for. With basic_auth, either is enough.
	BearerToken     promcommon.Secret `yaml:"bearer_token"`
	BearerTokenFile string            `yaml:"bearer_token_file"`
	// MaxBodyBytes bounds a request as received. At least 1KiB. Default 16MiB.
	MaxBodyBytes ByteSize `yaml:"max_body_bytes"`
	// MaxDecompressedBytes bounds a request unpacked. At least 1KiB. Default 64MiB.
	MaxDecompressedBytes ByteSize `yaml:"max_decompressed_bytes"`
	// MaxInFlightBytes bounds all requests at a time, with what large ones take to read; beyond it: 429. At least 1MiB. Default 256MiB.
	MaxInFlightBytes ByteSize `yaml:"max_in_flight_bytes"`
	// MaxConcurrentRequests bounds the requests at a time; beyond it: 429. Default 2048.
	MaxConcurrentRequests int `yaml:"max_concurrent_requests"`
	// MaxSeriesPerRequest bounds the points (OTLP) or time series (remote_write) of a request; these may have twice as many
	// samples, histograms and exemplars. Default 200000.
	MaxSeriesPerRequest int `yaml:"max_series_per_request"`
	// MaxLabelNames bounds a series' labels; MaxLabelNameBytes and MaxLabelValueBytes their length. A series beyond them is
	// refused, the others of the request are not. Default 128, 1KiB, 16KiB.
	MaxLabelNames      int      `yaml:"max_label_names"`
	MaxLabelNameBytes  ByteSize `yaml:"max_label_name_bytes"`
	MaxLabelValueBytes ByteSize `yaml:"max_label_value_bytes"`
	// MaxSamplesPerSecond is how much one sender (user, tenant or address) may push on average; beyond it: 429. Default 0: no limit.
	MaxSamplesPerSecond float64 `yaml:"max_samples_per_second"`
	// ReadTimeout bounds the time to read a request, IdleTimeout how long a connection waits for the next. 1s to 1h. Default
	// 30s and 2m.
	ReadTimeout model.Duration `yaml:"read_timeout"`
	IdleTimeout model.Duration `yaml:"idle_timeout"`
}

// BasicAuth is a user and password.
type BasicAuth struct {
	Username string `yaml:"username"`
	// Password, or the content of PasswordFile.
	Password     promcommon.Secret `yaml:"password"`
	PasswordFile string            `yaml:"password_file"`
}

// The addresses where OTLP is listened for by default, as by the OpenTelemetry Collector.
const (
	DefaultOTLPGRPC = "localhost:4317"
	DefaultOTLPHTTP = "localhost:4318"
)

func baseIngest() Ingest {
	door := Door{
		MaxBodyBytes: 16 * MiB, MaxDecompressedBytes: 64 * MiB, MaxInFlightBytes: 256 * MiB, MaxConcurrentRequests: 2048,
		MaxSeriesPerRequest: 200_000, MaxLabelNames: 128, MaxLabelNameBytes: KiB, MaxLabelValueBytes: 16 * KiB,
		ReadTimeout: model.Duration(30 * time.Second), IdleTimeout: model.Duration(2 * time.Minute),
	}
	return Ingest{
		Linger: model.Duration(20 * time.Millisecond), MaxPendingBytes: 64 * MiB, MaxSeries: 2_000_000, SeriesIdle: model.Duration(time.Hour),
		AckTimeout: model.Duration(10 * time.Second), Tenant: Tenant{Header: "X-Scope-OrgID"},
		Delta:       Delta{MaxStale: model.Duration(5 * time.Minute), MaxStreams: 1_000_000},
		OTLP:        OTLPListeners{GRPC: Listener{Listen: DefaultOTLPGRPC, Door: door}, HTTP: Listener{Listen: DefaultOTLPHTTP, Door: door}},
		RemoteWrite: door,
	}
}

// files returns the names of files, to be made relative to the configuration's folder.
func (i *Ingest) files() []*string {
	var files []*string
	for _, l := range []*Listener{&i.OTLP.GRPC, &i.OTLP.HTTP} {
		files = append(files, &l.TLS.CertFile, &l.TLS.KeyFile, &l.TLS.ClientCAFile)
	}
	for _, d := range []*Door{&i.OTLP.GRPC.Door, &i.OTLP.HTTP.Door, &i.RemoteWrite} {
		files = append(files, &d.BasicAuth.PasswordFile, &d.BearerTokenFile)
	}
	return files
}

func (d *decoder) validateIngest(i *Ingest) {
	const path = "millrace.ingest."
	d.durationBetween(path+"linger", i.Linger, 0, model.Duration(20*time.Millisecond))
	d.sizeBetween(path+"max_pending_bytes", i.MaxPendingBytes, MiB, maxByteSize)
	d.atLeastOne(path+"max_series", i.MaxSeries)
	d.durationBetween(path+"series_idle", i.SeriesIdle, model.Duration(time.Minute), model.Duration(7*24*time.Hour))
	d.durationBetween(path+"out_of_order_window", i.OutOfOrderWindow, 0, maxRetentionAge)
	d.durationBetween(path+"ack_timeout", i.AckTimeout, model.Duration(time.Second), model.Duration(5*time.Minute))
	d.durationBetween(path+"delta.max_stale", i.Delta.MaxStale, model.Duration(time.Second), model.Duration(time.Hour))
	d.atLeastOne(path+"delta.max_streams", i.Delta.MaxStreams)
	if i.Tenant.Label != "" && (!model.UTF8Validation.IsValidLabelName(i.Tenant.Label) || i.Tenant.Label == model.MetricNameLabel) {
		d.fail(path+"tenant.label", fmt.Sprintf("is %q", i.Tenant.Label), "choose a label name such as tenant")
	}
	if i.Tenant.Label != "" && i.Tenant.Header == "" {
		d.fail(path+"tenant.header", "is empty, and tenant.label is set", "name the header that tells the tenant, such as X-Scope-OrgID")
	}
	d.validateListener(path+"otlp.grpc", &i.OTLP.GRPC)
	d.validateListener(path+"otlp.http", &i.OTLP.HTTP)
	d.validateDoor(path+"remote_write", &i.RemoteWrite)
	if a, b := i.OTLP.GRPC.Listen, i.OTLP.HTTP.Listen; a == b && a != "" && !endsInPortZero(a) {
		d.fail(path+"otlp.http.listen", "is the address of otlp.grpc too", "give each an address of its own")
	}
}

func endsInPortZero(address string) bool {
	_, port, err := net.SplitHostPort(address)
	return err == nil && port == "0"
}

func (d *decoder) validateListener(path string, l *Listener) {
	if l.Listen != "" {
		_, port, err := net.SplitHostPort(l.Listen)
		if number, convErr := strconv.Atoi(port); err != nil || convErr != nil || number < 0 || number > 65535 {
			d.fail(path+".listen", fmt.Sprintf("%q is no host:port", l.Listen), "write an address such as 0.0.0.0:4318, or \"\" for no listener")
		}
	}
	if (l.TLS.CertFile == "") != (l.TLS.KeyFile == "") {
		have, miss := "cert_file", "key_file"
		if l.TLS.CertFile == "" {
			have, miss = miss, have
		}
		d.fail(path+".tls."+have, "is set without "+miss, "set both or none")
	}
	if l.TLS.ClientCAFile != "" && l.TLS.CertFile == "" {
		d.fail(path+".tls.client_ca_file", "is set without cert_file", "set cert_file and key_file too")
	}
	d.validateDoor(path, &l.Door)
}

func (d *decoder) validateDoor(path string, x *Door) {
	b := &x.BasicAuth
	switch {
	case b.Password != "" && b.PasswordFile != "":
		d.fail(path+".basic_auth.password_file", "is set beside password", "keep one of them")
	case b.Username == "" && (b.Password != "" || b.PasswordFile != ""):
		d.fail(path+".basic_auth", "has a password and no username", "set username too")
	case b.Username != "" && b.Password == "" && b.PasswordFile == "":
		d.fail(path+".basic_auth", "has a username and no password", "set password or password_file")
	}
	if x.BearerToken != "" && x.BearerTokenFile != "" {
		d.fail(path+".bearer_token_file", "is set beside bearer_token", "keep one of them")
	}
	for _, s := range []struct {
		name        string
		size, least ByteSize
	}{
		{"max_body_bytes", x.MaxBodyBytes, KiB}, {"max_decompressed_bytes", x.MaxDecompressedBytes, KiB}, {"max_in_flight_bytes", x.MaxInFlightBytes, MiB},
		{"max_label_name_bytes", x.MaxLabelNameBytes, 1}, {"max_label_value_bytes", x.MaxLabelValueBytes, 1},
	} {
		d.sizeBetween(path+"."+s.name, s.size, s.least, GiB)
	}
	d.atLeastOne(path+".max_concurrent_requests", x.MaxConcurrentRequests)
	d.atLeastOne(path+".max_series_per_request", x.MaxSeriesPerRequest)
	d.atLeastOne(path+".max_label_names", x.MaxLabelNames)
	if !(x.MaxSamplesPerSecond >= 0) {
		d.fail(path+".max_samples_per_second", fmt.Sprintf("is %v", x.MaxSamplesPerSecond), "choose a number above 0, or 0 for no limit")
	}
	d.durationBetween(path+".read_timeout", x.ReadTimeout, model.Duration(time.Second), model.Duration(time.Hour))
	d.durationBetween(path+".idle_timeout", x.IdleTimeout, model.Duration(time.Second), model.Duration(time.Hour))
}

func (d *decoder) durationBetween(path string, v, least, most model.Duration) {
	if v < least || v > most {
		d.fail(path, "is "+v.String(), fmt.Sprintf("choose a duration from %s to %s", least, most))
	}
}

func (d *decoder) atLeastOne(path string, n int) {
	if n < 1 {
		d.fail(path, fmt.Sprintf("is %d", n), "choose a number above 0")
	}
}
