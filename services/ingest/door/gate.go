package door

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// maxTenantBytes is the length of a tenant's name, as in Mimir and Cortex.
const maxTenantBytes = 150

// answerTimeout is how long a sender may take to read an answer.
const answerTimeout = 10 * time.Second

// protocol is what differs between the doors: how requests and answers look.
type protocol interface {
	// route says whether the request is one for this door at all.
	route(r *http.Request) *failure
	// open says from the headers what the body is.
	open(r *http.Request) (parcel, *failure)
	// accept answers a request that was taken, maybe in part, and returns the code for the metrics.
	accept(w http.ResponseWriter, p parcel, outcome Outcome) string
	// refuse answers a request that was not taken. The parcel is the zero one where the request did not come to open.
	refuse(w http.ResponseWriter, r *http.Request, p parcel, f *failure) string
}

// parcel says how a body is wrapped.
type parcel struct {
	format Format
	coding coding
	json   bool // OTLP in JSON
	framed bool // a message of gRPC, with its prefix
}

// gate is what all doors have in common: the way from a request to the Taker and back.
type gate struct {
	cfg           Config
	protocol      protocol
	credentials   *credentials // nil: everybody may push
	memory        memory
	decompressors decompressors
	rates         *rates // nil: no limit
	requests      atomic.Int64
	refusals      refusals
	duration      prometheus.Observer
	received      prometheus.Counter
}

// newGate takes a configuration that has its defaults and is valid.
func newGate(cfg Config, p protocol) (*gate, error) {
	g := &gate{
		cfg:           cfg,
		protocol:      p,
		decompressors: newDecompressors(),
		rates:         newRates(cfg.Limits.MaxSamplesPerSecond),
		refusals:      refusals{logger: cfg.Logger, reasons: map[string]*refused{}},
		duration:      cfg.Metrics.duration.WithLabelValues(cfg.Name),
		received:      cfg.Metrics.bytes.WithLabelValues(cfg.Name),
	}
	g.memory.limit, g.memory.gauge = cfg.Limits.MaxInFlightBytes, cfg.Metrics.inFlight.WithLabelValues(cfg.Name)
	var err error
	g.credentials, err = newCredentials(cfg.Auth, func(err error) {
		cfg.Logger.Warn("Reading credentials again failed; the ones before stay in force", "door", cfg.Name, "err", err)
	})
	if err != nil {
		return nil, fmt.Errorf("configuring the door %s: %w", cfg.Name, err)
	}
	return g, nil
}

// ServeHTTP answers one request.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	d := deadlines{conn: http.NewResponseController(w), own: g.cfg.Listen != "", http1: r.ProtoMajor < 2}
	d.begin(start.Add(g.cfg.Limits.ReadTimeout))
	p, sender, outcome, f := g.handle(d, r)
	d.answer()
	var code string
	if f == nil {
		code = g.protocol.accept(w, p, outcome)
		if outcome.Refused > 0 {
			g.refusals.log(slog.LevelWarn, "data refused", "Some pushed data was refused", slog.String("door", g.cfg.Name), slog.String("sender", sender),
				slog.Int("refused", outcome.Refused), slog.String("why", clip(outcome.Reason, maxMessage)))
		}
	} else {
		code = g.protocol.refuse(w, r, p, f)
		g.logFailure(sender, r, f)
	}
	g.cfg.Metrics.requests.WithLabelValues(g.cfg.Name, code).Inc()
	g.duration.Observe(time.Since(start).Seconds())
}

// deadlines are those of a request. Not every writer has them, and errors of that are no matter: the server's own
// timeouts count then.
type deadlines struct {
	conn  *http.ResponseController
	own   bool // the server is the door's, with its ReadTimeout
	http1 bool
}

func (d deadlines) begin(read time.Time) {
	if !d.own {
		_ = d.conn.SetReadDeadline(read)
	} else if d.http1 {
		_ = d.conn.SetWriteDeadline(time.Time{}) // of the answer before
	}
}

// bodyRead ends the deadline for reading. In HTTP/1 it would end the connection, and with it the request's context,
// while the Taker waits for the stream.
func (d deadlines) bodyRead() {
	if d.http1 {
		_ = d.conn.SetReadDeadline(time.Time{})
	}
}

// answer limits how long the sender may take to read the answer. HTTP/2 has a timeout for its connections.
func (d deadlines) answer() {
	if d.own && d.http1 {
		_ = d.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	}
}

func (g *gate) logFailure(sender string, r *http.Request, f *failure) {
	if f.fault == gone {
		return // senders come and go
	}
	level, attrs := slog.LevelWarn, []slog.Attr{slog.String("door", g.cfg.Name), slog.String("sender", sender), slog.String("path", clip(r.URL.Path, 200)), slog.String("answer", clip(f.message, maxMessage))}
	if f.cause != nil {
		level, attrs = slog.LevelError, append(attrs, slog.Any("err", f.cause))
	}
	g.refusals.log(level, faults[f.fault].name, "A push was refused", attrs...)
}

// handle takes the request in the order of what it costs: nothing is read of a body before it is known to be welcome.
func (g *gate) handle(d deadlines, r *http.Request) (p parcel, sender string, outcome Outcome, f *failure) {
	defer func() {
		if v := recover(); v != nil {
			f = &failure{fault: internal, message: internalMessage, cause: fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
		}
	}()
	sender = remoteIP(r)
	if f = g.protocol.route(r); f != nil {
		return p, sender, Outcome{}, f
	}
	var user string
	if g.credentials != nil {
		if user, f = g.credentials.check(r); f != nil {
			return p, sender, Outcome{}, f
		}
	}
	tenant, f := g.tenant(r)
	named := tenant
	if g.credentials == nil && !certified(r) {
		named = "" // what anybody may write there would be a new sender each time, with a rate of its own
	}
	sender = senderOf(user, named, sender, r)
	if f != nil {
		return p, sender, Outcome{}, f
	}
	defer g.requests.Add(-1)
	if g.requests.Add(1) > int64(g.cfg.Limits.MaxConcurrentRequests) {
		return p, sender, Outcome{}, fail(full, "%d requests are in progress, which is the most that are taken at a time (max_concurrent_requests); try again later", g.cfg.Limits.MaxConcurrentRequests)
	}
	if p, f = g.protocol.open(r); f != nil {
		return p, sender, Outcome{}, f
	}
	if wait := g.rates.wait(sender); wait > 0 {
		return p, sender, Outcome{}, failLater(full, wait, "%q pushes more than %g samples per second (max_samples_per_second); try again later", sender, g.cfg.Limits.MaxSamplesPerSecond)
	}
	outcome, f = g.pass(d, r, p, tenant, sender)
	return p, sender, outcome, f
}

// pass reads the body and hands it over. All memory is given back when it returns.
func (g *gate) pass(d deadlines, r *http.Request, p parcel, tenant, sender string) (Outcome, *failure) {
	ctx := r.Context()
	if p.framed {
		var cancel context.CancelFunc
		ctx, cancel = withDeadline(ctx, r.Header.Get("Grpc-Timeout"))
		defer cancel()
	}
	body := buffer{memory: &g.memory}
	defer func() { body.release() }()
	if f := g.read(r, p, &body); f != nil {
		return Outcome{}, f
	}
	d.bodyRead()
	if p.json {
		if f := g.translateJSON(&body); f != nil {
			return Outcome{}, f
		}
	}
	if len(body.b) == 0 {
		return Outcome{}, nil
	}
	if p.format == OTLP && !p.json { // JSON was checked as such
		if f := checkNesting(body.b); f != nil {
			return Outcome{}, f
		}
	}
	share := share{gate: g, own: int64(cap(body.b))}
	defer share.release()
	outcome, err := g.cfg.Taker.Take(ctx, &Push{Format: p.format, Body: body.b, Tenant: tenant, Sender: sender, Limits: &g.cfg.Limits, Hold: share.hold})
	if err != nil {
		return Outcome{}, failureOf(ctx, err)
	}
	g.rates.charge(sender, outcome.Samples+outcome.Histograms+outcome.Refused)
	return outcome, nil
}

// share is what a request holds of the door's memory besides its body.
type share struct {
	gate *gate
	own  int64 // the bytes of the body
	held int64
}

// hold is [Push.Hold].
func (s *share) hold(n int64) error {
	if s.own+s.held+n > s.gate.memory.limit {
		return &Refusal{Kind: TooLarge, Message: fmt.Sprintf("to read what the request holds would take more than the %s that requests may hold (max_in_flight_bytes); send smaller batches", readable(s.gate.memory.limit))}
	}
	if err := s.gate.memory.reserve(n); err != nil {
		return &Refusal{Kind: Full, Message: s.gate.full().message}
	}
	s.held += n
	return nil
}

func (s *share) release() { s.gate.memory.free(s.held) }

// read fills body with what the request holds, decompressed.
func (g *gate) read(r *http.Request, p parcel, body *buffer) *failure {
	limits := &g.cfg.Limits
	most := limits.MaxBodyBytes
	if p.framed {
		most += framePrefix
	}
	if r.ContentLength > most {
		return g.tooLarge(limits.MaxBodyBytes, "as sent", "max_body_bytes")
	}
	var err error
	compressed := p.coding != identity
	if p.framed {
		compressed, err = readFrame(r, body, p.coding, limits.MaxBodyBytes)
	} else {
		err = body.fill(r.Context(), r.Body, limits.MaxBodyBytes, r.ContentLength)
	}
	g.received.Add(float64(len(body.b)))
	if err != nil {
		return g.readFailure(r.Context(), err, limits.MaxBodyBytes, "as sent", "max_body_bytes")
	}
	if compressed && (len(body.b) > 0 || p.format != OTLP) {
		unpacked := buffer{memory: &g.memory}
		err := g.decompressors.decompress(r.Context(), p.coding, body.b, &unpacked, limits.MaxDecompressedBytes)
		body.release()
		*body = unpacked
		if err != nil {
			return g.readFailure(r.Context(), err, limits.MaxDecompressedBytes, "decompressed", "max_decompressed_bytes")
		}
	} else if int64(len(body.b)) > limits.MaxDecompressedBytes {
		return g.tooLarge(limits.MaxDecompressedBytes, "decompressed", "max_decompressed_bytes")
	}
	return nil
}

func (g *gate) tooLarge(limit int64, state, setting string) *failure {
	return fail(tooLarge, "the body is larger than %s %s (%s); send smaller batches", readable(limit), state, setting)
}

func (g *gate) full() *failure {
	return fail(full, "the requests in progress hold %s, which is the most that is taken at a time (max_in_flight_bytes); try again later", readable(g.cfg.Limits.MaxInFlightBytes))
}

func (g *gate) readFailure(ctx context.Context, err error, limit int64, state, setting string) *failure {
	var framing *failure
	var timeout net.Error
	switch {
	case errors.As(err, &framing):
		return framing
	case errors.Is(err, errTooLarge):
		return g.tooLarge(limit, state, setting)
	case errors.Is(err, errFull):
		return g.full()
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil:
		return fail(slow, "the body did not arrive within %s (read_timeout)", g.cfg.Limits.ReadTimeout)
	case errors.Is(err, errCorrupt):
		return fail(malformed, "decompressing the body: %s", err)
	case ctx.Err() != nil, errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return cutOff(ctx, "the body ended early", err)
	}
	return fail(malformed, "reading the body: %s", err)
}

// tenant reads the tenant's name, where the door is asked to.
func (g *gate) tenant(r *http.Request) (string, *failure) {
	name := g.cfg.TenantHeader
	if name == "" {
		return "", nil
	}
	values := r.Header[name]
	if len(values) == 0 {
		return "", nil
	}
	tenant := values[0]
	switch {
	case len(values) > 1:
		return "", fail(malformed, "the header %s is there %d times; send one tenant in a request", name, len(values))
	case len(tenant) > maxTenantBytes:
		return "", fail(malformed, "the tenant in the header %s has %d bytes; at most %d are allowed", name, len(tenant), maxTenantBytes)
	case !utf8.ValidString(tenant):
		return "", fail(malformed, "the tenant in the header %s is not UTF-8", name)
	}
	for _, c := range tenant {
		if unicode.IsControl(c) {
			return "", fail(malformed, "the tenant in the header %s holds the control character %U", name, c)
		}
	}
	return tenant, nil
}

// senderOf names who pushes, by what is most certain.
func senderOf(user, tenant, ip string, r *http.Request) string {
	switch {
	case user != "":
		return user
	case certified(r) && r.TLS.PeerCertificates[0].Subject.CommonName != "":
		return r.TLS.PeerCertificates[0].Subject.CommonName
	case tenant != "":
		return tenant
	}
	return ip
}

// certified reports whether the sender has shown a client certificate, which the listener has verified.
func certified(r *http.Request) bool { return r.TLS != nil && len(r.TLS.PeerCertificates) > 0 }

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
