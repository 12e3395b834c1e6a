package scraper

import (
	"context"
	"fmt"
	"time"

	"github.com/alecthomas/units"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/common/model"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// watcher is the actor that follows the stream of final targets and hands the scrape manager its target sets.
type watcher struct {
	svc *Service
}

// settle is how long the watcher waits for more changes before it passes on what it has.
const settle = 100 * time.Millisecond

// Serve reads the last message of every target, then every change.
func (w *watcher) Serve(ctx context.Context) error {
	conn := w.svc.cfg.Conn
	oc, err := conn.JS.OrderedConsumer(ctx, conn.Stream(stream.Targets), jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{conn.AllTargets()}, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy,
	})
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	info, err := oc.Info(ctx)
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	it, err := oc.Messages()
	if err != nil {
		return fmt.Errorf("reading targets: %w", err)
	}
	ended := make(chan struct{})
	defer func() {
		close(ended)
		go it.Stop() // while the server is away, the client lets go only after some time
	}()
	messages := make(chan message)
	go pump(it, messages, ended)

	targets := map[uint64]*target.Target{}
	left, changed := info.NumPending, true // left counts the targets that were there before
	settled, armed := time.NewTimer(settle), true
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.svc.resend:
			changed = true
		case m := <-messages:
			if m.err != nil {
				return fmt.Errorf("reading targets: %w", m.err)
			}
			w.apply(targets, m.msg)
			left -= min(left, 1)
			changed = true
		case <-settled.C:
			armed = false
			if left > 0 {
				// Removals end by themselves, perhaps before they came here: the number may be too large.
				if left, err = w.unread(ctx, oc); err != nil {
					return err
				}
			}
			if left == 0 {
				if err := w.send(ctx, targets); err != nil {
					return nil
				}
				changed = false
			}
		}
		// At the beginning, settled waits for silence. Later, no flood of changes holds it back.
		if changed && (left > 0 || !armed) {
			settled.Reset(settle)
			armed = true
		}
	}
}

type message struct {
	msg jetstream.Msg
	err error
}

// pump passes messages on until an error or the end of its reader. It waits without a limit, which is how the client notices that its consumer is gone.
func pump(it jetstream.MessagesContext, to chan<- message, ended <-chan struct{}) {
	for {
		msg, err := it.Next()
		select {
		case to <- message{msg, err}:
		case <-ended:
			return
		}
		if err != nil {
			return
		}
	}
}

// unread asks how many messages JetStream still has for the watcher.
func (w *watcher) unread(ctx context.Context, c jetstream.Consumer) (uint64, error) {
	info, err := c.Info(ctx)
	if ctx.Err() != nil {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading targets: %w", err)
	}
	return info.NumPending, nil
}

// apply takes one message. A target that cannot be read is left as it was, and named in the log.
func (w *watcher) apply(targets map[uint64]*target.Target, msg jetstream.Msg) {
	id, err := w.svc.cfg.Conn.TargetID(msg.Subject())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a message among the targets", "err", err)
		return
	}
	if len(msg.Data()) == 0 {
		delete(targets, id)
		return
	}
	t, err := target.Decode(msg.Data())
	if err != nil {
		w.svc.cfg.Logger.Error("Ignoring a target that cannot be read", "subject", msg.Subject(), "err", err)
		return
	}
	targets[id] = t
}

// send hands all targets to the scrape manager, one group a target.
func (w *watcher) send(ctx context.Context, targets map[uint64]*target.Target) error {
	sets := map[string][]*targetgroup.Group{}
	for _, job := range w.svc.jobs() {
		sets[job] = nil
	}
	discovered := make(map[uint64]*target.Target, len(targets))
	for id, t := range targets {
		if _, ok := sets[t.Job]; !ok {
			continue // a job that this process's configuration does not have, or not any more
		}
		sets[t.Job] = append(sets[t.Job], &targetgroup.Group{Source: fmt.Sprintf("%016x", id), Targets: []model.LabelSet{labelSet(t)}})
		discovered[id] = t
	}
	w.svc.discovered.Store(&discovered)
	select {
	case w.svc.sets <- sets:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TargetLabel is a label, not exposed to the samples, that carries the ID of the target as discovery published it.
const TargetLabel = "__millrace_target__"

const absentPrefix = "__millrace_absent_"

// labelSet returns the target's labels for the scrape manager. Labels that relabelling has removed are marked, so that the scrape
// manager does not fill them in from the configuration again; see scrapeConfig.
func labelSet(t *target.Target) model.LabelSet {
	set := make(model.LabelSet, t.Labels.Len()+len(t.Absent))
	t.Labels.Range(func(l labels.Label) { set[model.LabelName(l.Name)] = model.LabelValue(l.Value) })
	set[TargetLabel] = model.LabelValue(fmt.Sprintf("%016x", t.ID))
	for _, name := range t.Absent {
		set[model.LabelName(absentPrefix+name)] = "1"
	}
	return set
}

// absentable are the labels that Prometheus adds to a target which does not have them.
var absentable = []string{model.JobLabel, model.SchemeLabel, model.MetricsPathLabel}

// scrapeConfig returns the configuration of a job as the scrape manager gets it: targets come relabelled, so what is left of relabelling is to
// remove what relabelling had removed.
func scrapeConfig(c *promconfig.ScrapeConfig, maxBody int64) *promconfig.ScrapeConfig {
	own := *c
	own.ServiceDiscoveryConfigs = nil
	own.RelabelConfigs = nil
	for _, name := range absentable {
		own.RelabelConfigs = append(own.RelabelConfigs, &relabel.Config{
			SourceLabels: model.LabelNames{model.LabelName(absentPrefix + name)}, Separator: ";",
			Regex: relabel.MustNewRegexp("1"), TargetLabel: name, Replacement: "", Action: relabel.Replace,
			NameValidationScheme: model.UTF8Validation,
		})
	}
	if own.BodySizeLimit == 0 {
		own.BodySizeLimit = units.Base2Bytes(maxBody)
	}
	return &own
}
