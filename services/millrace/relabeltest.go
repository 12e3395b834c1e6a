package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/rules"
)

// relabelTest are the flags and arguments of `millrace relabel test`.
type relabelTest struct {
	configFile, rulesFile string
	job, endpoint         string
	metrics, json         bool
	labels                []string
}

func relabelTestCommand(app *kingpin.Application) subcommand {
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
	return subcommand{c, o.run}
}

// run is `millrace relabel test`.
func (o *relabelTest) run(_ context.Context, stdout, _ io.Writer) error {
	external, list, err := o.rules()
	if err != nil {
		return usageError{err}
	}
	var trials []rules.Trial
	for _, text := range o.labels {
		ls, err := rules.ParseLabels(text)
		if err != nil {
			return usageError{err}
		}
		t, err := rules.Try(external, list, ls)
		if err != nil {
			return usageError{err}
		}
		trials = append(trials, t)
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
		printTrial(stdout, &t)
	}
	return nil
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
	if list, err = rules.Parse(content); err != nil {
		return nil, fmt.Errorf("--rules.file: %s: %w", file, err)
	}
	return list, nil
}

// printTrial prints a trial for people.
func printTrial(w io.Writer, t *rules.Trial) {
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
