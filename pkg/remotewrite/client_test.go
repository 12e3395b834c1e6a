package remotewrite

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"go.uber.org/goleak"
)

// endpoint reads a remote_write item as the configuration does.
func endpoint(t testing.TB, address, rest string) *promconfig.RemoteWriteConfig {
	t.Helper()
	item := "url: " + address + "\n" + rest
	cfg, err := promconfig.Load("remote_write:\n- "+strings.ReplaceAll(item, "\n", "\n  "), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return cfg.RemoteWriteConfigs[0]
}

func newClient(t testing.TB, rw *promconfig.RemoteWriteConfig) *Client {
	t.Helper()
	c, err := NewClient("main", rw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

// serve starts a server and checks at the end that no goroutine of server and clients is left.
func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

func TestStatusDecidesTheOutcome(t *testing.T) {
	cases := map[int]Outcome{
		200: Accepted, 202: Accepted, 204: Accepted, 206: Accepted, 299: Accepted,
		301: Refused, 302: Refused, 304: Refused, 307: Refused,
		400: Refused, 401: Refused, 403: Refused, 404: Refused, 408: Refused, 409: Refused, 413: TooLarge, 415: Refused, 422: Refused, 429: Retry,
		500: Retry, 501: Retry, 502: Retry, 503: Retry, 504: Retry, 599: Retry, 600: Refused,
	}
	var status atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, "\n out of order \xff\n")
	})
	c := newClient(t, endpoint(t, s.URL, ""))
	for code, want := range cases {
		status.Store(int64(code))
		r := c.Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != want || r.Status != code {
			t.Errorf("%d: %s, status %d", code, r.Outcome, r.Status)
		}
		if (r.Err == nil) != (want == Accepted) || (r.Message == "") != (want == Accepted) {
			t.Errorf("%d: message %q, error %v", code, r.Message, r.Err)
		}
		if code/100 == 4 && r.Message != "out of order" {
			t.Errorf("%d: message %q", code, r.Message)
		}
		if want != Accepted && (!strings.Contains(r.Err.Error(), `"main"`) || !strings.Contains(r.Err.Error(), fmt.Sprint(code))) {
			t.Errorf("%d: error %q", code, r.Err)
		}
	}
}

func TestHeadersAndBody(t *testing.T) {
	type request struct {
		header http.Header
		body   string
		length int64
	}
	got := make(chan request, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- request{r.Header, string(body), r.ContentLength}
	})
	c := newClient(t, endpoint(t, s.URL+"/api/v1/write", "headers: {X-Scope-OrgID: tenant}\nbasic_auth: {username: me, password: hidden}"))
	c.Version = "1.2.3"
	body := strings.Repeat("body", 50_000)
	for _, test := range []struct {
		p       Protocol
		attempt int
		want    map[string]string
	}{
		{V1, 0, map[string]string{"Content-Type": "application/x-protobuf", "X-Prometheus-Remote-Write-Version": "0.1.0", "Retry-Attempt": ""}},
		{V2, 3, map[string]string{
			"Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request", "X-Prometheus-Remote-Write-Version": "2.0.0", "Retry-Attempt": "3",
		}},
	} {
		if r := c.Send(t.Context(), test.p, []byte(body), test.attempt); r.Outcome != Accepted {
			t.Fatal(r.Err)
		}
		req := <-got
		test.want["Content-Encoding"] = "snappy"
		test.want["User-Agent"] = "Millrace/1.2.3"
		test.want["X-Scope-Orgid"] = "tenant"
		test.want["Authorization"] = "Basic bWU6aGlkZGVu"
		for name, want := range test.want {
			if v := req.header.Get(name); v != want {
				t.Errorf("v%s: %s is %q, want %q", test.p, name, v, want)
			}
		}
		if req.body != body || req.length != int64(len(body)) {
			t.Errorf("v%s: body of %d bytes, Content-Length %d, want %d", test.p, len(req.body), req.length, len(body))
		}
	}
}

func TestAuthentication(t *testing.T) {
	header := make(chan string, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"granted","token_type":"Bearer"}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		header <- r.Header.Get("Authorization")
	})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ config, want string }{
		"none":   {"", ""},
		"bearer": {"authorization: {credentials: abc}", "Bearer abc"},
		"file":   {"authorization: {type: Token, credentials_file: " + file + "}", "Token from-file"},
		"oauth2": {"oauth2: {client_id: a, client_secret: b, token_url: '" + s.URL + "/token'}", "Bearer granted"},
		"sigv4":  {"sigv4: {region: eu-west-1, access_key: AKIDEXAMPLE, secret_key: hidden}", "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"},
		"url":    {"", "Basic dTpw"},
	} {
		t.Run(name, func(t *testing.T) {
			address := s.URL
			if name == "url" {
				address = strings.Replace(address, "http://", "http://u:p@", 1)
			}
			c := newClient(t, endpoint(t, address, test.config))
			if r := c.Send(t.Context(), V1, []byte("x"), 0); r.Outcome != Accepted {
				t.Fatal(r.Err)
			}
			if got := <-header; !strings.HasPrefix(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("Authorization: %s, want %s", got, test.want)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	var protocol atomic.Value
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		protocol.Store(r.Proto)
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	for config, want := range map[string]string{
		"tls_config: {insecure_skip_verify: true}\nenable_http2: true": "HTTP/2.0",
		"tls_config: {insecure_skip_verify: true}":                     "HTTP/1.1",
	} {
		c := newClient(t, endpoint(t, s.URL, config))
		if r := c.Send(t.Context(), V2, []byte("x"), 0); r.Outcome != Accepted || protocol.Load() != want {
			t.Errorf("%s: %s over %v: %v", config, r.Outcome, protocol.Load(), r.Err)
		}
		c.CloseIdle()
	}
	c := newClient(t, endpoint(t, s.URL, ""))
	if r := c.Send(t.Context(), V2, []byte("x"), 0); r.Outcome != Retry || !strings.Contains(r.Message, "certificate") {
		t.Errorf("unknown authority: %s, %s", r.Outcome, r.Message)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for name, rw := range map[string]*promconfig.RemoteWriteConfig{
		"no url": {},
		"no such file": {
			URL:              &commonconfig.URL{URL: &url.URL{Scheme: "http", Host: "h"}},
			HTTPClientConfig: commonconfig.HTTPClientConfig{TLSConfig: commonconfig.TLSConfig{CAFile: "/does/not/exist"}},
		},
	} {
		if _, err := NewClient("main", rw); err == nil || !strings.Contains(err.Error(), `"main"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMessageIsTheBeginningOfTheBody(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, "out of bounds "+strings.Repeat("z", 100_000))
	_ = w.Close()
	bodies := map[string]struct {
		encoding, body string
		prefix         string
		size           int
	}{
		"none":      {},
		"plain":     {body: "unknown tenant", prefix: "unknown tenant", size: 14},
		"long":      {body: strings.Repeat("long", 1000), prefix: "longlong", size: 1024},
		"gzip":      {encoding: "gzip", body: packed.String(), prefix: "out of bounds z", size: 1024},
		"cut gzip":  {encoding: "gzip", body: packed.String()[:packed.Len()-4], prefix: "out of bounds z", size: 1024},
		"fake gzip": {encoding: "gzip", body: "no"},
	}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b := bodies[r.Header.Get("X-Case")]
		if b.encoding != "" {
			w.Header().Set("Content-Encoding", b.encoding)
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, b.body)
	})
	for name, b := range bodies {
		c := newClient(t, endpoint(t, s.URL, "headers: {X-Case: "+name+"}"))
		r := c.Send(t.Context(), V1, nil, 0)
		if r.Outcome != Refused || !strings.HasPrefix(r.Message, b.prefix) || len(r.Message) != b.size {
			t.Errorf("%s: %s, message of %d bytes: %.40s", name, r.Outcome, len(r.Message), r.Message)
		}
		c.CloseIdle()
	}
}

func TestNoAnswerIsRetried(t *testing.T) {
	hang := make(chan struct{})
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			_, _ = io.Copy(io.Discard, r.Body)
			<-hang
		case "/reset":
			panic(http.ErrAbortHandler)
		}
	})
	t.Cleanup(func() { close(hang) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()

	t.Run("timeout", func(t *testing.T) {
		rw := endpoint(t, s.URL+"/hang?api_key=hidden", "remote_timeout: 50ms")
		r := newClient(t, rw).Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != Retry || r.Status != 0 || !errors.Is(r.Err, context.DeadlineExceeded) || !strings.Contains(r.Message, "remote_timeout of 50ms") {
			t.Errorf("%s, %v", r.Outcome, r.Err)
		}
		if strings.Contains(r.Err.Error()+r.Message, "hidden") {
			t.Errorf("shows a secret: %v", r.Err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r := newClient(t, endpoint(t, s.URL+"/hang", "")).Send(ctx, V1, []byte("x"), 0)
		if r.Outcome != Retry || !errors.Is(r.Err, context.Canceled) {
			t.Errorf("%s, %v", r.Outcome, r.Err)
		}
	})
	t.Run("reset", func(t *testing.T) {
		r := newClient(t, endpoint(t, s.URL+"/reset", "")).Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != Retry || r.Err == nil {
			t.Errorf("%s, %v", r.Outcome, r.Err)
		}
	})
	t.Run("refused connection", func(t *testing.T) {
		r := newClient(t, endpoint(t, "http://"+listener.Addr().String(), "")).Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != Retry || !strings.Contains(r.Message, "refused") {
			t.Errorf("%s, %v", r.Outcome, r.Err)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		for _, config := range []string{"", "round_robin_dns: true"} {
			r := newClient(t, endpoint(t, "http://millrace.invalid", config)).Send(t.Context(), V1, []byte("x"), 0)
			if r.Outcome != Retry || r.Err == nil {
				t.Errorf("%s, %v", r.Outcome, r.Err)
			}
		}
	})
}

// TestAnswerCutShort has the connection closed within the answer's body: the status counts.
func TestAnswerCutShort(t *testing.T) {
	for status, want := range map[int]Outcome{200: Accepted, 400: Refused, 503: Retry} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "half a ")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		r := newClient(t, endpoint(t, s.URL, "")).Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != want || r.Status != status || (want != Accepted && r.Message != "half a") {
			t.Errorf("%d: %s, %d, %q", status, r.Outcome, r.Status, r.Message)
		}
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	var opened atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.Header.Get("Retry-Attempt") {
		case "1":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, strings.Repeat("x", 30_000))
		case "2":
			_, _ = io.WriteString(w, "thanks")
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	c := newClient(t, endpoint(t, s.URL, "round_robin_dns: true"))
	for i := range 9 {
		c.Send(t.Context(), V1, []byte("x"), i%3)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections for 9 requests", n)
	}
	c.CloseIdle()
	c.Send(t.Context(), V1, []byte("x"), 0)
	if n := opened.Load(); n != 2 {
		t.Errorf("%d connections after CloseIdle", n)
	}
}

func TestRedirects(t *testing.T) {
	var posts, gets atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			gets.Add(1)
			return
		}
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/taken":
			if string(body) == "x" {
				posts.Add(1)
			}
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusTemporaryRedirect)
		case "/nowhere":
			w.WriteHeader(http.StatusFound)
		default:
			var code int
			_, _ = fmt.Sscanf(r.URL.Path, "/%d", &code)
			w.Header().Set("Location", "/taken?token=hidden")
			w.WriteHeader(code)
		}
	})
	for _, test := range []struct {
		path, config string
		want         Outcome
		message      string
	}{
		{"/307", "", Accepted, ""},
		{"/308", "", Accepted, ""},
		{"/307", "follow_redirects: false", Refused, "/taken?token=<secret>"},
		{"/301", "", Refused, "/taken"},
		{"/302", "", Refused, "set its url to it"},
		{"/303", "", Refused, "/taken"},
		{"/loop", "", Refused, "/loop"},
		{"/nowhere", "", Refused, "check the endpoint's url"},
	} {
		posts.Store(0)
		c := newClient(t, endpoint(t, s.URL+test.path, test.config))
		r := c.Send(t.Context(), V1, []byte("x"), 0)
		if r.Outcome != test.want || !strings.Contains(r.Message, test.message) || (posts.Load() == 1) != (test.want == Accepted) {
			t.Errorf("%s %s: %s (%d posts), %s", test.path, test.config, r.Outcome, posts.Load(), r.Message)
		}
		c.CloseIdle()
	}
	if n := gets.Load(); n != 0 {
		t.Errorf("%d redirects were followed without the body", n)
	}
}

// TestBodyIsTheCallersAgain changes the body as soon as an answer has come that did not wait for it.
func TestBodyIsTheCallersAgain(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
		w.(http.Flusher).Flush()
	})
	c := newClient(t, endpoint(t, s.URL, ""))
	body := make([]byte, 4<<20)
	for i := range 5 {
		if r := c.Send(t.Context(), V1, body, 0); r.Outcome != Retry {
			t.Fatal(r.Outcome)
		}
		for j := range body {
			body[j] = byte(i)
		}
	}
}

func TestURLShowsNoSecrets(t *testing.T) {
	for address, want := range map[string]string{
		"http://h:9090/api/v1/write":             "http://h:9090/api/v1/write",
		"https://user:pw@h/w?tenant=a&api_key=b": "https://<secret>@h/w?tenant=a&api_key=<secret>",
		"https://h/w?token=b&x=y":                "https://h/w?token=<secret>&x=y",
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewClient("main", &promconfig.RemoteWriteConfig{URL: &commonconfig.URL{URL: u}, RemoteTimeout: model.Duration(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.URL(); got != want {
			t.Errorf("%s is shown as %s", address, got)
		}
	}
}
