package discovery

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/discovery/targetgroup"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/target"
)

// input is all that a job's actor works from. A newer one replaces an older one.
type input struct {
	// config is nil where the job is no longer configured.
	config *promconfig.ScrapeConfig
	// providers deliver the groups; missing names the mechanisms that could not be started.
	providers []*provider
	missing   []string
	// epoch changes with the providers.
	epoch uint64
	// groups is the state that came from the manager at the time received, which is zero until one has come in this epoch.
	groups   []*targetgroup.Group
	received time.Time
}

// job is the actor of one scrape job.
type job struct {
	svc   *Service
	name  string
	log   *slog.Logger
	inbox *actor.Mailbox[input]

	in         input
	relabeller relabeller
	want       targets
	published  map[uint64]*published
	todo       []change
	reported   bool // that it is not configured and empty

	view    atomic.Pointer[view]
	waiting atomic.Pointer[string] // for what a publish waits
	logged  atomic.Int64           // when a failed publish was last logged, unix nanoseconds
}

// published is a target that the stream holds, or may hold.
type published struct {
	target *target.Target
	sum    uint64
	// acked is false where a publish was tried whose end is not known.
	acked bool
	// confirmed is set once the job's present providers have delivered the target.
	confirmed bool
}

func newJob(s *Service, name string, stored []storedTarget) *job {
	j := &job{
		svc: s, name: name, log: s.log.With("job", name), inbox: actor.NewMailbox[input](1),
		published: make(map[uint64]*published, len(stored)),
	}
	j.relabeller.log = j.log
	for _, t := range stored {
		j.published[t.target.ID] = &published{target: t.target, sum: t.sum, acked: true}
	}
	s.metrics.failed.WithLabelValues(name)
	j.show(j.waitsFor())
	return j
}

// Serve keeps the stream's targets of the job as its input says, until ctx ends.
func (j *job) Serve(ctx context.Context) error {
	for {
		wake := j.plan(time.Now())
		if len(j.todo) > 0 {
			j.publish(ctx)
			select {
			case <-ctx.Done():
				return nil
			case in := <-j.inbox.C():
				j.take(in)
			default:
			}
			continue
		}
		if j.in.epoch > 0 && j.in.config == nil && len(j.published) == 0 && !j.reported {
			if j.svc.empty.Send(ctx, emptied{job: j.name, epoch: j.in.epoch}) != nil {
				return nil
			}
			j.reported = true
		}
		if !j.idle(ctx, wake) {
			return nil
		}
	}
}

// idle waits for the next input or the time wake, which may be zero for none. It reports false where ctx has ended.
func (j *job) idle(ctx context.Context, wake time.Time) bool {
	var timer <-chan time.Time
	if !wake.IsZero() {
		t := time.NewTimer(time.Until(wake))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case in := <-j.inbox.C():
		j.take(in)
	case <-timer:
	}
	return true
}

// take makes in the job's input.
func (j *job) take(in input) {
	if in.epoch != j.in.epoch {
		for _, p := range j.published {
			p.confirmed = false
		}
	}
	j.in, j.todo = in, nil
	if in.config != nil {
		j.reported = false
	}
	if in.config == nil || in.received.IsZero() {
		j.want, j.relabeller.cache = targets{}, nil
		return
	}
	var failed int
	j.want, failed = j.relabeller.relabel(in.config, in.groups)
	j.svc.metrics.failed.WithLabelValues(j.name).Add(float64(failed))
	for id := range j.want.byID {
		if p := j.published[id]; p != nil {
			p.confirmed = true
		}
	}
}

// plan sets what is to be published now where nothing is left to do, and returns when to look again.
func (j *job) plan(now time.Time) (wake time.Time) {
	if len(j.todo) > 0 {
		return time.Time{}
	}
	removable, wake := j.removable(now)
	for _, id := range j.want.order {
		f := j.want.byID[id]
		if p := j.published[id]; p == nil || !p.acked || p.sum != f.sum {
			j.todo = append(j.todo, change{id: id, put: &f})
		}
	}
	for id, p := range j.published {
		if _, ok := j.want.byID[id]; !ok && (p.confirmed || removable) {
			j.todo = append(j.todo, change{id: id, shard: p.target.Shard()})
		}
	}
	j.show(j.waitsFor())
	return wake
}

// removable reports whether targets can be removed which the stream has from before but which the present providers have not delivered. Where
// only time is missing, wake is when to ask again.
func (j *job) removable(now time.Time) (ok bool, wake time.Time) {
	if j.in.config == nil {
		return j.in.epoch > 0, time.Time{}
	}
	if j.in.received.IsZero() || len(j.in.missing) > 0 {
		return false, time.Time{}
	}
	if !j.holds() {
		return true, time.Time{}
	}
	for _, p := range j.in.providers {
		at := p.settled()
		// Where the state that has the provider's first result has not come, it is on its way and leads here again.
		if at.IsZero() || j.in.received.Before(p.delivered()) {
			return false, time.Time{}
		}
		if at.After(now) && at.After(wake) {
			wake = at
		}
	}
	return wake.IsZero(), wake
}

// waitsFor says what the job's discovery waits for.
func (j *job) waitsFor() string {
	switch {
	case j.in.config == nil && j.in.epoch == 0:
		return "the configuration"
	case j.in.config == nil:
		return ""
	case len(j.in.missing) > 0:
		return "service discovery that could not be started: " + strings.Join(j.in.missing, ", ")
	}
	for _, p := range j.in.providers {
		if p.delivered().IsZero() {
			return fmt.Sprintf("the first result of %s discovery", p.mechanism)
		}
	}
	if j.in.received.IsZero() {
		return "the first state of the discovery manager"
	}
	return ""
}

// holds reports whether there are targets from before that the present providers have not delivered.
func (j *job) holds() bool {
	for id, p := range j.published {
		if _, ok := j.want.byID[id]; !ok && !p.confirmed {
			return true
		}
	}
	return false
}
