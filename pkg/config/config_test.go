package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"

	_ "github.com/prometheus/prometheus/discovery/dns"  // dns_sd_configs in testdata
	_ "github.com/prometheus/prometheus/discovery/file" // file_sd_configs in testdata
	_ "github.com/prometheus/prometheus/discovery/http" // http_sd_configs in testdata
)

// writeFiles writes files, by name and content, to a new folder and returns the folder.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return Load(filepath.Join(writeFiles(t, map[string]string{"c.yml": text}), "c.yml"), nil)
}

func mustLoadText(t *testing.T, text string) *Config {
	t.Helper()
	c, err := loadText(t, text)
	if err != nil {
		t.Fatalf("Load: %v\n%s", err, text)
	}
	return c
}

func mustLoad(t *testing.T, path string) *Config {
	t.Helper()
	c, err := Load(path, nil)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return c
}

func TestAgentConfigLoadsUnchanged(t *testing.T) {
	t.Setenv("CONFIG_TEST_REPLICA", "r-7")
	c := mustLoad(t, "testdata/agent.yml")

	var jobs []string
	for _, s := range c.ScrapeConfigs {
		jobs = append(jobs, s.JobName)
	}
	if diff := cmp.Diff([]string{"self", "files", "web", "names", "from_file_a", "from_file_b"}, jobs); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
	if got, want := c.ScrapeConfigs[4].HTTPClientConfig.TLSConfig.CAFile, "testdata/scrape.d/ca-a.pem"; got != want {
		t.Errorf("CA file of a scrape config file = %q, want %q", got, want)
	}
	if got, want := c.Endpoints[5].HTTPClientConfig.TLSConfig.CertFile, "testdata/tls/client.pem"; got != want {
		t.Errorf("client certificate = %q, want %q", got, want)
	}
	var retries []bool
	for _, e := range c.Endpoints {
		retries = append(retries, e.RetryOn429)
		if got, want := e.ExternalLabels.String(), `{cluster="eu-1", price="5$", replica="r-7"}`; got != want {
			t.Errorf("endpoint %s: external labels %s, want %s", e.Name, got, want)
		}
	}
	if diff := cmp.Diff([]bool{true, true, true, false, true, true}, retries); diff != "" {
		t.Errorf("RetryOn429 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(DefaultMillrace(), c.Millrace); diff != "" {
		t.Errorf("millrace block (-want +got):\n%s", diff)
	}
	want := []string{"testdata/agent.yml:71: remote_write[3].queue_config: max_shards without effect: " +
		"partitions replace them (millrace.streams.partitions)"}
	if diff := cmp.Diff(want, c.Warnings()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// wantIngest is what testdata/millrace.yml says of pushes.
func wantIngest() Ingest {
	duration := func(d time.Duration) model.Duration { return model.Duration(d) }
	i := Ingest{
		Linger: duration(5 * time.Millisecond), MaxPendingBytes: 32 * MiB, MaxSeries: 1000, SeriesIdle: duration(10 * time.Minute),
		OutOfOrderWindow: duration(30 * time.Second), AckTimeout: duration(20 * time.Second), Tenant: Tenant{Header: "X-Tenant", Label: "tenant"},
		Delta: Delta{Enabled: true, MaxStale: duration(time.Hour), MaxStreams: 5000},
	}
	i.OTLP.GRPC = Listener{
		Listen: "0.0.0.0:14317", TLS: ServerTLS{CertFile: "testdata/tls/otlp.pem", KeyFile: "testdata/tls/otlp.key", ClientCAFile: "testdata/tls/clients.pem"},
		Door: Door{
			BasicAuth: BasicAuth{Username: "otel", Password: "hunter2-grpc"}, BearerToken: "hunter2-token",
			MaxBodyBytes: MiB, MaxDecompressedBytes: 2 * MiB, MaxInFlightBytes: 3 * MiB, MaxConcurrentRequests: 4, MaxSeriesPerRequest: 5,
			MaxLabelNames: 6, MaxLabelNameBytes: 7, MaxLabelValueBytes: 8, MaxSamplesPerSecond: 9.5,
			ReadTimeout: duration(10 * time.Second), IdleTimeout: duration(11 * time.Second),
		},
	}
	defaults := DefaultMillrace().Ingest.RemoteWrite
	i.OTLP.HTTP.Door, i.RemoteWrite = defaults, defaults
	i.OTLP.HTTP.MaxBodyBytes = 12 * MiB
	i.RemoteWrite.BasicAuth = BasicAuth{Username: "agent", PasswordFile: "testdata/secrets/agent"}
	i.RemoteWrite.BearerTokenFile = "testdata/secrets/token"
	return i
}

func TestEverySettingOfTheBlockIsRead(t *testing.T) {
	c := mustLoad(t, "testdata/millrace.yml")
	const day = model.Duration(24 * time.Hour)
	want := Millrace{
		NATS: NATS{
			URL: "tls://nats-1.example.org:4222, tls://nats-2.example.org:4222", Prefix: "metrics-eu",
			Username: "millrace", Password: "hunter2-nats",
			TLS: TLS{
				CAFile: "testdata/tls/nats-ca.pem", CertFile: "testdata/tls/nats.pem", KeyFile: "/etc/millrace/nats.key",
				ServerName: "nats.example.org", InsecureSkipVerify: true,
			},
			Embedded: Embedded{Listen: "127.0.0.1:4222", MaxMemory: 128 * MiB, MaxStorage: 20 * GiB},
		},
		Streams: Streams{
			Partitions: 32, Replicas: 3, Sync: Sync(2 * time.Second),
			Frames:       Retention{MaxAge: 2 * day, MaxBytes: 100 * GiB},
			Deltas:       Retention{MaxAge: day, MaxBytes: 2 * GiB},
			Dictionaries: Retention{MaxAge: 5 * day, MaxBytes: 4 * GiB},
			Rejected:     Retention{MaxAge: 7 * day, MaxBytes: MiB},
		},
		Fleet: Fleet{LeaseTTL: model.Duration(7 * time.Second)},
		Scraper: Scraper{
			Linger: model.Duration(time.Second), MaxBatchBytes: 512 * KiB, MaxPendingBytes: 128 * MiB, MaxBodyBytes: 64 * MiB, StartTimestamps: true, LoopbackIdentity: true,
		},
		Ingest: wantIngest(),
		Cardinality: Cardinality{
			FreeAfter: model.Duration(2 * time.Hour),
			Target:    SeriesLimit{MaxSeries: 1, Action: "warn", Labels: []string{}}, Job: SeriesLimit{MaxSeries: 2, Action: "refuse", Labels: []string{}},
			Metric: SeriesLimit{MaxSeries: 3, Action: "drop_label", Labels: []string{"user_id", "session"}},
			All:    SeriesLimit{MaxSeries: 4, Action: "refuse", Labels: []string{}},
		},
		Writer: Writer{LabelCacheBytes: 32 * MiB, ReadAheadBytes: 4 * MiB, FreshFirst: FreshFirst{Endpoints: []string{"one"}, After: model.Duration(time.Minute), BacklogShare: 0.25}},
	}
	if diff := cmp.Diff(want, c.Millrace); diff != "" {
		t.Errorf("millrace block (-want +got):\n%s", diff)
	}
	wantWarnings := []string{
		"testdata/millrace.yml:14: millrace.nats.embedded: without effect: nats.url is set, and the NATS servers' own configuration says it",
		"testdata/millrace.yml:21: millrace.streams.sync: without effect: nats.url is set, and the NATS servers' own configuration says it",
	}
	if diff := cmp.Diff(wantWarnings, c.Warnings()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestBlockIsCutFromAnyPlace(t *testing.T) {
	const head, tail = "global:\n  scrape_interval: 7s\n", "remote_write:\n  - url: http://a/w\n"
	const block = "millrace:\n  streams:\n    partitions: 9\n"
	cases := map[string]string{
		"start":            block + head + tail,
		"middle":           head + block + tail,
		"end":              head + tail + block,
		"no last newline":  head + tail + strings.TrimSuffix(block, "\n"),
		"CRLF":             strings.ReplaceAll(head+block+tail, "\n", "\r\n"),
		"CR":               strings.ReplaceAll(head+block+tail, "\n", "\r"),
		"byte order mark":  "\ufeff" + block + head + tail,
		"document marks":   "---\n" + head + tail + block + "...\n",
		"YAML directive":   "%YAML 1.1\n---\n" + head + tail + block,
		"comments":         head + "# before\n" + "millrace: # beside\n# not indented\n  streams:\n    # inside\n    partitions: 9\n# after\n" + tail,
		"blank lines":      head + "\n\nmillrace:\n\n  streams:\n\n    partitions: 9\n\n\n" + tail,
		"tabs":             head + "millrace:\t# tab\n  streams:\t{partitions:\t9}\t\n" + tail,
		"quoted key":       head + "\"millrace\":\n  streams: {partitions: 9}\n" + tail,
		"complex key":      head + "? millrace\n: streams: {partitions: 9}\n" + tail,
		"flow block":       head + "millrace: {streams: {partitions: 9,\n  replicas: 1}}\n" + tail,
		"indented file":    "  global: {scrape_interval: 7s}\n  millrace:\n    streams: {partitions: 9}\n  remote_write: [{url: http://a/w}]\n",
		"anchor from file": "global:\n  scrape_interval: &seven 7s\n" + block + "  scraper: {linger: *seven}\n" + tail,
		"anchor inside":    head + "millrace:\n  streams: {partitions: 9, frames: &r {max_age: 1d}, rejected: *r}\n" + tail,
		"merge": head + "millrace:\n  streams:\n    partitions: 9\n    frames: &r {max_age: 1d, max_bytes: 1GiB}\n" +
			"    rejected: {<<: *r, max_age: 2d}\n" + tail,
		"text in other sections": head + "  external_labels: {a: \"\n    millrace: x\"}\n" + block + tail,
	}
	for name, text := range cases {
		t.Run(name, func(t *testing.T) {
			c := mustLoadText(t, text)
			if got := c.Millrace.Streams.Partitions; got != 9 {
				t.Errorf("partitions = %d, want 9", got)
			}
			if got := c.Prometheus.GlobalConfig.ScrapeInterval; got != model.Duration(7*time.Second) {
				t.Errorf("scrape_interval = %s, want 7s", got)
			}
			if len(c.Endpoints) != 1 {
				t.Errorf("%d endpoints, want 1", len(c.Endpoints))
			}
		})
	}
}

func TestLinesStayThoseOfTheFile(t *testing.T) {
	const text = "millrace:\n  streams:\n    partitions: 2\nscrape_configs:\n  - job_name: a\n    scrape_intervall: 5s\n"
	for name, text := range map[string]string{"LF": text, "CRLF": strings.ReplaceAll(text, "\n", "\r\n")} {
		_, err := loadText(t, text)
		var e *Error
		if !errors.As(err, &e) || e.Line != 6 {
			t.Errorf("%s: error %v, want one at line 6", name, err)
		}
	}
}

func TestEmptyFileIsAllDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "null\n", "millrace:\n", "millrace: {}\n", "millrace: {nats: , streams: ~}\n"} {
		c := mustLoadText(t, text)
		if diff := cmp.Diff(DefaultMillrace(), c.Millrace); diff != "" {
			t.Errorf("%q: millrace block (-want +got):\n%s", text, diff)
		}
		if len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0], "there is no endpoint") {
			t.Errorf("%q: warnings %q, want the one for no endpoint", text, c.Warnings())
		}
	}
}

func TestDefaultsFollowOtherSettings(t *testing.T) {
	c := mustLoadText(t, "millrace:\n  nats: {url: 'nats://a:4222'}\n  streams: {frames: {max_age: 2h}}\n")
	if got := c.Millrace.NewPartitions(); got != 16 {
		t.Errorf("partitions with nats.url = %d, want 16", got)
	}
	if got := c.Millrace.Streams.Dictionaries.MaxAge; got != model.Duration(6*time.Hour) {
		t.Errorf("dictionaries.max_age = %s, want 6h", got)
	}
	m := DefaultMillrace()
	if got := m.NewPartitions(); got != 2 {
		t.Errorf("partitions embedded = %d, want 2", got)
	}
	if m.Streams.Partitions = 9; m.NewPartitions() != 9 {
		t.Errorf("partitions = %d, want 9", m.NewPartitions())
	}
}

func TestOverrideCountsBeforeDefaultsAndValidation(t *testing.T) {
	dir := writeFiles(t, map[string]string{"c.yml": "millrace: \n  streams: {replicas: 3}\n"})
	path := filepath.Join(dir, "c.yml")
	if _, err := Load(path, nil); err == nil {
		t.Error("3 replicas in an embedded server were accepted")
	}
	c, err := Load(path, nil, func(m *Millrace) { m.NATS.URL = "nats://a:4222" })
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Millrace.NewPartitions(); got != 16 {
		t.Errorf("partitions = %d, want 16", got)
	}
}

func TestHashFollowsContentOnly(t *testing.T) {
	load := func(main, a, b string) string {
		dir := writeFiles(t, map[string]string{"c.yml": main, "d/a.yml": a, "d/b.yml": b})
		return mustLoad(t, filepath.Join(dir, "c.yml")).Hash
	}
	const main = "scrape_config_files: [d/*.yml]\n"
	base := load(main, "# a\n", "# b\n")
	if len(base) != 64 {
		t.Errorf("hash %q is not hex SHA-256", base)
	}
	if got := load(main, "# a\n", "# b\n"); got != base {
		t.Error("the same content in another folder has another hash")
	}
	for name, other := range map[string]string{
		"main file changed":   load(main+"#\n", "# a\n", "# b\n"),
		"scrape file changed": load(main, "# a2\n", "# b\n"),
		"line moved":          load(main, "# a\n# b\n", ""),
	} {
		if other == base {
			t.Errorf("%s: the hash is the same", name)
		}
	}
}

func TestWarnings(t *testing.T) {
	const text = `global: {query_log_file: q.log}
scrape_config_files: [none/*.yml]
storage:
  tsdb: {out_of_order_time_window: 1m}
tracing: {endpoint: "localhost:4317"}
otlp: {promote_resource_attributes: [a]} # has an effect
runtime:
  gogc: 50
  log_level: debug
remote_write:
  - url: http://a/w
    queue_config: {capacity: 5, min_shards: 1, max_samples_per_send: 10}
---
ignored: true
`
	dir := writeFiles(t, map[string]string{"c.yml": text})
	got := strings.ReplaceAll(strings.Join(mustLoad(t, filepath.Join(dir, "c.yml")).Warnings(), "\n"), dir+"/", "")
	const want = `c.yml:2: scrape_config_files[0]: no file matches none/*.yml
c.yml:1: global.query_log_file: without effect: Millrace answers no queries
c.yml:3: storage: without effect: samples are held in the streams (millrace.streams)
c.yml:5: tracing: without effect: Millrace does not trace itself
c.yml:8: runtime.gogc: without effect: set the environment variable GOGC
c.yml:9: runtime.log_level: without effect: use the flag --log.level
c.yml:12: remote_write[0].queue_config: capacity and min_shards without effect: partitions replace them (millrace.streams.partitions)
c.yml:14: what follows the file's first YAML document is not read`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestUnreadableFiles(t *testing.T) {
	dir := writeFiles(t, map[string]string{"bin.yml": "global:\n  a: \xff\xfe\n", "utf16.yml": "\xff\xfeg\x00"})
	cases := map[string]string{
		"none.yml":  "none.yml: no such file: give the path of a YAML file",
		".":         ".: is a directory: give the path of a YAML file in it",
		"bin.yml":   "bin.yml:2: not UTF-8 text: save the file as UTF-8",
		"utf16.yml": "utf16.yml:1: not UTF-8 text: it looks like UTF-16: save the file as UTF-8",
	}
	t.Chdir(dir)
	for path, want := range cases {
		_, err := Load(path, nil)
		if err == nil || err.Error() != want {
			t.Errorf("Load(%q) = %v, want %s", path, err, want)
		}
	}
	if _, err := Load("none.yml", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error of a missing file %v is not fs.ErrNotExist", err)
	}
}

func TestReadPassword(t *testing.T) {
	dir := writeFiles(t, map[string]string{"pw": " from-file \n"})
	for _, c := range []struct {
		nats NATS
		want string
	}{
		{NATS{Password: promcommon.Secret("inline")}, "inline"},
		{NATS{PasswordFile: filepath.Join(dir, "pw")}, "from-file"},
	} {
		if got, err := c.nats.ReadPassword(); err != nil || got != c.want {
			t.Errorf("ReadPassword() = %q, %v, want %q", got, err, c.want)
		}
	}
	if _, err := (NATS{PasswordFile: filepath.Join(dir, "none")}).ReadPassword(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}
