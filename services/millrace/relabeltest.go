package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/config"
)

// relabelTest are the flags and arguments of `millrace relabel test`.
type relabelTest struct {
	configFile, rulesFile string
	job, endpoint         string
	metrics, json         bool
	labels                []string
}

func relabelTestCommand(app *kingpin.Application) (*kingpin.CmdClause, *relabelTest) {
	o := &relabelTest{}
	group := app.Command("relabel", "Try rules of relabelling.")
	c := group.Command("test", "Print what each rule makes of labels.")
	c.Flag("config.file", "Configuration file.").Default("prometheus.yml").StringVar(&o.configFile)
	c.Flag("job", "Try the relabel_configs of this job, which get the labels of a discovered target.").PlaceHolder("NAME").StringVar(&o.job)
	c.Flag("metrics", "With --job: try its metric_relabel_configs, which get the labels of a series.").BoolVar(&o.metrics)
	c.Flag("endpoint", "Try the external_labels and the write_relabel_configs of this endpoint.").PlaceHolder("NAME").StringVar(&o.endpoint)
	c.Flag("rules.file", "Try the list of rules in this file, in place of a configuration's.").PlaceHolder("FILE").StringVar(&o.rulesFile)
	c.Flag("json", "Print JSON.").BoolVar(&o.json)
	c.Arg("labels", `Label sets to begin with: 'up{job="api"}' or '{__address__="host:80"}'.`).Required().StringsVar(&o.labels)
	return c, o
}

// relabelTrial is what came of one label set.
type relabelTrial struct {
	// Labels are those to begin with, and Result what is left; null where the set was dropped.
	Labels labels.Labels  `json:"labels"`
	Result *labels.Labels `json:"result"`
	Steps  []relabelStep  `json:"steps"`
}

// relabelStep is what one rule did.
type relabelStep struct {
	// Rule is the rule as YAML in one line, without defaults.
	Rule string `json:"rule"`
	// Dropped is set where the rule dropped the set; no rule follows then.
	Dropped bool `json:"dropped"`
	// Changes are the labels that the rule changed, by name.
	Changes []labelChange `json:"changes"`
}

// labelChange is a label before and after a rule; a label that is not there is empty.
type labelChange struct {
	Name   string `json:"name"`
	Before string `json:"before"`
	After  string `json:"after"`
}

// run is `millrace relabel test`.
func (o *relabelTest) run(stdout io.Writer) error {
	external, list, err := o.rules()
	if err != nil {
		return usageError{err}
	}
	var trials []relabelTrial
	for _, text := range o.labels {
		ls, err := parseLabels(text)
		if err != nil {
			return usageError{err}
		}
		trials = append(trials, tryRules(external, list, ls))
	}
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(trials)
	}
	for i, t := range trials {
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		t.print(stdout)
	}
	return nil
}

func parseLabels(text string) (labels.Labels, error) {
	if strings.TrimSpace(text) == "{}" {
		return labels.EmptyLabels(), nil
	}
	ls, err := parser.NewParser(parser.Options{}).ParseMetric(text)
	if err != nil {
		return ls, fmt.Errorf(`labels %q: %w; write them as up{job="api"}`, text, err)
	}
	return ls, nil
}

// rules returns the rules to try, and the labels that are added first where they are an endpoint's.
func (o *relabelTest) rules() (external labels.Labels, list []*relabel.Config, err error) {
	given := 0
	for _, s := range []string{o.job, o.endpoint, o.rulesFile} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return external, nil, errors.New("give one of --job, --endpoint and --rules.file: whose rules are to be tried")
	case o.metrics && o.job == "":
		return external, nil, errors.New("--metrics goes with --job")
	case o.rulesFile != "":
		list, err = readRules(o.rulesFile)
		return external, list, err
	}
	cfg, err := config.Load(o.configFile, nil)
	if err != nil {
		return external, nil, fmt.Errorf("loading the configuration: %w", err)
	}
	var names []string
	for _, c := range cfg.ScrapeConfigs {
		if names = append(names, c.JobName); o.job == c.JobName {
			if o.metrics {
				return external, c.MetricRelabelConfigs, nil
			}
			return external, c.RelabelConfigs, nil
		}
	}
	if o.job != "" {
		return external, nil, fmt.Errorf("--job: %s has no job %q; it has %s", o.configFile, o.job, strings.Join(names, ", "))
	}
	names = nil
	for _, e := range cfg.Endpoints {
		if names = append(names, e.Name); o.endpoint == e.Name {
			return e.ExternalLabels, e.WriteRelabelConfigs, nil
		}
	}
	return external, nil, fmt.Errorf("--endpoint: %s has no endpoint %q; it has %s", o.configFile, o.endpoint, strings.Join(names, ", "))
}

// readRules reads a file with a list of rules.
func readRules(file string) (list []*relabel.Config, err error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--rules.file: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(content))
	dec.KnownFields(true)
	if err := dec.Decode(&list); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("--rules.file: %s: %w; it holds a list of rules as relabel_configs does", file, err)
	}
	for i, c := range list {
		if c == nil {
			return nil, fmt.Errorf("--rules.file: %s: rule %d is empty; remove it", file, i+1)
		}
		c.NameValidationScheme = model.UTF8Validation
		if err := c.Validate(model.UTF8Validation); err != nil {
			return nil, fmt.Errorf("--rules.file: %s: rule %d: %w", file, i+1, err)
		}
	}
	return list, nil
}

// tryRules applies rules one after the other. External labels are set first, where there is no label of the same name, as the relabel service does.
func tryRules(external labels.Labels, list []*relabel.Config, ls labels.Labels) relabelTrial {
	t := relabelTrial{Labels: ls, Steps: []relabelStep{}}
	if !external.IsEmpty() {
		b := labels.NewBuilder(ls)
		external.Range(func(l labels.Label) {
			if b.Get(l.Name) == "" {
				b.Set(l.Name, l.Value)
			}
		})
		next := b.Labels()
		t.Steps = append(t.Steps, relabelStep{Rule: "external_labels " + external.String(), Changes: changes(ls, next)})
		ls = next
	}
	for _, c := range list {
		b := labels.NewBuilder(ls)
		keep := relabel.ProcessBuilder(b, c)
		next := b.Labels()
		step := relabelStep{Rule: ruleText(c), Dropped: !keep, Changes: []labelChange{}}
		if keep {
			step.Changes = changes(ls, next)
		}
		t.Steps = append(t.Steps, step)
		if !keep {
			return t
		}
		ls = next
	}
	t.Result = &ls
	return t
}

// changes returns what differs between two label sets.
func changes(before, after labels.Labels) []labelChange {
	var names []string
	for _, ls := range []labels.Labels{before, after} {
		ls.Range(func(l labels.Label) { names = append(names, l.Name) })
	}
	slices.Sort(names)
	list := []labelChange{}
	for _, name := range slices.Compact(names) {
		if a, b := before.Get(name), after.Get(name); a != b {
			list = append(list, labelChange{name, a, b})
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

// print prints a trial for people.
func (t *relabelTrial) print(w io.Writer) {
	fmt.Fprintf(w, "   %s\n", t.Labels)
	for i, s := range t.Steps {
		fmt.Fprintf(w, "%2d %s\n", i+1, s.Rule)
		for _, c := range s.Changes {
			switch {
			case c.Before == "":
				fmt.Fprintf(w, "     + %s=%q\n", c.Name, c.After)
			case c.After == "":
				fmt.Fprintf(w, "     - %s=%q\n", c.Name, c.Before)
			default:
				fmt.Fprintf(w, "     ~ %s=%q, was %q\n", c.Name, c.After, c.Before)
			}
		}
		switch {
		case s.Dropped:
			fmt.Fprintln(w, "     dropped")
		case len(s.Changes) == 0:
			fmt.Fprintln(w, "     no change")
		}
	}
	if t.Result == nil {
		fmt.Fprintln(w, "=> dropped")
		return
	}
	fmt.Fprintf(w, "=> %s\n", *t.Result)
}
