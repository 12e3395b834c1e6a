package e2e_test

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// serveNATS runs a NATS server with JetStream until the test ends.
func serveNATS(t *testing.T, opts *server.Options) (address string) {
	t.Helper()
	opts.Host, opts.Port, opts.JetStream, opts.StoreDir, opts.NoSigs = "127.0.0.1", server.RANDOM_PORT, true, t.TempDir(), true
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(startTimeout) {
		t.Fatal("NATS is not ready")
	}
	return ns.Addr().String()
}

// newNKey returns a key and its seed.
func newNKey(t *testing.T, create func() (nkeys.KeyPair, error)) (key nkeys.KeyPair, public, seed string) {
	t.Helper()
	key, err := create()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = key.PublicKey(); err != nil {
		t.Fatal(err)
	}
	b, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return key, public, string(b)
}

// credentials makes an operator with an account that has JetStream, and returns a server's options for it and the contents of a user's .creds file.
func credentials(t *testing.T) (*server.Options, string) {
	t.Helper()
	must := func(token string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	operatorKey, operatorID, _ := newNKey(t, nkeys.CreateOperator)
	accountKey, accountID, _ := newNKey(t, nkeys.CreateAccount)
	_, systemID, _ := newNKey(t, nkeys.CreateAccount) // without which there is no JetStream
	_, userID, seed := newNKey(t, nkeys.CreateUser)
	operator := jwt.NewOperatorClaims(operatorID)
	operatorToken := must(operator.Encode(operatorKey))
	decoded, err := jwt.DecodeOperatorClaims(operatorToken)
	if err != nil {
		t.Fatal(err)
	}
	account := jwt.NewAccountClaims(accountID)
	account.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	resolver := &server.MemAccResolver{}
	for _, a := range []*jwt.AccountClaims{account, jwt.NewAccountClaims(systemID)} {
		if err := resolver.Store(a.Subject, must(a.Encode(operatorKey))); err != nil {
			t.Fatal(err)
		}
	}
	creds, err := jwt.FormatUserConfig(must(jwt.NewUserClaims(userID).Encode(accountKey)), []byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	return &server.Options{TrustedOperators: []*jwt.OperatorClaims{decoded}, AccountResolver: resolver, SystemAccount: systemID}, string(creds)
}

// TestWaysToAuthenticateToNATS starts over NATS servers that ask for each kind of credentials, in the clear and over TLS.
func TestWaysToAuthenticateToNATS(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	a := newAuthority(t)
	secured := func(clients bool) *server.Options {
		cfg := &tls.Config{Certificates: []tls.Certificate{a.server}, ClientCAs: a.pool, MinVersion: tls.VersionTLS12}
		if clients {
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return &server.Options{TLS: true, TLSVerify: clients, TLSConfig: cfg, TLSTimeout: 10, Username: "miller", Password: "grain"}
	}
	_, public, seed := newNKey(t, nkeys.CreateUser)
	operator, creds := credentials(t)
	password := []string{"--nats.user=miller", "--nats.password-file=" + file("password", "grain\n")}
	for _, c := range []struct {
		name, scheme string
		opts         *server.Options
		args         []string
	}{
		{"password", "nats", &server.Options{Username: "miller", Password: "grain"}, password},
		{"NKey", "nats", &server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}, []string{"--nats.nkey-seed-file=" + file("seed", seed)}},
		{"credentials", "nats", operator, []string{"--nats.creds=" + file("creds", creds)}},
		{"TLS", "tls", secured(false), append([]string{"--nats.tls.ca-file=" + a.caFile}, password...)},
		{"TLS under another name", "tls", secured(false), append([]string{"--nats.tls.insecure-skip-verify"}, password...)},
		{"mutual TLS", "tls", secured(true), append([]string{
			"--nats.tls.ca-file=" + a.caFile, "--nats.tls.cert-file=" + a.certFile, "--nats.tls.key-file=" + a.keyFile,
		}, password...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			startMillrace(t, "", withArgs(append([]string{"--nats.url=" + c.scheme + "://" + serveNATS(t, c.opts)}, c.args...)...)) // and waits until it is ready
		})
	}
}

// TestNATSRefuses shows what it looks like when NATS does not take the credentials, or TLS its certificate.
func TestNATSRefuses(t *testing.T) {
	dir := t.TempDir()
	config, wrong := filepath.Join(dir, "millrace.yml"), filepath.Join(dir, "password")
	writeFile(t, config, "")
	writeFile(t, wrong, "chaff")
	url := "nats://" + serveNATS(t, &server.Options{Username: "miller", Password: "grain"})
	_, stderr, code := runMillrace(t, "run", "--config.file="+config, "--web.listen-address=127.0.0.1:0", "--nats.url="+url, "--nats.user=miller", "--nats.password-file="+wrong)
	if code != 1 || !strings.Contains(stderr, "NATS refuses the credentials") || strings.Contains(stderr, "chaff") {
		t.Errorf("with a wrong password it ends with %d: %s", code, stderr)
	}

	a := newAuthority(t)
	url = "tls://" + serveNATS(t, &server.Options{TLS: true, TLSTimeout: 10, TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.server}}})
	p := startMillrace(t, "", withoutWaiting(), withArgs("--nats.url="+url, "--nats.tls.ca-file="+newAuthority(t).caFile))
	eventually(t, 30*time.Second, "the log says what is wrong with the certificate", func() error {
		if log := p.Logs(); !strings.Contains(log, "certificate signed by unknown authority") {
			return fmt.Errorf("the log is %s", log)
		}
		return nil
	})
}
