package fleet

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	fleet                  *Fleet
	late, removed, expired prometheus.Counter
	taken, given, lost     *prometheus.CounterVec
}

func newMetrics(f *Fleet, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "fleet", Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vec := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "fleet", Name: name, Help: help}, []string{"service"})
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		fleet:   f,
		late:    counter("late_renewals_total", "Tries to store a sign of life that failed when the one before had already expired."),
		removed: counter("removed_members_total", "Members that this process found gone and removed."),
		expired: counter("expired_members_total", "Members that have given no sign of life for longer than their time. Each process counts them."),
		taken:   vec("taken_shares_total", "Shares that this process has taken."),
		given:   vec("given_shares_total", "Shares that this process has handed on."),
		lost:    vec("lost_shares_total", "Shares that another took before this process had handed them on."),
	}
	reg.MustRegister(m)
	return m
}

var (
	membersDesc = prometheus.NewDesc("millrace_fleet_members", "Members of the fleet that are alive, by the services that they run.", []string{"service"}, nil)
	sharesDesc  = prometheus.NewDesc("millrace_fleet_shares", "Shares that this process owns.", []string{"service"}, nil)
	freeDesc    = prometheus.NewDesc("millrace_fleet_free_shares", "Shares that nobody alive owns.", []string{"service"}, nil)
	epochDesc   = prometheus.NewDesc("millrace_fleet_newest_epoch", "The greatest epoch among the leases of this process.", []string{"service"}, nil)
	configsDesc = prometheus.NewDesc("millrace_fleet_configs", "Different configurations that the members of the fleet run; more than 1 is a mistake that lasts.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- membersDesc
	ch <- sharesDesc
	ch <- freeDesc
	ch <- epochDesc
	ch <- configsDesc
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	services, configs := map[string]int{}, map[string]bool{}
	for _, member := range m.fleet.Members() {
		configs[member.ConfigHash] = true
		for _, s := range member.Services {
			services[s]++
		}
	}
	for s, n := range services {
		ch <- prometheus.MustNewConstMetric(membersDesc, prometheus.GaugeValue, float64(n), s)
	}
	ch <- prometheus.MustNewConstMetric(configsDesc, prometheus.GaugeValue, float64(len(configs)))
	for s, n := range m.fleet.free() {
		ch <- prometheus.MustNewConstMetric(freeDesc, prometheus.GaugeValue, float64(n), s)
	}
	m.fleet.mu.Lock()
	claims := make([]*Claim, 0, len(m.fleet.claims))
	for _, c := range m.fleet.claims {
		claims = append(claims, c)
	}
	m.fleet.mu.Unlock()
	for _, c := range claims {
		held, newest := c.Held(), uint64(0)
		for _, epoch := range held {
			newest = max(newest, epoch)
		}
		ch <- prometheus.MustNewConstMetric(sharesDesc, prometheus.GaugeValue, float64(len(held)), c.service)
		ch <- prometheus.MustNewConstMetric(epochDesc, prometheus.GaugeValue, float64(newest), c.service)
	}
}
