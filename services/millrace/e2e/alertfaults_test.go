package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/bench/receiver"
)

// endpointFaults has endpoints that are down, that refuse samples, and that want no old ones, behind a stream that is too small.
func endpointFaults(t *testing.T, w *watch) {
	const job = "endpoints"
	r := newRig(t, 20, 1000)
	main, down, refusing, aging := newCounter(t), newCounter(t), newCounter(t), newCounter(t)
	const few = `write_relabel_configs: [{source_labels: [target], regex: ".*1", action: keep}]`
	config := func(limit string) string {
		return r.config("  streams: {frames: {max_bytes: "+limit+"}}\n  ingest: {otlp: {grpc: {listen: \"\"}, http: {listen: \"\"}}}\n  writer: {read_ahead_bytes: 1MiB}\n",
			remoteWrite("main", main.URL), remoteWrite("down", down.URL), remoteWrite("refusing", refusing.URL, few),
			remoteWrite("aging", aging.URL, few, "queue_config: {min_backoff: 30ms, max_backoff: 1s, sample_age_limit: 3s}"))
	}
	p := startMillrace(t, config("1MiB"), inDir(r.dir), asShipped())
	r.arrived(main, startTimeout)
	w.scrape(t, job, p)
	w.quiet(t, job, on("MillraceAbsent"))

	down.control(t, receiver.Control{Mode: receiver.Unavailable})
	aging.control(t, receiver.Control{Mode: receiver.Unavailable})
	refusing.control(t, receiver.Control{Mode: receiver.BadRequest})
	faults := []alert{
		on("MillraceEndpointLags", "endpoint", "down"), on("MillraceLossIsNear", "endpoint", "down"),
		on("MillraceSamplesRejected", "endpoint", "refusing"),
	}
	full := on("MillraceStreamIsNearlyFull", "stream", "FRAMES")
	w.fires(t, job, append(faults, full)...)
	eventually(t, patience, "the stream's limit passed for a while", func() error {
		if n := p.Metric("millrace_publisher_batch_bytes_total", nil); n < 3<<20 {
			return fmt.Errorf("%v bytes published", n)
		}
		return nil
	})
	for _, e := range []*endpoint{down, aging, refusing} {
		e.control(t, receiver.Control{Mode: receiver.OK})
	}
	// What is lost or too old is counted when the writer comes to it.
	passed := []alert{on("MillraceSamplesLost", "endpoint", "down"), on("MillraceSamplesLeftOut", "endpoint", "aging")}
	w.fires(t, job, passed...)
	faults = append(faults, passed...)
	w.quiet(t, job, faults...)

	p.SetConfig(config("64MiB"))
	p.Stop()
	p.Again()
	w.scraped(t, p)
	w.quiet(t, job, append(faults, full)...)
	r.arrived(main, startTimeout)
}

// machineFaults has a machine with a limit on series, an endpoint that is slow, senders who push what is refused, a dictionary that cannot be read, and a configuration with a mistake.
func machineFaults(t *testing.T, w *watch) {
	const job = "machine"
	r := newRig(t, 10, 50)
	main, slow := newEndpoint(t), newCounter(t)
	ways, listen := newWays(t), lastingAddress(t)
	config := func(limit int) string {
		return r.config(fmt.Sprintf("  nats: {embedded: {listen: %q}}\n  cardinality: {job: {max_series: %d}}\n", listen, limit)+ways.config("delta: {enabled: true}"),
			remoteWrite("main", main.URL), remoteWrite("slow", slow.URL, "queue_config: {min_backoff: 30ms, max_backoff: 1s, max_samples_per_send: 20}"))
	}
	p := startMillrace(t, config(100), append(ways.options(), inDir(r.dir))...)
	w.scrape(t, job, p)

	slow.control(t, receiver.Control{Mode: receiver.Slow, Delay: 2 * time.Second})
	p.SetConfig("scrape_configs: [{job_name: load, scrape_intervall: 1s}]")
	p.Signal(syscall.SIGHUP)
	refused := pushRefused(t, ways)
	publishGarbage(t, listen)
	limited, stays, reload := on("MillraceSeriesLimited", "name", "load"), on("MillraceBacklogStays", "endpoint", "slow"), on("MillraceReloadFailed")
	others := []alert{on("MillracePointsRefused"), on("MillraceDictionariesUnreadable")}
	w.fires(t, job, append(others, limited, stays, reload)...)

	refused()
	slow.control(t, receiver.Control{Mode: receiver.OK})
	p.SetConfig(config(100))
	p.Signal(syscall.SIGHUP)
	w.quiet(t, job, append(others, stays, reload)...)
	p.SetConfig(config(100_000))
	p.Stop()
	p.Again()
	w.scraped(t, p)
	w.quiet(t, job, append(others, limited, stays, reload)...)
	r.arrived(main, startTimeout)
}

// pushRefused pushes samples of which every second one is older than the one before, until the function is called that it returns.
func pushRefused(t *testing.T, ways ways) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	series := labels.FromStrings(model.MetricNameLabel, "pushed", "job", "application", "instance", "a")
	go func() {
		defer close(done)
		for n := int64(0); ctx.Err() == nil; n++ {
			at := time.Now().Add(-time.Duration(n%2) * time.Minute).UnixMilli()
			_, _, err := post(http.DefaultClient, ways.remoteWriteURL(), write1Body(t, []pushed{{series, at, float64(n)}}), map[string]string{
				"Content-Type": write1Type, "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0",
			})
			if err != nil {
				t.Logf("a push failed: %v", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// publishGarbage has the stream DICTS hold a message that is no dictionary.
func publishGarbage(t *testing.T, address string) {
	t.Helper()
	nc, js := connectNATS(t, "nats://"+address)
	defer nc.Close()
	if _, err := js.Publish(t.Context(), "millrace.dicts.0."+strings.Repeat("ab", 16), []byte("garbage")); err != nil {
		t.Fatal(err)
	}
}

func connectNATS(t *testing.T, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// fleetFaults has a fleet whose members differ, hang, are killed, and lose NATS.
func fleetFaults(t *testing.T, w *watch) {
	const job = "fleet"
	c := newCrew(t, 1, 10, 1000)
	c.end = newCounter(t)
	ways := newWays(t)
	c.config = c.rig.config(fmt.Sprintf("  nats: {url: %q}\n  streams: {partitions: 4}\n  fleet: {lease_ttl: 3s}\n  scraper: {max_pending_bytes: 1MiB}\n", c.nats.URL)+
		ways.config("ack_timeout: 1s"), remoteWrite("main", c.end.URL))
	discovery := c.join("discovery")
	rest := c.join("relabel,writer")
	ingest := c.join("ingest", ways.options()...)
	a := c.join("scraper", asShipped(), onAddress(lastingAddress(t)))
	same := c.config
	c.config = strings.Replace(same, "scrape_timeout: 1s", "scrape_timeout: 1s, external_labels: {site: other}", 1)
	b := c.join("scraper", asShipped(), onAddress(lastingAddress(t)))
	w.scrape(t, job, discovery, rest, ingest, a, b)

	differ := on("MillraceConfigsDiffer")
	w.fires(t, job, differ)
	c.config = same
	b.SetConfig(same)
	b.Stop()
	b.Again()
	w.scraped(t, b)
	w.quiet(t, job, differ)
	c.spread("scraper", 256, a, b)

	fleetHangs(t, w, job, b)
	c.spread("scraper", 256, a, b)
	fleetIsKilled(t, w, job, a, b)
	c.spread("scraper", 256, a, b)
	fleetLosesNATS(t, w, job, c, ways, ingest)
	c.arrived(c.end, 2*startTimeout)
	fleetLosesABucket(t, w, job, c, discovery)
}

// fleetHangs pauses a scraper again and again, as a machine without memory does.
func fleetHangs(t *testing.T, w *watch, job string, b *proc) {
	flaps := []alert{on("MillraceSharesFlap", "service", "scraper"), on("MillraceLeasesLate", "instance", strings.TrimPrefix(b.URL, "http://"))}
	hung, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(hung)
		for {
			for _, s := range []struct {
				signal syscall.Signal
				then   time.Duration
			}{{syscall.SIGSTOP, 4 * time.Second}, {syscall.SIGCONT, time.Second}} {
				if err := b.cmd.Process.Signal(s.signal); err != nil {
					return
				}
				time.Sleep(s.then) // the fault itself, not a wait for something
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	w.fires(t, job, flaps...)
	close(stop)
	<-hung
	w.quiet(t, job, flaps...)
}

// fleetIsKilled kills a scraper several times, and then both.
func fleetIsKilled(t *testing.T, w *watch, job string, a, b *proc) {
	instance := strings.TrimPrefix(b.URL, "http://")
	restarts := on("MillraceProcessRestarts", "instance", instance)
	eventually(t, patience, "the alert of starts", func() error {
		b.Kill9()
		b.Again()
		w.scraped(t, b)
		list, err := w.active(job, firing)
		if err == nil && !restarts.among(list) {
			err = errors.New("it does not fire")
		}
		return err
	})
	w.fires(t, job, restarts)
	b.Kill9()
	gone := on("MillraceMemberGone", "service", "scraper")
	w.fires(t, job, gone, on("MillraceProcessDown", "instance", instance))
	a.Kill9()
	owners := on("MillraceSharesWithoutOwner", "service", "scraper")
	w.fires(t, job, owners)
	a.Again()
	b.Again()
	w.quiet(t, job, restarts, gone, owners, on("MillraceProcessDown"))
}

// fleetLosesNATS kills the only NATS node while targets are scraped and applications push.
func fleetLosesNATS(t *testing.T, w *watch, job string, c *crew, ways ways, ingest *proc) {
	var at atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			series := labels.FromStrings(model.MetricNameLabel, "pushed", "job", "application", "instance", "a")
			_, _, _ = post(http.DefaultClient, ways.remoteWriteURL(), write1Body(t, []pushed{{series, time.Now().UnixMilli(), float64(at.Add(1))}}), map[string]string{
				"Content-Type": write1Type, "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0",
			})
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	defer func() {
		cancel()
		<-done
	}()
	faults := []alert{on("MillraceStreamTakesNothing"), on("MillraceScrapesDropped"), on("MillracePushesRefused", "door", "remote_write")}
	c.nats.nodes[0].kill()
	w.fires(t, job, faults...)
	c.nats.nodes[0].start()
	c.nats.ready()
	w.quiet(t, job, faults...)
}

// fleetLosesABucket deletes what somebody took for something else.
func fleetLosesABucket(t *testing.T, w *watch, job string, c *crew, discovery *proc) {
	fail := on("MillraceActorsFail", "actor", "replays")
	nc, js := connectNATS(t, c.nats.URL)
	defer nc.Close()
	if err := js.DeleteKeyValue(t.Context(), "millrace_replays"); err != nil {
		t.Fatal(err)
	}
	w.fires(t, job, fail)
	if code := discovery.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	discovery.Again()
	w.quiet(t, job, fail)
}
