package writer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	commonconfig "github.com/prometheus/common/config"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/time/rate"

	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
)

// replays is the actor that follows the bucket of replays, and runs those that are not stopped. Each process runs every replay for the partitions that it
// owns, as it runs endpoints: whoever takes over a partition finds its position, and no process needs to know of the one before.
type replays struct {
	svc *Service
}

// replaying is a replay that runs in this process.
type replaying struct {
	*running
	rec     *replay.Record
	target  Endpoint
	limiter *rate.Limiter // nil: none
}

// Serve follows the bucket until ctx ends.
func (r *replays) Serve(ctx context.Context) error {
	s := r.svc
	bucket := s.cfg.Conn.Bucket(stream.Replays)
	kv, err := s.cfg.Conn.JS.KeyValue(ctx, bucket)
	if err != nil {
		return fmt.Errorf("opening the bucket %s: %w", bucket, err)
	}
	following, stop := context.WithCancel(ctx)
	defer stop() // ends the subscription
	w, err := kv.WatchAll(following)
	if err != nil {
		return fmt.Errorf("following the replays: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Updates():
			switch {
			case !ok && ctx.Err() != nil:
				return nil
			case !ok:
				return errors.New("following the replays: the subscription has ended")
			case e != nil:
				s.replayChanged(ctx, e)
			}
		}
	}
}

// replayChanged starts, stops or changes a replay by its entry.
func (s *Service) replayChanged(ctx context.Context, e jetstream.KeyValueEntry) {
	s.applying.Lock()
	defer s.applying.Unlock()
	var rec *replay.Record
	if e.Operation() == jetstream.KeyValuePut {
		var err error
		if rec, err = replay.Decode(e.Value()); err != nil {
			s.cfg.Logger.Error("Ignoring a replay that cannot be read", "replay", e.Key(), "err", err)
			return
		}
	}
	old := s.replays[e.Key()]
	if old != nil && rec != nil && !rec.Stopped && rec.Created.Equal(old.rec.Created) {
		old.rec = rec // only the rate can be another
		old.pace()
		return
	}
	if old != nil {
		s.stopReplay(ctx, old)
	}
	if rec != nil && !rec.Stopped && s.actors != nil {
		s.startReplay(rec)
	}
}

func (s *Service) stopReplay(ctx context.Context, r *replaying) {
	delete(s.replays, r.rec.Spec.Name)
	if r.running == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, giveTime)
	defer cancel()
	if err := s.stop(ctx, r.running); err != nil {
		r.log.Warn("A replay does not stop in time", "err", err)
	}
}

func (s *Service) startReplay(rec *replay.Record) {
	r := &replaying{rec: rec}
	s.replays[rec.Spec.Name] = r
	log := s.cfg.Logger.With("replay", rec.Spec.Name)
	if err := s.prepare(r); err != nil {
		log.Error("Cannot run a replay here", "err", err)
		return
	}
	s.start(r.running)
	r.pace()
}

// prepare makes the actors of a replay. Where that fails, it is tried again with the next configuration.
func (s *Service) prepare(r *replaying) error {
	var err error
	if r.target, err = s.target(&r.rec.Spec); err != nil {
		return err
	}
	sel, err := r.rec.Selection()
	if err != nil {
		return err
	}
	client, err := remotewrite.NewClient(r.target.Name, r.target.RemoteWriteConfig)
	if err != nil {
		return err
	}
	hash, err := r.target.Rules.Hash()
	if err != nil {
		return err
	}
	log := s.cfg.Logger.With("replay", r.rec.Spec.Name, "endpoint", r.target.Name)
	newEndpoint := func() *endpoint {
		return &endpoint{
			svc: s, name: r.target.Name, cfg: r.target, rulesHash: hash, protocol: remotewrite.ProtocolOf(r.target.ProtobufMessage), client: client,
			metrics: unregistered(), families: newFamilies(), log: log, back: make(chan struct{}),
		}
	}
	all := newEndpoint()
	r.limiter = rate.NewLimiter(rate.Inf, max(r.target.QueueConfig.MaxSamplesPerSend, 1))
	replayed := s.metrics.replayed.WithLabelValues(r.rec.Spec.Endpoint) // there may be any number of URLs
	for i, bounds := range r.rec.Parts {
		x := &part{rec: r.rec, bounds: bounds, selection: sel, limiter: r.limiter, replayed: replayed}
		if r.rec.Spec.URL != "" || r.rec.Spec.Raw {
			x.rules = &r.target.Rules
		}
		all.partitions = append(all.partitions, &partition{ep: newEndpoint(), number: i, log: log.With("partition", i), part: x})
	}
	r.running = &running{endpoint: all, kind: "replay"}
	return nil
}

// target returns the endpoint of a replay as the replay uses it.
func (s *Service) target(spec *replay.Spec) (Endpoint, error) {
	if spec.URL != "" {
		u, err := url.Parse(spec.URL)
		if err != nil {
			return Endpoint{}, fmt.Errorf("the replay's URL: %w", err)
		}
		rw := promconfig.DefaultRemoteWriteConfig
		rw.URL = &commonconfig.URL{URL: u}
		rw.SendExemplars, rw.SendNativeHistograms, rw.MetadataConfig.Send = true, true, false
		return Endpoint{Name: "replay-" + spec.Name, Rules: rules.Rules{External: s.external}, RetryOn429: true, RemoteWriteConfig: &rw}, nil
	}
	at := slices.IndexFunc(s.known, func(e Endpoint) bool { return e.Name == spec.Endpoint })
	if at < 0 {
		return Endpoint{}, fmt.Errorf("there is no endpoint %q in this process's configuration", spec.Endpoint)
	}
	e, rw := s.known[at], *s.known[at].RemoteWriteConfig
	// Old samples are what a replay is about; metadata goes out with live samples.
	rw.QueueConfig.SampleAgeLimit, rw.MetadataConfig.Send = 0, false
	e.RemoteWriteConfig, e.FreshFirst = &rw, nil
	if spec.Raw {
		e.Rules = rules.Rules{External: s.external}
	}
	return e, nil
}

// refreshReplays lets replays go on with another configuration.
func (s *Service) refreshReplays(ctx context.Context) {
	for _, r := range slices.Collect(maps.Values(s.replays)) {
		target, err := s.target(&r.rec.Spec)
		if err == nil && r.running != nil && r.endpoint.same(target) {
			continue
		}
		s.stopReplay(ctx, r)
		s.startReplay(r.rec)
	}
}

// SetExternalLabels sets the labels that a replay adds to series for a URL that is not in the configuration. It comes before ApplyConfig.
func (s *Service) SetExternalLabels(ls labels.Labels) {
	s.applying.Lock()
	defer s.applying.Unlock()
	s.external = ls
}

// pace gives the replay in this process its part of the rate.
func (r *replaying) pace() {
	if r.running == nil {
		return
	}
	limit := rate.Inf
	if r.rec.Spec.Rate > 0 {
		limit = rate.Limit(r.rec.Spec.Rate * float64(max(len(r.parts), 1)) / float64(max(len(r.partitions), 1)))
	}
	r.limiter.SetLimit(limit)
}

// unregistered returns counters that nobody but the replay reads.
func unregistered() *endpointMetrics {
	n := func() prometheus.Counter { return prometheus.NewCounter(prometheus.CounterOpts{Name: "n"}) }
	answers := n()
	return &endpointMetrics{
		samples: n(), histograms: n(), exemplars: n(), metadata: n(), metadataFailed: n(), bytes: n(), retried: n(), rejected: n(), lost: n(), aged: n(), unsupported: n(), repeated: n(),
		requests: func(int) prometheus.Counter { return answers }, duration: prometheus.NewSummary(prometheus.SummaryOpts{Name: "d"}),
	}
}
