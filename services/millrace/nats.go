package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/stream"
)

// override sets what flags set.
func (o *runOptions) override(m *config.Millrace) {
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
}

// connect connects to the embedded server, or to a NATS cluster, which it waits for.
func (p *process) connect(ctx context.Context, server *stream.Server, m *config.Millrace) (*stream.Conn, error) {
	p.wait("NATS at " + stream.Redact(m.NATS.URL))
	cfg, err := p.natsConfig(m)
	if err != nil {
		return nil, err
	}
	cfg.Server = server
	return stream.Connect(ctx, cfg)
}

// natsConfig is how the services of this process connect to a NATS cluster.
func (p *process) natsConfig(m *config.Millrace) (cfg stream.Config, err error) {
	password, err := m.NATS.ReadPassword()
	if err != nil {
		return cfg, err
	}
	tlsConfig, err := natsTLS(m.NATS.TLS)
	if err != nil {
		return cfg, err
	}
	host, _ := os.Hostname()
	return stream.Config{
		Names: stream.Names{Prefix: m.NATS.Prefix}, URL: m.NATS.URL, CredentialsFile: m.NATS.CredentialsFile,
		NKeySeedFile: m.NATS.NKeySeedFile, Username: m.NATS.Username, Password: password, TLS: tlsConfig,
		Client: "millrace " + strings.Join(p.services, ",") + " on " + host, Inbox: stream.Names{Prefix: m.NATS.Prefix}.Inbox(p.services...), Logger: p.log,
	}, nil
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
