package receiver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/snappy"

	"github.com/millrace/millrace/bench/numbered"
)

// Config configures a Receiver. Its zero value is usable.
type Config struct {
	// History is how many of the last values of a series without a scrape number are kept to recognise repeated and changed
	// samples, 16 bytes each. Default 128. Series with a scrape number need none.
	History int
	// MaxBodyBytes is the largest decoded body; a larger one is answered with 413. Default 64 MiB.
	MaxBodyBytes int
	// Now tells the time, for latencies and rates. Default time.Now.
	Now func() time.Time
}

// Receiver receives remote_write requests and verifies them. Create it with New; it is safe for concurrent use.
type Receiver struct {
	config  Config
	seed    maphash.Seed
	mux     *http.ServeMux
	control controls

	mu sync.Mutex
	// series finds a series by the hash of its encoded labels, of which there may be several, and of its text.
	series  map[uint64]*series
	all     []*series
	targets map[string]*target
	counts  Report
	window  Latency
	from    int64 // milliseconds; the window has no samples from before
	rate    rate
}

// New returns a receiver that knows nothing yet.
func New(config Config) *Receiver {
	if config.History <= 0 {
		config.History = 128
	}
	if config.MaxBodyBytes <= 0 {
		config.MaxBodyBytes = 64 << 20
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	r := &Receiver{config: config, seed: maphash.MakeSeed(), mux: http.NewServeMux()}
	r.control.changed = make(chan struct{})
	r.Reset()
	r.mux.HandleFunc("POST /", r.serveWrite)
	r.mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, r.Report()) })
	r.mux.HandleFunc("GET /rate", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, r.Rate()) })
	r.mux.HandleFunc("POST /control", r.serveControl)
	r.mux.HandleFunc("POST /complete", r.serveComplete)
	r.mux.HandleFunc("POST /window", func(http.ResponseWriter, *http.Request) { r.ResetWindow() })
	r.mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { r.Reset() })
	return r
}

// ServeHTTP serves
//   - POST to any other path than those below: remote_write 1.0 and 2.0, by the request's Content-Type;
//   - GET /report: the [Report];
//   - GET /rate: what arrived in each second, as a list of [Second];
//   - POST /control: takes a [Control];
//   - POST /complete: takes a [numbered.Log], answers with a [Completeness];
//   - POST /window: begins a new window of latencies;
//   - POST /reset: forgets everything.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mux.ServeHTTP(w, request)
}

// Reset forgets everything that was received, but not how to fail.
func (r *Receiver) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.series, r.all, r.targets = map[uint64]*series{}, nil, map[string]*target{}
	r.counts, r.window, r.from, r.rate = Report{}, Latency{}, 0, rate{}
}

// ResetWindow begins a new window of latencies.
func (r *Receiver) ResetWindow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.window, r.from = Latency{}, 0
}

// ResetWindowFrom begins a new window of latencies, of the samples with timestamps from t on: those that wait for something older to pass do not count.
func (r *Receiver) ResetWindowFrom(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.window, r.from = Latency{}, t.UnixMilli()
}

func (r *Receiver) serveComplete(w http.ResponseWriter, request *http.Request) {
	var log numbered.Log
	if err := json.NewDecoder(request.Body).Decode(&log); err != nil {
		http.Error(w, fmt.Sprintf("reading the log of served scrapes: %v", err), http.StatusBadRequest)
		return
	}
	writeJSON(w, r.Complete(log))
}

// serveWrite takes one remote_write request.
func (r *Receiver) serveWrite(w http.ResponseWriter, request *http.Request) {
	v2, err := protocol(request.Header)
	if err != nil {
		r.refuse(w, http.StatusUnsupportedMediaType, err)
		return
	}
	wire := wires.Get().(*bytes.Buffer)
	defer wires.Put(wire)
	wire.Reset()
	_, err = wire.ReadFrom(http.MaxBytesReader(w, request.Body, int64(r.config.MaxBodyBytes)))
	compressed := wire.Bytes()
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		r.refuse(w, http.StatusRequestEntityTooLarge, err)
		return
	} else if err != nil {
		r.refuse(w, http.StatusBadRequest, fmt.Errorf("reading the body: %w", err))
		return
	}
	control := r.control.take(len(compressed))
	if control.beforeDecoding(r, w, request) {
		return
	}
	switch size, err := snappy.DecodedLen(compressed); {
	case err != nil:
		r.refuse(w, http.StatusBadRequest, fmt.Errorf("snappy: %w", err))
		return
	case size > r.config.MaxBodyBytes:
		r.refuse(w, http.StatusRequestEntityTooLarge, fmt.Errorf("body decodes to %d bytes, at most %d are taken", size, r.config.MaxBodyBytes))
		return
	}
	buffer := bodies.Get().(*[]byte)
	defer bodies.Put(buffer)
	body, err := snappy.Decode((*buffer)[:cap(*buffer)], compressed)
	if err != nil {
		r.refuse(w, http.StatusBadRequest, fmt.Errorf("snappy: %w", err))
		return
	}
	*buffer = body
	b, err := decode(body, v2, r.seed)
	if err != nil {
		r.refuse(w, http.StatusBadRequest, fmt.Errorf("decoding the body: %w", err))
		return
	}
	defer b.release()
	written, err := r.apply(b, len(compressed), control)
	if v2 {
		h := w.Header()
		h.Set("X-Prometheus-Remote-Write-Samples-Written", strconv.Itoa(written.samples))
		h.Set("X-Prometheus-Remote-Write-Histograms-Written", strconv.Itoa(written.histograms))
		h.Set("X-Prometheus-Remote-Write-Exemplars-Written", strconv.Itoa(written.exemplars))
	}
	if err != nil {
		r.refuse(w, http.StatusBadRequest, err)
		return
	}
	if control != nil && control.Mode == AnswerLost {
		r.control.failed.Add(1)
		reset(w)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// wires and bodies hold buffers for bodies as they come, and decoded.
var (
	wires  = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	bodies = sync.Pool{New: func() any { return new([]byte) }}
)

// protocol tells whether a request is remote_write 2.0 rather than 1.0.
func protocol(header http.Header) (v2 bool, err error) {
	if encoding := header.Get("Content-Encoding"); encoding != "snappy" {
		return false, fmt.Errorf("Content-Encoding is %q, want snappy", encoding)
	}
	mediaType, parameters, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || !strings.EqualFold(mediaType, "application/x-protobuf") {
		return false, fmt.Errorf("Content-Type is %q, want application/x-protobuf", header.Get("Content-Type"))
	}
	switch parameters["proto"] {
	case "", "prometheus.WriteRequest":
		return false, nil
	case "io.prometheus.write.v2.Request":
		return true, nil
	default:
		return false, fmt.Errorf("message %q is not known, want prometheus.WriteRequest or io.prometheus.write.v2.Request", parameters["proto"])
	}
}

// refuse answers with an error and counts it.
func (r *Receiver) refuse(w http.ResponseWriter, status int, err error) {
	r.mu.Lock()
	r.counts.Refused++
	r.mu.Unlock()
	http.Error(w, err.Error(), status)
}

type written struct{ samples, histograms, exemplars int }

// apply judges what a batch holds. Nothing of it is taken if it has an invalid series.
func (r *Receiver) apply(b *batch, wireBytes int, control *Control) (written, error) {
	now := r.config.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range b.series {
		s := r.series[b.series[i].hash]
		if s == nil {
			labels, err := b.labelsOf(b.series[i])
			if err != nil {
				return written{}, fmt.Errorf("time series %d: %w", i+1, err)
			}
			s = r.add(labels)
			r.series[b.series[i].hash] = s
		}
		b.states = append(b.states, s)
	}
	rejected := 0
	if control != nil && control.Mode == BadRequest {
		for i, s := range b.states {
			if control.matches(s) {
				b.states[i] = nil
				rejected++
			}
		}
		if rejected > 0 && !control.Partial {
			return written{}, fmt.Errorf("%d series of the request are refused on purpose", rejected)
		}
	}
	v := verdict{r: r, now: now.UnixMilli(), second: r.rate.at(now)}
	done := written{exemplars: b.exemplars}
	sample, histogram := 0, 0
	for i, s := range b.states {
		entry := b.series[i]
		if s == nil {
			sample, histogram = entry.samplesEnd, entry.histogramsEnd
			continue
		}
		for ; sample < entry.samplesEnd; sample++ {
			v.sample(s, b.samples[sample])
			done.samples++
		}
		for ; histogram < entry.histogramsEnd; histogram++ {
			v.histogram(s, b.histograms[histogram])
			done.histograms++
		}
	}
	r.counts.Requests++
	r.counts.WireBytes += wireBytes
	r.counts.Exemplars += b.exemplars
	r.counts.Metadata += b.metadata
	if rejected > 0 {
		return done, fmt.Errorf("%d series of the request are refused on purpose", rejected)
	}
	return done, nil
}

// add returns the series with the given labels, and makes it unless it is known under another encoding.
func (r *Receiver) add(labels []label) *series {
	text := text(labels)
	hash := maphash.String(r.seed, text)
	if s := r.series[hash]; s != nil {
		return s
	}
	s := &series{text: text, report: isReport(lookup(labels, "__name__"))}
	if name := lookup(labels, numbered.TargetLabel); name != "" {
		if s.target = r.targets[name]; s.target == nil {
			s.target = &target{name: name, byTimestamp: map[int64]*scrape{}, byNumber: map[uint64]*scrape{}}
			r.targets[name] = s.target
		}
		s.code, s.numbered = numbered.Of(func(name string) string { return lookup(labels, name) })
	}
	r.series[hash] = s
	r.all = append(r.all, s)
	r.counts.Series++
	if s.numbered {
		r.counts.Numbered++
	}
	return s
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
