package scraper

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/publish"
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

// stored returns the frames of a partition.
func stored(t *testing.T, conn *stream.Conn, partition int) (frames []*frame.Frame) {
	t.Helper()
	for seq := uint64(1); ; {
		msg, err := conn.Next(t.Context(), stream.Frames, conn.Frames(partition), seq)
		if err != nil {
			if strings.Contains(err.Error(), jetstream.ErrMsgNotFound.Error()) {
				return frames
			}
			t.Fatal(err)
		}
		frames = append(frames, openBatch(t, msg.Data)...)
		seq = msg.Seq + 1
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
	expect := func(what string, want ...string) {
		t.Helper()
		for len(want) > 0 {
			msg, err := sub.NextMsg(await.Patience)
			if err != nil {
				t.Fatal(err)
			}
			kind := strings.Split(msg.Subject, ".")[1]
			if kind != "dicts" && kind != "frames" {
				continue
			}
			if kind != want[0] {
				t.Fatalf("%s: %s came, want %s", what, kind, want[0])
			}
			want = want[1:]
		}
	}
	target := r.targetOf(0)
	stop := r.runPublishers()
	r.scrape(target, 1, 10)
	expect("new series", "dicts", "frames")
	r.scrape(target, 2, 10)
	expect("the same series", "frames")
	r.scrape(target, 3, 12)
	expect("two more series", "dicts", "frames")
	await.True(t, "its acknowledgement", func() bool { return r.budget.Pending() == 0 })
	stop()

	// Another process finds them in the stream.
	r = newRig(t, onServer(conn))
	defer r.runPublishers()()
	r.scrape(target, 4, 10)
	expect("a dictionary that the stream has", "frames")
}

func TestScrapesAreDroppedWhileTheStreamIsAway(t *testing.T) {
	conn := server(t)
	r := newRig(t, onServer(conn), func(c *Config) { c.MaxPendingBytes = 2000 })
	target := r.targetOf(0)
	stop := r.runPublishers()
	defer stop()
	r.scrape(target, 0, 1) // so that the publisher knows how the stream goes on
	await.True(t, "the first scrape", func() bool { return len(stored(t, conn, 0)) == 1 })
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Dicts)); err != nil {
		t.Fatal(err)
	}
	at := int64(1)
	await.True(t, "a dropped scrape", func() bool {
		r.scrape(target, at, 100)
		at++
		return r.value("millrace_scraper_dropped_scrapes_total") > 0
	})
	if n := r.budget.Pending(); n > 2000 {
		t.Errorf("%d bytes are pending", n)
	}
	await.True(t, "a word about it", func() bool { return len(r.Waiting()) > 0 && strings.Contains(r.log.String(), "Dropped whole scrapes") })
	if reason := r.Waiting()[0]; !strings.Contains(reason, "partition 0") {
		t.Errorf("it waits: %q", reason)
	}
	taken := r.value("millrace_scraper_samples_total")
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	await.True(t, "all that was held", func() bool {
		total := 0
		for _, f := range stored(t, conn, 0) {
			total += f.Samples()
		}
		return float64(total) == taken
	})
	await.True(t, "no more waiting", func() bool { return len(r.Waiting()) == 0 && r.budget.Pending() == 0 })
}

func TestWhatNATSNeverTakesIsDroppedAndCounted(t *testing.T) {
	conn := server(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, conn.MaxMessage()+100_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	one := func(data []byte, samples int) publish.Frame {
		return publish.Frame{Data: data, Time: 1, Samples: samples}
	}
	for what, u := range map[string]*publish.Unit{
		"a dictionary":               {Dicts: []publish.Dict{{ID: frame.DictID{1}, Msg: noise}}, Frames: []publish.Frame{one([]byte{1}, 3), one([]byte{1}, 4)}},
		"a batch":                    {Frames: []publish.Frame{one(noise, 7)}},
		"a frame above any a reader": {Frames: []publish.Frame{one(make([]byte, frame.MaxBatchBytes+1), 7)}},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, onServer(conn))
			stop := r.runPublishers()
			u.Bytes, u.Budget, u.Done = 10, r.budget, r.done
			if !r.publishers.Offer(0, u) {
				t.Fatal("there is no room")
			}
			await.True(t, "the count of dropped samples", func() bool { return r.value("millrace_scraper_dropped_samples_total") == 7 })
			if n := r.value("millrace_scraper_dropped_scrapes_total"); n != 1 || !strings.Contains(r.log.String(), "Dropping ") {
				t.Errorf("%v scrapes are counted as dropped\n%s", n, r.log)
			}
			// The next ones go on.
			r.scrape(r.targetOf(0), time.Now().UnixMilli(), 5)
			await.True(t, "the next scrape", func() bool { return r.budget.Pending() == 0 })
			stop()
			if r.budget.Pending() != 0 || r.value("millrace_scraper_dropped_scrapes_total") != 1 {
				t.Errorf("%d bytes are pending", r.budget.Pending())
			}
		})
	}
	if n := len(stored(t, conn, 0)); n != 3 {
		t.Errorf("the stream has %d frames, want those of the 3 scrapes", n)
	}
}
