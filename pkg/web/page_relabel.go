package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"gopkg.in/yaml.v3"

	"github.com/millrace/millrace/pkg/rules"
)

// relabelPage tries rules of relabelling on labels.
var relabelPage = page{
	name: "relabel", path: "/relabel", Title: "Relabelling", Style: "relabel.css", still: true, view: (*Server).viewRelabel, act: (*Server).actRelabel,
}

// RuleSet are rules of the running configuration.
type RuleSet struct {
	// Of is one of the kinds of rules, Name the job's or the endpoint's.
	Of, Name string
	// External are labels that are added first, where there is none of the name.
	External labels.Labels
	Rules    []*relabel.Config
}

// The kinds of rules.
const (
	RulesOfTargets  = "relabel_configs"
	RulesOfMetrics  = "metric_relabel_configs"
	RulesOfEndpoint = "write_relabel_configs"
)

// Bounds of what is filled in.
const (
	maxRuleBytes  = 64 << 10
	maxRules      = 200
	maxLabelBytes = 64 << 10
	maxLabelSets  = 20
)

// relabelView is what the page shows.
type relabelView struct {
	// Kinds are the rules of the configuration that can be chosen. Chosen is the value of one, or empty for Rules.
	Kinds         []ruleKind
	Chosen        string
	Rules, Labels string
	Trials        []trialView
	MaxSets       int
}

// ruleKind is a group of choices.
type ruleKind struct {
	Title   string
	Choices []ruleChoice
}

type ruleChoice struct {
	Value, Title string
	Chosen       bool
}

// trialView is what came of a label set.
type trialView struct {
	Before string
	// After is what is left; Dropped says that nothing is.
	After   string
	Dropped bool
	Steps   []stepView
}

type stepView struct {
	Number int
	rules.Step
}

func (s *Server) viewRelabel(ctx context.Context, r *http.Request) (view, error) {
	v := relabelView{MaxSets: maxLabelSets, Labels: `up{job="api", instance="a:80"}`}
	sets := s.cfg.Rules()
	if r.Method == http.MethodPost {
		form := r.PostForm
		v.Labels, v.Rules, v.Chosen = form.Get("labels"), form.Get("rules"), form.Get("of")
		if form.Get("do") == "edit" {
			if set, ok := chosenRules(sets, v.Chosen); ok {
				text, err := yaml.Marshal(set.Rules)
				if err != nil {
					return view{}, fmt.Errorf("writing the rules of %s: %w", v.Chosen, err)
				}
				v.Rules, v.Chosen = string(text), ""
			}
		} else if trials, err := s.tryRules(ctx, form); err == nil {
			v.Trials = trials
		}
	}
	kinds := map[string]int{}
	for _, set := range sets {
		if len(set.Rules) == 0 && set.External.IsEmpty() {
			continue
		}
		i, ok := kinds[set.Of]
		if !ok {
			i = len(v.Kinds)
			kinds[set.Of], v.Kinds = i, append(v.Kinds, ruleKind{Title: set.Of})
		}
		value := set.value()
		v.Kinds[i].Choices = append(v.Kinds[i].Choices, ruleChoice{value, fmt.Sprintf("%s (%s)", set.Name, plural(len(set.Rules), "rule", "rules")), value == v.Chosen})
	}
	return view{Content: v}, nil
}

// value names the set in a form.
func (s *RuleSet) value() string { return s.Of + " " + s.Name }

func chosenRules(sets []RuleSet, value string) (RuleSet, bool) {
	for _, set := range sets {
		if set.value() == value {
			return set, true
		}
	}
	return RuleSet{}, false
}

// actRelabel finds out what is wrong with what is filled in. The view tries it.
func (s *Server) actRelabel(ctx context.Context, r *http.Request) (string, error) {
	if r.PostForm.Get("do") == "edit" {
		if _, ok := chosenRules(s.cfg.Rules(), r.PostForm.Get("of")); !ok {
			return "", &fieldError{"of", errors.New("choose the rules of the configuration that are to stand below")}
		}
		return "", nil
	}
	_, err := s.tryRules(ctx, r.PostForm)
	return "", err
}

// tryRules tries what is filled in. Errors are about fields.
func (s *Server) tryRules(ctx context.Context, form url.Values) ([]trialView, error) {
	var external labels.Labels
	var list []*relabel.Config
	if of := form.Get("of"); of != "" {
		set, ok := chosenRules(s.cfg.Rules(), of)
		if !ok {
			return nil, &fieldError{"of", fmt.Errorf("the running configuration has no %q any more", of)}
		}
		external, list = set.External, set.Rules
	} else {
		text := form.Get("rules")
		if len(text) > maxRuleBytes {
			return nil, &fieldError{"rules", fmt.Errorf("they have %d bytes; try at most %d at a time", len(text), maxRuleBytes)}
		}
		var err error
		if list, err = rules.Parse([]byte(text)); err != nil {
			return nil, &fieldError{"rules", err}
		}
		if len(list) == 0 {
			return nil, &fieldError{"rules", errors.New("there are none; write some, or choose those of the configuration")}
		}
		if len(list) > maxRules {
			return nil, &fieldError{"rules", fmt.Errorf("%d rules; try at most %d at a time", len(list), maxRules)}
		}
	}
	sets, err := readLabelSets(form.Get("labels"))
	if err != nil {
		return nil, &fieldError{"labels", err}
	}
	var out []trialView
	for _, ls := range sets {
		if ctx.Err() != nil {
			return nil, &fieldError{"rules", errors.New("trying them takes too long; try fewer, or fewer labels")}
		}
		t, err := rules.Try(external, list, ls)
		if err != nil {
			return nil, &fieldError{"rules", err}
		}
		v := trialView{Before: ls.String(), Dropped: t.Result == nil}
		if t.Result != nil {
			v.After = t.Result.String()
		}
		for i, step := range t.Steps {
			v.Steps = append(v.Steps, stepView{i + 1, step})
		}
		out = append(out, v)
	}
	return out, nil
}

// readLabelSets reads label sets, one a line.
func readLabelSets(text string) (sets []labels.Labels, err error) {
	if len(text) > maxLabelBytes {
		return nil, fmt.Errorf("they have %d bytes; try at most %d at a time", len(text), maxLabelBytes)
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		ls, err := rules.ParseLabels(line)
		if err != nil {
			return nil, err
		}
		if sets = append(sets, ls); len(sets) > maxLabelSets {
			return nil, fmt.Errorf("there are more than %d; try fewer at a time", maxLabelSets)
		}
	}
	if len(sets) == 0 {
		return nil, errors.New(`there are none; write some as up{job="api"}`)
	}
	return sets, nil
}
