package compose

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var errNone = errors.New("none yet")

// TestFleetInContainers runs docker-compose.yml as it is, until samples of all targets and of all processes of the fleet are at the Prometheus.
func TestFleetInContainers(t *testing.T) {
	s := up(t)
	for service, n := range map[string]int{
		"nats-1": 1, "nats-2": 1, "nats-3": 1, "discovery": 2, "scraper": 2, "relabel": 2, "writer": 2, "targets": 1, "receiver": 1, "prometheus": 1,
	} {
		s.eventually(service+" is healthy", s.healthy(service, n))
	}
	s.eventually("all demo targets are at the Prometheus", s.is(`count(up{job="node",site="compose"} == 1)`, 8))
	s.eventually("all processes are at the Prometheus", s.is(`count(up{job="millrace"} == 1)`, 8))
	s.eventually("numbered samples are at the receiver", func() error {
		r, err := s.report()
		if err == nil && r.Samples == 0 {
			err = errNone
		}
		return err
	})

	s.eventually("all metrics of the dashboards are at the Prometheus", func() error {
		for _, name := range dashboardMetrics(t) {
			if n, err := s.query("count(" + name + ")"); err != nil || n == 0 {
				return fmt.Errorf("%s has %g series: %w", name, n, cmp.Or(err, errNone))
			}
		}
		return nil
	})

	s.scale("scraper", 3)
	s.eventually("the third scraper is healthy", s.healthy("scraper", 3))
	s.eventually("the third scraper is at the Prometheus", s.is(`count(up{job="millrace",service="scraper"} == 1)`, 3))

	for line := range strings.Lines(s.logs("discovery", "scraper", "relabel", "writer")) {
		if strings.Contains(strings.ToLower(line), "permissions violation") {
			t.Errorf("a service lacks a permission: %s", line)
		}
	}
	for _, service := range []string{"discovery", "scraper", "relabel", "writer", "targets"} {
		for _, id := range s.containers(service) {
			if user := s.docker("inspect", "-f", "{{.Config.User}}", id); user != "65532:65532" {
				t.Errorf("%s runs as %q", service, user)
			}
			if n := s.docker("inspect", "-f", "{{.RestartCount}}", id); n != "0" {
				t.Errorf("a container of %s was restarted %s times", service, n)
			}
		}
	}
}
