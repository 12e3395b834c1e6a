package config

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

const (
	maxPrefixLength = 32
	maxPartitions   = 1024
	maxRetentionAge = model.Duration(10 * 365 * 24 * time.Hour)
	maxByteSize     = 1024 * PiB
	maxLinger       = model.Duration(10 * time.Second)
	minBatchBytes   = 16 * KiB
	maxBatchBytes   = 900 * KiB // a message with its envelope stays below NATS's default max_payload of 1 MiB
)

var tokenPattern = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// validate checks a block whose defaults are filled in.
func (d *decoder) validate(m *Millrace) {
	d.validateNATS(&m.NATS)
	d.validateAuth(&m.NATS)
	d.validateStreams(m)
	d.validateFleet(m)
	d.validateIngest(&m.Ingest)
	d.validateCardinality(&m.Cardinality)
	const scraper, writer = "millrace.scraper.", "millrace.writer."
	if m.Scraper.Linger <= 0 || m.Scraper.Linger > maxLinger {
		d.fail(scraper+"linger", "is "+m.Scraper.Linger.String(), "choose a duration above 0 and at most 10s")
	}
	d.sizeBetween(scraper+"max_batch_bytes", m.Scraper.MaxBatchBytes, minBatchBytes, maxBatchBytes)
	d.sizeBetween(scraper+"max_pending_bytes", m.Scraper.MaxPendingBytes, MiB, maxByteSize)
	d.sizeBetween(scraper+"max_body_bytes", m.Scraper.MaxBodyBytes, 64*KiB, maxByteSize)
	d.sizeBetween(writer+"label_cache_bytes", m.Writer.LabelCacheBytes, MiB, maxByteSize)
	d.sizeBetween(writer+"read_ahead_bytes", m.Writer.ReadAheadBytes, MiB, maxByteSize)
	fresh := &m.Writer.FreshFirst
	d.durationBetween(writer+"fresh_first.after", fresh.After, model.Duration(time.Second), model.Duration(7*24*time.Hour))
	if !(fresh.BacklogShare >= 0.01 && fresh.BacklogShare <= 1) {
		d.fail(writer+"fresh_first.backlog_share", fmt.Sprintf("is %v", fresh.BacklogShare), "choose a number from 0.01 to 1")
	}
}

func (d *decoder) sizeBetween(path string, size, least, most ByteSize) {
	if size < least || size > most {
		d.fail(path, "is "+size.String(), fmt.Sprintf("choose a size from %s to %s", least, most))
	}
}

func (d *decoder) validateNATS(n *NATS) {
	const path = "millrace.nats."
	if !tokenPattern.MatchString(n.Prefix) || len(n.Prefix) > maxPrefixLength {
		d.fail(path+"prefix", fmt.Sprintf("is %q", n.Prefix),
			fmt.Sprintf("use 1 to %d letters, digits, _ and -", maxPrefixLength))
	}
	if n.URL != "" {
		d.validateURL(n.URL)
	}
	if n.Embedded.Listen != "" {
		_, port, err := net.SplitHostPort(n.Embedded.Listen)
		if number, convErr := strconv.Atoi(port); err != nil || convErr != nil || number < 0 || number > 65535 {
			d.fail(path+"embedded.listen", fmt.Sprintf("%q is no host:port", n.Embedded.Listen),
				"write an address such as 127.0.0.1:4222")
		}
	}
	d.sizeBetween(path+"embedded.max_memory", n.Embedded.MaxMemory, MiB, maxByteSize)
}

// validateURL checks nats.url. Its messages leave out the URL itself, which may hold a password.
func (d *decoder) validateURL(urls string) {
	const path, remedy = "millrace.nats.url", "write nats://host:4222, several comma separated"
	websocket := 0
	list := strings.Split(urls, ",")
	for i, one := range list {
		which := ""
		if len(list) > 1 {
			which = fmt.Sprintf("URL %d ", i+1)
		}
		u, err := url.Parse(strings.TrimSpace(one))
		switch {
		case err != nil || u.Host == "" || u.Hostname() == "":
			d.fail(path, which+"is no URL with a scheme and a host", remedy)
			return
		case !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
			d.fail(path, fmt.Sprintf("%shas the unknown scheme %q", which, u.Scheme), remedy)
			return
		case u.Scheme == "ws" || u.Scheme == "wss":
			websocket++
		}
	}
	if websocket != 0 && websocket != len(list) {
		d.fail(path, "mixes WebSocket URLs with others", "use ws:// and wss:// for all of them or for none")
	}
}

// validateAuth checks that at most one way to authenticate is set, whole, and only where there is a server to
// authenticate to: beside embedded.listen it would look as if it guarded that port.
func (d *decoder) validateAuth(n *NATS) {
	const path = "millrace.nats."
	settings := []struct {
		key string
		set bool
	}{
		{"credentials_file", n.CredentialsFile != ""},
		{"nkey_seed_file", n.NKeySeedFile != ""},
		{"username", n.Username != ""},
		{"password", n.Password != ""},
		{"password_file", n.PasswordFile != ""},
		{"tls", n.TLS != TLS{}},
	}
	if n.IsEmbedded() {
		for _, s := range settings {
			if s.set {
				d.fail(path+s.key, "is for a NATS cluster, and nats.url is empty",
					"set millrace.nats.url, or remove it: the embedded server needs none and is not guarded by it")
			}
		}
		return
	}
	var ways []string
	for _, s := range settings[:3] {
		if s.set {
			ways = append(ways, s.key)
		}
	}
	if len(ways) > 1 {
		d.fail(path+ways[1], "is set beside "+ways[0], "keep one of "+strings.Join(ways, ", "))
	}
	if n.Password != "" && n.PasswordFile != "" {
		d.fail(path+"password_file", "is set beside password", "keep one of them")
	}
	if n.Username == "" && (n.Password != "" || n.PasswordFile != "") {
		key := "password"
		if n.Password == "" {
			key = "password_file"
		}
		d.fail(path+key, "is set without username", "set username too")
	}
	if (n.TLS.CertFile == "") != (n.TLS.KeyFile == "") {
		have, miss := "cert_file", "key_file"
		if n.TLS.CertFile == "" {
			have, miss = miss, have
		}
		d.fail(path+"tls."+have, "is set without "+miss, "set both or none")
	}
}

func (d *decoder) validateFleet(m *Millrace) {
	if ttl := m.Fleet.LeaseTTL; ttl < model.Duration(time.Second) || ttl > model.Duration(time.Hour) {
		d.fail("millrace.fleet.lease_ttl", "is "+ttl.String(), "choose a duration from 1s to 1h")
	}
}

func (d *decoder) validateStreams(m *Millrace) {
	const path = "millrace.streams."
	s := &m.Streams
	if s.Partitions < 0 || s.Partitions > maxPartitions {
		d.fail(path+"partitions", fmt.Sprintf("is %d", s.Partitions),
			fmt.Sprintf("choose 1 to %d, or 0 for the default", maxPartitions))
	}
	switch {
	case !slices.Contains([]int{1, 3, 5}, s.Replicas):
		d.fail(path+"replicas", fmt.Sprintf("is %d", s.Replicas), "choose 1, 3 or 5")
	case s.Replicas > 1 && m.NATS.IsEmbedded():
		d.fail(path+"replicas", fmt.Sprintf("is %d, and the embedded server is a single one", s.Replicas),
			"set it to 1, or set millrace.nats.url to the address of a NATS cluster")
	}
	aged := true
	for _, r := range []struct {
		name string
		Retention
	}{{"frames", s.Frames}, {"deltas", s.Deltas}, {"dictionaries", s.Dictionaries}, {"rejected", s.Rejected}} {
		most := maxRetentionAge
		if r.name == "dictionaries" {
			most *= defaultDictionaryAges
		}
		if r.MaxAge < model.Duration(time.Second) || r.MaxAge > most {
			aged = false
			// An unset age of the others follows the frames': one error is enough.
			if follows := r.name == "dictionaries" || r.name == "deltas"; !follows || d.isSet(path+r.name+".max_age") {
				d.fail(path+r.name+".max_age", "is "+r.MaxAge.String(), fmt.Sprintf("choose a duration from 1s to %s", most))
			}
		}
		d.sizeBetween(path+r.name+".max_bytes", r.MaxBytes, MiB, maxByteSize)
	}
	for _, r := range []struct {
		name string
		age  model.Duration
	}{{"frames", s.Frames.MaxAge}, {"deltas", s.Deltas.MaxAge}} {
		if least := leastDictionaryAges * r.age; aged && s.Dictionaries.MaxAge < least {
			d.fail(path+"dictionaries.max_age",
				fmt.Sprintf("is %s: dictionaries would pass before the %s that need them (%s)", s.Dictionaries.MaxAge, r.name, r.age),
				fmt.Sprintf("choose at least %s (twice %s.max_age), or leave it out", least, r.name))
			break
		}
	}
	d.validateStorage(m)
}

// validateStorage checks that the streams fit into an explicit limit of the embedded server, which would not make them
// otherwise.
func (d *decoder) validateStorage(m *Millrace) {
	limit := m.NATS.Embedded.MaxStorage
	if limit == 0 || !m.NATS.IsEmbedded() || len(d.errs) > 0 {
		return
	}
	s := &m.Streams
	// Dictionaries are held twice: as scraped and as relabelled.
	if need := s.Frames.MaxBytes + s.Deltas.MaxBytes + 2*s.Dictionaries.MaxBytes + s.Rejected.MaxBytes; limit < need {
		d.fail("millrace.nats.embedded.max_storage", fmt.Sprintf("is %s, and the streams may hold %s", limit, need),
			"raise it, lower the max_bytes of frames, deltas, dictionaries (they count twice) and rejected, or leave it out")
	}
}
