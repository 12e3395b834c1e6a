package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/web"
	"github.com/millrace/millrace/services/scraper"
)

// fleetTargets finds targets of the whole fleet.
func (p *process) fleetTargets(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error) {
	src := status.TargetSource{Conn: p.nats.Load(), Self: p.targetHolder()}
	if p.waiting.Load() == nil {
		for _, m := range p.fleet.Members() {
			if m.ID != p.self.ID && (slices.Contains(m.Services, "scraper") || slices.Contains(m.Services, "discovery")) {
				src.Holders = append(src.Holders, m.ID)
			}
		}
	}
	return status.FindTargets(ctx, src, q)
}

// targetHolder is what this process tells of targets.
func (p *process) targetHolder() *status.TargetHolder {
	h := &status.TargetHolder{Member: p.self.ID}
	if p.waiting.Load() != nil {
		return h
	}
	if p.scraper != nil {
		h.List = p.listed.of(p.scraper.Targets())
	}
	if p.discovery != nil {
		_, _, h.Dropped = p.discovery.Targets()
	}
	return h
}

// answerTargets has the process answer questions for targets, where it can.
func (p *process) answerTargets() (stop func(), err error) {
	if !p.has("scraper") && !p.has("discovery") {
		return func() {}, nil
	}
	return status.AnswerTargets(p.nats.Load(), p.targetHolder, func(err error) { p.log.Debug("A question for targets is not answered", "err", err) })
}

// listedTargets keeps the targets in order for as long as somebody asks for them.
type listedTargets struct {
	mu     sync.Mutex
	active []scraper.Active // of which list is made
	list   *status.TargetList
	forget *time.Timer
}

// listedTime is how long the order is kept without a question.
const listedTime = time.Minute

func (l *listedTargets) of(active []scraper.Active) *status.TargetList {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.forget == nil {
		l.forget = time.AfterFunc(listedTime, l.drop)
	} else {
		l.forget.Reset(listedTime)
	}
	// The scraper makes another slice when something has changed.
	if l.list == nil || len(active) != len(l.active) || len(active) > 0 && &active[0] != &l.active[0] {
		targets := make([]listedTarget, 0, len(active))
		for _, a := range active {
			targets = append(targets, listedTarget{a})
		}
		l.active, l.list = active, status.NewTargetList(targets)
	}
	return l.list
}

func (l *listedTargets) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active, l.list = nil, nil
}

// listedTarget is a target as the fleet is told of it: without secrets.
type listedTarget struct{ scraper.Active }

// Key implements [status.ListedTarget], like the methods below.
func (t listedTarget) Key() status.TargetKey {
	return status.TargetKey{Pool: t.Discovered.Job, URL: web.RedactURL(t.URL().String()), ID: t.Discovered.ID}
}

func (t listedTarget) Health() string { return string(t.Target.Health()) }

func (t listedTarget) LastError() string {
	err := t.Target.LastError()
	if err == nil {
		return ""
	}
	raw := t.URL().String()
	return strings.ReplaceAll(err.Error(), raw, web.RedactURL(raw))
}

func (t listedTarget) Text() string { return t.labels().String() }

func (t listedTarget) labels() labels.Labels {
	return t.Target.Labels(labels.NewBuilder(labels.EmptyLabels()))
}

func (t listedTarget) Describe() status.Target {
	return status.Target{
		Labels: t.labels(), DiscoveredLabels: t.Discovered.Discovered, Health: t.Health(), LastError: t.LastError(), LastScrape: t.LastScrape().UTC(),
		LastScrapeSeconds: t.LastScrapeDuration().Seconds(), Interval: t.GetValue(model.ScrapeIntervalLabel), Timeout: t.GetValue(model.ScrapeTimeoutLabel),
	}
}
