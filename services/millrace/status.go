package main

import (
	"context"
	"fmt"
	"net/url"

	"github.com/prometheus/common/model"
	"github.com/prometheus/common/version"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/web"
)

// startWeb opens the web address.
func (p *process) startWeb() error {
	remoteWrite, err := p.makeDoors()
	if err != nil {
		return err
	}
	p.web, err = web.New(web.Config{
		ListenAddresses: p.opts.listen, WebConfigFile: p.opts.webConfig, Logger: p.log.With("component", "web"),
		Gatherer: p.reg, Registerer: p.reg,
		Version: web.VersionInfo{
			Version: version.Version, Revision: version.Revision, Branch: version.Branch, BuildUser: version.BuildUser,
			BuildDate: version.BuildDate, GoVersion: version.GoVersion,
		},
		Ready: p.notReady, Reload: p.reload, ConfigYAML: func() string { return p.cfg.Load().Redacted() },
		Targets: p.targets, Status: p.status, Fleet: p.shared.Get, FleetTargets: p.fleetTargets, RemoteWrite: remoteWrite, Cardinality: p.cardinality,
		Replays: p.replays(), Tail: p.tail,
		History: p.histories.Get, Rejected: fleetRejected{p}, Rules: p.ruleSets, Endpoints: p.endpointNames, SeriesLimits: p.limits,
	})
	if err != nil {
		return err
	}
	p.wait("to start")
	return p.web.Listen()
}

// notReady returns what the process waits for before it can work.
func (p *process) notReady() []string {
	if w := p.waiting.Load(); w != nil {
		return []string{"starting: waiting for " + *w}
	}
	return nil
}

// targets returns what this process knows of targets: those that its scraper scrapes, and those that its discovery dropped.
func (p *process) targets(context.Context) ([]web.Target, []web.DroppedTarget, map[string]int, error) {
	var active []web.Target
	var dropped []web.DroppedTarget
	counts := map[string]int{}
	if p.waiting.Load() != nil {
		return nil, nil, counts, nil
	}
	params := map[string]url.Values{}
	for _, c := range p.cfg.Load().ScrapeConfigs {
		params[c.JobName] = c.Params
	}
	if p.scraper != nil {
		b := labels.NewBuilder(labels.EmptyLabels())
		for _, t := range p.scraper.Targets() {
			w := web.Target{
				Labels: t.Labels(b), ScrapePool: t.Discovered.Job, ScrapeURL: t.URL().String(), LastScrape: t.LastScrape(),
				LastScrapeDuration: t.LastScrapeDuration(), Health: web.Health(t.Health()),
				ScrapeInterval: t.GetValue(model.ScrapeIntervalLabel), ScrapeTimeout: t.GetValue(model.ScrapeTimeoutLabel),
				DiscoveredLabels: withParams(t.Discovered.Discovered, params[t.Discovered.Job]),
			}
			if err := t.LastError(); err != nil {
				w.LastError = err.Error()
			}
			active = append(active, w)
		}
	}
	if p.discovery != nil {
		_, list, n := p.discovery.Targets()
		for _, d := range list {
			dropped = append(dropped, web.DroppedTarget{DiscoveredLabels: withParams(d.Discovered, params[d.Job]), ScrapePool: d.Job})
		}
		counts = n
	}
	return active, dropped, counts, nil
}

// withParams adds the labels that Prometheus makes of a scrape config's params. Targets are published without them.
func withParams(discovered labels.Labels, params url.Values) labels.Labels {
	if len(params) == 0 {
		return discovered
	}
	b := labels.NewBuilder(discovered)
	for name, values := range params {
		if label := model.ParamLabelPrefix + name; len(values) > 0 && b.Get(label) == "" {
			b.Set(label, values[0])
		}
	}
	return b.Labels()
}

// status returns how the process stands, for the page and the API.
func (p *process) status(ctx context.Context) web.Status {
	cfg := p.cfg.Load()
	st := web.Status{Started: p.started, ConfigHash: cfg.Hash, ConfigLoaded: cfg.at}
	if w := p.waiting.Load(); w != nil {
		for _, s := range p.services {
			st.Services = append(st.Services, web.ServiceStatus{Name: s, State: web.StateStarting, WaitingFor: []string{*w}})
		}
		return st
	}
	st.Services = p.serviceStatus()
	st.Members = p.memberStatus()
	if conn := p.conn.Load(); conn != nil {
		states, err := conn.States(ctx)
		if err != nil {
			st.Streams = append(st.Streams, web.StreamStatus{Name: "all streams", LastError: err.Error()})
		}
		for _, s := range states {
			w := web.StreamStatus{Name: s.Stream, Messages: s.Messages, Bytes: s.Bytes, MaxBytes: int64(s.Limit), MaxAgeSeconds: s.Age.Seconds()}
			if s.Messages > 0 {
				w.Oldest = s.Oldest
			}
			st.Streams = append(st.Streams, w)
		}
	}
	if p.writer != nil {
		for _, e := range p.writer.Status() {
			w := web.EndpointStatus{
				Name: e.Name, URL: e.URL, Protocol: "remote_write " + e.Protocol, State: web.StateSending, StateDetail: e.Waiting,
				SentSamples: uint64(e.Sent), RejectedSamples: uint64(e.Rejected), RetriedSamples: uint64(e.Retried),
				LagSeconds: e.Lag.Seconds(), LagMessages: e.Messages, OldestUnsent: e.Oldest, LastError: e.LastError, LastErrorTime: e.LastErrorAt,
			}
			switch {
			case e.Waiting != "":
				w.State = web.StateWaiting
			case e.Backlog > 0:
				w.StateDetail = fmt.Sprintf("new samples at once, and %d older messages beside them", e.Backlog)
			case e.Messages == 0 && e.Oldest.IsZero():
				w.State, w.StateDetail = web.StateIdle, "all sent"
			}
			st.Endpoints = append(st.Endpoints, w)
		}
	}
	return st
}

// allShares returns into how many shares the work of each service is cut that has any.
func (p *process) allShares() map[string]int {
	partitions := p.partitionCount()
	all := map[string]int{"discovery": 1, "scraper": stream.Shards, "relabel": partitions, "writer": partitions}
	if p.cfg.Load().Millrace.Ingest.Delta.Enabled {
		all["ingest"] = partitions // of the deltas
	}
	return all
}

// memberStatus returns the members of the fleet and what each owns.
func (p *process) memberStatus() []web.MemberStatus {
	all := p.allShares()
	owners := map[string]map[int]fleet.Lease{}
	for _, s := range allServices {
		owners[s] = p.fleet.Owners(s)
	}
	self := p.fleet.Self()
	var list []web.MemberStatus
	for _, m := range p.fleet.Members() {
		w := web.MemberStatus{
			ID: m.ID, Host: m.Host, Address: m.Address, Self: m.ID == self.ID, Version: m.Version, ConfigHash: m.ConfigHash,
			OtherConfig: m.ConfigHash != self.ConfigHash, Started: m.Started,
		}
		for _, service := range m.Services {
			if all[service] == 0 {
				continue // it has no shares
			}
			share := web.ShareStatus{Service: service, All: all[service]}
			for _, l := range owners[service] {
				if l.Owner == m.ID {
					share.Owned++
					share.Epoch = max(share.Epoch, l.Epoch)
				}
			}
			w.Shares = append(w.Shares, share)
		}
		list = append(list, w)
	}
	return list
}

func (p *process) serviceStatus() []web.ServiceStatus {
	var list []web.ServiceStatus
	add := func(name string, waiting []string, restarts uint64, figures ...web.Figure) {
		s := web.ServiceStatus{Name: name, State: web.StateRunning, WaitingFor: waiting, Restarts: restarts, Figures: figures}
		if len(waiting) > 0 {
			s.State = web.StateWaiting
		}
		list = append(list, s)
	}
	if p.discovery != nil {
		d := p.discovery.Status()
		var waiting []string
		if d.Waiting != "" {
			waiting = append(waiting, d.Waiting)
		}
		targets, dropped := 0, 0
		for _, j := range d.Jobs {
			targets, dropped = targets+j.Active, dropped+j.Dropped
			if j.Waiting != "" {
				waiting = append(waiting, j.Job+": "+j.Waiting)
			}
		}
		add(web.ServiceDiscovery, waiting, p.system.Restarts("discovery-service", "discovery"),
			web.Figure{Name: "targets", Value: float64(targets)}, web.Figure{Name: "dropped", Value: float64(dropped)})
	}
	if p.scraper != nil {
		s := p.scraper.Stats()
		r := p.rates.Load()
		add(web.ServiceScraper, p.scraper.Waiting(), p.system.Restarts("scraper-service", "publisher", "targets", "target", "ending"),
			web.Figure{Name: "samples/s", Value: r.scraped}, web.Figure{Name: "series", Value: float64(s.Series)}, web.Figure{Name: "dropped scrapes", Value: s.DroppedScrapes})
	}
	if p.ingest != nil {
		s := p.ingest.Stats()
		waiting := p.ingest.Waiting()
		if p.delta != nil {
			waiting = append(waiting, p.delta.Waiting()...)
		}
		add(web.ServiceIngest, waiting, p.system.Restarts("ingest-service", "door", "delta-service", "delta"),
			web.Figure{Name: "samples/s", Value: p.rates.Load().pushed}, web.Figure{Name: "series", Value: float64(s.Series)}, web.Figure{Name: "refused points", Value: s.Refused})
	}
	if p.relabel != nil {
		add(web.ServiceRelabel, p.relabel.Waiting(), p.system.Restarts("relabel-service", "relabel"),
			web.Figure{Name: "series evaluated", Value: p.relabel.Series()})
	}
	if p.writer != nil {
		add(web.ServiceWriter, nil, p.system.Restarts("writer-service", "writer", "metadata"), web.Figure{Name: "samples/s", Value: p.rates.Load().sent})
	}
	return list
}
