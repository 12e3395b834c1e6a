package relabel

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/services/relabel/limit"
)

// sweeps is how often the places of what is gone are looked for in the time after which they are free.
const sweeps = 16

// openLimits opens what the partition has decided before.
func (p *partition) openLimits(ctx context.Context) (*limit.Partition, error) {
	cfg := p.svc.cfg
	l, err := limit.Open(ctx, limit.Config{
		Conn: cfg.Conn, Number: p.number, Lease: p.epoch, Limits: cfg.Limits, DictAge: cfg.DictAge, Accountant: func() uint64 { return p.svc.lease(0) },
		Offenders: p.svc.offenders, Logger: p.log, Waiting: p.waitFor,
	})
	if err == nil {
		p.limits.Store(l)
	}
	return l, err
}

// account grants places to the partitions of all processes.
func (p *partition) account(ctx context.Context) error {
	cfg := p.svc.cfg
	return limit.NewAccountant(limit.AccountantConfig{
		Conn: cfg.Conn, Partitions: cfg.Partitions, Limits: cfg.Limits, Epoch: p.epoch, Lease: p.svc.lease, Logger: p.log,
	}).Serve(ctx)
}

// lease returns the epoch of a partition's lease; 0 where nobody has it.
func (s *Service) lease(partition int) uint64 { return s.cfg.Fleet.Owners("relabel")[partition].Epoch }

// sweep frees the places of series that are gone until ctx ends.
func (p *partition) sweep(ctx context.Context, l *limit.Partition) error {
	tick := time.NewTicker(min(max(p.svc.cfg.Limits.FreeAfter/sweeps, 10*time.Millisecond), time.Minute))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := l.Sweep(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// waitFor notes on what limits make the partition wait; "" when it goes on.
func (p *partition) waitFor(what string) {
	if what == "" {
		p.waiting.Store(nil)
		return
	}
	if p.waiting.Swap(&what) == nil {
		p.log.Warn("New series wait for places within the limits", "for", what)
	}
}

// countActive registers the number of series that have places.
func (s *Service) countActive(reg prometheus.Registerer) {
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "millrace_relabel_active_series", Help: "Series that have a place within the limits, of the partitions of this process.",
	}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := 0
		if s.running != nil {
			for _, p := range s.running.parts {
				if l := p.limits.Load(); l != nil {
					n += l.Active()
				}
			}
		}
		return float64(n)
	}))
}
