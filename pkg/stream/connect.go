package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrAuth is returned by [Connect] where NATS refuses the credentials.
var ErrAuth = errors.New("NATS refuses the credentials")

// Config configures the connection to NATS.
type Config struct {
	// Names has the prefix of subjects, streams and buckets.
	Names Names
	// Server is the embedded server. Where it is nil, URL says which to dial.
	Server *Server
	// URL lists NATS servers, separated by commas.
	URL string
	// CredentialsFile, NKeySeedFile, or Username with Password authenticate; all may be empty.
	CredentialsFile, NKeySeedFile string
	Username, Password            string
	// TLS is nil for plain connections (a tls:// URL has TLS all the same).
	TLS *tls.Config
	// Client is the name that NATS shows for this connection.
	Client string
	// Inbox begins the subjects on which answers come, so that a user may be allowed to hear its own and no others; empty for _INBOX.
	Inbox string
	// Once makes the first failure to connect an error of [Connect] in place of another try.
	Once bool
	// Logger receives connects and disconnects.
	Logger *slog.Logger
}

// Conn is a connection to NATS with JetStream. It reconnects for ever. It is safe for concurrent use.
type Conn struct {
	Names
	NC *nats.Conn
	JS jetstream.JetStream

	handles sync.Map // of jetstream.Stream by name, see handle

	log    *slog.Logger
	server *Server // nil where the server is not in this process
}

// Connect connects to the embedded server or dials the URL until it answers or ctx ends; each failure is logged with the time of
// the next try. Refused credentials end it at once with [ErrAuth].
func Connect(ctx context.Context, cfg Config) (*Conn, error) {
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		nc, err := nats.Connect(cfg.URL, opts...)
		if err == nil {
			js, err := jetstream.New(nc)
			if err != nil {
				nc.Close()
				return nil, fmt.Errorf("connecting to JetStream: %w", err)
			}
			cfg.Server.opened(nc)
			return &Conn{Names: cfg.Names, NC: nc, JS: js, log: cfg.Logger, server: cfg.Server}, nil
		}
		if errors.Is(err, nats.ErrNoServers) {
			err = fmt.Errorf("%w: connection refused", err) // which is what the client leaves out
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
			return nil, fmt.Errorf("connecting to NATS at %s: %w; check --nats.creds and the millrace.nats section: %w", Redact(cfg.URL), ErrAuth, err)
		}
		if cfg.Once {
			return nil, fmt.Errorf("connecting to NATS at %s: %w", Redact(cfg.URL), err)
		}
		cfg.Logger.Warn("Cannot reach NATS, trying again", "url", Redact(cfg.URL), "err", err, "next_try", wait)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to NATS at %s: %w (last error: %w)", Redact(cfg.URL), ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}

func options(cfg Config) ([]nats.Option, error) {
	opts := []nats.Option{
		nats.Name(cfg.Client), nats.MaxReconnects(-1), nats.ReconnectWait(500 * time.Millisecond), nats.ReconnectJitter(200*time.Millisecond, time.Second),
		nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2), nats.RetryOnFailedConnect(false),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				cfg.Logger.Warn("Lost the connection to NATS, reconnecting", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			cfg.Logger.Info("Connected to NATS again", "url", nc.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			cfg.Logger.Warn("NATS reports an error", "err", err)
		}),
	}
	if cfg.Inbox != "" {
		opts = append(opts, nats.CustomInboxPrefix(cfg.Inbox))
	}
	if cfg.Server != nil {
		return append(opts, nats.InProcessServer(cfg.Server.ns)), nil
	}
	if cfg.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredentialsFile))
	}
	if cfg.NKeySeedFile != "" {
		o, err := nats.NkeyOptionFromSeed(cfg.NKeySeedFile)
		if err != nil {
			return nil, fmt.Errorf("reading the NKey seed %q: %w", cfg.NKeySeedFile, err)
		}
		opts = append(opts, o)
	}
	if cfg.Username != "" {
		opts = append(opts, nats.UserInfo(cfg.Username, cfg.Password))
	}
	if cfg.TLS != nil {
		opts = append(opts, nats.Secure(cfg.TLS))
	}
	return opts, nil
}

// Redact hides the user part of each of the NATS URLs, which are separated by commas.
func Redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		if at := strings.LastIndexByte(u, '@'); at >= 0 {
			if scheme, _, ok := strings.Cut(u, "://"); ok {
				list[i] = scheme + "://***@" + u[at+1:]
			} else {
				list[i] = "***@" + u[at+1:]
			}
		}
	}
	return strings.Join(list, ",")
}

// Close sends what is buffered and closes the connection.
func (c *Conn) Close() {
	if err := c.NC.FlushTimeout(5 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		c.log.Warn("Closing the NATS connection with unsent data", "err", err)
	}
	c.NC.Close()
}
