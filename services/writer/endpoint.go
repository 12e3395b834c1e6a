package writer

import (
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	promconfig "github.com/prometheus/prometheus/config"

	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/rules"
)

// Endpoint is a remote_write endpoint as this service sees it.
type Endpoint struct {
	// Name is unique, and part of subjects and of the position's key.
	Name string
	// Rules are what the relabel service applies for it.
	Rules rules.Rules
	// RetryOn429 says whether an answer 429 is retried; otherwise it is a refusal.
	RetryOn429 bool
	// FreshFirst lets new samples go out before a backlog; nil for strict order.
	FreshFirst *FreshFirst
	*promconfig.RemoteWriteConfig
}

// endpoint is what the partitions of an endpoint share.
type endpoint struct {
	svc       *Service
	name      string
	cfg       Endpoint
	rulesHash string
	protocol  remotewrite.Protocol
	client    *remotewrite.Client
	metrics   *endpointMetrics
	families  *families
	log       *slog.Logger

	partitions []*partition

	mu        sync.Mutex
	failing   bool
	back      chan struct{} // closed when the endpoint takes samples again
	lastSaid  time.Time     // of the last log line about failures or refusals
	lastError string
	lastAt    time.Time
	unsaid    uint64    // lost samples that no log line has told of
	lostSaid  time.Time // when the last one did
}

// sayEvery is the least time between two log lines about the same trouble of an endpoint.
const sayEvery = 30 * time.Second

func newEndpoint(svc *Service, cfg Endpoint) (*endpoint, error) {
	hash, err := cfg.Rules.Hash()
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", cfg.Name, err)
	}
	client, err := remotewrite.NewClient(cfg.Name, cfg.RemoteWriteConfig)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", cfg.Name, err)
	}
	e := &endpoint{
		svc: svc, name: cfg.Name, cfg: cfg, rulesHash: hash, protocol: remotewrite.ProtocolOf(cfg.ProtobufMessage), client: client,
		metrics: svc.metrics.endpoint(cfg.Name), families: newFamilies(), log: svc.cfg.Logger.With("endpoint", cfg.Name), back: make(chan struct{}),
	}
	for i := range svc.cfg.Partitions {
		e.partitions = append(e.partitions, &partition{ep: e, number: i, log: e.log.With("partition", i)})
	}
	return e, nil
}

// generation is that of the families which a dictionary's series are to be learned for; 0 where the endpoint gets no metadata by itself.
func (e *endpoint) generation() uint64 {
	if !e.sendsMetadata() {
		return 0
	}
	return e.families.generation()
}

// sendsMetadata reports whether metadata goes out by itself, as remote_write 1.0 has it.
func (e *endpoint) sendsMetadata() bool {
	return e.protocol == remotewrite.V1 && e.cfg.MetadataConfig.Send
}

// same reports whether the endpoint can go on as it is with another configuration.
func (e *endpoint) same(cfg Endpoint) bool {
	hash, err := cfg.Rules.Hash()
	return err == nil && hash == e.rulesHash && cfg.RetryOn429 == e.cfg.RetryOn429 && reflect.DeepEqual(cfg.FreshFirst, e.cfg.FreshFirst) && reflect.DeepEqual(cfg.RemoteWriteConfig, e.cfg.RemoteWriteConfig)
}

// failed notes a try that will be repeated.
func (e *endpoint) failed(res remotewrite.Result, pause time.Duration) {
	if e.note(res.Message, true) {
		e.log.Warn("The endpoint does not take samples; they wait in the stream", "err", res.Message, "next_try", pause)
	}
}

// refused notes samples that went to REJECTED.
func (e *endpoint) refused(res remotewrite.Result, samples int) {
	if e.note(res.Message, false) {
		e.log.Error("The endpoint refused samples for good; they are kept in the stream REJECTED with its answer", "samples", samples, "status", res.Status, "answer", res.Message)
	}
}

// note keeps the error for people, and reports whether it is time for a log line.
func (e *endpoint) note(message string, failing bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastError, e.lastAt, e.failing = message, time.Now(), failing
	if time.Since(e.lastSaid) < sayEvery {
		return false
	}
	e.lastSaid = time.Now()
	return true
}

// again returns a channel that is closed when a request of any partition is accepted: those that wait need not wait longer then.
func (e *endpoint) again() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.back
}

// recovered notes an accepted request.
func (e *endpoint) recovered() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.failing {
		e.failing, e.lastSaid = false, time.Time{}
		close(e.back)
		e.back = make(chan struct{})
		e.log.Info("The endpoint takes samples again")
	}
}

// lost counts samples that the endpoint will never get.
func (e *endpoint) lost(samples uint64, why string, partition int) {
	e.metrics.lost.Add(float64(samples))
	e.mu.Lock()
	e.unsaid += samples
	samples = e.unsaid
	say := time.Since(e.lostSaid) >= sayEvery
	if say {
		e.unsaid, e.lostSaid = 0, time.Now()
	}
	e.mu.Unlock()
	if !say {
		return // one of the next lines counts them
	}
	e.log.Error("Samples are lost for this endpoint", "samples", samples, "why", why, "partition", partition,
		"remedy", "raise millrace.streams.frames.max_age and max_bytes above the longest outage")
}
