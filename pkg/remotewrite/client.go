package remotewrite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	commonconfig "github.com/prometheus/common/config"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/storage/remote/azuread"
	"github.com/prometheus/prometheus/storage/remote/googleiam"
	"github.com/prometheus/sigv4"

	"github.com/millrace/millrace/pkg/redact"
)

const (
	// maxMessageBytes is how much of an answer's body is kept to tell people.
	maxMessageBytes = 1 << 10
	// maxDrainBytes is how much of an answer's body is read so that the connection can be used again; one with more is
	// closed.
	maxDrainBytes = 64 << 10
	// writeBuffer is the buffer of a connection, in bytes. A request of 2,000 samples by remote_write 1.0 fits in, so that it is written at once; what does not fit,
	// net/http copies through 32 KiB that it allocates for each request.
	writeBuffer = 128 << 10
	// maxRedirects is net/http's own limit.
	maxRedirects = 10
)

// Client sends requests to one endpoint. It is safe for concurrent use.
type Client struct {
	// Version is the program's version for the User-Agent, "Millrace/<version>". To be set before the first Send.
	Version string

	name    string
	url     string // as configured
	shown   string // without secrets
	headers map[string]string
	timeout time.Duration
	late    error // the cause of a request's end after timeout
	client  *http.Client
	base    *http.Client // holds the connections
}

// NewClient returns a client for an endpoint, which goes by the given name in errors. It reads the files that the TLS
// configuration names, and does not connect yet.
//
// The client is put together from the parts that Prometheus's storage/remote uses, in their order, and not by its NewWriteClient:
// that one's tracing transport does not pass on CloseIdleConnections, and its round-robin dialler is not safe for the concurrent
// use that net/http makes of it.
func NewClient(name string, rw *promconfig.RemoteWriteConfig) (*Client, error) {
	if rw.URL == nil || rw.URL.URL == nil {
		return nil, fmt.Errorf("remote_write endpoint %q has no url", name)
	}
	var opts []commonconfig.HTTPClientOption
	if rw.RoundRobinDNS {
		opts = append(opts, commonconfig.WithDialContextFunc(dialAnyAddress))
	}
	base, err := commonconfig.NewClientFromConfig(rw.HTTPClientConfig, "remote_storage_write_client", opts...)
	if err != nil {
		return nil, fmt.Errorf("making the HTTP client of remote_write endpoint %q: %w", name, err)
	}
	if t, ok := base.Transport.(*http.Transport); ok { // not hidden by authentication or files of TLS
		t.WriteBufferSize = writeBuffer
	}
	transport, err := authenticate(base.Transport, rw)
	if err != nil {
		return nil, fmt.Errorf("making the HTTP client of remote_write endpoint %q: %w", name, err)
	}
	c := &Client{
		name:    name,
		url:     rw.URL.String(),
		shown:   redact.URLs(rw.URL.String()),
		headers: rw.Headers,
		timeout: time.Duration(rw.RemoteTimeout),
		client:  &http.Client{Transport: transport, CheckRedirect: onlyPosts(base.CheckRedirect)},
		base:    base,
	}
	if c.timeout <= 0 {
		c.timeout = time.Duration(promconfig.DefaultRemoteWriteConfig.RemoteTimeout)
	}
	c.late = fmt.Errorf("no answer within remote_timeout of %s: %w", c.timeout, context.DeadlineExceeded)
	return c, nil
}

// authenticate adds the kinds of authentication that only remote_write has.
func authenticate(t http.RoundTripper, rw *promconfig.RemoteWriteConfig) (http.RoundTripper, error) {
	var err error
	if rw.SigV4Config != nil {
		if t, err = sigv4.NewSigV4RoundTripper(rw.SigV4Config, t); err != nil {
			return nil, fmt.Errorf("sigv4: %w", err)
		}
	}
	if rw.AzureADConfig != nil {
		if t, err = azuread.NewAzureADRoundTripper(rw.AzureADConfig, t); err != nil {
			return nil, fmt.Errorf("azuread: %w", err)
		}
	}
	if rw.GoogleIAMConfig != nil {
		if t, err = googleiam.NewRoundTripper(rw.GoogleIAMConfig, t); err != nil {
			return nil, fmt.Errorf("google_iam: %w", err)
		}
	}
	return t, nil
}

// onlyPosts follows redirects that the configuration lets through and that keep the request as it is. After a 301, 302 or 303
// net/http would ask the new place with a GET and without the body, whose 200 would look as if the samples were taken.
func onlyPosts(configured func(*http.Request, []*http.Request) error) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if req.Method != http.MethodPost || len(via) >= maxRedirects {
			return http.ErrUseLastResponse
		}
		if configured != nil {
			return configured(req, via)
		}
		return nil
	}
}

// dialAnyAddress connects to one of the addresses that the host's name has, chosen at random, as round_robin_dns asks.
func dialAnyAddress(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return dialer.DialContext(ctx, network, address)
	}
	hosts, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil || len(hosts) == 0 {
		return dialer.DialContext(ctx, network, address)
	}
	return dialer.DialContext(ctx, network, net.JoinHostPort(hosts[rand.IntN(len(hosts))], port))
}

// URL returns the endpoint's URL with user, password and secret query parameters hidden.
func (c *Client) URL() string { return c.shown }

// CloseIdle closes the connections that no Send is using.
func (c *Client) CloseIdle() { c.base.CloseIdleConnections() }

// Send posts a body once and says what came of it. It returns when the endpoint has answered, remote_timeout has passed or
// ctx is done. attempt is 0 for the first time that the body is sent. The body is the caller's again when Send returns.
func (c *Client) Send(ctx context.Context, p Protocol, body []byte, attempt int) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, c.late)
	defer cancel()
	lent := lend(body)
	defer lent.end()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: lent.gotConn, WroteRequest: lent.wroteRequest})
	req, err := http.NewRequestWithContext(traced, http.MethodPost, c.url, nil)
	if err != nil {
		return c.failed(Refused, err)
	}
	req.Body, _ = lent.reader()
	req.GetBody, req.ContentLength = lent.reader, int64(len(body))
	for name, value := range c.headers {
		req.Header.Set(name, value)
	}
	c.setHeaders(req.Header, p, attempt)
	resp, err := c.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return c.failed(Retry, err)
	}
	defer resp.Body.Close()
	result := c.judge(resp)
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrainBytes)
	return result
}

func (c *Client) setHeaders(h http.Header, p Protocol, attempt int) {
	h.Set("Content-Encoding", "snappy")
	h.Set("Content-Type", p.contentType())
	agent := "Millrace"
	if c.Version != "" {
		agent += "/" + c.Version
	}
	h.Set("User-Agent", agent)
	version := remote.RemoteWriteVersion1HeaderValue
	if p == V2 {
		version = remote.RemoteWriteVersion20HeaderValue
	}
	h.Set(remote.RemoteWriteVersionHeader, version)
	if attempt > 0 {
		h.Set("Retry-Attempt", strconv.Itoa(attempt))
	}
}

// failed is the result where there is no answer.
func (c *Client) failed(o Outcome, err error) Result {
	message := redact.URLs(err.Error())
	return Result{
		Outcome: o,
		Message: cut(message),
		Err:     &sendError{text: fmt.Sprintf("sending to remote_write endpoint %q: %s", c.name, message), cause: err},
	}
}

// sendError shows no secrets of the URLs that its cause may show.
type sendError struct {
	text  string
	cause error
}

func (e *sendError) Error() string { return e.text }
func (e *sendError) Unwrap() error { return e.cause }

// message returns the first part of an answer's body as text.
func message(resp *http.Response) string {
	var body io.Reader = resp.Body
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		unpacked, err := gzip.NewReader(io.LimitReader(resp.Body, maxDrainBytes))
		if err != nil {
			return ""
		}
		defer unpacked.Close()
		body = unpacked
	}
	// What came before an error is worth showing.
	b, _ := io.ReadAll(io.LimitReader(body, maxMessageBytes))
	return cut(string(b))
}

// cut makes a text fit for a log line.
func cut(s string) string {
	s = s[:min(len(s), maxMessageBytes)]
	return strings.TrimSpace(strings.ToValidUTF8(s, ""))
}
