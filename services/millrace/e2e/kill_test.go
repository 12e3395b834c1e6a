package e2e_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/millrace/millrace/bench/receiver"
)

// killWindow is the time in which a kill may lose scrapes: those in flight or lingering, and what the targets served until the
// process had ended.
func killWindow(killed time.Time) window { return window{killed.Add(-2 * time.Second), time.Now()} }

// pause waits for a time that the test is about, such as that of an outage.
func pause(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

func TestKillInAnOutageLosesNothingTaken(t *testing.T) {
	outage := 30 * time.Second
	if testing.Short() {
		outage = 12 * time.Second
	}
	for _, tc := range []struct {
		name    string
		targets int
		outage  time.Duration
		more    []string
	}{
		{"remote write 1.0", 50, outage, nil},
		{"remote write 2.0", 10, 6 * time.Second, []string{"protobuf_message: io.prometheus.write.v2.Request"}},
	} {
		t.Run(tc.name, func(t *testing.T) { killInAnOutage(t, tc.targets, tc.outage, tc.more...) })
	}
}

func killInAnOutage(t *testing.T, targets int, outage time.Duration, more ...string) {
	r, e := newRig(t, targets, 200), newEndpoint(t)
	config := r.config("", remoteWrite("main", e.URL, more...))
	p := startMillrace(t, config, inDir(r.dir))
	r.arrived(e, 30*time.Second)

	e.control(t, receiver.Control{Mode: receiver.Unavailable})
	pause(t, outage/2)
	killed := time.Now()
	p.Kill9()
	lost := killWindow(killed)
	p = startMillrace(t, config, inDir(r.dir))
	pause(t, outage/2-time.Since(killed))
	e.control(t, receiver.Control{Mode: receiver.OK})
	r.arrived(e, 60*time.Second)

	r.end(p)
	r.settled(p, 60*time.Second, "main")
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	e.inOrder(t)
	e.whole(t, r.gen.Log(), lost)
	delivered(t, r.dir, e)
}

func TestTenKillsLoseNothingTaken(t *testing.T) {
	random, kills := seeded(t), 10
	if testing.Short() {
		kills = 4
	}
	r, e := newRig(t, 50, 200), newEndpoint(t)
	config := r.config("", remoteWrite("main", e.URL, "remote_timeout: 2s"))
	modes := []receiver.Control{
		{Mode: receiver.OK}, {Mode: receiver.OK}, {Mode: receiver.OK},
		{Mode: receiver.Unavailable}, {Mode: receiver.Hang}, {Mode: receiver.ResetConnection}, {Mode: receiver.AnswerLost},
		{Mode: receiver.Slow, Delay: 200 * time.Millisecond},
	}
	var lost []window
	p := startMillrace(t, config, inDir(r.dir))
	for range kills {
		// A few changes of the endpoint's behaviour, then a kill at any moment of the last of them.
		for range 1 + random.IntN(3) {
			e.control(t, modes[random.IntN(len(modes))])
			pause(t, time.Duration(random.Int64N(int64(2*time.Second))))
		}
		killed := time.Now()
		p.Kill9()
		lost = append(lost, killWindow(killed))
		p = startMillrace(t, config, inDir(r.dir))
	}
	e.control(t, receiver.Control{Mode: receiver.OK})
	r.arrived(e, 60*time.Second)

	r.end(p)
	r.settled(p, 60*time.Second, "main")
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	e.inOrder(t)
	e.whole(t, r.gen.Log(), lost...)
	delivered(t, r.dir, e)
}

func TestStopAndStartRepeatsNothing(t *testing.T) {
	r, e := newRig(t, 20, 500), newEndpoint(t)
	// Small requests: a message takes many of them, and a stop comes between two of one message.
	config := r.config("", remoteWrite("main", e.URL, "queue_config: {min_backoff: 30ms, max_backoff: 1s, max_samples_per_send: 50}"))
	var cut []window
	p := startMillrace(t, config, inDir(r.dir))
	for range 6 {
		r.arrived(e, 30*time.Second)
		stopped := time.Now()
		if code := p.Stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if took := time.Since(stopped); took > 15*time.Second {
			t.Errorf("stopping took %s", took)
		}
		// A scrape that the stop cuts off is not taken; one that is done must not be lost.
		cut = append(cut, window{stopped.Add(-scrapeTime), time.Now()})
		p = startMillrace(t, config, inDir(r.dir))
	}
	r.arrived(e, 30*time.Second)
	r.end(p)
	r.settled(p, 30*time.Second, "main")
	if code := p.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	e.inOrder(t)
	e.whole(t, r.gen.Log(), cut...)
	if n := e.Report().Repeated; n != 0 {
		t.Errorf("%d samples were sent twice", n)
	}
	delivered(t, r.dir, e)
}

// scrapeTime is the most that a scrape of a small target takes from its request to the end of its processing.
const scrapeTime = 500 * time.Millisecond

// seeded returns the random numbers of a test. MILLRACE_TEST_SEED repeats them.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MILLRACE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("MILLRACE_TEST_SEED: %v", err)
		}
	}
	t.Logf("MILLRACE_TEST_SEED=%d repeats the choices of this run", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
