package main

import (
	"context"
	"time"

	"github.com/millrace/millrace/pkg/status"
)

// rates are samples per second over the last few seconds.
type rates struct {
	scraped, pushed, sent float64
	sentTo                map[string]float64 // by endpoint
}

// measureRates keeps the rates until ctx ends.
func (p *process) measureRates(ctx context.Context) {
	const every = 5 * time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last rates
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if p.waiting.Load() != nil {
			continue
		}
		now := rates{sentTo: map[string]float64{}}
		var endpoints []status.Endpoint
		if p.scraper != nil {
			now.scraped = p.scraper.Stats().Samples
		}
		if p.ingest != nil {
			now.pushed = p.ingest.Stats().Samples
		}
		if p.writer != nil {
			for _, e := range p.writer.Status() {
				now.sent += e.Sent
				now.sentTo[e.Name] = e.Sent
				endpoints = append(endpoints, endpointReport(e, 0))
			}
		}
		per := func(now, last float64) float64 { return max(now-last, 0) / every.Seconds() }
		r := &rates{per(now.scraped, last.scraped), per(now.pushed, last.pushed), per(now.sent, last.sent), map[string]float64{}}
		for name, sent := range now.sentTo {
			r.sentTo[name] = per(sent, last.sentTo[name])
		}
		for i := range endpoints {
			endpoints[i].SamplesPerSecond = r.sentTo[endpoints[i].Name]
		}
		p.rates.Store(r)
		if p.writer != nil {
			p.recorder.Note(time.Now(), endpoints)
		}
		last = now
	}
}
