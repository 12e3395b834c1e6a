package scraper

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// onServer makes the rig's service publish to a NATS server.
func onServer(conn *stream.Conn) func(*Config) {
	return func(c *Config) { c.Conn = conn }
}

// targetOf returns a target whose source is of the given partition.
func (r *rig) targetOf(partition int) labels.Labels {
	for i := 0; ; i++ {
		t := newTarget(fmt.Sprintf("host-%d:1", i))
		if r.sourceOf(t).partition == partition {
			return t
		}
	}
}

// scrape commits n samples of a target.
func (r *rig) scrape(t labels.Labels, at int64, n int) {
	r.t.Helper()
	a := r.appender(t)
	for i := range n {
		r.add(a, 0, numbered("x", i), at, float64(i))
	}
	if err := a.Commit(); err != nil {
		r.t.Fatal(err)
	}
}

// run runs a partition's publisher; the result stops it.
func (r *rig) run(partition int) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.publishers[partition].Serve(ctx) }()
	return func() {
		r.t.Helper()
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("the publisher ended with %v", err)
		}
	}
}

// batches returns the messages of a partition.
func batches(t *testing.T, conn *stream.Conn, partition int) (list []stream.Message) {
	t.Helper()
	for seq := uint64(1); ; {
		msg, err := conn.Next(t.Context(), stream.Frames, conn.Frames(partition), seq)
		if err != nil {
			if strings.Contains(err.Error(), jetstream.ErrMsgNotFound.Error()) {
				return list
			}
			t.Fatal(err)
		}
		list = append(list, msg)
		seq = msg.Seq + 1
	}
}

// stored returns the frames of a partition, and checks that the batches' headers continue each other.
func stored(t *testing.T, conn *stream.Conn, partition int) (frames []*frame.Frame) {
	t.Helper()
	next := uint64(0)
	for _, msg := range batches(t, conn, partition) {
		h, err := frame.ReadHeader(msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		if h.First != next {
			t.Errorf("message %d begins at the sample %d, want %d", msg.Seq, h.First, next)
		}
		next = h.First + uint64(h.Samples)
		frames = append(frames, openBatch(t, msg.Data)...)
	}
	return frames
}

func times(frames []*frame.Frame) (list []int64) {
	for _, f := range frames {
		list = append(list, f.Time)
	}
	return list
}

func TestFramesLingerForOthers(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn))
	target := r.targetOf(0)
	for at := range int64(3) {
		r.scrape(target, at, 10)
	}
	stop := r.run(0)
	defer stop()
	eventually(t, "a batch", func() bool { return len(batches(t, conn, 0)) > 0 })
	if n := len(batches(t, conn, 0)); n != 1 {
		t.Errorf("%d batches of scrapes that came together", n)
	}
	if d := cmp.Diff([]int64{0, 1, 2}, times(stored(t, conn, 0))); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	eventually(t, "no pending bytes", func() bool { return r.pending.Load() == 0 })
	r.scrape(target, 3, 10) // a lone one does not wait for ever
	eventually(t, "a second batch", func() bool { return len(batches(t, conn, 0)) == 2 })
	if n := r.value("millrace_scraper_batches_published_total"); n != 2 {
		t.Errorf("%v batches are counted", n)
	}
}

func TestBatchesAreBounded(t *testing.T) {
	conn := server(t)
	const limit = 4000
	r := newRig(t, onServer(conn), func(c *Config) { c.MaxBatchBytes, c.Linger = limit, time.Hour })
	target := r.targetOf(1)
	for at := range int64(40) {
		n := 1 + int(at*137%900)
		if at == 20 {
			n = 30_000 // several frames, each above the limit
		}
		r.scrape(target, at, n)
	}
	stop := r.run(1)
	eventually(t, "most batches", func() bool { return len(batches(t, conn, 1)) > 5 })
	stop() // and the last one
	for _, msg := range batches(t, conn, 1) {
		h, _ := frame.ReadHeader(msg.Data)
		size := 0
		b, err := frame.OpenBatch(msg.Data, nil)
		if err != nil {
			t.Fatal(err)
		}
		size = len(b.Buffer()[:cap(b.Buffer())])
		if h.Frames > 1 && size > 2*limit {
			t.Errorf("message %d has %d frames in about %d bytes", msg.Seq, h.Frames, size)
		}
	}
	last, total := int64(-1), 0
	for _, f := range stored(t, conn, 1) {
		if f.Time < last {
			t.Errorf("a frame of %d after one of %d", f.Time, last)
		}
		last = f.Time
		total += f.Samples()
	}
	if got := r.value("millrace_scraper_samples_total"); float64(total) != got || last != 39 {
		t.Errorf("the stream has %d samples to the time %d, want %v", total, last, got)
	}
	if r.pending.Load() != 0 {
		t.Errorf("%d bytes are pending", r.pending.Load())
	}
}

func TestTheCountOfSamplesGoesOnAfterARestart(t *testing.T) {
	conn := server(t)
	for i := range int64(3) {
		r := newRig(t, onServer(conn))
		r.scrape(r.targetOf(0), i, 10+int(i))
		r.run(0)()
	}
	if n := len(stored(t, conn, 0)); n != 3 { // which checks the headers
		t.Errorf("%d frames, want 3", n)
	}
}

func TestDictionariesComeBeforeTheirFrames(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn))
	sub, err := conn.NC.SubscribeSync("test.>")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	next := func() string {
		t.Helper()
		for {
			msg, err := sub.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if kind := strings.Split(msg.Subject, ".")[1]; kind == "dicts" || kind == "frames" {
				return kind
			}
		}
	}
	expect := func(what string, want ...string) {
		t.Helper()
		for _, kind := range want {
			if got := next(); got != kind {
				t.Fatalf("%s: %s came, want %s", what, got, kind)
			}
		}
	}
	target := r.targetOf(0)
	stop := r.run(0)
	r.scrape(target, 1, 10)
	expect("new series", "dicts", "frames")
	r.scrape(target, 2, 10)
	expect("the same series", "frames")
	r.scrape(target, 3, 12)
	expect("two more series", "dicts", "frames")
	eventually(t, "its acknowledgement", func() bool { return r.pending.Load() == 0 })
	stop()

	// Another process finds them in the stream, of which the second has half its time behind it.
	old := r
	r = newRig(t, onServer(conn))
	stop = r.run(0)
	r.scrape(target, 4, 10)
	expect("a dictionary that the stream has", "frames")
	eventually(t, "its acknowledgement", func() bool { return r.pending.Load() == 0 }) // a batch without one is published again
	stop()
	r.publishers[0].known[old.sourceOf(target).dicts[0].id] = time.Now().Add(-r.cfg.DictAge/2 - time.Second)
	stop = r.run(0)
	defer stop()
	r.scrape(target, 5, 10)
	expect("a dictionary that is getting old", "dicts", "frames")
	r.scrape(target, 6, 10)
	expect("a dictionary that was announced again", "frames")
}

func TestAStoppingPublisherPublishesWhatItHolds(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn), func(c *Config) { c.Linger = time.Hour })
	target := r.targetOf(0)
	stop := r.run(0)
	r.scrape(target, 1, 10)
	eventually(t, "the scrape with the publisher", func() bool { return r.publishers[0].mailbox.Len() == 0 })
	r.scrape(target, 2, 10)
	stop()
	if d := cmp.Diff([]int64{1, 2}, times(stored(t, conn, 0))); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	if r.pending.Load() != 0 {
		t.Errorf("%d bytes are pending", r.pending.Load())
	}
}

func TestAPublisherThatIsInterruptedGoesOnWhereItWas(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn), func(c *Config) { c.MaxBatchBytes = 2000 })
	target := r.targetOf(0)
	r.scrape(target, 1, 10)
	r.scrape(target, 2, 30_000)
	r.scrape(target, 3, 10)
	p := r.publishers[0]
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		p.take(<-p.mailbox.C())
		// Every try is interrupted once.
		for tries := 0; ; tries++ {
			ctx := t.Context()
			if tries%2 == 0 {
				ctx = ended
			}
			if err := p.proceed(ctx); err == nil {
				break
			} else if tries%2 == 1 {
				t.Fatal(err)
			}
		}
	}
	if err := p.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, f := range stored(t, conn, 0) {
		total += f.Samples()
	}
	if total != 30_020 {
		t.Errorf("%d samples are in the stream, want 30020", total)
	}
}

func TestScrapesAreDroppedWhileTheStreamIsAway(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn), func(c *Config) { c.MaxPendingBytes = 2000 })
	target := r.targetOf(0)
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Dicts)); err != nil {
		t.Fatal(err)
	}
	p := r.publishers[0]
	p.started = true
	stop := r.run(0)
	defer stop()
	at := int64(0)
	eventually(t, "a dropped scrape", func() bool {
		r.scrape(target, at, 100)
		at++
		return r.value("millrace_scraper_dropped_scrapes_total") > 0
	})
	if n := r.pending.Load(); n > 2000 {
		t.Errorf("%d bytes are pending", n)
	}
	eventually(t, "a word about it", func() bool { return len(r.Waiting()) > 0 && strings.Contains(r.log.String(), "Dropped whole scrapes") })
	if reason := r.Waiting()[0]; !strings.Contains(reason, "partition 0") {
		t.Errorf("it waits: %q", reason)
	}
	taken := r.value("millrace_scraper_samples_total")
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all that was held", func() bool {
		total := 0
		for _, f := range stored(t, conn, 0) {
			total += f.Samples()
		}
		return float64(total) == taken
	})
	eventually(t, "no more waiting", func() bool { return len(r.Waiting()) == 0 && r.pending.Load() == 0 })
}

func TestWhatNATSNeverTakesIsDroppedAndCounted(t *testing.T) {
	conn := server(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, conn.MaxMessage()+100_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for what, u := range map[string]*unit{
		"a dictionary":               {dicts: []dict{{id: frame.DictID{1}, msg: noise}}, frames: []encodedFrame{{[]byte{1}, 1, 3}, {[]byte{1}, 1, 4}}},
		"a batch":                    {frames: []encodedFrame{{noise, 1, 7}}},
		"a frame above any a reader": {frames: []encodedFrame{{make([]byte, maxFrame+1), 1, 7}}},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, onServer(conn))
			stop := r.run(0)
			u.bytes = 10
			if !r.publishers[0].offer(u) {
				t.Fatal("there is no room")
			}
			eventually(t, "the count of dropped samples", func() bool { return r.value("millrace_scraper_dropped_samples_total") == 7 })
			if n := r.value("millrace_scraper_dropped_scrapes_total"); n != 1 || !strings.Contains(r.log.String(), "Dropping a") {
				t.Errorf("%v scrapes are counted as dropped\n%s", n, r.log)
			}
			// The next ones go on.
			r.scrape(r.targetOf(0), time.Now().UnixMilli(), 5)
			eventually(t, "the next scrape", func() bool { return r.value("millrace_scraper_batches_published_total") == 1 })
			stop()
			if r.pending.Load() != 0 {
				t.Errorf("%d bytes are pending", r.pending.Load())
			}
		})
	}
	stored(t, conn, 0)
}

func TestAPublisherDoesNotPublishBehindWhatItCannotRead(t *testing.T) {
	conn := server(t)
	if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: conn.Frames(0), Data: []byte{200}}, nil); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, onServer(conn))
	err := r.publishers[0].Serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "partition 0") || !strings.Contains(err.Error(), frame.ErrVersion.Error()) {
		t.Errorf("error %v", err)
	}
}

func TestOldDictionariesAreForgotten(t *testing.T) {
	r := newRig(t)
	p := r.publishers[0]
	for i := range 1023 {
		p.known[frame.DictID{byte(i), byte(i >> 8)}] = time.Now().Add(-r.cfg.DictAge)
	}
	p.known[frame.DictID{15: 1}] = time.Now()
	p.forget()
	if len(p.known) != 1 {
		t.Errorf("%d dictionaries are known, want the one that is not old", len(p.known))
	}
}
