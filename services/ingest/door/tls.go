package door

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
)

// serverTLS returns the listener's TLS configuration, whose files are read again when they change; nil for plain text.
func serverTLS(files TLSFiles, name string, logger *slog.Logger) (*tls.Config, error) {
	if files.Cert == "" {
		return nil, nil
	}
	current, err := watch([]string{files.Cert, files.Key, files.ClientCA}, func(err error) {
		logger.Warn("Reading the TLS files again failed; the ones before stay in use", "door", name, "err", err)
	}, func() (*tls.Config, error) { return loadTLS(files) })
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		// A configuration for each change: with it, sessions of clients that a former one admitted are not resumed.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.get(), nil },
	}, nil
}

func loadTLS(files TLSFiles) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("tls: loading cert_file %s and key_file %s: %w", files.Cert, files.Key, err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{certificate}}
	if files.ClientCA == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(files.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("tls: reading client_ca_file: %w", err)
	}
	cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls: client_ca_file %s: %w", files.ClientCA, errors.New("no PEM certificate is in it"))
	}
	return cfg, nil
}
