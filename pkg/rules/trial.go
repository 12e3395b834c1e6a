package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"
)

// Trial is what came of one label set.
type Trial struct {
	// Labels are those to begin with, and Result what is left; null where the set was dropped.
	Labels labels.Labels  `json:"labels"`
	Result *labels.Labels `json:"result"`
	Steps  []Step         `json:"steps"`
}

// Step is what one rule did.
type Step struct {
	// Rule is the rule as YAML in one line, without defaults.
	Rule string `json:"rule"`
	// Dropped is set where the rule dropped the set; no rule follows then.
	Dropped bool `json:"dropped"`
	// Changes are the labels that the rule changed, by name.
	Changes []Change `json:"changes"`
}

// Change is a label before and after a rule; a label that is not there is empty.
type Change struct {
	Name   string `json:"name"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// ParseLabels reads labels as people write them: up{job="api"}, {__address__="host:80"}, or {} for none.
func ParseLabels(text string) (labels.Labels, error) {
	if strings.TrimSpace(text) == "{}" {
		return labels.EmptyLabels(), nil
	}
	ls, err := parser.NewParser(parser.Options{}).ParseMetric(text)
	if err != nil {
		return ls, fmt.Errorf(`labels %q: %w; write them as up{job="api"}`, text, err)
	}
	return ls, nil
}

// Parse reads a list of rules as relabel_configs has them, in YAML.
func Parse(content []byte) (list []*relabel.Config, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	if err := dec.Decode(&list); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w; write a list of rules as relabel_configs has them", err)
	}
	for i, c := range list {
		if c == nil {
			return nil, fmt.Errorf("rule %d is empty; remove it", i+1)
		}
		c.NameValidationScheme = model.UTF8Validation
		if err := c.Validate(model.UTF8Validation); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
	}
	return list, nil
}

// Try applies rules one after the other. It fails where one of them could make far more of the labels than any target or series has. External labels are set first, where there is no label of the same name, as the relabel service does.
func Try(external labels.Labels, list []*relabel.Config, ls labels.Labels) (Trial, error) {
	t := Trial{Labels: ls, Steps: []Step{}}
	if !external.IsEmpty() {
		b := labels.NewBuilder(ls)
		external.Range(func(l labels.Label) {
			if b.Get(l.Name) == "" {
				b.Set(l.Name, l.Value)
			}
		})
		next := b.Labels()
		t.Steps = append(t.Steps, Step{Rule: "external_labels " + external.String(), Changes: changesOf(ls, next)})
		ls = next
	}
	for i, c := range list {
		if growth(c, ls) > maxTrialBytes {
			return t, fmt.Errorf("rule %d (%s) could make more than %d bytes of the labels; shorten its replacement, or the labels", i+1, ruleText(c), maxTrialBytes)
		}
		b := labels.NewBuilder(ls)
		keep := relabel.ProcessBuilder(b, c)
		next := b.Labels()
		step := Step{Rule: ruleText(c), Dropped: !keep, Changes: []Change{}}
		if keep {
			step.Changes = changesOf(ls, next)
		}
		t.Steps = append(t.Steps, step)
		if !keep {
			return t, nil
		}
		ls = next
	}
	t.Result = &ls
	return t, nil
}

// changesOf returns what differs between two label sets.
func changesOf(before, after labels.Labels) []Change {
	var names []string
	for _, ls := range []labels.Labels{before, after} {
		ls.Range(func(l labels.Label) { names = append(names, l.Name) })
	}
	slices.Sort(names)
	list := []Change{}
	for _, name := range slices.Compact(names) {
		if a, b := before.Get(name), after.Get(name); a != b {
			list = append(list, Change{name, a, b})
		}
	}
	return list
}

// ruleText writes a rule in one line, without what is as by default.
func ruleText(c *relabel.Config) string {
	d := relabel.DefaultRelabelConfig
	parts := []string{"action: " + string(c.Action)}
	add := func(key, value string, set bool) {
		if set {
			parts = append(parts, key+": "+value)
		}
	}
	var sources []string
	for _, s := range c.SourceLabels {
		sources = append(sources, string(s))
	}
	add("source_labels", "["+strings.Join(sources, ", ")+"]", len(sources) > 0)
	add("separator", fmt.Sprintf("%q", c.Separator), c.Separator != d.Separator)
	add("regex", fmt.Sprintf("%q", c.Regex.String()), c.Regex.String() != d.Regex.String())
	add("modulus", fmt.Sprint(c.Modulus), c.Modulus != 0)
	add("target_label", c.TargetLabel, c.TargetLabel != "")
	add("replacement", fmt.Sprintf("%q", c.Replacement), c.Replacement != d.Replacement)
	return strings.Join(parts, ", ")
}

// maxTrialBytes bounds what a rule may make of labels when it is tried: more than any target or series has.
const maxTrialBytes = 128 << 10

// growth returns how many bytes the labels can have after a rule at most: each $ of its texts can stand for all that it matches.
func growth(c *relabel.Config, ls labels.Labels) int {
	before, names := size(ls), 0
	ls.Range(func(l labels.Label) { names += len(l.Name) })
	texts := c.Replacement + c.TargetLabel
	matched := names // what labelmap can match, label by label
	if c.Action != relabel.LabelMap {
		matched = 0
		for _, s := range c.SourceLabels {
			matched += len(ls.Get(string(s))) + len(c.Separator)
		}
	}
	times := 1
	if c.Action == relabel.LabelMap {
		times = max(ls.Len(), 1)
	}
	return before + times*len(texts) + strings.Count(texts, "$")*matched + matched
}
