package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/status"
)

// passwordHash is the bcrypt hash, of the least cost, of "open sesame".
const passwordHash = "$2a$04$41SMnIrLBxCvuRsulSCuAeEODwaKcapUfy768BjWadZg4HUHgIIyO"

// writeCertificate makes a self-signed certificate for 127.0.0.1 in dir and returns a pool that trusts it.
func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "millrace"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	writeFile(t, filepath.Join(dir, "cert.pem"), string(certPEM))
	writeFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestServesOnAllAddresses(t *testing.T) {
	s := newServer(t, func(c *Config) { c.ListenAddresses = []string{"127.0.0.1:0", "127.0.0.1:0"} })
	stop := serve(t, s)
	addrs := s.Addrs()
	if len(addrs) != 2 || addrs[0].String() == addrs[1].String() {
		t.Fatalf("addresses %v", addrs)
	}
	client := newClient(t, &http.Transport{})
	for _, addr := range addrs {
		if code, body := get(t, client, "http://"+addr.String()+"/-/healthy"); code != 200 || body != "Millrace is healthy.\n" {
			t.Errorf("%s: %d %q", addr, code, body)
		}
		resp, err := client.Head("http://" + addr.String() + "/-/ready")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || len(body) != 0 || resp.ContentLength <= 0 {
			t.Errorf("HEAD: %d, body %q, length %d", resp.StatusCode, body, resp.ContentLength)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if got := s.Addrs(); len(got) != 0 {
		t.Errorf("addresses after the end: %v", got)
	}
}

func TestServesAgainAfterItEnded(t *testing.T) {
	s := newServer(t, nil)
	for range 2 {
		stop := serve(t, s)
		if code, _ := get(t, newClient(t, &http.Transport{DisableKeepAlives: true}), "http://"+s.Addrs()[0].String()+"/-/ready"); code != 200 {
			t.Errorf("%d", code)
		}
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestServeWithAnEndedContextClosesItsListeners(t *testing.T) {
	s := newServer(t, nil)
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	addr := s.Addrs()[0].String()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Serve(ctx); err != nil {
		t.Errorf("Serve: %v", err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the address is still open: %v", err)
	}
	l.Close()
}

func TestTLSAndBasicAuthFromWebConfigFile(t *testing.T) {
	dir := t.TempDir()
	pool := writeCertificate(t, dir)
	file := filepath.Join(dir, "web.yml")
	writeFile(t, file, "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\nbasic_auth_users:\n  miller: "+passwordHash+
		"\nhttp_server_config:\n  headers:\n    X-Frame-Options: sameorigin\n")
	s := newServer(t, func(c *Config) {
		c.ListenAddresses = []string{"127.0.0.1:0", "127.0.0.1:0"}
		c.WebConfigFile = file
		c.Fleet = func(context.Context) (*status.Document, error) { return sampleFleet(), nil }
	})
	serve(t, s)
	client := newClient(t, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true})

	for _, addr := range s.Addrs() {
		for _, tc := range []struct {
			user, password string
			code           int
		}{
			{"", "", 401}, {"miller", "wrong", 401}, {"other", "open sesame", 401}, {"miller", "open sesame", 200},
		} {
			for _, path := range []string{"/", "/process", "/metrics", "/-/healthy", "/debug/pprof/", "/api/v1/status/config", "/assets/page.js"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr.String()+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				if tc.user != "" {
					req.SetBasicAuth(tc.user, tc.password)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != tc.code {
					t.Errorf("%s as %q: %d, want %d", path, tc.user, resp.StatusCode, tc.code)
				}
				if got := resp.Header.Get("X-Frame-Options"); got != "sameorigin" {
					t.Errorf("%s: the header of the web configuration file became %q", path, got)
				}
				if resp.ProtoMajor != 2 {
					t.Errorf("%s: %s, want HTTP/2", path, resp.Proto)
				}
			}
		}
		if code, _ := get(t, client, "http://"+addr.String()+"/"); code != http.StatusBadRequest {
			t.Errorf("plain HTTP to a TLS address: %d", code)
		}
	}
}

func TestNewRefusesABadConfigurationWithARemedy(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, content)
		return path
	}
	gatherer := prometheus.NewRegistry()
	for name, tc := range map[string]struct {
		cfg  Config
		want []string
	}{
		"no gatherer":       {Config{}, []string{"Config.Gatherer"}},
		"no port":           {Config{Gatherer: gatherer, ListenAddresses: []string{"localhost"}}, []string{`"localhost": missing port in address`, "--web.listen-address as host:port"}},
		"bad port":          {Config{Gatherer: gatherer, ListenAddresses: []string{":99999"}}, []string{`"99999" is not a port`}},
		"every bad address": {Config{Gatherer: gatherer, ListenAddresses: []string{"a", "b"}}, []string{`"a"`, `"b"`}},
		"twice":             {Config{Gatherer: gatherer, ListenAddresses: []string{":9474", ":9474"}}, []string{`":9474" is given twice`}},
		"missing file":      {Config{Gatherer: gatherer, WebConfigFile: filepath.Join(dir, "missing.yml")}, []string{"missing.yml", "no such file", "--web.config.file"}},
		"unknown key":       {Config{Gatherer: gatherer, WebConfigFile: file("a.yml", "tls_config: {}\n")}, []string{"a.yml", "tls_config"}},
		"missing key file":  {Config{Gatherer: gatherer, WebConfigFile: file("b.yml", "tls_server_config: {cert_file: c.pem, key_file: k.pem}\n")}, []string{"c.pem"}},
		"plain password":    {Config{Gatherer: gatherer, WebConfigFile: file("c.yml", "basic_auth_users: {miller: secret}\n")}, []string{"c.yml", "bcrypt"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(tc.cfg)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestMetricsThatAreAlreadyRegisteredAreAnError(t *testing.T) {
	reg := prometheus.NewRegistry()
	cfg := Config{Gatherer: reg, Registerer: reg}
	if _, err := New(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "registering the web server's metrics") {
		t.Errorf("error %v", err)
	}
}

func TestListenErrorsNameTheAddressAndTheRemedy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := newServer(t, func(c *Config) { c.ListenAddresses = []string{"127.0.0.1:0", taken.Addr().String()} })
	for name, listen := range map[string]func() error{
		"Listen": s.Listen,
		"Serve":  func() error { return s.Serve(t.Context()) },
	} {
		err := listen()
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []string{taken.Addr().String(), "another process listens there", "--web.listen-address"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q lacks %q", name, err, want)
			}
		}
		if len(s.Addrs()) != 0 {
			t.Errorf("%s left addresses open: %v", name, s.Addrs())
		}
	}
	for cause, want := range map[error]string{
		syscall.EADDRNOTAVAIL:         "no interface of this machine",
		syscall.EACCES:                "CAP_NET_BIND_SERVICE",
		&net.DNSError{Err: "no such"}: "does not resolve",
		errors.New("odd"):             "odd",
	} {
		if err := listenError("h:1", cause); !strings.Contains(err.Error(), want) || !errors.Is(err, cause) {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

func TestServeRunsOnce(t *testing.T) {
	s := newServer(t, nil)
	serve(t, s)
	// The first Serve runs once it answers.
	get(t, newClient(t, &http.Transport{}), "http://"+s.Addrs()[0].String()+"/-/healthy")
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("a second Serve: %v", err)
	}
	if err := s.Close(); err == nil {
		t.Error("Close while serving must be refused")
	}
}

func TestCloseEndsListening(t *testing.T) {
	s := newServer(t, nil)
	for range 2 {
		if err := s.Listen(); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.Addrs()) != 1 {
		t.Errorf("addresses %v", s.Addrs())
	}
	if err := s.Close(); err != nil || len(s.Addrs()) != 0 {
		t.Errorf("Close: %v, addresses %v", err, s.Addrs())
	}
}

func TestServeReportsAListenerThatStopsWorking(t *testing.T) {
	s := newServer(t, func(c *Config) { c.ListenAddresses = []string{"127.0.0.1:0", "127.0.0.1:0"} })
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	addr := s.Addrs()[1].String()
	s.listeners[1].Close()
	if err := s.Serve(t.Context()); err == nil || !strings.Contains(err.Error(), "serving HTTP on "+addr) {
		t.Errorf("Serve: %v", err)
	}
}

// slowServer has a reload that says when it has begun and waits for release.
func slowServer(t *testing.T, shutdown time.Duration) (s *Server, begun, release chan struct{}) {
	begun, release = make(chan struct{}), make(chan struct{})
	s = newServer(t, func(c *Config) {
		c.ShutdownTimeout = shutdown
		c.Reload = func(context.Context) error {
			close(begun)
			<-release
			return nil
		}
	})
	return s, begun, release
}

func TestShutdownLetsRunningRequestsFinish(t *testing.T) {
	s, begun, release := slowServer(t, time.Minute)
	stop := serve(t, s)
	addr := s.Addrs()[0].String()
	client := newClient(t, &http.Transport{})
	code := make(chan int, 1)
	go func() {
		resp, err := client.Post("http://"+addr+"/-/reload", "", nil)
		if err != nil {
			t.Errorf("POST: %v", err)
			code <- 0
			return
		}
		resp.Body.Close()
		code <- resp.StatusCode
	}()
	<-begun
	ended := make(chan error, 1)
	go func() { ended <- stop() }()

	// New connections are refused while the request still runs.
	deadline := time.Now().Add(time.Minute)
	for {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("still listening")
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("Serve ended before the request: %v", err)
	default:
	}
	close(release)
	if got := <-code; got != http.StatusOK {
		t.Errorf("the running request got %d", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestShutdownCutsOffRequestsThatDoNotEnd(t *testing.T) {
	s, begun, release := slowServer(t, time.Millisecond)
	stop := serve(t, s)
	client := newClient(t, &http.Transport{})
	failed := make(chan error, 1)
	addr := s.Addrs()[0].String()
	go func() {
		resp, err := client.Post("http://"+addr+"/-/reload", "", nil)
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-begun
	if err := stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the request was answered")
	}
	close(release)
}
