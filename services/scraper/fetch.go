package scraper

import (
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

	"github.com/klauspost/compress/zstd"
	commonconfig "github.com/prometheus/common/config"
	"github.com/prometheus/common/version"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/pool"

	"github.com/millrace/millrace/pkg/inflate"
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

// newFetcher makes one that lets go of a try after the timeout. With identity, the target is asked not to compress.
func newFetcher(cfg *promconfig.ScrapeConfig, client *http.Client, url string, timeout time.Duration, identity bool) (*fetcher, error) {
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accepted(cfg))
	encodings := "identity"
	if cfg.EnableCompression && !identity {
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

// isLocal reports whether no network lies between this process and a target.
func isLocal(t *scrape.Target) bool {
	host := t.URL().Hostname()
	return t.GetValue(scrape.UnixSocketLabel) != "" || host == "localhost" || net.ParseIP(host).IsLoopback()
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

// exposition is what a target has answered. The zero value is the answer of a target that said nothing.
type exposition struct {
	body        []byte // the whole body, or its beginning, with room for one more byte
	contentType string
	rest        io.Reader // the rest of the body, where it is larger than a piece
	err         error     // with which the rest could not be fetched

	response *http.Response
	decoded  decoder // of the response's body
	limit    int64   // for the size
	size     int64   // of what was read, decompressed, in bytes
	cancel   context.CancelFunc
}

// decoder is a decompressor that can be used again.
type decoder interface {
	io.Reader
	// start begins with another body.
	start(body io.Reader) error
	// free makes it ready for others.
	free()
}

// fetch gets the exposition, which the caller closes. As much of the body is read as is in a piece, in bytes. size is about how long the body may be. ctx has to
// last until the exposition is closed.
func (f *fetcher) fetch(ctx context.Context, size, piece int) (*exposition, error) {
	response, err := f.client.Do(f.request.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	x := &exposition{response: response, limit: f.limit}
	if response.StatusCode != http.StatusOK {
		x.close()
		return nil, fmt.Errorf("server returned HTTP status %s", response.Status)
	}
	x.contentType = response.Header.Get("Content-Type")
	if err := x.begin(min(size+2, piece), piece); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

// begin reads the beginning of the body.
func (x *exposition) begin(size, piece int) error {
	switch x.response.Header.Get("Content-Encoding") {
	case "gzip":
		x.decoded = gzips.Get().(decoder)
	case "zstd":
		x.decoded = zstds.Get().(decoder)
	}
	if x.decoded != nil {
		if err := x.decoded.start(x.response.Body); err != nil {
			return err
		}
	}
	x.body = bodies.Get(size).([]byte)
	for {
		if cap(x.body)-len(x.body) < 2 {
			if len(x.body) >= piece-2 {
				x.rest = x
				return nil
			}
			larger := bodies.Get(2 * cap(x.body)).([]byte)
			larger = append(larger, x.body...)
			bodies.Put(x.body)
			x.body = larger
		}
		n, err := x.Read(x.body[len(x.body) : cap(x.body)-1])
		x.body = x.body[:len(x.body)+n]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Read reads on in the decompressed body, which has to end before the limit.
func (x *exposition) Read(to []byte) (n int, err error) {
	if left := x.limit - x.size; int64(len(to)) > left {
		to = to[:left]
	}
	if x.decoded != nil {
		n, err = x.decoded.Read(to)
	} else {
		n, err = x.response.Body.Read(to)
	}
	if x.size += int64(n); x.size >= x.limit {
		return n, errBodySizeLimit
	}
	return n, err
}

// close gives back what the exposition has taken.
func (x *exposition) close() {
	if x.body != nil {
		bodies.Put(x.body[:0])
	}
	if x.decoded != nil {
		x.decoded.free()
	}
	if x.response != nil {
		// What little is left lets the connection be used again.
		_, _ = io.CopyN(io.Discard, x.response.Body, 64<<10)
		x.response.Body.Close()
	}
	if x.cancel != nil {
		x.cancel()
	}
	*x = exposition{}
}

// gunzip is a gzip reader.
type gunzip struct{ *inflate.Reader }

func (z *gunzip) start(body io.Reader) error {
	z.Reset(body)
	return nil
}

func (z *gunzip) free() {
	z.Reset(nil)
	gzips.Put(z)
}

// unzstd is a zstd reader.
type unzstd struct{ *zstd.Decoder }

func (z *unzstd) start(body io.Reader) error { return z.Reset(body) }

func (z *unzstd) free() {
	_ = z.Reset(nil)
	zstds.Put(z)
}

// maxWindow is how much of a body zstd may refer back to, in bytes. It is what decoders have to take (RFC 8878, section 3.1.1.1.2).
const maxWindow = 8 << 20

var (
	gzips = sync.Pool{New: func() any { return &gunzip{inflate.NewReader()} }}
	zstds = sync.Pool{New: func() any {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return &unzstd{z}
	}}
)
