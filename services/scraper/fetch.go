package scraper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/version"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/pool"
)

var errBodySizeLimit = errors.New("body size limit exceeded")

// clients are the HTTP clients of a scrape job: one for all targets, and one for each unix socket, since connections are pooled by host.
type clients struct {
	config  *promconfig.ScrapeConfig
	common  *http.Client
	sockets map[string]*http.Client
}

func newClients(cfg *promconfig.ScrapeConfig) (*clients, error) {
	client, err := commonconfig.NewClientFromConfig(cfg.HTTPClientConfig, cfg.JobName)
	if err != nil {
		return nil, fmt.Errorf("making the HTTP client of job %q: %w", cfg.JobName, err)
	}
	return &clients{config: cfg, common: client, sockets: map[string]*http.Client{}}, nil
}

// of returns the client for a target.
func (c *clients) of(t *scrape.Target) (*http.Client, error) {
	path := t.GetValue(scrape.UnixSocketLabel)
	if path == "" {
		return c.common, nil
	}
	if client, ok := c.sockets[path]; ok {
		return client, nil
	}
	client, err := commonconfig.NewClientFromConfig(c.config.HTTPClientConfig, c.config.JobName,
		commonconfig.WithDialContextFunc(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return nil, fmt.Errorf("making the HTTP client for the unix socket %q: %w", path, err)
	}
	c.sockets[path] = client
	return client, nil
}

func (c *clients) close() {
	c.common.CloseIdleConnections()
	for _, client := range c.sockets {
		client.CloseIdleConnections()
	}
}

// fetcher gets the exposition of one target.
type fetcher struct {
	client  *http.Client
	request *http.Request
	limit   int64 // of the body, decompressed, in bytes
}

func newFetcher(cfg *promconfig.ScrapeConfig, client *http.Client, url string, timeout time.Duration) (*fetcher, error) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accepted(cfg))
	encodings := "identity"
	if cfg.EnableCompression {
		encodings = "zstd,gzip"
	}
	request.Header.Set("Accept-Encoding", encodings)
	request.Header.Set("User-Agent", version.ComponentUserAgent("Millrace"))
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(timeout.Seconds(), 'f', -1, 64))
	limit := int64(cfg.BodySizeLimit)
	if limit <= 0 {
		limit = math.MaxInt64
	}
	return &fetcher{client: client, request: request, limit: limit}, nil
}

// accepted returns the Accept header (RFC 9110, section 12.5.1) for the scrape protocols of a job: the first is preferred.
func accepted(cfg *promconfig.ScrapeConfig) string {
	scheme, err := promconfig.ToEscapingScheme(cfg.MetricNameEscapingScheme, cfg.MetricNameValidationScheme)
	if err != nil {
		panic(err) // a loaded configuration has valid ones
	}
	weight := len(promconfig.ScrapeProtocolsHeaders) + 1
	var types []string
	for _, p := range cfg.ScrapeProtocols {
		t := promconfig.ScrapeProtocolsHeaders[p]
		if p == promconfig.PrometheusText1_0_0 || p == promconfig.OpenMetricsText1_0_0 {
			t += ";escaping=" + scheme.String()
		}
		types = append(types, fmt.Sprintf("%s;q=0.%d", t, weight))
		weight--
	}
	return strings.Join(append(types, fmt.Sprintf("*/*;q=0.%d", weight)), ",")
}

// bodies keeps the memory of bodies for reuse.
var bodies = pool.New(4<<10, 128<<20, 2, func(size int) any { return make([]byte, 0, size) })

// fetch gets the exposition. The body's memory comes from the pool bodies, into which the caller puts it; it has room for one more byte.
// size is about how long the body may be.
func (f *fetcher) fetch(ctx context.Context, size int) (body []byte, contentType string, err error) {
	response, err := f.client.Do(f.request.WithContext(ctx))
	if err != nil {
		return nil, "", err
	}
	defer func() {
		// What little is left lets the connection be used again.
		_, _ = io.CopyN(io.Discard, response.Body, 64<<10)
		response.Body.Close()
	}()
	if response.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("server returned HTTP status %s", response.Status)
	}
	body = bodies.Get(size + 1).([]byte)
	if body, err = f.read(body, response); err != nil {
		bodies.Put(body)
		return nil, "", err
	}
	return body, response.Header.Get("Content-Type"), nil
}

func (f *fetcher) read(to []byte, response *http.Response) ([]byte, error) {
	switch response.Header.Get("Content-Encoding") {
	case "gzip":
		z := gzips.Get().(*gunzip)
		defer gzips.Put(z)
		z.buf.Reset(response.Body)
		defer z.buf.Reset(nil)
		if err := z.Reset(z.buf); err != nil {
			return to, err
		}
		return appendAll(to, &z.Reader, f.limit)
	case "zstd":
		z := zstds.Get().(*zstd.Decoder)
		defer zstds.Put(z)
		defer func() { _ = z.Reset(nil) }()
		if err := z.Reset(response.Body); err != nil {
			return to, err
		}
		return appendAll(to, z, f.limit)
	default:
		return appendAll(to, response.Body, f.limit)
	}
}

// gunzip is a gzip reader with the buffer that it reads from.
type gunzip struct {
	gzip.Reader
	buf *bufio.Reader
}

var (
	gzips = sync.Pool{New: func() any { return &gunzip{buf: bufio.NewReaderSize(nil, 16<<10)} }}
	zstds = sync.Pool{New: func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return z
	}}
)

// appendAll reads r to its end, which has to come before limit bytes, and leaves room for one more byte. What it returns replaces to, after an
// error too.
func appendAll(to []byte, r io.Reader, limit int64) ([]byte, error) {
	for {
		if cap(to)-len(to) < 2 {
			larger := bodies.Get(2 * cap(to)).([]byte)
			larger = append(larger, to...)
			bodies.Put(to)
			to = larger
		}
		room := to[len(to) : cap(to)-1]
		if left := limit - int64(len(to)); int64(len(room)) > left {
			room = room[:left]
		}
		n, err := r.Read(room)
		to = to[:len(to)+n]
		if int64(len(to)) >= limit {
			return to, errBodySizeLimit
		}
		if errors.Is(err, io.EOF) {
			return to, nil
		}
		if err != nil {
			return to, err
		}
	}
}
