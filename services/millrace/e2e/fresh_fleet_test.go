package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/receiver"
	"github.com/millrace/millrace/pkg/status"
)

var mainEndpoint = map[string]string{"endpoint": "main"}

// newFreshCrew is a fleet whose endpoint gets new samples first after an outage. Its backlog may have so little time that there is time to kill something.
func newFreshCrew(t *testing.T, nodes, targets, series int) *crew {
	c := newCrew(t, nodes, targets, series)
	c.config = strings.Replace(c.config, "millrace:\n", "millrace:\n  writer: {fresh_first: {endpoints: [main], after: 2s, backlog_share: 0.01}}\n", 1)
	c.config = strings.Replace(c.config, "max_backoff: 1s", "max_backoff: 1s, max_samples_per_send: 500", 1) // so that a backlog lasts
	c.end.keepOrder()
	return c
}

// backlogs returns how many messages wait at some writers that were passed over for newer ones.
func backlogs(writers ...*proc) (sum float64) {
	for _, w := range writers {
		sum += w.Metric("millrace_writer_backlog_messages", mainEndpoint)
	}
	return sum
}

// outage lets the endpoint fail for a time, and returns when each of the writers has begun to send a backlog beside new samples.
func (c *crew) outage(d time.Duration, writers ...*proc) {
	c.t.Helper()
	c.end.control(c.t, receiver.Control{Mode: receiver.Unavailable})
	pause(c.t, d)
	c.end.control(c.t, receiver.Control{Mode: receiver.OK})
	eventually(c.t, 60*time.Second, "a backlog at each writer", func() error {
		for i, w := range writers {
			if n := w.Metric("millrace_writer_backlog_messages", mainEndpoint); n == 0 {
				return fmt.Errorf("none at writer %d", i)
			}
		}
		return nil
	})
}

// drained ends scraping, waits until everything is sent, and checks that nothing is missing, lost or out of order beyond what new samples first means.
func (c *crew) drained(scraper *proc, writers ...*proc) {
	t := c.t
	t.Helper()
	c.rig.end(scraper)
	c.settled(scraper, 60*time.Second)
	eventually(t, 3*time.Minute, "everything sent", func() error {
		for _, w := range writers {
			if lag := w.Metric("millrace_writer_lag_messages", mainEndpoint); lag != 0 {
				return fmt.Errorf("%v messages behind, %v of them passed over", lag, backlogs(w))
			}
		}
		return nil
	})
	for _, w := range writers {
		for _, name := range []string{"lost", "rejected"} {
			if n := w.Metric("millrace_writer_"+name+"_samples_total", mainEndpoint); n != 0 {
				t.Errorf("%v samples %s", n, name)
			}
		}
	}
	c.end.whole(t, c.gen.Log())
	beside := c.end.inTwoOrders(t)
	rep := c.end.Report()
	t.Logf("%d samples, %d of them beside newer ones, %d repeated, %d lost, %d changed", rep.Samples, beside, rep.Repeated, rep.Lost, rep.Changed)
	if rep.Changed != 0 || rep.Lost != 0 || beside == 0 {
		t.Errorf("lost or changed, or no backlog: %+v", rep.Examples)
	}
}

// TestABacklogMovesToAnotherWriter kills one of two writers while both send a backlog beside new samples: the other one sends the rest of both.
func TestABacklogMovesToAnotherWriter(t *testing.T) {
	c := newFreshCrew(t, 1, 20, 200)
	a, b := c.join("discovery,relabel,writer"), c.join("writer")
	scraper := c.join("scraper")
	c.spread("scraper", 256, scraper)
	c.spread("writer", 4, a, b)
	c.arrived(c.end, 60*time.Second)
	c.outage(10*time.Second, a, b)
	left := backlogs(b)
	var shown status.Endpoint
	eventually(t, startTimeout, "the backlog of both in the status of the fleet", func() error {
		d := statusOf(t, "--web.url="+a.URL)
		if len(d.Endpoints) != 1 || d.Endpoints[0].BacklogMessages < uint64(left)/2 || d.Endpoints[0].BacklogMessages > d.Endpoints[0].PendingMessages {
			return fmt.Errorf("%+v", d.Endpoints)
		}
		shown = d.Endpoints[0]
		return nil
	})
	pause(t, 2*time.Second) // positions, with what was passed over, are stored once a second
	if left = backlogs(b); left == 0 {
		t.Fatal("the backlog was sent before anything was killed")
	}
	b.Kill9()
	c.spread("writer", 4, a)
	c.arrived(c.end, 60*time.Second)
	eventually(t, 30*time.Second, "the other's backlog", func() error {
		if !strings.Contains(a.Logs(), "Older samples were passed over for newer ones; they are sent beside new samples") {
			return fmt.Errorf("not found")
		}
		return nil
	})
	t.Logf("status: %d messages pending, %d of them a backlog; %v messages of a backlog at the writer that was killed", shown.PendingMessages, shown.BacklogMessages, left)
	c.drained(scraper, a)
}

// TestABacklogSurvivesTheLossOfANATSNode kills the node of three that leads the stream while a backlog is sent beside new samples.
func TestABacklogSurvivesTheLossOfANATSNode(t *testing.T) {
	c := newFreshCrew(t, 3, 20, 200)
	p := c.join("discovery,scraper,relabel,writer")
	c.arrived(c.end, 60*time.Second)
	c.outage(10*time.Second, p)
	node := c.nats.leader()
	left := backlogs(p)
	if left == 0 {
		t.Fatal("the backlog was sent before anything was killed")
	}
	t.Logf("killing %s, which leads the stream, with a backlog of %v messages", node.name, left)
	node.kill()
	c.arrived(c.end, 60*time.Second)
	t.Logf("new samples arrive with a backlog of %v messages", backlogs(p))
	node.start()
	c.nats.ready()
	c.arrived(c.end, 60*time.Second)
	c.drained(p, p)
}
