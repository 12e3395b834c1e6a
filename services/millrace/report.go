package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/web"
	"github.com/millrace/millrace/services/writer"
)

// document returns the whole fleet's state.
func (p *process) document(ctx context.Context) (*status.Document, error) {
	return status.Collect(ctx, p.statusSource())
}

// statusSource is where the whole fleet's state is found from this process.
func (p *process) statusSource() status.Source {
	return status.Source{Conn: p.nats.Load(), View: p.view, Self: p.report()}
}

// errNotKnown is returned by view until the fleet is known, as for a moment after the start.
var errNotKnown = errors.New("this process does not know them yet")

// view returns who is a member and who owns what. A process that is not a member yet looks for itself.
func (p *process) view(ctx context.Context) (fleet.View, error) {
	if p.waiting.Load() != nil {
		return fleet.Look(ctx, p.nats.Load())
	}
	v, known := p.fleet.View()
	if !known {
		return v, errNotKnown
	}
	return v, nil
}

// report is what this process says of itself to whoever asks for the state of the fleet.
func (p *process) report() *status.Report {
	cfg := p.cfg.Load()
	m := status.Member{
		ID: p.self.ID, Host: p.self.Host, Address: p.self.Address, Version: p.self.Version, ConfigHash: cfg.Hash, Started: p.started.UTC(), State: status.Ready,
	}
	r := &status.Report{Shares: p.allShares()}
	if w := p.waiting.Load(); w != nil {
		m.State, m.WaitingFor = status.Starting, []string{*w}
		for _, s := range p.services {
			m.Services = append(m.Services, status.Service{Name: s, State: status.Starting})
		}
		r.Member = m
		return r
	}
	if w := p.fleet.Waiting(); w != "" {
		m.WaitingFor = append(m.WaitingFor, w)
	}
	for _, s := range p.serviceStatus() {
		service := status.Service{Name: s.Name, State: status.Ready, WaitingFor: s.WaitingFor, Restarts: s.Restarts, Figures: figures(s.Figures)}
		if len(s.WaitingFor) > 0 {
			service.State = status.Waiting
		}
		for _, w := range s.WaitingFor {
			m.WaitingFor = append(m.WaitingFor, s.Name+": "+w)
		}
		m.Services = append(m.Services, service)
	}
	slices.SortStableFunc(m.Services, func(a, b status.Service) int {
		return slices.Index(allServices, a.Name) - slices.Index(allServices, b.Name)
	})
	if len(m.WaitingFor) > 0 {
		m.State = status.Waiting
	}
	r.Member = m
	if p.writer != nil {
		sent := p.rates.Load().sentTo
		for _, e := range p.writer.Status() {
			r.Endpoints = append(r.Endpoints, endpointReport(e, sent[e.Name]))
		}
		r.Replays = p.replayReport()
	}
	return r
}

// replaysTime is how long it may take to look up the replays: whoever asks for the report does not wait long.
const replaysTime = time.Second

// replayReport returns how the replays stand; none, where that is not to be found out now. Why stands with the bucket.
func (p *process) replayReport() []replay.Status {
	ctx, cancel := context.WithTimeout(context.Background(), replaysTime)
	defer cancel()
	list, err := p.manager().List(ctx)
	if err != nil {
		p.log.Debug("The replays cannot be looked up", "err", err)
		return nil
	}
	return list
}

func endpointReport(e writer.Status, perSecond float64) status.Endpoint {
	out := status.Endpoint{
		Name: e.Name, URL: e.URL, Protocol: "remote_write " + e.Protocol, State: status.Sending,
		LagSeconds: e.Lag.Seconds(), PendingMessages: e.Messages, PendingSamples: e.Samples, BacklogMessages: e.Backlog, SamplesPerSecond: perSecond,
		SentSamples: uint64(e.Sent), RetriedSamples: uint64(e.Retried), RejectedSamples: uint64(e.Rejected), LostSamples: uint64(e.Lost),
		LastError: e.LastError,
	}
	if !e.Oldest.IsZero() {
		out.OldestUnsent = e.Oldest.UTC()
	}
	if !e.LastErrorAt.IsZero() {
		out.LastErrorTime = e.LastErrorAt.UTC()
	}
	switch {
	case e.Waiting != "":
		out.State, out.WaitingFor = status.Waiting, []string{strings.TrimPrefix(e.Waiting, "waiting: ")}
	case e.Messages == 0 && e.Oldest.IsZero():
		out.State = status.Idle
	}
	return out
}

// figureKeys are the names in the document of what the page shows.
var figureKeys = map[string]string{
	"targets": "targets", "dropped": "droppedTargets", "samples/s": "samplesPerSecond", "series": "series", "dropped scrapes": "droppedScrapes",
	"refused points": "refusedPoints", "series evaluated": "evaluatedSeries",
}

func figures(list []web.Figure) map[string]float64 {
	out := map[string]float64{}
	for _, f := range list {
		if key, ok := figureKeys[f.Name]; ok {
			out[key] = f.Value
		}
	}
	return out
}
