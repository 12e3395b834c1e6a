package door

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace/millrace/pkg/await"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// authorized pushes with the header, none if it is empty.
func (r *rig) authorized(t testing.TB, client *http.Client, authorization string, body io.Reader) (string, http.Header) {
	t.Helper()
	path, headers := metricsPath, []string{"Content-Type", protobufType}
	switch r.name {
	case RemoteWrite:
		headers = append(headers, "Content-Encoding", "snappy")
	case OTLPGRPC:
		path, headers = exportPath, []string{"Content-Type", grpcType}
	}
	if authorization != "" {
		headers = append(headers, "Authorization", authorization)
	}
	res, _ := do(t, client, http.MethodPost, r.base+path, body, headers...)
	if r.name == OTLPGRPC {
		return res.Trailer.Get("Grpc-Status"), res.Header
	}
	return http.StatusText(res.StatusCode), res.Header
}

func TestCredentials(t *testing.T) {
	yes, no := map[string]string{OTLPHTTP: "OK", RemoteWrite: "No Content", OTLPGRPC: "0"}, map[string]string{OTLPHTTP: "Unauthorized", RemoteWrite: "Unauthorized", OTLPGRPC: "16"}
	both := Auth{Username: "ann", Password: "sec:ret", BearerToken: "t0ken"}
	for _, c := range []struct {
		name          string
		auth          Auth
		authorization string
		ok            bool
		schemes       string
	}{
		{"basic", both, basic("ann", "sec:ret"), true, ""},
		{"basic in lower case", both, "b" + basic("ann", "sec:ret")[1:], true, ""},
		{"bearer", both, "Bearer t0ken", true, ""},
		{"bearer in lower case", both, "bearer t0ken", true, ""},
		{"nothing", both, "", false, "Basic,Bearer"},
		{"wrong password", both, basic("ann", "secret"), false, "Basic,Bearer"},
		{"wrong user", both, basic("bob", "sec:ret"), false, "Basic,Bearer"},
		{"empty user and password", both, basic("", ""), false, "Basic,Bearer"},
		{"wrong token", both, "Bearer t0ke", false, "Basic,Bearer"},
		{"empty token", both, "Bearer ", false, "Basic,Bearer"},
		{"no base64", both, "Basic %%%", false, "Basic,Bearer"},
		{"other scheme", both, "Digest abc", false, "Basic,Bearer"},
		{"bearer where basic alone is", Auth{Username: "ann", Password: "x"}, "Bearer x", false, "Basic"},
		{"basic where bearer alone is", Auth{BearerToken: "x"}, basic("", "x"), false, "Bearer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			everyDoor(t, func(t *testing.T, name string) {
				r := start(t, name, func(cfg *Config) { cfg.Auth = c.auth })
				code, header := r.authorized(t, r.client(t), c.authorization, bytes.NewReader(r.good(t)))
				want := no[name]
				if c.ok {
					want = yes[name]
				}
				if code != want {
					t.Errorf("answer %s, want %s", code, want)
				}
				var schemes []string
				for _, s := range header.Values("WWW-Authenticate") {
					scheme, _, _ := strings.Cut(s, " ")
					schemes = append(schemes, scheme)
				}
				if got := strings.Join(schemes, ","); name != OTLPGRPC && got != c.schemes {
					t.Errorf("WWW-Authenticate names %q, want %q", got, c.schemes)
				}
			})
		})
	}
}

// A sender without credentials is answered while its body is still to come.
func TestCredentialsAreCheckedBeforeTheBodyIsRead(t *testing.T) {
	r := start(t, OTLPHTTP, func(c *Config) { c.Auth = Auth{BearerToken: "x"} })
	conn := connect(t, r.addr)
	_, _ = io.WriteString(conn, "POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 10000000\r\nExpect: 100-continue\r\n\r\n")
	line := make([]byte, len("HTTP/1.1 401"))
	if _, err := io.ReadFull(conn, line); err != nil || string(line) != "HTTP/1.1 401" {
		t.Errorf("%v: %q", err, line)
	}
}

func TestSecretsAreReadAgainWhenTheirFilesChange(t *testing.T) {
	dir := t.TempDir()
	password, token := filepath.Join(dir, "password"), filepath.Join(dir, "token")
	write := func(path, content string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write(password, "one\n")
	write(token, " one ")
	everyDoor(t, func(t *testing.T, name string) {
		write(password, "one\n")
		write(token, " one ")
		r := start(t, name, func(c *Config) { c.Auth = Auth{Username: "ann", PasswordFile: password, BearerTokenFile: token} })
		client := r.client(t)
		accepted := func(authorization string) bool {
			before := len(r.recorder.taken())
			r.authorized(t, client, authorization, bytes.NewReader(r.good(t)))
			return len(r.recorder.taken()) > before
		}
		if !accepted(basic("ann", "one")) || !accepted("Bearer one") {
			t.Fatal("the first secrets are not accepted")
		}
		write(password, "two\n")
		write(token, "two")
		await.True(t, "the new password is accepted", func() bool { return accepted(basic("ann", "two")) })
		await.True(t, "the new token is accepted", func() bool { return accepted("Bearer two") })
		if accepted(basic("ann", "one")) || accepted("Bearer one") {
			t.Error("the old secrets are still accepted")
		}
		// A file that is gone, or empty, for a moment locks nobody out, and lets nobody in.
		write(password, " \n")
		if err := os.Remove(token); err != nil {
			t.Fatal(err)
		}
		await.True(t, "the failures are logged", func() bool {
			if !accepted(basic("ann", "two")) || !accepted("Bearer two") || accepted(basic("ann", "")) || accepted("Bearer ") {
				t.Fatal("the secrets changed with files that cannot be used")
			}
			return strings.Contains(r.logs.String(), "the file is empty") && strings.Contains(r.logs.String(), "no such file")
		})
	})
}

func TestConfigSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, change := range map[string]func(*Config){
		"no Taker":                         func(c *Config) { c.Taker = nil },
		"not host:port":                    func(c *Config) { c.Listen = "4318" },
		"key_file is set without":          func(c *Config) { c.TLS.Key = "x" },
		"cert_file is set without":         func(c *Config) { c.TLS.Cert = "x" },
		"client_ca_file needs":             func(c *Config) { c.TLS.ClientCA = "x" },
		"password and password_file":       func(c *Config) { c.Auth = Auth{Username: "a", Password: "b", PasswordFile: "c"} },
		"password is set without username": func(c *Config) { c.Auth = Auth{Password: "b"} },
		"username is set without password": func(c *Config) { c.Auth = Auth{Username: "b"} },
		"contain a colon":                  func(c *Config) { c.Auth = Auth{Username: "a:b", Password: "c"} },
		"bearer_token_file are both":       func(c *Config) { c.Auth = Auth{BearerToken: "a", BearerTokenFile: "b"} },
		"reading password_file":            func(c *Config) { c.Auth = Auth{Username: "a", PasswordFile: filepath.Join(dir, "none")} },
		"the file is empty":                func(c *Config) { c.Auth = Auth{BearerTokenFile: empty} },
		"max_body_bytes must be positive":  func(c *Config) { c.Limits.MaxBodyBytes = -1 },
		"max_samples_per_second":           func(c *Config) { c.Limits.MaxSamplesPerSecond = -1 },
		"at most 2147483647":               func(c *Config) { c.Limits.MaxDecompressedBytes = 1 << 40 },
	} {
		cfg := Config{Listen: "127.0.0.1:0", Taker: new(recorder)}
		change(&cfg)
		if _, err := NewHTTP(cfg); err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "otlp_http") {
			t.Errorf("error %v, want one with %q", err, text)
		}
	}
}

func TestListenErrorsNameARemedy(t *testing.T) {
	r := start(t, OTLPHTTP, nil)
	for listen, texts := range map[string][]string{
		r.addr:             {"address in use", "millrace.ingest.otlp.grpc.listen"},
		"192.0.2.1:4317":   {"no interface"},
		"none.invalid:431": {"does not resolve"},
	} {
		d, err := NewGRPC(Config{Listen: listen, Taker: new(recorder)})
		if err != nil {
			t.Fatal(err)
		}
		err = d.Serve(context.Background())
		for _, text := range append(texts, listen) {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("listening on %s: %v, want %q", listen, err, text)
			}
		}
	}
}
