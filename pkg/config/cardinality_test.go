package config

import (
	"slices"
	"testing"
)

func TestLimitsOfCardinality(t *testing.T) {
	m := DefaultMillrace()
	if m.Cardinality.Enabled() || m.Cardinality.FreeAfter.String() != "1h" || m.Cardinality.Metric.Action != ActionRefuse {
		t.Errorf("the defaults are %+v", m.Cardinality)
	}
	c, _, err := parse("c.yml", []byte("millrace: {cardinality: {free_after: 30m, metric: {max_series: 10, action: drop_label, labels: [user_id, session]}}}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	have := c.Millrace.Cardinality
	if !have.Enabled() || have.Metric.MaxSeries != 10 || have.Metric.Action != ActionDropLabel || !slices.Equal(have.Metric.Labels, []string{"user_id", "session"}) {
		t.Errorf("read %+v", have)
	}
}

func TestErrorsOfCardinality(t *testing.T) {
	const block, at = "millrace:\n  cardinality: ", "c.yml:2: millrace.cardinality."
	for _, c := range []struct{ name, text, want string }{
		{"below 0", "{job: {max_series: -1}}", "job.max_series: is -1: choose a number above 0, or 0 for no limit"},
		{"action", "{all: {action: drop}}", `all.action: is "drop": choose one of refuse, drop_label, warn`},
		{"no labels", "{metric: {max_series: 1, action: drop_label}}", "metric.labels: is empty, and action is drop_label: name the labels to drop, such as [user_id]"},
		{"labels without effect", "{target: {max_series: 1, labels: [a]}}", "target.labels: has no effect with action refuse: set action to drop_label, or remove it"},
		{"the wrong label", "{target: {action: drop_label, labels: [job]}}", `target.labels: has "job": name labels other than __name__, job, instance`},
		{"no list", "{target: {action: drop_label, labels: user_id}}", "target.labels: want a list, have a single value: write it as [one, two]"},
		{"time", "{free_after: 1s}", "free_after: is 1s: choose a duration from 10s to 1w"},
		{"unknown", "{metrics: {}}", "metrics: unknown key: did you mean metric:?"},
	} {
		t.Run(c.name, func(t *testing.T) { checkErrors(t, map[string]string{"c.yml": block + c.text + "\n"}, at+c.want) })
	}
}
