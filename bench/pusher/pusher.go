package pusher

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/numbered"
)

// Protocol is how senders push.
type Protocol string

// The protocols.
const (
	// OTLPHTTP is OTLP over HTTP, in binary protobuf and gzip.
	OTLPHTTP Protocol = "otlp-http"
	// OTLPGRPC is OTLP over gRPC, in gzip.
	OTLPGRPC Protocol = "otlp-grpc"
	// RemoteWrite is remote_write 1.0, in snappy.
	RemoteWrite Protocol = "remote-write"
	// RemoteWrite2 is remote_write 2.0, in snappy.
	RemoteWrite2 Protocol = "remote-write-2"
)

// Protocols are all of them.
func Protocols() []Protocol { return []Protocol{OTLPHTTP, OTLPGRPC, RemoteWrite, RemoteWrite2} }

func (p Protocol) isOTLP() bool { return p == OTLPHTTP || p == OTLPGRPC }

// Config says what a pusher plays.
type Config struct {
	// URL is where to push: whole for protocols over HTTP (http://127.0.0.1:4318/v1/metrics); of that for gRPC, only scheme, host and port count.
	URL string
	// Protocol is how to push. Default OTLPHTTP.
	Protocol Protocol
	// Senders is how many applications push. Default 100.
	Senders int
	// Series is how many samples a push becomes at the receiver, one for each series. Default 500.
	Series int
	// Histograms is how many classic histograms are among them, of 13 series each. Default 0.
	Histograms int
	// Delta makes sums and histograms of OTLP tell what was added since the push before. Default false: since the start.
	Delta bool
	// Interval is the time from one push of a sender to its next. Default 1s, at least 1ms.
	Interval time.Duration
	// Timeout is how long a sender waits for an answer. Default 10s.
	Timeout time.Duration
	// MinBackoff and MaxBackoff are the first and the longest time until a push is sent again whose answer does not say when.
	// Default 100ms and 5s.
	MinBackoff, MaxBackoff time.Duration
	// QueueLimit is how many pushes of a sender wait for their answer at most; others are not made meanwhile. Default 60.
	QueueLimit int
	// Drain is how long senders go on, once they are to end, to get the pushes answered that were made. Default 10s.
	Drain time.Duration
	// Headers are added to each request, as metadata for gRPC. Default none.
	Headers map[string]string
	// TLS configures connections if the URL's scheme is https. Default: the system's authorities.
	TLS *tls.Config
}

func (c *Config) validate() error {
	if c.Protocol == "" {
		c.Protocol = OTLPHTTP
	}
	for _, d := range []struct {
		to    *int
		value int
	}{{&c.Senders, 100}, {&c.Series, 500}, {&c.QueueLimit, 60}} {
		if *d.to == 0 {
			*d.to = d.value
		}
	}
	for _, d := range []struct{ to, value *time.Duration }{
		{&c.Interval, new(time.Second)}, {&c.Timeout, new(10 * time.Second)}, {&c.MinBackoff, new(100 * time.Millisecond)},
		{&c.MaxBackoff, new(5 * time.Second)}, {&c.Drain, new(10 * time.Second)},
	} {
		if *d.to == 0 {
			*d.to = *d.value
		}
	}
	known := false
	for _, p := range Protocols() {
		known = known || c.Protocol == p
	}
	at, err := url.Parse(c.URL)
	switch {
	case !known:
		return fmt.Errorf("protocol %q: give one of %v", c.Protocol, Protocols())
	case err != nil:
		return fmt.Errorf("parsing the URL: %w", err)
	case at.Host == "" || at.Scheme != "http" && at.Scheme != "https":
		return fmt.Errorf("URL %q: give one like http://127.0.0.1:4318/v1/metrics", c.URL)
	case c.Senders < 0:
		return fmt.Errorf("%d senders: give at least 1", c.Senders)
	case c.Histograms < 0 || c.Series < 1+c.Histograms*samplesOf:
		return fmt.Errorf("%d series with %d histograms: give at least 1 series, and %d for each histogram", c.Series, c.Histograms, samplesOf)
	case c.Delta && !c.Protocol.isOTLP():
		return fmt.Errorf("delta with protocol %s: only OTLP has it", c.Protocol)
	case c.Interval < time.Millisecond:
		return fmt.Errorf("interval %s: give at least 1ms", c.Interval)
	case c.Timeout < 0 || c.MinBackoff < 0 || c.MaxBackoff < c.MinBackoff || c.QueueLimit < 0 || c.Drain < 0:
		return fmt.Errorf("timeout %s, backoff %s to %s, queue limit %d, drain %s: give none below 0, and the longer backoff second",
			c.Timeout, c.MinBackoff, c.MaxBackoff, c.QueueLimit, c.Drain)
	}
	return nil
}

// Pusher plays senders. Create it with New; but for Run it is safe for concurrent use.
type Pusher struct {
	config  Config
	senders []*sender
	counts  counts
	mux     *http.ServeMux
}

// New returns a pusher that does not push yet.
func New(config Config) (*Pusher, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("configuring a pusher: %w", err)
	}
	p := &Pusher{config: config, mux: http.NewServeMux()}
	width := len(strconv.Itoa(config.Senders - 1))
	t, err := newTemplate(config, width)
	if err != nil {
		return nil, err
	}
	// Over HTTP, senders share a client, which gives each of them a connection.
	var shared transport
	if config.Protocol != OTLPGRPC {
		shared = newHTTPTransport(config)
	}
	bodies := &sync.Pool{New: func() any { return new([]byte) }}
	for i := range config.Senders {
		number := fmt.Sprintf("%0*d", width, i)
		name := strings.ReplaceAll(targetName, digits, number)
		s := &sender{
			config: &p.config, name: name, digits: number, seed: numbered.TargetSeed(name), template: t, transport: shared, counts: &p.counts, bodies: bodies,
		}
		if config.Protocol == OTLPGRPC {
			if s.transport, err = newGRPCTransport(config); err != nil {
				return nil, err
			}
		}
		p.senders = append(p.senders, s)
	}
	p.mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, p.Stats()) })
	p.mux.HandleFunc("POST /window", func(http.ResponseWriter, *http.Request) { p.ResetWindow() })
	p.mux.HandleFunc("GET /served", p.serveServed)
	return p, nil
}

// newTemplate encodes what all pushes share.
func newTemplate(config Config, width int) (*template, error) {
	metrics, err := layout(config.Series, config.Histograms)
	if err != nil {
		return nil, fmt.Errorf("laying out a push: %w", err)
	}
	switch config.Protocol {
	case RemoteWrite:
		return remoteWriteTemplate(metrics, width)
	case RemoteWrite2:
		return remoteWrite2Template(metrics, width)
	default:
		return otlpTemplate(metrics, width, config.Delta), nil
	}
}

// Run pushes until ctx is done, and then for Config.Drain at most to get the answers that are missing. It is to be called once.
func (p *Pusher) Run(ctx context.Context) {
	// Attempts do not end with ctx, but when the time to drain has passed.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	end := &ending{done: make(chan struct{})}
	ended := make(chan struct{})
	var all sync.WaitGroup
	start := time.Now()
	for i, s := range p.senders {
		first := start.Add(p.config.Interval * time.Duration(i) / time.Duration(len(p.senders)))
		all.Go(func() { s.run(sending, end, first) })
	}
	go func() {
		all.Wait()
		close(ended)
	}()
	<-ctx.Done()
	end.at = time.Now()
	close(end.done)
	drain := time.NewTimer(p.config.Drain)
	defer drain.Stop()
	select {
	case <-drain.C:
		cancel()
		<-ended
	case <-ended:
	}
}

// Stats returns what was done so far.
func (p *Pusher) Stats() Stats { return p.counts.snapshot() }

// ResetWindow begins a new window of answer times and failures.
func (p *Pusher) ResetWindow() { p.counts.resetWindow() }

// Log returns what has to arrive, by target label: for push n at index n-1, when it was answered and how many samples were
// acknowledged; none if it was refused. Pushes that are not answered yet are not in it.
func (p *Pusher) Log() numbered.Log {
	log := make(numbered.Log, len(p.senders))
	for _, s := range p.senders {
		log[s.name] = s.log()
	}
	return log
}

// Served returns how many pushes of each sender were answered, by target label.
func (p *Pusher) Served() map[string]int {
	served := make(map[string]int, len(p.senders))
	for _, s := range p.senders {
		served[s.name] = s.answeredCount()
	}
	return served
}

// ServeHTTP serves
//   - GET /stats: the [Stats];
//   - POST /window: begins a new window of answer times and failures;
//   - GET /served: how many pushes of each sender were answered, as a JSON object; with ?log=1 the whole [numbered.Log].
func (p *Pusher) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Pusher) serveServed(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("log") != "" {
		writeJSON(w, p.Log())
		return
	}
	writeJSON(w, p.Served())
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(data, '\n'))
}
