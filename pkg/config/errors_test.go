package config

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const docs = "see https://prometheus.io/docs/prometheus/latest/configuration/configuration/#"

// checkErrors loads c.yml of files and compares what is wrong with want, a line for each error.
func checkErrors(t *testing.T, files map[string]string, want string) {
	t.Helper()
	dir := writeFiles(t, files)
	_, err := Load(filepath.Join(dir, "c.yml"), nil)
	if err == nil {
		t.Fatalf("loaded, want %s", want)
	}
	got := strings.ReplaceAll(err.Error(), dir+"/", "")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("errors (-want +got):\n%s", diff)
	}
	for _, e := range AllErrors(err) {
		if e.File == "" || e.Line == 0 || e.Message == "" || e.Remedy == "" {
			t.Errorf("error lacks its file, line, message or remedy: %+v", e)
		}
	}
}

func TestErrorsOfKeys(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"block's section at the top", "global: {}\nnats:\n  url: x\n", "c.yml:2: nats: unknown key: it belongs under millrace:"},
		{"block's key at the top", "partitions: 3\n", "c.yml:1: partitions: unknown key: it belongs under millrace.streams"},
		{"several", "streams: {}\n\nwriter: {}\n", "c.yml:1: streams: unknown key: it belongs under millrace:\n" +
			"c.yml:3: writer: unknown key: it belongs under millrace:"},
		{"block misspelt", "milrace: {}\n", "c.yml:1: milrace: unknown key: did you mean millrace:?"},
		{"block in capitals", "Millrace: {}\n", "c.yml:1: Millrace: unknown key: did you mean millrace:?"},
		{"section misspelt", "remote-write: []\n", "c.yml:1: remote-write: unknown key: did you mean remote_write:?"},
		{"nothing near", "xyzzy: 1\n", "c.yml:1: xyzzy: unknown key: top-level keys are millrace, alerting, global, otlp, remote_read, " +
			"remote_write, rule_files, runtime, scrape_config_files, scrape_configs, storage, tracing"},
		{"block inside a section", "global:\n  millrace: {}\n", "c.yml:2: global.millrace: unknown key: the millrace block belongs at the top level of the file"},
		{"block twice", "millrace: {}\nmillrace: {}\n", "c.yml:2: millrace: is there twice: join it with the one at line 1"},
		{
			"block in a second document", "global: {}\n---\nmillrace: {}\n",
			"c.yml:3: millrace: stands in the file's second or a later YAML document: move it into the first one, above the line ---",
		},
		{
			"block in a flow document", "{global: {},\n millrace: {}}\n", "c.yml:2: millrace: cannot be told apart from what stands around it: " +
				"write each top-level key of the file at the start of a line of its own, not in braces",
		},
		{
			"anchor of the block used outside", "millrace: {scraper: {linger: &l 1s}}\nglobal:\n  scrape_interval: *l\n",
			"c.yml:3: millrace: anchor &l is set inside the block and used outside it: write the value out here, or set the anchor in another section",
		},
		{"near miss", "millrace:\n  streams:\n    partitons: 3\n", "c.yml:3: millrace.streams.partitons: unknown key: did you mean partitions:?"},
		{"two letters swapped", "millrace:\n  strams: {}\n", "c.yml:2: millrace.strams: unknown key: did you mean streams:?"},
		{"in another section", "millrace:\n  streams:\n    linger: 1s\n", "c.yml:3: millrace.streams.linger: unknown key: it belongs under millrace.scraper, millrace.ingest"},
		{"in several sections", "millrace:\n  max_age: 1h\n", "c.yml:2: millrace.max_age: unknown key: it belongs under " +
			"millrace.streams.frames, millrace.streams.deltas, millrace.streams.dictionaries, millrace.streams.rejected"},
		{"near miss elsewhere", "millrace:\n  lingr: 1s\n", "c.yml:2: millrace.lingr: unknown key: did you mean linger:? it belongs under millrace.scraper, millrace.ingest"},
		{"Prometheus's section in the block", "millrace:\n  remote_write: []\n", "c.yml:2: millrace.remote_write: unknown key: it belongs at the top level of the file"},
		{"unknown in the block", "millrace:\n  xyzzy: 1\n", "c.yml:2: millrace.xyzzy: unknown key: the keys here are nats, streams, fleet, scraper, ingest, cardinality, writer"},
		{"twice in the block", "millrace:\n  nats: {prefix: a,\n    prefix: b}\n", "c.yml:3: millrace.nats.prefix: is there twice: keep one"},
		{"twice at the top", "global: {}\nglobal: {}\n", "c.yml:2: global: is there twice: keep one"},
		{"unknown of Prometheus", "scrape_configs:\n  - job_name: a\n    scrape_intervall: 5s\n", "c.yml:3: scrape_configs[0].scrape_intervall: unknown key: did you mean scrape_interval:?"},
		{"unknown service discovery", "scrape_configs:\n  - job_name: a\n    nosuch_sd_configs: []\n", "c.yml:3: scrape_configs[0].nosuch_sd_configs: unknown key: " +
			"this binary has no service discovery of that name: correct the name, or use a binary built with it"},
		{"known elsewhere", "scrape_configs:\n  - job_name: a\n    queue_config: {}\n", "c.yml:3: scrape_configs[0].queue_config: unknown key: " +
			"the key exists, and not here: " + docs + "scrape_config"},
		{"block's key in a section", "scrape_configs:\n  - job_name: a\n    linger: 1s\n", "c.yml:3: scrape_configs[0].linger: unknown key: it belongs under millrace.scraper, millrace.ingest"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkErrors(t, map[string]string{"c.yml": c.text}, c.want) })
	}
}

func TestErrorsOfValues(t *testing.T) {
	const two = "\n      - targets: [a]\n  - job_name: b\n    scrape_interval: 5x\n"
	cases := []struct{ name, text, want string }{
		{"not YAML", "global:\n  a: b: c\n", "c.yml:2: broken YAML: mapping values are not allowed in this context: " +
			"put a value that contains a colon and a space in quotes, or correct the indentation"},
		{"tab", "global:\n\tscrape_interval: 5s\n", "c.yml:2: broken YAML: found character that cannot start any token: " +
			"indent with spaces, not tabs; put values that begin with @, ` or % in quotes"},
		{"wrong indentation", "global:\n  a: 1\n b: 2\n", "c.yml:3: broken YAML: did not find expected key: " +
			"look here and just above for wrong indentation, an open quote or bracket, or a missing colon"},
		{"control character", "global:\n  a: \x01\n", "c.yml:2: broken YAML: control characters are not allowed: remove the character that cannot be seen"},
		{"unknown anchor", "global:\n  scrape_interval: *x\n", "c.yml:2: broken YAML: unknown anchor 'x' referenced: set the anchor (&name) above the line that uses it (*name)"},
		{"list", "- a\n", "c.yml:1: the top level is a list: write sections such as scrape_configs: and remote_write: each on a line of its own"},
		{"word", "hello\n", "c.yml:1: the top level is a single value: write sections such as scrape_configs: and remote_write: each on a line of its own"},
		{"wrong kind", "scrape_configs: 5\n", `c.yml:1: scrape_configs: want a list, have "5": correct the value; ` + docs + "scrape_config"},
		{"wrong type", "global:\n  sample_limit: many\n", `c.yml:2: global.sample_limit: want a whole number, 0 or more, have "many": correct the value; ` + docs + "configuration-file"},
		{"duration", "scrape_configs:\n  - job_name: a\n    static_configs:" + two, `c.yml:6: scrape_configs[1].scrape_interval: unknown unit "x" in duration "5x": write a duration such as 30s or 5m`},
		{"in global", "global:\n  scrape_interval: soon\n", `c.yml:2: global.scrape_interval: not a valid duration string: "soon": write a duration such as 30s or 5m`},
		{"job twice", "scrape_configs:\n  - job_name: a\n  - job_name: b\n  - job_name: a\n", `c.yml:4: scrape_configs[2].job_name: found multiple scrape configs with job name "a": give each scrape config a job_name of its own`},
		{"endpoint twice", "remote_write:\n  - {url: http://a/w, name: x}\n  - {url: http://b/w, name: x}\n", `c.yml:3: remote_write[1].name: found multiple remote write configs with job name "x": give each remote_write item a name of its own`},
		{"no URL", "remote_write:\n  - url: http://a/w\n  - name: x\n", "c.yml:3: remote_write[1]: url for remote_write is empty: set url"},
		{"no HTTP URL", "remote_write:\n  - name: x\n    url: localhost:9090\n", `c.yml:3: remote_write[0].url: "localhost:9090" is no HTTP URL: write it as https://host/path`},
		{"two kinds of auth", "remote_write:\n  - url: http://a/w\n    basic_auth: {username: u}\n    sigv4: {region: r}\n", "c.yml:2: remote_write[0]: " +
			"at most one of basic_auth, authorization, oauth2, sigv4, azuread or google_iam must be configured. Currently configured: [basic_auth sigv4]: keep one of them"},
		{"TLS", "remote_write:\n  - url: https://a/w\n    tls_config: {cert_file: c}\n", "c.yml:2: remote_write[0]: exactly one of key or key_file must be configured when a client certificate is configured: " + docs + "remote_write"},
		{"regular expression", "remote_write:\n  - url: https://a/w\n    write_relabel_configs:\n      - {regex: '(a', action: drop}\n", "c.yml:2: remote_write[0]: " +
			"error parsing regexp: missing closing ): `^(?s:(a)$`: correct the regular expression (RE2 syntax)"},
		{"block and Prometheus's part at once", "millrace: {scraper: {linger: x}}\nremote_write: [{name: a}]\n", `c.yml:1: millrace.scraper.linger: want a duration such as 500ms or 24h, have "x": correct the value` +
			"\nc.yml:2: remote_write[0]: url for remote_write is empty: set url"},
		{"alerting", "global: {}\nalerting:\n  alert_relabel_configs: [{action: labeldrop, regex: a}]\n", "c.yml:2: alerting: is not allowed in agent mode: remove it: " +
			"Millrace collects and forwards as a Prometheus agent does; alerts are sent by the Prometheus that evaluates rules"},
		{"rules", "rule_files: [a.yml]\n", "c.yml:1: rule_files: is not allowed in agent mode: remove it: " +
			"Millrace collects and forwards as a Prometheus agent does; evaluate rules where the samples are stored"},
		{"remote_read", "remote_read: [{url: http://a}]\n", "c.yml:1: remote_read: is not allowed in agent mode: remove it: " +
			"Millrace collects and forwards as a Prometheus agent does; query where the samples are stored"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkErrors(t, map[string]string{"c.yml": c.text}, c.want) })
	}
}

func TestErrorsOfBlockValues(t *testing.T) {
	const streams, nats, cluster = "millrace:\n  streams: ", "millrace:\n  nats: ", "millrace:\n  nats:\n    url: nats://a:4222\n    "
	const ingest = "millrace: {ingest: "
	cases := []struct{ name, text, want string }{
		{"list", "millrace: []\n", "c.yml:1: millrace: want keys below it, have a list: the keys are nats, streams, fleet, scraper, ingest, cardinality, writer"},
		{"value", nats + "nats://a\n", "c.yml:2: millrace.nats: want keys below it, have a single value: the keys are url, prefix, credentials_file, nkey_seed_file, username, password, password_file, tls, embedded"},
		{"list for a value", nats + "{prefix: [a]}\n", "c.yml:2: millrace.nats.prefix: want text, have a list: write it behind the colon"},
		{"number", streams + "{partitions: four}\n", `c.yml:2: millrace.streams.partitions: want a whole number, have "four": correct the value`},
		{"another bool", "millrace: {scraper: {loopback_identity: often}}\n", `c.yml:1: millrace.scraper.loopback_identity: want true or false, have "often": correct the value`},
		{"bool", "millrace: {scraper: {start_timestamps: maybe}}\n", `c.yml:1: millrace.scraper.start_timestamps: want true or false, have "maybe": correct the value`},
		{"size", streams + "{frames: {max_bytes: 10GB}}\n", `c.yml:2: millrace.streams.frames.max_bytes: want a size such as 64MiB or a number of bytes, have "10GB": correct the value`},
		{"sync", streams + "{sync: never}\n", `c.yml:2: millrace.streams.sync: want always or a duration such as 2s, have "never": correct the value`},
		{"partitions", streams + "{partitions: 1025}\n", "c.yml:2: millrace.streams.partitions: is 1025: choose 1 to 1024, or 0 for the default"},
		{"replicas", cluster + "prefix: a\n  streams: {replicas: 2}\n", "c.yml:5: millrace.streams.replicas: is 2: choose 1, 3 or 5"},
		{"replicas embedded", streams + "{replicas: 3}\n", "c.yml:2: millrace.streams.replicas: is 3, and the embedded server is a single one: set it to 1, or set millrace.nats.url to the address of a NATS cluster"},
		{"age", streams + "{frames: {max_age: 10ms}}\n", "c.yml:2: millrace.streams.frames.max_age: is 10ms: choose a duration from 1s to 10y"},
		{"age beyond all", streams + "{frames: {max_age: 290y}}\n", "c.yml:2: millrace.streams.frames.max_age: is 290y: choose a duration from 1s to 10y"},
		{"dictionaries pass first", streams + "{dictionaries: {max_age: 25h}}\n", "c.yml:2: millrace.streams.dictionaries.max_age: is 1d1h: " +
			"dictionaries would pass before the frames that need them (1d): choose at least 2d (twice frames.max_age), or leave it out"},
		{"dictionaries pass before deltas", streams + "{deltas: {max_age: 2d}, dictionaries: {max_age: 3d}}\n", "c.yml:2: millrace.streams.dictionaries.max_age: is 3d: " +
			"dictionaries would pass before the deltas that need them (2d): choose at least 4d (twice deltas.max_age), or leave it out"},
		{"no age of deltas", streams + "{deltas: {max_age: 10ms}}\n", "c.yml:2: millrace.streams.deltas.max_age: is 10ms: choose a duration from 1s to 10y"},
		{"no bytes", streams + "{rejected: {max_bytes: 0}}\n", "c.yml:2: millrace.streams.rejected.max_bytes: is 0: choose a size from 1MiB to 1024PiB"},
		{"storage", nats + "{embedded: {max_storage: 5GiB}}\n", "c.yml:2: millrace.nats.embedded.max_storage: is 5GiB, and the streams may hold 16GiB: " +
			"raise it, lower the max_bytes of frames, deltas, dictionaries (they count twice) and rejected, or leave it out"},
		{"pushes linger", ingest + "{linger: 21ms}}\n", "c.yml:1: millrace.ingest.linger: is 21ms: choose a duration from 0s to 20ms"},
		{"no host:port", ingest + "{otlp: {http: {listen: '4318'}}}}\n",
			`c.yml:1: millrace.ingest.otlp.http.listen: "4318" is no host:port: write an address such as 0.0.0.0:4318, or "" for no listener`},
		{"one address twice", ingest + "{otlp: {http: {listen: 'localhost:4317'}}}}\n",
			"c.yml:1: millrace.ingest.otlp.http.listen: is the address of otlp.grpc too: give each an address of its own"},
		{"clients without certificate", ingest + "{otlp: {grpc: {tls: {client_ca_file: a}}}}}\n",
			"c.yml:1: millrace.ingest.otlp.grpc.tls.client_ca_file: is set without cert_file: set cert_file and key_file too"},
		{"key alone", ingest + "{otlp: {http: {tls: {key_file: a}}}}}\n", "c.yml:1: millrace.ingest.otlp.http.tls.key_file: is set without cert_file: set both or none"},
		{"user without password", ingest + "{remote_write: {basic_auth: {username: u}}}}\n",
			"c.yml:1: millrace.ingest.remote_write.basic_auth: has a username and no password: set password or password_file"},
		{"two tokens", ingest + "{remote_write: {bearer_token: a, bearer_token_file: b}}}\n",
			"c.yml:1: millrace.ingest.remote_write.bearer_token_file: is set beside bearer_token: keep one of them"},
		{"rate", ingest + "{remote_write: {max_samples_per_second: -1}}}\n",
			"c.yml:1: millrace.ingest.remote_write.max_samples_per_second: is -1: choose a number above 0, or 0 for no limit"},
		{"rate of a wrong kind", ingest + "{remote_write: {max_samples_per_second: all}}}\n",
			`c.yml:1: millrace.ingest.remote_write.max_samples_per_second: want a number, have "all": correct the value`},
		{"tenant's label", ingest + "{tenant: {label: __name__}}}\n", `c.yml:1: millrace.ingest.tenant.label: is "__name__": choose a label name such as tenant`},
		{"delta streams", ingest + "{delta: {max_streams: 0}}}\n", "c.yml:1: millrace.ingest.delta.max_streams: is 0: choose a number above 0"},
		{"linger", "millrace: {scraper: {linger: 11s}}\n", "c.yml:1: millrace.scraper.linger: is 11s: choose a duration above 0 and at most 10s"},
		{"batch", "millrace: {scraper: {max_batch_bytes: 1MiB}}\n", "c.yml:1: millrace.scraper.max_batch_bytes: is 1MiB: choose a size from 16KiB to 900KiB"},
		{"read ahead", "millrace: {writer: {read_ahead_bytes: 1}}\n", "c.yml:1: millrace.writer.read_ahead_bytes: is 1: choose a size from 1MiB to 1024PiB"},
		{"fresh after", "millrace: {writer: {fresh_first: {after: 0s}}}\n", "c.yml:1: millrace.writer.fresh_first.after: is 0s: choose a duration from 1s to 1w"},
		{"share of a backlog", "millrace: {writer: {fresh_first: {backlog_share: 50}}}\n", "c.yml:1: millrace.writer.fresh_first.backlog_share: is 50: choose a number from 0.01 to 1"},
		{"fresh first for nobody", "millrace: {writer: {fresh_first: {endpoints: [a]}}}\n",
			`c.yml:1: millrace.writer.fresh_first.endpoints: has "a", which no remote_write item is named: add one, or remove it: there is none`},
		{"fresh first for an unknown endpoint", "remote_write: [{name: b, url: 'http://h/w'}]\nmillrace: {writer: {fresh_first: {endpoints: [a]}}}\n",
			`c.yml:2: millrace.writer.fresh_first.endpoints: has "a", which no remote_write item is named: choose from b`},
		{"prefix", nats + "{prefix: a.b}\n", `c.yml:2: millrace.nats.prefix: is "a.b": use 1 to 32 letters, digits, _ and -`},
		{"URL", nats + "{url: 'a:4222'}\n", `c.yml:2: millrace.nats.url: is no URL with a scheme and a host: write nats://host:4222, several comma separated`},
		{"scheme", nats + "{url: 'nats://a,http://b'}\n", `c.yml:2: millrace.nats.url: URL 2 has the unknown scheme "http": write nats://host:4222, several comma separated`},
		{"WebSocket mixed", nats + "{url: 'nats://a,ws://b'}\n", "c.yml:2: millrace.nats.url: mixes WebSocket URLs with others: use ws:// and wss:// for all of them or for none"},
		{"listen", nats + "{embedded: {listen: '4222'}}\n", `c.yml:2: millrace.nats.embedded.listen: "4222" is no host:port: write an address such as 127.0.0.1:4222`},
		{"auth embedded", nats + "{username: u}\n", "c.yml:2: millrace.nats.username: is for a NATS cluster, and nats.url is empty: " +
			"set millrace.nats.url, or remove it: the embedded server needs none and is not guarded by it"},
		{"two auths", cluster + "credentials_file: a\n    username: u\n", "c.yml:5: millrace.nats.username: is set beside credentials_file: keep one of credentials_file, username"},
		{"two passwords", cluster + "username: u\n    password: a\n    password_file: b\n", "c.yml:6: millrace.nats.password_file: is set beside password: keep one of them"},
		{"password alone", cluster + "password: a\n", "c.yml:4: millrace.nats.password: is set without username: set username too"},
		{"certificate alone", cluster + "tls: {cert_file: a}\n", "c.yml:4: millrace.nats.tls.cert_file: is set without key_file: set both or none"},
		{"password of a wrong kind", cluster + "username: u\n    password: [hunter2]\n", "c.yml:5: millrace.nats.password: want text, have a list: write it behind the colon"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkErrors(t, map[string]string{"c.yml": c.text}, c.want) })
	}
}

func TestErrorsOfScrapeConfigFiles(t *testing.T) {
	const main = "millrace: {}\nscrape_config_files: [d/*]\nscrape_configs: [{job_name: a}]\n"
	cases := []struct{ name, part, want string }{
		{"broken", "scrape_configs:\n  - a: b: c\n", "d/x.yml:2: broken YAML: mapping values are not allowed in this context: " +
			"put a value that contains a colon and a space in quotes, or correct the indentation"},
		{"unknown key", "scrape_configs:\n  - job_name: b\n    scheem: http\n", "d/x.yml:3: scrape_configs[0].scheem: unknown key: did you mean scheme:?"},
		{"other section", "global: {}\n", "d/x.yml:1: global: unknown key: a file of scrape_config_files holds scrape_configs: and nothing else"},
		{"the block", "millrace: {}\n", "d/x.yml:1: millrace: unknown key: a file of scrape_config_files holds scrape_configs: and nothing else"},
		{"invalid", "scrape_configs:\n  - job_name: b\n  - job_name: c\n    scrape_timeout: 2m\n", `d/x.yml:3: scrape_configs[1].job_name: ` +
			`scrape timeout greater than scrape interval for scrape config with job name "c": lower scrape_timeout or raise scrape_interval`},
		{"job of the main file", "scrape_configs:\n  - job_name: b\n  - job_name: a\n", `d/x.yml:3: scrape_configs[1].job_name: found multiple scrape configs with job name "a", ` +
			"first found in main config file: give each scrape config a job_name of its own"},
		{"not UTF-8", "scrape_configs:\n#\xff\n", "d/x.yml:2: not UTF-8 text: save the file as UTF-8"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { checkErrors(t, map[string]string{"c.yml": main, "d/x.yml": c.part}, c.want) })
	}
	t.Run("folder", func(t *testing.T) {
		checkErrors(t, map[string]string{"c.yml": main, "d/sub/x.yml": ""},
			"c.yml:2: scrape_config_files: a pattern matches d/sub, which is a directory: narrow it to files, such as *.yml")
	})
}

func TestErrorsShowNoPasswordOfAURL(t *testing.T) {
	for _, text := range []string{
		"remote_write: [{url: 'http://u:hunter2@a:x/w'}]\n",
		"remote_write: [{url: 'ftp://u:hunter2@a/w'}]\n",
		"millrace: {nats: {url: 'http://u:hunter2@a'}}\n",
	} {
		if _, err := loadText(t, text); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", text, err)
		}
	}
}

func TestErrorsCanBeTakenApart(t *testing.T) {
	_, err := loadText(t, "nats: {}\nwriter: {}\n")
	var first *Error
	if !errors.As(err, &first) || first.Key != "nats" || first.Line != 1 {
		t.Errorf("errors.As gives %+v, want the first error", first)
	}
	if got := len(AllErrors(err)); got != 2 {
		t.Errorf("%d errors, want 2", got)
	}
	if AllErrors(errors.New("other")) != nil {
		t.Error("AllErrors of another error is not nil")
	}
}
