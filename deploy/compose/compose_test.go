package compose

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/receiver"
)

// fleetSizes are the containers of each service that docker-compose.yml has.
var fleetSizes = map[string]int{
	"nats-1": 1, "nats-2": 1, "nats-3": 1, "discovery": 2, "scraper": 2, "ingest": 2, "relabel": 2, "writer": 2, "targets": 1, "receiver": 1, "prometheus": 1,
}

var errNone = errors.New("none yet")

// TestFleetInContainers runs docker-compose.yml as it is, until samples of all targets and of all processes of the fleet are at the Prometheus; then it scales
// the scrapers, cuts a NATS node off, and kills and pauses a process of each service. All the while applications push.
func TestFleetInContainers(t *testing.T) {
	s := up(t)
	for service, n := range fleetSizes {
		s.eventually(service+" is healthy", s.healthy(service, n))
	}
	pushed := s.startPushers()
	pushed.more("by the healthy fleet")
	s.pushFuture()
	s.eventually("all demo targets are at the Prometheus", s.is(`count(up{job="node",site="compose"} == 1)`, 8))
	s.eventually("all processes are at the Prometheus", s.is(`count(up{job="millrace"} == 1)`, float64(2*len(users))))
	s.eventually("all metrics of the dashboards are at the Prometheus", func() error {
		for _, name := range dashboardMetrics(t) {
			if slices.Contains(sometimes, name) {
				continue
			}
			if n, err := s.query("count(" + name + ")"); err != nil || n == 0 {
				return fmt.Errorf("%s has %g series: %w", name, n, cmp.Or(err, errNone))
			}
		}
		return nil
	})
	s.eventually("the Prometheus knows the alerts", func() error {
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health string }
				}
			}
		}
		if err := getJSON(t.Context(), "http://"+s.address("prometheus", 1, 9090)+"/api/v1/rules", &answer); err != nil {
			return err
		}
		n := 0
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				if n++; r.Health != "ok" {
					return fmt.Errorf("%s is %s", r.Name, r.Health)
				}
			}
		}
		if n < 20 {
			return fmt.Errorf("%d rules", n)
		}
		return nil
	})
	s.checkContainers()

	for _, n := range []int{4, 1, 2} {
		s.scale("scraper", n)
		s.eventually(fmt.Sprintf("%d scrapers are healthy", n), s.healthy("scraper", n))
		s.moreSamples(fmt.Sprintf("with %d scrapers", n))
	}
	node := s.containers("nats-2")[0]
	s.cut(node)
	s.moreSamples("without a NATS node")
	pushed.more("without a NATS node")
	s.heal(node, "nats-2")
	s.eventually("the NATS node is healthy again", s.healthy("nats-2", 1))
	s.moreSamples("with all NATS nodes")
	s.verify(true)

	for _, service := range users {
		container := s.containers(service)[0]
		s.kill(container, "KILL")
		s.moreSamples("without one " + service)
		pushed.more("without one " + service)
		s.start(container)
		s.eventually(service+" is healthy again", s.healthy(service, 2))
		container = s.containers(service)[1]
		s.pause(container)
		s.moreSamples("while one " + service + " is paused")
		pushed.more("while one " + service + " is paused")
		s.unpause(container)
		s.eventually(service+" is healthy again", s.healthy(service, 2))
	}
	s.moreSamples("in the end")
	pushed.verify()
	s.verify(false) // a scrape that is under way when its scraper is killed is not taken, which counts as lost
	s.eventually("all demo targets are up", s.is(`count(up{job="node"} == 1)`, 8))

	for line := range strings.Lines(s.logs(users...)) {
		if strings.Contains(strings.ToLower(line), "permissions violation") {
			t.Errorf("a service lacks a permission: %s", line)
		}
	}
}

// checkContainers checks as whom the containers run, and that none has failed on the way up.
func (s *stack) checkContainers() {
	s.t.Helper()
	for service := range fleetSizes {
		for _, id := range s.containers(service) {
			if user := s.docker("inspect", "-f", "{{.Config.User}}", id); user != "65532:65532" && !strings.HasPrefix(service, "nats-") && service != "prometheus" {
				s.t.Errorf("%s runs as %q", service, user)
			}
			if n := s.docker("inspect", "-f", "{{.RestartCount}}", id); n != "0" {
				s.t.Errorf("a container of %s was restarted %s times", service, n)
			}
		}
	}
}

// moreSamples waits until the Prometheus has two more scrapes of every demo target.
func (s *stack) moreSamples(when string) {
	s.t.Helper()
	const more = 2
	scrapes := func() (map[string]float64, error) { return s.vector(`millrace_bench_scrape{job="node"}`, "target") }
	var before map[string]float64
	s.eventually("samples arrive "+when, func() error {
		now, err := scrapes()
		if err != nil {
			return err
		}
		if before == nil && len(now) == 8 {
			before = now
		}
		for target, n := range before {
			if now[target] < n+more {
				return fmt.Errorf("%s is at scrape %g, and was at %g", target, now[target], n)
			}
		}
		if before == nil {
			return fmt.Errorf("%d targets", len(now))
		}
		return nil
	})
	s.t.Logf("%d scrapes are lost so far", s.report().Lost)
}

// verify fails the test if the receiver has found a defect.
func (s *stack) verify(whole bool) {
	s.t.Helper()
	r := s.report()
	s.t.Logf("the receiver has %d samples of %d series; %d lost, %d reordered, %d changed, %d repeated", r.Samples, r.Series, r.Lost, r.Reordered, r.Changed, r.Repeated)
	for _, gap := range s.gaps() {
		s.t.Log(gap)
	}
	if r.Samples == 0 || r.Reordered > 0 || r.Changed > 0 || whole && r.Lost > 0 {
		s.t.Errorf("the receiver has %d samples, %d lost, %d reordered, %d changed; examples: %+v", r.Samples, r.Lost, r.Reordered, r.Changed, r.Examples)
	}
}

// report is what the receiver has found so far.
func (s *stack) report() (r receiver.Report) {
	s.t.Helper()
	if err := getJSON(s.t.Context(), "http://"+s.address("receiver", 1, 9476)+"/report", &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// gaps tells for each scrape of a demo target that is missing at the Prometheus what is there around it.
func (s *stack) gaps() (gaps []string) {
	s.t.Helper()
	numbers, err := s.ranges(numbered.ScrapeMetric+`{job="node"}[6h]`, numbered.TargetLabel)
	if err != nil {
		s.t.Fatal(err)
	}
	ups, err := s.ranges(`up{job="node"}[6h]`, numbered.TargetLabel)
	if err != nil {
		s.t.Fatal(err)
	}
	for target, list := range numbers {
		for i := 1; i < len(list); i++ {
			a, b := list[i-1], list[i]
			if b.value == a.value+1 {
				continue
			}
			var between []string
			for _, up := range ups[target] {
				if !up.at.Before(a.at) && !up.at.After(b.at) {
					between = append(between, fmt.Sprintf("%g at %s", up.value, up.at.Format(clock)))
				}
			}
			gaps = append(gaps, fmt.Sprintf("%s has scrape %g at %s and then %g at %s; up is %s",
				target, a.value, a.at.Format(clock), b.value, b.at.Format(clock), strings.Join(between, ", ")))
		}
	}
	return gaps
}

// clock is how times of samples are shown.
const clock = "15:04:05.000"
