package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// Cardinality limits the series that are active at a time, over the whole fleet.
type Cardinality struct {
	// FreeAfter says how long a series holds its place after its last sample: no less than 3/4 of it and no more than twice. It must be longer than
	// the longest scrape interval; 10s to 1w. Default 1h.
	FreeAfter model.Duration `yaml:"free_after"`
	// Target limits the series of one target: of one job and instance label.
	Target SeriesLimit `yaml:"target"`
	// Job limits the series of one scrape job, or of one job of those who push.
	Job SeriesLimit `yaml:"job"`
	// Metric limits the series of one metric name.
	Metric SeriesLimit `yaml:"metric"`
	// All limits all series together.
	All SeriesLimit `yaml:"all"`
}

// SeriesLimit is a limit and what is done beyond it.
type SeriesLimit struct {
	// MaxSeries is the most series. 0 (the default): no limit.
	MaxSeries int `yaml:"max_series"`
	// Action is what is done with new series beyond it: refuse (the default), drop_label or warn.
	Action string `yaml:"action"`
	// Labels are those that drop_label takes from new series.
	Labels []string `yaml:"labels"`
}

// The actions of a [SeriesLimit].
const (
	// ActionRefuse keeps new series from the endpoints.
	ActionRefuse = "refuse"
	// ActionDropLabel takes labels from new series, and refuses those that would become equal.
	ActionDropLabel = "drop_label"
	// ActionWarn only says so.
	ActionWarn = "warn"
)

func baseCardinality() Cardinality {
	l := SeriesLimit{Action: ActionRefuse, Labels: []string{}}
	return Cardinality{FreeAfter: model.Duration(time.Hour), Target: l, Job: l, Metric: l, All: l}
}

// Enabled tells whether there is any limit.
func (c *Cardinality) Enabled() bool {
	return c.Target.MaxSeries > 0 || c.Job.MaxSeries > 0 || c.Metric.MaxSeries > 0 || c.All.MaxSeries > 0
}

func (d *decoder) validateCardinality(c *Cardinality) {
	const path = "millrace.cardinality."
	d.durationBetween(path+"free_after", c.FreeAfter, model.Duration(10*time.Second), model.Duration(7*24*time.Hour))
	for _, l := range []struct {
		name string
		SeriesLimit
	}{{"target", c.Target}, {"job", c.Job}, {"metric", c.Metric}, {"all", c.All}} {
		at := path + l.name
		if l.MaxSeries < 0 {
			d.fail(at+".max_series", fmt.Sprintf("is %d", l.MaxSeries), "choose a number above 0, or 0 for no limit")
		}
		actions := []string{ActionRefuse, ActionDropLabel, ActionWarn}
		switch {
		case !slices.Contains(actions, l.Action):
			d.fail(at+".action", fmt.Sprintf("is %q", l.Action), "choose one of "+strings.Join(actions, ", "))
		case l.Action == ActionDropLabel && len(l.Labels) == 0:
			d.fail(at+".labels", "is empty, and action is drop_label", "name the labels to drop, such as [user_id]")
		case l.Action != ActionDropLabel && len(l.Labels) > 0:
			d.fail(at+".labels", "has no effect with action "+l.Action, "set action to drop_label, or remove it")
		}
		for _, name := range l.Labels {
			kept := []string{model.MetricNameLabel, model.JobLabel, model.InstanceLabel}
			if slices.Contains(kept, name) || !model.UTF8Validation.IsValidLabelName(name) {
				d.fail(at+".labels", fmt.Sprintf("has %q", name), "name labels other than "+strings.Join(kept, ", "))
			}
		}
	}
}
