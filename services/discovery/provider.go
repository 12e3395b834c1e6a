package discovery

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"gopkg.in/yaml.v3"
)

// staticSettle replaces Config.Settle for static configs, which deliver all that they have at once.
const staticSettle = updateEvery

// settleFactor bounds settling where new groups never cease to come: it ends after Config.Settle times this.
const settleFactor = 20

// observed is a discovery config whose discoverer notes when it delivers. The manager compares configs by reflect.DeepEqual, so it
// holds plain values.
type observed struct {
	discovery.Config
	settle, grace time.Duration
}

// NewDiscoverer returns a provider around the config's own discoverer.
func (o observed) NewDiscoverer(opts discovery.DiscovererOptions) (discovery.Discoverer, error) {
	d, err := o.Config.NewDiscoverer(opts)
	if err != nil {
		return nil, err
	}
	p := &provider{
		mechanism: o.Name(), inner: d, settle: o.settle, grace: o.grace, hints: hintsOf(o.Config), seen: map[string]struct{}{},
	}
	if p.mechanism == "static" {
		p.settle = staticSettle
	}
	p.progress.Store(&progress{created: time.Now()})
	return p, nil
}

// provider is a running discovery mechanism.
type provider struct {
	mechanism     string
	inner         discovery.Discoverer
	settle, grace time.Duration
	hints         hints
	seen          map[string]struct{} // sources of groups delivered while settling; nil afterwards

	progress atomic.Pointer[progress]
}

// progress is how far the first result has come. The times are zero until then.
type progress struct {
	created time.Time
	// first is when the mechanism had delivered something from which one can conclude; last when it delivered a group from a new source.
	first, last time.Time
}

// Run passes on what the mechanism delivers. It does not wait for the mechanism to end, since some take long to.
func (p *provider) Run(ctx context.Context, up chan<- []*targetgroup.Group) {
	updates := make(chan []*targetgroup.Group)
	go p.inner.Run(ctx, updates)
	if p.hints.nothingToRead() && !p.note(ctx, up, nil) {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case groups, ok := <-updates:
			if !ok {
				updates = nil // static discovery closes it, having delivered
				continue
			}
			select {
			case <-ctx.Done():
				return
			case up <- groups:
			}
			if !p.note(ctx, up, groups) {
				return
			}
		}
	}
}

// note keeps the progress, and reports false where ctx has ended.
func (p *provider) note(ctx context.Context, up chan<- []*targetgroup.Group, groups []*targetgroup.Group) bool {
	if p.seen == nil {
		return true
	}
	before := len(p.seen)
	for _, g := range groups {
		if g != nil {
			p.seen[g.Source] = struct{}{}
		}
	}
	now := *p.progress.Load()
	switch {
	case !now.first.IsZero() && time.Since(now.first) > settleFactor*p.settle:
		p.seen = nil
	case !now.first.IsZero() && len(p.seen) > before:
		now.last = time.Now()
		p.progress.Store(&now)
	case now.first.IsZero() && len(p.seen) >= p.hints.sources:
		// The manager applies one delivery before it takes the next. So once it has taken an empty one, its state holds the groups;
		// and with the second empty one it sends that state once more, after the time that is noted here.
		if !flush(ctx, up) {
			return false
		}
		now.first = time.Now()
		now.last = now.first
		p.progress.Store(&now)
		return flush(ctx, up)
	}
	return true
}

// flush makes the manager take a delivery that changes nothing. It reports false where ctx has ended.
func flush(ctx context.Context, up chan<- []*targetgroup.Group) bool {
	select {
	case <-ctx.Done():
		return false
	case up <- []*targetgroup.Group{}:
		return true
	}
}

// delivered returns when the manager had the first result, or the zero time.
func (p *provider) delivered() time.Time { return p.progress.Load().first }

// settled returns from when on what the provider does not deliver is known not to exist, as far as is known now; the zero time for never.
func (p *provider) settled() time.Time {
	now := p.progress.Load()
	if now.first.IsZero() {
		if p.grace < 0 {
			return time.Time{}
		}
		return now.created.Add(p.grace)
	}
	at, bound := now.last.Add(p.settle), now.first.Add(settleFactor*p.settle)
	if at.After(bound) {
		return bound
	}
	return at
}

// hints are what a mechanism's config says about its first result.
type hints struct {
	// sources is how many sources must have delivered before it is complete. DNS delivers without an error what it could resolve, which may be nothing.
	sources int
	// files are patterns without which there is nothing to read. File discovery delivers nothing where none matches.
	files []string
}

// hintsOf reads them from the config's YAML, because importing a mechanism would register it.
func hintsOf(c discovery.Config) hints {
	if name := c.Name(); name != "file" && name != "dns" {
		return hints{}
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return hints{} // then it is like any other mechanism
	}
	var fields struct {
		Files []string `yaml:"files"`
		Names []string `yaml:"names"`
	}
	if err := yaml.Unmarshal(text, &fields); err != nil {
		return hints{}
	}
	distinct := map[string]struct{}{}
	for _, n := range fields.Names {
		distinct[n] = struct{}{}
	}
	return hints{sources: len(distinct), files: fields.Files}
}

// nothingToRead reports whether there are patterns of files and none of them matches one.
func (h hints) nothingToRead() bool {
	for _, pattern := range h.files {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			return false
		}
	}
	return len(h.files) > 0
}
