package stream

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/await"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Of the NATS server's package and of its libraries: one for each process.
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).delayedAPIResponder"),
	)
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func serverConfig(dir string) ServerConfig {
	return ServerConfig{Dir: dir, MaxMemory: 64 << 20, MaxStorage: 1 << 30, SyncInterval: time.Minute, Logger: discard()}
}

func startServer(t *testing.T, cfg ServerConfig) *Server {
	t.Helper()
	s, err := StartServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var testLayout = Layout{Partitions: 2, Replicas: 1}

// newConn returns a connection to a new embedded server that has the streams.
func newConn(t *testing.T) *Conn {
	t.Helper()
	s := startServer(t, serverConfig(t.TempDir()))
	t.Cleanup(s.Shutdown)
	c := connect(t, Config{Server: s})
	ensure(t, c)
	return c
}

func connect(t *testing.T, cfg Config) *Conn {
	t.Helper()
	if cfg.Names.Prefix == "" {
		cfg.Names.Prefix = "test"
	}
	if cfg.Logger == nil {
		cfg.Logger = discard()
	}
	c, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func ensure(t *testing.T, c *Conn) {
	t.Helper()
	if err := c.Ensure(t.Context(), testLayout); err != nil {
		t.Fatal(err)
	}
}

// outside is a NATS server that is reached over TCP, and can be shut down and started again in the same place.
type outside struct {
	t   *testing.T
	cfg ServerConfig
	*Server
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &outside{t: t, cfg: serverConfig(t.TempDir())}
	o.cfg.Listen = l.Addr().String()
	l.Close()
	o.start()
	t.Cleanup(func() {
		if o.Server != nil {
			o.stop()
		}
	})
	return o
}

func (o *outside) start() {
	o.t.Helper()
	o.Server = startServer(o.t, o.cfg)
}

func (o *outside) stop() {
	o.Shutdown()
	o.Server = nil
}

func (o *outside) url() string { return "nats://" + o.cfg.Listen }

// talker is a server that greets clients as a NATS server of the given version does, and answers their PINGs, or refuses them.
func talker(t *testing.T, version string, refuse bool) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var talks sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		talks.Wait()
	})
	talks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			talks.Go(func() {
				defer conn.Close()
				fmt.Fprintf(conn, "INFO {\"server_id\":\"x\",\"version\":%q,\"proto\":1,\"headers\":true,\"max_payload\":1048576,\"jetstream\":true}\r\n", version)
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if !strings.HasPrefix(lines.Text(), "PING") {
						continue
					}
					if refuse {
						fmt.Fprint(conn, "-ERR 'Authorization Violation'\r\n")
						return
					}
					fmt.Fprint(conn, "PONG\r\n")
				}
			})
		}
	})
	return "nats://" + l.Addr().String()
}

func publish(t *testing.T, c *Conn, subject string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if _, err := c.Publish(t.Context(), &nats.Msg{Subject: subject, Data: []byte(text)}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	t.Cleanup(cancel)
	return ctx
}
