package main

import (
	"time"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/web"
	"github.com/millrace/millrace/services/relabel/limit"
)

// seriesLimits returns the limits on series of a configuration.
func seriesLimits(c *config.Cardinality) limit.Limits {
	rule := func(l config.SeriesLimit) limit.Rule {
		r := limit.Rule{MaxSeries: l.MaxSeries, Labels: l.Labels}
		switch l.Action {
		case config.ActionDropLabel:
			r.Action = limit.DropLabel
		case config.ActionWarn:
			r.Action = limit.Warn
		}
		return r
	}
	return limit.Limits{
		Target: rule(c.Target), Job: rule(c.Job), Metric: rule(c.Metric), All: rule(c.All), FreeAfter: time.Duration(c.FreeAfter),
	}
}

// limitsHash names the limits of a configuration; "" where it has none.
func limitsHash(c *config.Cardinality) string {
	l := seriesLimits(c)
	return l.Hash()
}

// announceEvery is how often dictionaries in use are to be announced, so that it is known which are not in use any more; 0 where nobody wants to know.
func announceEvery(c *config.Cardinality) time.Duration {
	if !c.Enabled() {
		return 0
	}
	return time.Duration(c.FreeAfter) / 4
}

// seriesIdle is how long series that are gone may stay in dictionaries; 0 for as long as they do no harm.
func seriesIdle(c *config.Cardinality) time.Duration {
	if !c.Enabled() {
		return 0
	}
	return time.Duration(c.FreeAfter) / 2
}

// limits are the limits on series of the running configuration, for its page.
func (p *process) limits() (list []web.SeriesLimit) {
	c := &p.cfg.Load().Millrace.Cardinality
	for _, l := range []struct {
		of    string
		limit config.SeriesLimit
	}{{"target", c.Target}, {"job", c.Job}, {"metric", c.Metric}, {"all", c.All}} {
		if l.limit.MaxSeries > 0 {
			list = append(list, web.SeriesLimit{Of: l.of, Max: l.limit.MaxSeries, Action: string(l.limit.Action)})
		}
	}
	return list
}
