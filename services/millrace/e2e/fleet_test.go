package e2e_test

import (
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/bench/receiver"
)

// Each beat of these tests takes a second. How long targets are without a scrape is logged; the limits leave room for a slow machine, as which a race build on two cores under other
// load counts.
const (
	beat = time.Second
	room = 2 * beat
)

// crew is a fleet of separate processes over a NATS cluster.
type crew struct {
	*rig
	t      *testing.T
	nats   *natsCluster
	end    *endpoint
	config string
}

func newCrew(t *testing.T, nodes, targets, series int) *crew {
	c := &crew{rig: newRig(t, targets, series), t: t, nats: startNATS(t, nodes), end: newEndpoint(t)}
	replicas := 1
	if nodes > 1 {
		replicas = 3
	}
	c.config = c.rig.config(fmt.Sprintf("  nats: {url: %q}\n  streams: {replicas: %d, partitions: 4}\n", c.nats.URL, replicas), remoteWrite("main", c.end.URL))
	return c
}

// join starts a process of the given services.
func (c *crew) join(services string, opts ...option) *proc {
	c.t.Helper()
	return startMillrace(c.t, c.config, append(opts, withArgs("--services="+services))...)
}

// shares returns how many scrape shards a process owns.
func shares(p *proc, service string) float64 {
	return p.Metric("millrace_fleet_shares", map[string]string{"service": service})
}

// spread waits until all shards have owners among the processes, each with its part.
func (c *crew) spread(service string, all float64, procs ...*proc) {
	c.t.Helper()
	eventually(c.t, 60*time.Second, "the spread of "+service, func() error {
		var sum float64
		var parts []float64
		for _, p := range procs {
			n := shares(p, service)
			parts = append(parts, n)
			sum += n
			if n == 0 {
				return fmt.Errorf("parts %v", parts)
			}
		}
		if sum != all {
			return fmt.Errorf("parts %v, %v in all", parts, sum)
		}
		return nil
	})
}

// beats checks the times at which targets were scraped from a time on: no two scrapes are for one beat, and none follows the one before later than gap.
func (c *crew) beats(from time.Time, gap time.Duration) {
	c.t.Helper()
	worst := time.Duration(0)
	for target, log := range c.gen.Log() {
		var last time.Time
		for _, s := range log {
			if s.At.Before(from) {
				continue
			}
			if !last.IsZero() {
				d := s.At.Sub(last)
				worst = max(worst, d)
				if d < beat/2 {
					c.t.Errorf("%s was scraped at %s and %s later", target, last.Format(time.StampMilli), d)
				}
				if d > gap {
					c.t.Errorf("%s was scraped at %s and only %s later", target, last.Format(time.StampMilli), d)
				}
			}
			last = s.At
		}
	}
	c.t.Logf("the longest time between two scrapes of a target is %s", worst.Round(time.Millisecond))
}

// unbroken checks that no staleness marker has arrived.
func (c *crew) unbroken() {
	c.t.Helper()
	c.end.ledger.mu.Lock()
	defer c.end.ledger.mu.Unlock()
	n := 0
	for _, bits := range c.end.samples {
		if value.IsStaleNaN(math.Float64frombits(bits)) {
			n++
		}
	}
	if n > 0 {
		c.t.Errorf("%d staleness markers arrived though no target has gone", n)
	}
}

// TestScrapersShareTheTargets starts, stops and kills scrapers: targets move, and keep their beats.
func TestScrapersShareTheTargets(t *testing.T) {
	c := newCrew(t, 1, 200, 20)
	rest := c.join("discovery,relabel,writer")
	a := c.join("scraper")
	b := c.join("scraper")
	c.spread("scraper", 256, a, b)
	c.arrived(c.end, 30*time.Second)
	pause(t, 3*beat)

	t.Run("kill", func(t *testing.T) {
		c.t = t
		from := time.Now().Add(-2 * beat)
		b.Kill9()
		c.spread("scraper", 256, a)
		pause(t, 5*beat)
		c.beats(from, 4*beat+room)
		c.unbroken()
	})
	t.Run("join and leave", func(t *testing.T) {
		c.t = t
		from := time.Now().Add(-2 * beat)
		d := c.join("scraper")
		c.spread("scraper", 256, a, d)
		pause(t, 3*beat)
		if code := d.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		c.spread("scraper", 256, a)
		pause(t, 3*beat)
		c.beats(from, 2*beat+room)
		c.unbroken()
	})
	t.Run("pause", func(t *testing.T) {
		c.t = t
		d := c.join("scraper")
		c.spread("scraper", 256, a, d)
		pause(t, 2*beat)
		from := time.Now().Add(-beat)
		d.Signal(syscall.SIGSTOP)
		c.spread("scraper", 256, a)
		pause(t, 20*time.Second)
		c.beats(from, 5*time.Second+2*beat+room)
		d.Signal(syscall.SIGCONT)
		c.spread("scraper", 256, a, d)
		pause(t, 3*beat)
		c.unbroken()
		if code := d.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	c.t = t
	c.spread("scraper", 256, a)
	c.rig.end(a)
	eventually(t, 30*time.Second, "everything sent", func() error {
		if lag := rest.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": "main"}); lag != 0 {
			return fmt.Errorf("%v messages", lag)
		}
		return nil
	})
	c.end.inOrder(t)
	if lost := rest.Metric("millrace_writer_lost_samples_total", map[string]string{"endpoint": "main"}); lost != 0 {
		t.Errorf("%v samples are counted as lost", lost)
	}
}

// gate passes TCP connections on to an address until it is shut: then bytes stay where they are, and nobody is told.
type gate struct {
	Addr string
	shut atomic.Bool
	open chan struct{} // closed when it opens again
	mu   sync.Mutex
}

func newGate(t testing.TB, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	g := &gate{Addr: l.Addr().String(), open: make(chan struct{})}
	t.Cleanup(g.Open)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go g.pass(in, out)
			go g.pass(out, in)
		}
	}()
	return g
}

func (g *gate) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if g.shut.Load() {
			g.mu.Lock()
			open := g.open
			g.mu.Unlock()
			<-open
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Shut holds all bytes back.
func (g *gate) Shut() { g.shut.Store(true) }

// Open lets them pass again.
func (g *gate) Open() {
	g.shut.Store(false)
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.open)
	g.open = make(chan struct{})
}

// arrivals checks the timestamps of each series that has arrived since a time: one for each beat, and none that follows the one before later than gap.
func (c *crew) arrivals(from time.Time, gap time.Duration) {
	c.t.Helper()
	c.end.ledger.mu.Lock()
	defer c.end.ledger.mu.Unlock()
	series := map[uint64][]int64{}
	for at := range c.end.samples {
		if at.time >= from.UnixMilli() {
			series[at.series] = append(series[at.series], at.time)
		}
	}
	worst := int64(0)
	for id, times := range series {
		slices.Sort(times)
		for i := 1; i < len(times); i++ {
			d := times[i] - times[i-1]
			worst = max(worst, d)
			if d < beat.Milliseconds()/2 || d > gap.Milliseconds() {
				c.t.Errorf("series %x has a sample %d ms after the one before", id, d)
			}
		}
	}
	c.t.Logf("the longest time between two samples of a series is %d ms", worst)
}

// TestAScraperThatIsCutOffIsReplaced holds all bytes between a scraper and NATS back for 20 s, and then lets them pass.
func TestAScraperThatIsCutOffIsReplaced(t *testing.T) {
	c := newCrew(t, 1, 40, 20)
	c.join("discovery,relabel,writer")
	a := c.join("scraper")
	g := newGate(t, strings.TrimPrefix(c.nats.URL, "nats://"))
	b := startMillrace(t, c.config, withArgs("--services=scraper", "--nats.url=nats://"+g.Addr))
	c.spread("scraper", 256, a, b)
	c.arrived(c.end, 30*time.Second)
	from := time.Now().Add(-beat)
	g.Shut()
	c.spread("scraper", 256, a)
	pause(t, 20*time.Second)
	g.Open()
	c.spread("scraper", 256, a, b)
	c.arrived(c.end, 30*time.Second)
	pause(t, 3*beat)
	c.arrivals(from, 5*time.Second+2*beat+room)
	c.unbroken()
	if r := c.end.Report(); r.Reordered != 0 || r.Changed != 0 {
		t.Errorf("reordered %d, changed %d: %v", r.Reordered, r.Changed, r.Examples)
	}
}

// TestARollingRestartIsNotNoticed restarts two processes of each service, one after the other.
func TestARollingRestartIsNotNoticed(t *testing.T) {
	c := newCrew(t, 1, 50, 50)
	services := []string{"discovery", "scraper", "relabel", "writer"}
	running := map[string][]*proc{}
	// An endpoint gets what is scraped after its writer has come, and the test expects all.
	for _, s := range []string{"discovery", "writer", "relabel", "scraper"} {
		running[s] = []*proc{c.join(s), c.join(s)}
		if s == "writer" {
			c.spread(s, 4, running[s]...)
		}
	}
	c.spread("scraper", 256, running["scraper"]...)
	c.arrived(c.end, 60*time.Second)
	from := time.Now()
	for _, s := range services {
		for i, p := range running[s] {
			if code := p.Stop(); code != 0 {
				t.Errorf("%s: exit code %d", s, code)
			}
			running[s][i] = c.join(s)
			if s != "discovery" {
				c.spread(s, map[string]float64{"scraper": 256, "relabel": 4, "writer": 4}[s], running[s]...)
			}
			pause(t, beat)
		}
	}
	c.arrived(c.end, 30*time.Second)
	c.beats(from, 2*beat+room)
	c.unbroken()
	for _, p := range running["scraper"][1:] {
		if code := p.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	c.spread("scraper", 256, running["scraper"][0])
	c.rig.end(running["scraper"][0])
	eventually(t, 60*time.Second, "everything sent", func() error {
		for _, p := range running["writer"] {
			if lag := p.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": "main"}); lag != 0 {
				return fmt.Errorf("%v messages", lag)
			}
		}
		return nil
	})
	pause(t, 3*beat)
	c.end.inOrder(t)
	if n := c.end.Report().Repeated; n != 0 {
		t.Errorf("%d samples were sent twice", n)
	}
	c.end.whole(t, c.gen.Log())
}

// TestEveryServiceMayBeKilled kills a process of each other service while samples flow: another takes over, and nothing taken is lost.
func TestEveryServiceMayBeKilled(t *testing.T) {
	c := newCrew(t, 1, 50, 100)
	running := map[string][2]*proc{}
	for _, s := range []string{"discovery", "relabel", "writer"} { // discovery makes the streams
		running[s] = [2]*proc{c.join(s), c.join(s)}
	}
	scraper := c.join("scraper")
	c.spread("scraper", 256, scraper)
	c.spread("relabel", 4, running["relabel"][0], running["relabel"][1])
	c.spread("writer", 4, running["writer"][0], running["writer"][1])
	c.arrived(c.end, 60*time.Second)
	for _, s := range []string{"discovery", "relabel", "writer"} {
		leader := running[s][0]
		if shares(leader, s) == 0 {
			leader, running[s] = running[s][1], [2]*proc{running[s][1], running[s][0]}
		}
		if s != "discovery" {
			c.end.control(t, receiver.Control{Mode: receiver.Slow, Delay: 300 * time.Millisecond})
			pause(t, beat)
		}
		killed := time.Now()
		leader.Kill9()
		all := map[string]float64{"discovery": 1, "relabel": 4, "writer": 4}[s]
		c.spread(s, all, running[s][1])
		t.Logf("%s: another process owned all %s after the kill", s, time.Since(killed).Round(10*time.Millisecond))
		pause(t, 2*beat)
		c.end.control(t, receiver.Control{Mode: receiver.OK})
		c.arrived(c.end, 30*time.Second)
	}
	c.rig.end(scraper)
	last := running["writer"][1]
	eventually(t, 60*time.Second, "everything sent", func() error {
		if lag := last.Metric("millrace_writer_lag_messages", map[string]string{"endpoint": "main"}); lag != 0 {
			return fmt.Errorf("%v messages", lag)
		}
		return nil
	})
	pause(t, 3*beat)
	c.end.whole(t, c.gen.Log())
	if r := c.end.Report(); r.Lost != 0 || r.Changed != 0 || r.Reordered != 0 {
		t.Errorf("lost %d, changed %d, reordered %d: %v", r.Lost, r.Changed, r.Reordered, r.Examples)
	}
}

// TestANATSNodeMayBeKilled kills one node of three after the other under 50,000 samples a second, so that one of them is the leader of the stream.
func TestANATSNodeMayBeKilled(t *testing.T) {
	c := newCrew(t, 3, 50, 1000)
	p := c.join("discovery,scraper,relabel,writer", asShipped())
	c.arrived(c.end, 60*time.Second)
	stop := p.watchRSS()
	for i, node := range c.nats.nodes {
		t.Logf("killing node %d", i)
		node.kill()
		pause(t, 5*beat)
		c.arrived(c.end, 60*time.Second)
		node.start()
		c.nats.ready()
		pause(t, 2*beat)
	}
	c.arrived(c.end, 60*time.Second)
	c.rig.end(p)
	c.settled(p, 60*time.Second, "main")
	if most := stop(); most > 400<<20 {
		t.Errorf("it took %d MiB", most>>20)
	} else {
		t.Logf("at most %d MiB", most>>20)
	}
	c.end.inOrder(t)
	c.end.whole(t, c.gen.Log())
	if dropped := p.Metric("millrace_scraper_dropped_scrapes_total", nil); dropped != 0 {
		t.Errorf("%v scrapes were dropped", dropped)
	}
}
