package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
)

// Millrace is the millrace block: all that Prometheus's configuration has no word for. Every field is optional.
type Millrace struct {
	// NATS says where the streams live: in an embedded server or in a NATS cluster.
	NATS NATS `yaml:"nats"`
	// Streams says how the streams are cut up, replicated and how long they keep what they hold.
	Streams Streams `yaml:"streams"`
	// Fleet says how processes that share the work notice each other.
	Fleet Fleet `yaml:"fleet"`
	// Scraper bounds how scraped frames are gathered into messages.
	Scraper Scraper `yaml:"scraper"`
	// Ingest says who may push what.
	Ingest Ingest `yaml:"ingest"`
	// Cardinality limits the series that are active at a time.
	Cardinality Cardinality `yaml:"cardinality"`
	// Writer bounds the memory that sending takes.
	Writer Writer `yaml:"writer"`
}

// NATS says where the streams live and how to reach them.
type NATS struct {
	// URL is the NATS cluster's address or several, comma separated: nats://, tls://, ws:// or wss://.
	// Empty (the default): an embedded server in this process.
	URL string `yaml:"url"`
	// Prefix begins the name of every subject, stream and bucket; letters, digits, _ and -, at most 32. Default millrace.
	Prefix string `yaml:"prefix"`
	// CredentialsFile is a NATS .creds file; relative to the configuration file. At most one of credentials_file,
	// nkey_seed_file and username may be set, and only together with url.
	CredentialsFile string `yaml:"credentials_file"`
	// NKeySeedFile is a file with an NKey seed; relative to the configuration file.
	NKeySeedFile string `yaml:"nkey_seed_file"`
	// Username is the user for password authentication.
	Username string `yaml:"username"`
	// Password is the password of Username. At most one of password and password_file may be set.
	Password promcommon.Secret `yaml:"password"`
	// PasswordFile is a file with the password of Username; relative to the configuration file.
	PasswordFile string `yaml:"password_file"`
	// TLS is the client's side of TLS to url.
	TLS TLS `yaml:"tls"`
	// Embedded configures the embedded server; it has no effect when url is set.
	Embedded Embedded `yaml:"embedded"`
}

// TLS is the client's side of a TLS connection. The zero value uses the system's certificate authorities.
type TLS struct {
	// CAFile holds the PEM certificates that the server's certificate is checked against; relative to the
	// configuration file. Default: the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile is the client's PEM certificate; relative to the configuration file. Needs key_file.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the client's PEM key; relative to the configuration file. Needs cert_file.
	KeyFile string `yaml:"key_file"`
	// ServerName is the name that the server's certificate must carry. Default: the host of the URL.
	ServerName string `yaml:"server_name"`
	// InsecureSkipVerify accepts any certificate of the server. Default false.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify"`
}

// Embedded configures the NATS server inside the process.
type Embedded struct {
	// Listen is the host:port on which the embedded server accepts NATS clients. Empty (the default): no open port.
	Listen string `yaml:"listen"`
	// MaxMemory is JetStream's memory limit. Default 64MiB.
	MaxMemory ByteSize `yaml:"max_memory"`
	// MaxStorage is JetStream's disk limit. 0 (the default): the sum of the streams' max_bytes plus head room.
	MaxStorage ByteSize `yaml:"max_storage"`
}

// Streams says how the streams are cut up, replicated and how long they keep what they hold.
type Streams struct {
	// Partitions is the number of partitions, 1 to 1024; it is fixed when the streams are made. 0 (the default): what the streams have,
	// and for new ones what [Millrace.NewPartitions] says.
	Partitions int `yaml:"partitions"`
	// Replicas is the number of NATS nodes that hold each stream: 1, 3 or 5; 1 with the embedded server. Default 1.
	Replicas int `yaml:"replicas"`
	// Sync says when the embedded server forces messages to disk: always or an interval such as 2s. Default always.
	// It has no effect when nats.url is set: there the NATS servers' own configuration says it.
	Sync Sync `yaml:"sync"`
	// Frames is how long samples are kept for endpoints that do not take them. Default 24h, 10GiB.
	Frames Retention `yaml:"frames"`
	// Deltas is how long pushed points of delta temporality are kept while they wait to become cumulative. Default
	// frames.max_age, 1GiB.
	Deltas Retention `yaml:"deltas"`
	// Dictionaries is how long series lists are kept, both as scraped and as relabelled for an endpoint; max_age must be
	// at least twice frames.max_age and deltas.max_age. Default 3 times the greater of them, 2GiB.
	Dictionaries Retention `yaml:"dictionaries"`
	// Rejected is how long samples that an endpoint refused for good are kept. Default 168h, 1GiB.
	Rejected Retention `yaml:"rejected"`
}

// Retention bounds a stream by age and by size; the oldest goes first.
type Retention struct {
	// MaxAge is how long a message is kept; 1s to 10y.
	MaxAge model.Duration `yaml:"max_age"`
	// MaxBytes is how many bytes the stream may hold, per replica; at least 1MiB.
	MaxBytes ByteSize `yaml:"max_bytes"`
}

// Fleet says how processes that share the work notice each other.
type Fleet struct {
	// LeaseTTL is how long a process that gives no sign of life keeps its share of the work; a killed one loses it at once.
	// 1s to 1h. Default 5s.
	LeaseTTL model.Duration `yaml:"lease_ttl"`
}

// Scraper bounds how scraped frames are gathered into messages.
type Scraper struct {
	// Linger is how long a frame may wait for others of its partition before it is published; above 0, at most 10s.
	// Default 500ms.
	Linger model.Duration `yaml:"linger"`
	// MaxBatchBytes is the number of raw bytes of frames that make a message before Linger is over; 16KiB to 900KiB.
	// Default 256KiB.
	MaxBatchBytes ByteSize `yaml:"max_batch_bytes"`
	// MaxPendingBytes bounds the frames held in memory while the stream does not answer; beyond it whole scrapes are
	// dropped and counted. At least 1MiB. Default 64MiB.
	MaxPendingBytes ByteSize `yaml:"max_pending_bytes"`
	// MaxBodyBytes is the body_size_limit, after decompression, of scrape configs that set none, so that no target can fill
	// the memory: a body in a text format takes 1 MiB at a time while it is read, one in another up to twice its size. At least 64KiB. Default 100MiB.
	MaxBodyBytes ByteSize `yaml:"max_body_bytes"`
	// StartTimestamps reads the start timestamps of counters where targets expose them, as Prometheus does with its
	// feature flag st-storage. Default false.
	StartTimestamps bool `yaml:"start_timestamps"`
	// LoopbackIdentity asks targets on a loopback address or a Unix socket not to compress what they answer: where no network lies between,
	// compressing and decompressing costs more than the bytes. Default false.
	LoopbackIdentity bool `yaml:"loopback_identity"`
}

// Writer bounds the memory that sending takes.
type Writer struct {
	// LabelCacheBytes is the memory for label sets encoded for the wire, per process; at least 1MiB. Default 128MiB.
	LabelCacheBytes ByteSize `yaml:"label_cache_bytes"`
	// ReadAheadBytes is how many bytes of batches are read ahead for one endpoint and partition at most; all together
	// hold at most this times the endpoints times the partitions that this process owns. At least 1MiB. Default 2MiB.
	ReadAheadBytes ByteSize `yaml:"read_ahead_bytes"`
	// FreshFirst says which endpoints get new samples before a backlog.
	FreshFirst FreshFirst `yaml:"fresh_first"`
}

// FreshFirst lets new samples go out at once after an outage, and the backlog beside them. It is for endpoints that take samples out of order.
type FreshFirst struct {
	// Endpoints are the names of remote_write items. Empty (the default): every endpoint gets its samples in strict order.
	Endpoints []string `yaml:"endpoints"`
	// After is how long samples wait in the stream before newer ones pass them; 1s to 1w. Default 30s.
	After model.Duration `yaml:"after"`
	// BacklogShare is the most of its time that a partition spends on sending the backlog of an endpoint; 0.01 to 1, where 1 is no bound. Default 0.5.
	BacklogShare float64 `yaml:"backlog_share"`
}

// Has tells whether an endpoint gets new samples before a backlog, by the name that its item has in the file, or where it has none by that which it was given.
func (f *FreshFirst) Has(e Endpoint) bool {
	return slices.Contains(f.Endpoints, e.Name) || e.RemoteWriteConfig.Name != "" && slices.Contains(f.Endpoints, e.RemoteWriteConfig.Name)
}

// validateFreshFirst checks names against the items of remote_write.
func (d *decoder) validateFreshFirst(f *FreshFirst, endpoints []Endpoint) {
	names := make([]string, len(endpoints))
	for i, e := range endpoints {
		if names[i] = e.RemoteWriteConfig.Name; names[i] == "" {
			names[i] = e.Name
		}
	}
	for _, name := range f.Endpoints {
		if slices.ContainsFunc(endpoints, func(e Endpoint) bool { return e.Name == name || e.RemoteWriteConfig.Name == name }) {
			continue
		}
		remedy := "add one, or remove it: there is none"
		if len(names) > 0 {
			remedy = "choose from " + strings.Join(names, ", ")
		}
		d.fail("millrace.writer.fresh_first.endpoints", fmt.Sprintf("has %q, which no remote_write item is named", name), remedy)
	}
}

const (
	defaultPartitionsEmbedded = 2
	defaultPartitionsCluster  = 16
	defaultDictionaryAges     = 3 // dictionaries.max_age in frames.max_age or deltas.max_age
	leastDictionaryAges       = 2
)

// DefaultMillrace returns what an empty millrace block means: an embedded server and every default filled in.
func DefaultMillrace() Millrace {
	m := baseMillrace()
	m.fillDefaults()
	return m
}

// baseMillrace holds the defaults that do not depend on other settings.
func baseMillrace() Millrace {
	return Millrace{
		NATS: NATS{
			Prefix:   "millrace",
			Embedded: Embedded{MaxMemory: 64 * MiB},
		},
		Streams: Streams{
			Replicas:     1,
			Sync:         SyncAlways,
			Frames:       Retention{MaxAge: model.Duration(24 * time.Hour), MaxBytes: 10 * GiB},
			Deltas:       Retention{MaxBytes: GiB},
			Dictionaries: Retention{MaxBytes: 2 * GiB},
			Rejected:     Retention{MaxAge: model.Duration(168 * time.Hour), MaxBytes: GiB},
		},
		Fleet: Fleet{LeaseTTL: model.Duration(5 * time.Second)},
		Scraper: Scraper{
			Linger:          model.Duration(500 * time.Millisecond),
			MaxBatchBytes:   256 * KiB,
			MaxPendingBytes: 64 * MiB,
			MaxBodyBytes:    100 * MiB,
		},
		Ingest:      baseIngest(),
		Cardinality: baseCardinality(),
		Writer:      Writer{LabelCacheBytes: 128 * MiB, ReadAheadBytes: 2 * MiB, FreshFirst: FreshFirst{Endpoints: []string{}, After: model.Duration(30 * time.Second), BacklogShare: 0.5}},
	}
}

// fillDefaults sets what is still zero and whose default follows from other settings.
func (m *Millrace) fillDefaults() {
	if m.Streams.Deltas.MaxAge == 0 {
		m.Streams.Deltas.MaxAge = m.Streams.Frames.MaxAge
	}
	if m.Streams.Dictionaries.MaxAge == 0 {
		age := min(max(m.Streams.Frames.MaxAge, m.Streams.Deltas.MaxAge), maxRetentionAge)
		m.Streams.Dictionaries.MaxAge = defaultDictionaryAges * age
	}
}

// NewPartitions returns how many partitions streams are made with: 2 with the embedded server, where each has a message of its own each time, and 16
// in a cluster, where they are shared out, unless another number is set.
func (m *Millrace) NewPartitions() int {
	switch {
	case m.Streams.Partitions != 0:
		return m.Streams.Partitions
	case m.NATS.IsEmbedded():
		return defaultPartitionsEmbedded
	}
	return defaultPartitionsCluster
}

// setDirectory makes the block's relative file names relative to dir.
func (m *Millrace) setDirectory(dir string) {
	files := []*string{
		&m.NATS.CredentialsFile, &m.NATS.NKeySeedFile, &m.NATS.PasswordFile,
		&m.NATS.TLS.CAFile, &m.NATS.TLS.CertFile, &m.NATS.TLS.KeyFile,
	}
	for _, file := range append(files, m.Ingest.files()...) {
		*file = promcommon.JoinDir(dir, *file)
	}
}

// IsEmbedded tells whether the streams live in a server inside this process.
func (n NATS) IsEmbedded() bool { return n.URL == "" }

// ReadPassword returns the password, from password_file (without the white space around it) where that is set.
func (n NATS) ReadPassword() (string, error) {
	if n.PasswordFile == "" {
		return string(n.Password), nil
	}
	b, err := os.ReadFile(n.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the NATS password (millrace.nats.password_file): %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
