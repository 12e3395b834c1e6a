package stream

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
)

func TestStartServerSaysWhatIsWrongWithTheStoragePath(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(dir string) error
		want    string
	}{
		"a file in its place":  {func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "making the storage path"},
		"it cannot be written": {func(dir string) error { return os.MkdirAll(filepath.Join(dir, "lock"), 0o700) }, "cannot be written"},
		"a file where streams are": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "jetstream"), nil, 0o600))
		}, "starting the embedded NATS server"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			if err := test.prepare(dir); err != nil {
				t.Fatal(err)
			}
			s, err := StartServer(serverConfig(dir))
			if err == nil {
				s.Shutdown()
				t.Fatal("it started")
			}
			for _, part := range []string{test.want, dir} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not have %q", err, part)
				}
			}
		})
	}
}

func TestStartServerRefusesAStoragePathInUse(t *testing.T) {
	dir := t.TempDir()
	first := startServer(t, serverConfig(dir))
	if s, err := StartServer(serverConfig(dir)); err == nil {
		s.Shutdown()
		t.Error("two servers use one storage path")
	} else if !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), "--storage.path") {
		t.Errorf("error %q does not say what to do", err)
	}
	first.Shutdown()
	startServer(t, serverConfig(dir)).Shutdown()
}

func TestTheServerListensOnlyWhereItIsToldTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for listen, want := range map[string]string{
		l.Addr().String(): "address already in use",
		"localhost":       "want host:port",
		"localhost:port":  "is not a number",
		"localhost:70000": "is not a number from 0 to 65535",
	} {
		cfg := serverConfig(t.TempDir())
		cfg.Listen = listen
		s, err := StartServer(cfg)
		if err == nil {
			s.Shutdown()
			t.Errorf("listening on %q: it started", listen)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "millrace.nats.embedded.listen") {
			t.Errorf("listening on %q: error %q does not have %q", listen, err, want)
		}
		cfg.Listen = "" // the directory is free again
		startServer(t, cfg).Shutdown()
	}

	o := newOutside(t)
	nc, err := nats.Connect(o.url())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	quiet := startServer(t, serverConfig(t.TempDir()))
	defer quiet.Shutdown()
	if addr := quiet.ns.Addr(); addr != nil {
		t.Errorf("a server without a port listens on %v", addr)
	}
}
