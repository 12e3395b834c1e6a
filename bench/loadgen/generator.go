package loadgen

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/millrace/millrace/bench/numbered"
)

// Kind is what the targets of a generator expose.
type Kind string

// The kinds of targets.
const (
	// Generated targets expose counters, gauges and classic histograms in the text format.
	Generated Kind = "generated"
	// Recorded targets expose recorded scrapes of a node_exporter, one after the other, for ever.
	Recorded Kind = "recorded"
	// Protobuf targets expose native histograms with exemplars, and counters, in the protobuf format.
	Protobuf Kind = "protobuf"
)

// Config says what a generator plays.
type Config struct {
	// Targets is the number of targets. Default 1.
	Targets int
	// Series is the number of series per target, including the one that holds the scrape's number. A native histogram
	// counts as one. Default 1000; ignored for recorded targets, which have about 612.
	Series int
	// Kind is what the targets expose. Default Generated.
	Kind Kind
	// ChurnPercent is how many percent of a generated target's series are replaced by new ones at each scrape: their
	// label "generation" moves on. Default 0, and then there is no such label.
	ChurnPercent float64
	// ReorderEvery makes every such scrape of a generated target list its series in another order. Default 0: never.
	ReorderEvery int
	// FailEvery makes every such request to a target fail with status 500; it does not count as a scrape. Default 0: never.
	FailEvery int
	// Encoding is the only one that answers may have if the request accepts it: gzip, zstd or identity. Default "": the
	// first that the request accepts.
	Encoding string
}

func (c *Config) validate() error {
	if c.Targets == 0 {
		c.Targets = 1
	}
	if c.Series == 0 {
		c.Series = 1000
	}
	if c.Kind == "" {
		c.Kind = Generated
	}
	switch {
	case c.Targets < 0:
		return fmt.Errorf("%d targets: give at least 1", c.Targets)
	case c.Series < 0:
		return fmt.Errorf("%d series: give at least 1", c.Series)
	case math.IsNaN(c.ChurnPercent) || c.ChurnPercent < 0 || c.ChurnPercent > 100:
		return fmt.Errorf("churn of %v percent: give 0 to 100", c.ChurnPercent)
	case c.ReorderEvery < 0:
		return fmt.Errorf("reordering every %d scrapes: give 0 (never) or more", c.ReorderEvery)
	case !slices.Contains([]string{"", "gzip", "zstd", "identity"}, c.Encoding):
		return fmt.Errorf("encoding %q: give gzip, zstd, identity or nothing", c.Encoding)
	case c.FailEvery < 0 || c.FailEvery == 1:
		return fmt.Errorf("failing every %d requests: give 0 (never) or at least 2", c.FailEvery)
	}
	return nil
}

// source makes the bodies of one kind of targets. It is safe for concurrent use.
type source interface {
	// body returns the body of scrape n of a target for a request with the given headers, in an
	// encoding ("" for identity). The body belongs to the caller
	// until it calls release.
	body(t *target, n uint64, request http.Header, encoding string) (body, error)
}

// body is an answer's body with what its headers say.
type body struct {
	data            []byte
	contentType     string
	contentEncoding string
	samples         int
	release         func()
}

// Generator plays targets. Create it with New; it is safe for concurrent use.
type Generator struct {
	config  Config
	source  source
	targets []*target
	mux     *http.ServeMux
}

// target is one target and its log.
type target struct {
	index int
	name  string
	seed  uint64

	mu       sync.Mutex
	requests int
	served   []numbered.Served
}

// New returns a generator, or an error if config makes no sense.
func New(config Config) (*Generator, error) {
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	g := &Generator{config: config, mux: http.NewServeMux()}
	var err error
	switch config.Kind {
	case Generated:
		g.source, err = newGenerated(config)
	case Recorded:
		g.source, err = newRecorded()
	case Protobuf:
		g.source = newNative(config.Series)
	default:
		err = fmt.Errorf("kind %q: give %s, %s or %s", config.Kind, Generated, Recorded, Protobuf)
	}
	if err != nil {
		return nil, fmt.Errorf("load generator: %w", err)
	}
	for i := range config.Targets {
		name := "t" + strconv.Itoa(i)
		g.targets = append(g.targets, &target{index: i, name: name, seed: numbered.TargetSeed(name)})
	}
	g.mux.HandleFunc("GET /target/{index}/metrics", g.serveTarget)
	g.mux.HandleFunc("GET /served", g.serveServed)
	return g, nil
}

// ServeHTTP serves
//   - GET /target/<i>/metrics: the next scrape of target i. With ?n=5 it shows scrape 5 without counting it.
//   - GET /served: how many scrapes of each target were served, as a JSON object; with ?log=1 the whole [numbered.Log].
func (g *Generator) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) }

func (g *Generator) serveTarget(w http.ResponseWriter, r *http.Request) {
	index, err := strconv.Atoi(r.PathValue("index"))
	if err != nil || index < 0 || index >= len(g.targets) {
		http.Error(w, fmt.Sprintf("no target %q: there are 0 to %d", r.PathValue("index"), len(g.targets)-1), http.StatusNotFound)
		return
	}
	t := g.targets[index]
	if asked := r.URL.Query().Get("n"); asked != "" {
		n, err := strconv.ParseUint(asked, 10, 32)
		if err != nil || n == 0 {
			http.Error(w, fmt.Sprintf("scrape %q: give a number from 1", asked), http.StatusBadRequest)
			return
		}
		g.write(w, r, t, n, func(int, bool) {})
		return
	}
	n := t.next(g.config.FailEvery)
	if n == 0 {
		http.Error(w, "failing on purpose", http.StatusInternalServerError)
		return
	}
	g.write(w, r, t, n, func(samples int, completed bool) { t.done(n, samples, completed) })
}

// write answers with scrape n of t and tells done how it went.
func (g *Generator) write(w http.ResponseWriter, r *http.Request, t *target, n uint64, done func(samples int, completed bool)) {
	b, err := g.source.body(t, n, r.Header, negotiate(r.Header, g.config.Encoding))
	if err != nil {
		done(0, false)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer b.release()
	h := w.Header()
	h.Set("Content-Type", b.contentType)
	h.Set("Content-Length", strconv.Itoa(len(b.data)))
	if b.contentEncoding != "" {
		h.Set("Content-Encoding", b.contentEncoding)
	}
	_, err = w.Write(b.data)
	done(b.samples, err == nil)
}

// next numbers a request, or returns 0 if it shall fail.
func (t *target) next(failEvery int) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests++
	if failEvery > 0 && t.requests%failEvery == 0 {
		return 0
	}
	t.served = append(t.served, numbered.Served{At: time.Now()})
	return uint64(len(t.served))
}

func (t *target) done(n uint64, samples int, completed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.served[n-1].Samples = samples
	t.served[n-1].Completed = completed
}

// Served returns how many scrapes of each target were served, by target label.
func (g *Generator) Served() map[string]int {
	counts := make(map[string]int, len(g.targets))
	for _, t := range g.targets {
		t.mu.Lock()
		counts[t.name] = len(t.served)
		t.mu.Unlock()
	}
	return counts
}

// Log returns a copy of what was served.
func (g *Generator) Log() numbered.Log {
	log := make(numbered.Log, len(g.targets))
	for _, t := range g.targets {
		t.mu.Lock()
		log[t.name] = append([]numbered.Served(nil), t.served...)
		t.mu.Unlock()
	}
	return log
}

func (g *Generator) serveServed(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("log") != "" {
		writeJSON(w, g.Log())
		return
	}
	writeJSON(w, g.Served())
}
