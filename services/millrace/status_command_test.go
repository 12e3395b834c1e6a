package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

// runCommandLine runs a command line.
func runCommandLine(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = command(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), code
}

// serveAnswer serves one answer to everything.
func serveAnswer(t *testing.T, code int, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// closedAddress is one where nobody listens.
func closedAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listen starts a NATS server that others may connect to.
func listen(t *testing.T) (address string) {
	t.Helper()
	address = closedAddress(t)
	s, err := stream.StartServer(stream.ServerConfig{
		Dir: t.TempDir(), Listen: address, MaxMemory: 64 << 20, MaxStorage: 1 << 30, SyncInterval: time.Minute, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return address
}

func TestStatusSaysWhatIsWrong(t *testing.T) {
	embedded := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(embedded, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	closed := closedAddress(t)
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"nobody there", []string{"--web.url=http://user:secret@" + closed}, 1, []string{closed, "connection refused", "start it, or give --web.url", "--nats.url"}},
		{"no URL", []string{"--web.url=localhost"}, 2, []string{"--web.url", "http://host:9474"}},
		{"no NATS there", []string{"--nats.url=nats://user:secret@" + closed}, 1, []string{closed, "connection refused", "start NATS, or give its address with --nats.url"}},
		{"no NATS URL", []string{"--nats.url=ftp://" + closed}, 2, []string{"the command line", "millrace.nats.url", "nats://host:4222"}},
		{"no password file", []string{"--nats.url=nats://" + closed, "--nats.user=status", "--nats.password-file=/nowhere"}, 2, []string{"/nowhere"}},
		{"credentials for nobody", []string{"--nats.user=status"}, 2, []string{"nats.url is empty"}},
		{"both ways", []string{"--nats.url=nats://" + closed, "--web.url=http://" + closed}, 2, []string{"give one of them"}},
		{"both ways, by a file", []string{"--config.file=" + embedded, "--http.config.file=x"}, 2, []string{"give one of them"}},
		{"an embedded server's configuration", []string{"--config.file=" + embedded}, 2, []string{"no millrace.nats.url", "--web.url"}},
		{"no configuration", []string{"--config.file=/nowhere"}, 2, []string{"/nowhere", "no such file"}},
		{"no HTTP configuration", []string{"--http.config.file=/nowhere"}, 2, []string{"--http.config.file", "/nowhere"}},
		{"nothing in NATS", []string{"--nats.url=nats://" + listen(t)}, 1, []string{"no streams and no processes", `prefix "millrace"`, "millrace.nats.prefix"}},
		{"an unknown flag", []string{"--nats.port=1"}, 2, []string{"unknown long flag"}},
		{"something else", []string{"--web.url=" + serveAnswer(t, 200, "<html>")}, 1, []string{"<html>", "is it a Millrace?"}},
		{"an older one", []string{"--web.url=" + serveAnswer(t, 404, "not found")}, 1, []string{"/api/v1/status/fleet", "an older one"}},
		{"a guarded one", []string{"--web.url=" + serveAnswer(t, 401, "Unauthorized")}, 1, []string{"wants a user and a password", "--http.config.file"}},
		{"one that fails", []string{"--web.url=" + serveAnswer(t, 503, `{"status":"error","errorType":"timeout","error":"no time left"}`)}, 1, []string{"no time left"}},
		{"a newer one", []string{"--web.url=" + serveAnswer(t, 200, `{"status":"success","data":{"version":2}}`)}, 1, []string{"version 2, this build shows version 1", "--json"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := runCommandLine(t, append([]string{"status"}, c.args...)...)
			if code != c.code || stdout != "" || strings.Contains(stderr, "secret") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("it ends with %d, wants %d:\n%s%s", code, c.code, stdout, stderr)
			}
			for _, s := range c.says {
				if !strings.Contains(stderr, s) {
					t.Errorf("%q is not in %s", s, stderr)
				}
			}
		})
	}
}

// TestStatusPassesOnWhatItDoesNotKnow has a newer Millrace answer with a field more.
func TestStatusPassesOnWhatItDoesNotKnow(t *testing.T) {
	url := serveAnswer(t, 200, `{"status":"success","data":{"version":1,"members":[{"id":"a-1","state":"ready"}],"later":{"a":1}}}`)
	stdout, stderr, code := runCommandLine(t, "status", "--json", "--web.url="+url)
	var d map[string]any
	if err := json.Unmarshal([]byte(stdout), &d); err != nil || code != 0 || stderr != "" || d["later"] == nil {
		t.Errorf("it ends with %d: %v\n%s%s", code, err, stdout, stderr)
	}
	if stdout, _, code := runCommandLine(t, "status", "--web.url="+url); code != 0 || !strings.Contains(stdout, "a-1") {
		t.Errorf("it ends with %d: %s", code, stdout)
	}
}

// TestStatusOfAProcessThatWaits asks one that has NATS and waits for the streams, over NATS and by its own API.
func TestStatusOfAProcessThatWaits(t *testing.T) {
	conn := streamtest.New(t, 2)
	p := starting(t, conn)
	p.reg, p.started = prometheus.NewRegistry(), time.Now()
	p.system = actor.NewSystem("millrace", p.log, p.reg)
	p.services = []string{"relabel", "writer"}
	p.self = fleet.Member{ID: "a-1", Host: "a", Services: p.services}
	p.wait("the streams, which discovery makes")
	p.shared.Collect = p.document
	d, err := p.shared.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Members) != 1 || len(d.Streams) != 0 {
		t.Errorf("without NATS: %+v", d)
	}
	p.nats.Store(conn)
	silence, err := status.Answer(conn, status.Answers{Report: p.report, Failed: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer silence()
	for _, self := range []*status.Report{nil, p.report()} {
		d, err := status.Collect(t.Context(), status.Source{Conn: conn, View: p.view, Self: self})
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Members) != 1 || len(d.Streams) != 11 {
			t.Fatalf("%+v", d)
		}
		m := d.Members[0]
		if m.ID != "a-1" || m.State != status.Starting || m.Asked != (self != nil) || len(m.Services) != 2 || len(m.WaitingFor) != 1 || !strings.Contains(m.WaitingFor[0], "discovery makes") {
			t.Errorf("%+v", m)
		}
	}
}
