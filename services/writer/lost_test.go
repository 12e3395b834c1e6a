package writer

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/pkg/stream"
)

func TestAWriterWaitsForRelabelledDictionariesAndAsksForThem(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) { e.Rules.External = labels.FromStrings("v", "2") })
	s := r.start([]Endpoint{cfg})
	questions, err := r.conn.NC.SubscribeSync(r.conn.Ask(1))
	if err != nil {
		t.Fatal(err)
	}
	defer questions.Unsubscribe()
	known, d := r.named("known", 1), r.named("x", 1)
	r.announce(1, known, cfg)
	r.publish(r.conn.Dict(1, d.ID), d.msg)
	// What former rules have made of it is not what is waited for.
	r.relabelled(1, d, cfg, rules.Rules{External: labels.FromStrings("v", "1")})
	r.send(1, r.floats(known, 1000, 1), r.floats(d, 1000, 1), r.floats(known, 1001, 1))
	q, err := questions.NextMsg(await.Patience)
	if err != nil {
		t.Fatal(err)
	}
	if string(q.Data) != d.ID.String() {
		t.Errorf("it asks for %q, want %s", q.Data, d.ID)
	}
	await.True(t, "a word about it", func() bool { return strings.Contains(s.Status()[0].Waiting, d.ID.String()) })
	r.relabelled(1, d, cfg, cfg.Rules)
	want := []point{
		{`{__name__="known_0000", v="2"}`, 1000, 1, false}, {`{__name__="x_0000", v="2"}`, 1000, 1, false}, {`{__name__="known_0000", v="2"}`, 1001, 1, false},
	}
	if d := cmp.Diff(want, e.wait(3)); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if n := s.value(t, "millrace_writer_lost_samples_total", "prod"); n != 0 || s.Status()[0].Waiting != "" {
		t.Errorf("%v samples are counted as lost; it waits: %q", n, s.Status()[0].Waiting)
	}
}

func TestSamplesWithoutTheirDictionaryAreCountedAsLost(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	known, gone := r.named("known", 1), r.named("gone", 3)
	r.announce(0, known, cfg)
	const frames = 40 // waiting for each would take minutes
	start := time.Now()
	for i := range frames {
		r.send(0, r.floats(gone, int64(1000+i), 1), r.floats(known, int64(1000+i), 1))
	}
	e.wait(frames)
	if spent := time.Since(start); spent > await.Patience {
		t.Errorf("it took %v", spent)
	}
	await.True(t, "the count", func() bool { return s.value(t, "millrace_writer_lost_samples_total", "prod") == 3*frames })
	if n := strings.Count(s.log.String(), "Samples are lost"); n != 1 {
		t.Errorf("%d log lines about lost samples", n)
	}
}

func TestSamplesThatRetentionHasTakenAreCountedAsLost(t *testing.T) {
	for name, restart := range map[string]bool{"while it runs": false, "while it is away": true} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			e.answers(func(*request) (int, string, map[string]string) { return 503, "", nil })
			// A request is full with one message, or the writer would gather them all while the endpoint does not answer.
			cfg := e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 10 })
			readAhead := func(c *Config) { c.ReadAhead = 1 }
			s := r.start([]Endpoint{cfg}, readAhead)
			d := r.named("x", 10)
			r.announce(0, d, cfg)
			r.send(0, r.floats(d, 1000, 1))
			await.True(t, "a request", func() bool { return len(e.requests()) > 0 })
			if restart {
				s.stop()
			}
			const more = 60
			for i := range more {
				r.send(0, r.floats(d, int64(1001+i), 1))
			}
			st, err := r.conn.JS.Stream(t.Context(), r.conn.Stream(stream.Frames))
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Purge(t.Context(), jetstream.WithPurgeSequence(more)); err != nil {
				t.Fatal(err)
			}
			if restart {
				s = r.start([]Endpoint{cfg}, readAhead)
			}
			e.answers(nil)
			// The last two are there; what was read ahead or not arrived is another matter.
			await.True(t, "the newest sample", func() bool {
				got := e.points()
				return len(got) > 0 && got[len(got)-1].T == 1000+more
			})
			if lost, arrived := s.value(t, "millrace_writer_lost_samples_total", "prod"), len(e.points()); lost == 0 || int(lost)+arrived != 10*(more+1) {
				t.Errorf("%v samples are counted as lost and %d arrived, of %d", lost, arrived, 10*(more+1))
			}
		})
	}
}

func TestMessagesThatCannotBeReadArePassedOverAndCounted(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	r.publish(r.conn.Frames(0), []byte("\x01\x01nonsense"))
	// A batch whose frames are cut off, with its header.
	var w frame.BatchWriter
	var enc frame.Encoder
	f := r.floats(d, 1001, 1)
	w.Add(enc.Encode(nil, f), f.Time, f.Samples())
	broken := w.Seal(r.next[0])
	r.next[0]++
	r.publish(r.conn.Frames(0), broken[:len(broken)-4])
	r.send(0, r.floats(d, 1002, 1))
	got := e.wait(2)
	if len(got) != 2 || got[0].T != 1000 || got[1].T != 1002 {
		t.Errorf("arrived: %v", got)
	}
	await.True(t, "the count", func() bool { return s.value(t, "millrace_writer_lost_samples_total", "prod") == 1 })
	if log := s.log.String(); !strings.Contains(log, "cannot be read") {
		t.Errorf("the log does not say so:\n%s", log)
	}
}

// TestSamplesThatDoNotFitTheirDictionaryAreCountedAsLost has frames of which nobody but who has their dictionary can see that they are wrong, and who waits for a newer version says so.
func TestSamplesThatDoNotFitTheirDictionaryAreCountedAsLost(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 2)
	r.announce(0, d, cfg)
	good, wrong := r.floats(d, 1000, 1), r.floats(d, 1001, 1)
	wrong.Sections[0].Series, wrong.Sections[0].Values = 3, []float64{1, 2, 3}
	r.send(0, good, wrong, r.floats(d, 1002, 1))
	if d := cmp.Diff([]int64{1000, 1000, 1002, 1002}, timesOf(e.wait(4))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	await.True(t, "the count", func() bool { return s.value(t, "millrace_writer_lost_samples_total", "prod") == 3 })
	r.publish(r.conn.Frames(0), []byte{99, 1, 2, 3})
	await.True(t, "on what it waits", func() bool { return strings.Contains(s.Status()[0].Waiting, "version 99") })
}

func TestMessagesOfANewerVersionWait(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	r.publish(r.conn.Frames(0), []byte{99, 1, 2, 3})
	r.send(0, r.floats(d, 1000, 1))
	await.True(t, "a word about it", func() bool { return strings.Contains(s.log.String(), "version 99") })
	if got := e.points(); len(got) != 0 {
		t.Errorf("it has passed over the message: %v", got)
	}
}
