package door

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	grpctls "google.golang.org/grpc/credentials"

	"github.com/millrace/millrace/pkg/await"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := new(authority)
	a.cert, a.key, a.pem, _ = certificate(t, name, nil)
	return a
}

// certificate makes one that the authority signs, or one of an authority where that is nil.
func certificate(t testing.TB, name string, by *authority) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

// files writes a certificate of the authority, its key, and the authority's own into a folder.
func (a *authority) files(t testing.TB, dir, name string) TLSFiles {
	t.Helper()
	_, _, cert, key := certificate(t, name, a)
	f := TLSFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), ClientCA: filepath.Join(dir, "ca.pem")}
	for path, content := range map[string][]byte{f.Cert: cert, f.Key: key, f.ClientCA: a.pem} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// trusting is a client's configuration that trusts the authority, and shows a certificate where client is one.
func (a *authority) trusting(t testing.TB, client *authority) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	cfg := &tls.Config{RootCAs: pool}
	if client != nil {
		_, _, cert, key := certificate(t, "shop", client)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

// pushTLS pushes over a new connection.
func (r *rig) pushTLS(t testing.TB, cfg *tls.Config) (protocol string, err error) {
	t.Helper()
	if r.name == OTLPGRPC {
		conn := dial(t, r.addr, grpc.WithTransportCredentials(grpctls.NewTLS(cfg)))
		defer conn.Close()
		_, err := export(t, conn, metrics(1), nil)
		return "HTTP/2.0", err
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Post(r.base+metricsPath, protobufType, bytes.NewReader(metricsProto(t, 1)))
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return res.Proto, nil
}

func TestTLS(t *testing.T) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		a := newAuthority(t, "authority")
		files := a.files(t, t.TempDir(), "millrace")
		files.ClientCA = ""
		r := start(t, name, func(c *Config) { c.TLS = files })
		if protocol, err := r.pushTLS(t, a.trusting(t, nil)); err != nil || protocol != "HTTP/2.0" {
			t.Errorf("%s: %s %v", name, protocol, err)
		}
		old := a.trusting(t, nil)
		old.MaxVersion = tls.VersionTLS11
		old.MinVersion = tls.VersionTLS10
		if _, err := r.pushTLS(t, old); err == nil {
			t.Errorf("%s: TLS 1.1 is accepted", name)
		}
		if _, err := r.pushTLS(t, newAuthority(t, "other").trusting(t, nil)); err == nil {
			t.Errorf("%s: the certificate is not the authority's", name)
		}
		if n := len(r.recorder.taken()); n != 1 {
			t.Errorf("%s: %d came to the taker", name, n)
		}
	}
}

func TestMutualTLS(t *testing.T) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		a := newAuthority(t, "authority")
		files := a.files(t, t.TempDir(), "millrace")
		r := start(t, name, func(c *Config) { c.TLS = files })
		if _, err := r.pushTLS(t, a.trusting(t, a)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.pushTLS(t, a.trusting(t, nil)); err == nil {
			t.Errorf("%s: a client without certificate is accepted", name)
		}
		if _, err := r.pushTLS(t, a.trusting(t, newAuthority(t, "other"))); err == nil {
			t.Errorf("%s: a client of another authority is accepted", name)
		}
		if taken := r.recorder.taken(); len(taken) != 1 || taken[0].Sender != "shop" {
			t.Errorf("%s: took %+v", name, taken)
		}
	}
}

func TestCertificatesAreReadAgainWhenTheirFilesChange(t *testing.T) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		dir := t.TempDir()
		first, second := newAuthority(t, "first"), newAuthority(t, "second")
		files := first.files(t, dir, "millrace")
		r := start(t, name, func(c *Config) { c.TLS = files })
		if _, err := r.pushTLS(t, first.trusting(t, first)); err != nil {
			t.Fatal(err)
		}
		// What cannot be used changes nothing.
		if err := os.WriteFile(files.Cert, []byte("not PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
		await.True(t, "the failure is logged", func() bool {
			if _, err := r.pushTLS(t, first.trusting(t, first)); err != nil {
				t.Fatal(err)
			}
			return strings.Contains(r.logs.String(), "TLS files")
		})
		second.files(t, dir, "millrace")
		await.True(t, "the new certificates are in use", func() bool {
			_, err := r.pushTLS(t, second.trusting(t, second))
			return err == nil
		})
		if _, err := r.pushTLS(t, second.trusting(t, first)); err == nil {
			t.Errorf("%s: a client of the former authority is accepted", name)
		}
	}
}

// newServer is the rig's door, which does not run yet.
func (r *rig) newServer(t testing.TB) (s server) {
	t.Helper()
	cfg := Config{Listen: "127.0.0.1:0", Taker: r.recorder}
	var err error
	if r.name == OTLPHTTP {
		s, err = NewHTTP(cfg)
	} else {
		s, err = NewGRPC(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServeEndsGracefullyAndAgain(t *testing.T) {
	for _, name := range []string{OTLPHTTP, OTLPGRPC} {
		t.Run(name, func(t *testing.T) {
			r := &rig{name: name, recorder: new(recorder)}
			begun, release := make(chan struct{}, 1), make(chan struct{})
			r.recorder.answer = func(context.Context, *Push) (Outcome, error) {
				begun <- struct{}{}
				<-release
				return Outcome{Samples: 1}, nil
			}
			s := r.newServer(t)
			for range 2 {
				if err := s.Listen(); err != nil {
					t.Fatal(err)
				}
				r.base = "http://" + s.Addr().String()
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- s.Serve(ctx) }()
				client := r.client(t)
				answered := make(chan string, 1)
				go func() {
					code, _ := r.send(t, client, bytes.NewReader(r.good(t)), identity)
					answered <- code
				}()
				<-begun
				if err := s.Serve(ctx); err == nil || !strings.Contains(err.Error(), "already") {
					t.Errorf("Serve while it runs: %v", err)
				}
				cancel()
				await.True(t, "the address is closed", func() bool {
					conn, err := net.Dial("tcp", strings.TrimPrefix(r.base, "http://"))
					if err == nil {
						_ = conn.Close()
					}
					return err != nil
				})
				release <- struct{}{}
				if code := <-answered; code != success[name] {
					t.Errorf("the request that ran: %s", code)
				}
				client.CloseIdleConnections()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if s.Addr() != nil {
					t.Error("there is an address after the end")
				}
			}
		})
	}
}

// Whoever is cut off is told to come again: another answer would make senders drop what they have.
func TestServeCutsOffWhatDoesNotEnd(t *testing.T) {
	for name, want := range map[string]string{OTLPHTTP: "503", OTLPGRPC: "14"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it takes its time
			r := &rig{name: name, recorder: new(recorder)}
			begun := make(chan struct{})
			r.recorder.answer = func(ctx context.Context, _ *Push) (Outcome, error) {
				close(begun)
				<-ctx.Done()
				return Outcome{}, ctx.Err()
			}
			s := r.newServer(t)
			if err := s.Listen(); err != nil {
				t.Fatal(err)
			}
			r.base = "http://" + s.Addr().String()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- s.Serve(ctx) }()
			client := r.client(t)
			type answer struct{ code, text string }
			answered := make(chan answer, 1)
			go func() {
				code, text := r.send(t, client, bytes.NewReader(r.good(t)), identity)
				answered <- answer{code, text}
			}()
			<-begun
			start := time.Now()
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := <-answered; got.code != want || !strings.Contains(got.text, "send it again") {
				t.Errorf("the sender is told %s %q, want %s", got.code, got.text, want)
			}
		})
	}
}

// What the door does with a push that ends early depends on whose end it is.
func TestSendersThatGoAreNotThoseThatAreCutOff(t *testing.T) {
	closing, cut := context.WithCancelCause(t.Context())
	gone, leave := context.WithCancel(closing)
	leave()
	cut(errClosing)
	waiting, end := context.WithTimeout(closing, time.Hour)
	defer end()
	g := new(gate)
	for want, ctx := range map[string]context.Context{"499": gone, "503": waiting} {
		for _, f := range []*failure{failureOf(ctx, ctx.Err()), g.readFailure(ctx, ctx.Err(), 0, "", "")} {
			if f.httpCode() != want || (f.seconds > 0) != (want == "503") {
				t.Errorf("answered %s, to come again after %d s; want %s", f.httpCode(), f.seconds, want)
			}
		}
	}
}

func TestMetricsFollowTheRules(t *testing.T) {
	r := start(t, OTLPHTTP, nil)
	body := metricsProto(t, 1)
	r.post(t, bytes.NewReader(body), "Content-Type", protobufType)
	r.post(t, bytes.NewReader(body), "Content-Type", "text/plain")
	problems, err := testutil.GatherAndLint(r.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
	for code, want := range map[string]float64{"200": 1, "415": 1} {
		if got := testutil.ToFloat64(r.gate.cfg.Metrics.requests.WithLabelValues(OTLPHTTP, code)); got != want {
			t.Errorf("%v requests with code %s", got, code)
		}
	}
	if got := testutil.ToFloat64(r.gate.received); got != float64(len(body)) {
		t.Errorf("%v bytes received, want %d", got, len(body))
	}
	if got := testutil.ToFloat64(r.gate.memory.gauge); got != 0 {
		t.Errorf("%v bytes in flight", got)
	}
}

func TestRefusalsAreLoggedOnceInAWhile(t *testing.T) {
	r := start(t, OTLPHTTP, nil)
	for range 50 {
		r.post(t, strings.NewReader("x"), "Content-Type", "text/plain")
		r.post(t, strings.NewReader("x"), "Content-Type", jsonType)
	}
	if n := strings.Count(r.logs.String(), "\n"); n != 2 {
		t.Errorf("%d lines for 100 refusals of two reasons:\n%s", n, r.logs)
	}
	log := refusals{reasons: map[string]*refused{}}
	now := time.Now()
	for i, want := range []int{1, 0, 0, 3} {
		if i == 3 {
			now = now.Add(logEvery)
		}
		if got := log.due("malformed", now); got != want {
			t.Errorf("refusal %d: a line that says %d, want %d", i, got, want)
		}
	}
}
