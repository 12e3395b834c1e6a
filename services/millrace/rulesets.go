package main

import "github.com/millrace/millrace/pkg/web"

// ruleSets are the rules of the running configuration, for the page that tries them.
func (p *process) ruleSets() []web.RuleSet {
	cfg := p.cfg.Load()
	var list []web.RuleSet
	for _, c := range cfg.ScrapeConfigs {
		list = append(list,
			web.RuleSet{Of: web.RulesOfTargets, Name: c.JobName, Rules: c.RelabelConfigs},
			web.RuleSet{Of: web.RulesOfMetrics, Name: c.JobName, Rules: c.MetricRelabelConfigs})
	}
	for _, e := range cfg.Endpoints {
		list = append(list, web.RuleSet{Of: web.RulesOfEndpoint, Name: e.Name, External: e.ExternalLabels, Rules: e.WriteRelabelConfigs})
	}
	return list
}

// endpointNames are the names of the configuration's endpoints.
func (p *process) endpointNames() (names []string) {
	for _, e := range p.cfg.Load().Endpoints {
		names = append(names, e.Name)
	}
	return names
}
