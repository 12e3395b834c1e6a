package publish

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestFramesLingerForOthers(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	for at := range int64(3) {
		r.offer(0, r.unit(at, 10))
	}
	r.run()
	await.True(t, "a batch", func() bool { return len(batches(t, conn, 0)) > 0 })
	if n := len(batches(t, conn, 0)); n != 1 {
		t.Errorf("%d batches of units that came together", n)
	}
	if d := cmp.Diff([]int64{0, 1, 2}, times(stored(t, conn, 0))); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	await.True(t, "no pending bytes", func() bool { return r.budget.Pending() == 0 })
	r.offer(0, r.unit(3, 10)) // a lone one does not wait for ever
	await.True(t, "a second batch", func() bool { return len(batches(t, conn, 0)) == 2 })
	await.True(t, "its acknowledgement", func() bool { return r.value("millrace_publisher_batches_total") == 2 })
}

func TestABatchGoesWhenTheFirstOfItsUnitsMayNotWaitAnyLonger(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.linger = time.Hour
	r.run()
	r.offer(0, r.named("patient", r.unit(1, 10)))
	await.True(t, "the unit with the publisher", func() bool { return r.list[0].mailbox.Len() == 0 })
	r.linger = 10 * time.Millisecond
	r.offer(0, r.named("hurried", r.unit(2, 10)))
	r.linger = time.Hour
	r.offer(0, r.named("last", r.unit(3, 10)))
	r.expect("patient", "hurried")
	list := batches(t, conn, 0)
	if len(list) != 1 {
		t.Fatalf("%d batches", len(list))
	}
	if d := cmp.Diff([]int64{1, 2}, times(stored(t, conn, 0))[:2]); d != "" {
		t.Errorf("frames (-want +got):\n%s", d)
	}
	// One of the past does not make the next batch hurry.
	r.Flush(t.Context(), 0)
	r.expect("last")
	r.offer(0, r.named("new", r.unit(4, 10)))
	r.nothing()
	r.Flush(t.Context(), 0)
	r.expect("new")
}

// TestWhatComesDuringAPublishGoesTogether has units wait while the stream does not take a batch.
func TestWhatComesDuringAPublishGoesTogether(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.linger = time.Millisecond
	r.offer(0, r.named("first", r.unit(0, 10)))
	r.run()
	r.expect("first")
	r.offer(1, r.named("so that the other knows how the stream goes on", &Unit{}))
	r.expect("so that the other knows how the stream goes on")
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Frames)); err != nil {
		t.Fatal(err)
	}
	r.offer(0, r.unit(1, 10))
	await.True(t, "it waits", func() bool { return r.WaitingOf(0) != "" })
	for at := range int64(20) {
		r.offer(0, r.unit(2+at, 10))
	}
	r.offer(0, r.named("last", r.unit(22, 10)))
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	r.expect("last")
	var frames []int
	for _, msg := range batches(t, conn, 0) {
		h, err := frame.ReadHeader(msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, h.Frames)
	}
	if d := cmp.Diff([]int{1, 21}, frames); d != "" {
		t.Errorf("frames of the batches (-want +got):\n%s", d)
	}
	if reasons := append(r.Waiting(), r.WaitingOf(0), r.WaitingOf(1)); strings.Join(reasons, "") != "" {
		t.Errorf("it waits: %q", reasons)
	}
}

func TestBatchesAreBounded(t *testing.T) {
	conn := streamtest.New(t, 2)
	const limit = 4000
	r := newRig(t, conn, func(c *Config) { c.MaxBatchBytes = limit })
	r.linger = time.Hour
	want := 0
	for at := range int64(40) {
		n := 1 + int(at*137%900)
		if at == 20 {
			n = 30_000 // several frames, each above the limit
		}
		want += n
		r.offer(1, r.unit(at, n))
	}
	stop := r.run()
	await.True(t, "most batches", func() bool { return len(batches(t, conn, 1)) > 5 })
	stop() // and the last one
	for _, msg := range batches(t, conn, 1) {
		h, _ := frame.ReadHeader(msg.Data)
		b, err := frame.OpenBatch(msg.Data, nil)
		if err != nil {
			t.Fatal(err)
		}
		size := len(b.Buffer()[:cap(b.Buffer())])
		if h.Frames > 1 && size > 2*limit {
			t.Errorf("message %d has %d frames in about %d bytes", msg.Seq, h.Frames, size)
		}
	}
	last := int64(-1)
	for _, f := range stored(t, conn, 1) {
		if f.Time < last {
			t.Errorf("a frame of %d after one of %d", f.Time, last)
		}
		last = f.Time
	}
	if got := total(stored(t, conn, 1)); got != want || last != 39 {
		t.Errorf("the stream has %d samples to the time %d, want %v", got, last, want)
	}
	if r.budget.Pending() != 0 {
		t.Errorf("%d bytes are pending", r.budget.Pending())
	}
}

func TestTheCountOfSamplesGoesOnAfterARestart(t *testing.T) {
	conn := streamtest.New(t, 2)
	for i := range int64(3) {
		r := newRig(t, conn)
		r.offer(0, r.unit(i, 10+int(i)))
		r.run()()
	}
	if n := len(stored(t, conn, 0)); n != 3 { // which checks the headers
		t.Errorf("%d frames, want 3", n)
	}
	// It goes on where the stream has lost its batches.
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Frames)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, conn)
	r.offer(0, r.unit(4, 10))
	r.run()()
	h, err := frame.ReadHeader(batches(t, conn, 0)[0].Data)
	if err != nil || h.First != 33 {
		t.Errorf("the first batch of a new stream begins at %d, want 33; %v", h.First, err)
	}
}

func TestDictionariesComeBeforeTheirFrames(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	sub, err := conn.NC.SubscribeSync("test.>")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	next := func() string {
		t.Helper()
		for {
			msg, err := sub.NextMsg(await.Patience)
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
	stop := r.run()
	r.offer(0, r.unit(1, 10))
	expect("new series", "dicts", "frames")
	r.offer(0, r.unit(2, 10))
	expect("the same series", "frames")
	r.offer(0, r.unit(3, 12))
	expect("other series", "dicts", "frames")
	await.True(t, "its acknowledgement", func() bool { return r.budget.Pending() == 0 })
	if n := r.value("millrace_publisher_dictionaries_total"); n != 2 {
		t.Errorf("%v dictionaries are counted", n)
	}
	stop()

	// Another process finds them in the stream.
	r = newRig(t, conn)
	stop = r.run()
	r.offer(0, r.unit(4, 10))
	expect("a dictionary that the stream has", "frames")
	await.True(t, "its acknowledgement", func() bool { return r.budget.Pending() == 0 }) // a batch without one is published again
	stop()

	// A third one remembers one that has half its time behind it.
	r = newRig(t, conn)
	r.list[0].known[dictionary(t, 10).ID] = announced{at: time.Now().Add(-r.cfg.DictAge/2 - time.Second), first: time.UnixMilli(5000)}
	r.run()
	r.offer(0, r.unit(5, 10))
	expect("a dictionary that is getting old", "dicts", "frames")
	r.offer(0, r.unit(6, 10))
	expect("a dictionary that was announced again", "frames")
	msg, err := conn.Last(t.Context(), stream.Dicts, conn.Dict(0, dictionary(t, 10).ID))
	if err != nil {
		t.Fatal(err)
	}
	if first := stream.FirstAnnounced(msg); first.UnixMilli() != 5000 {
		t.Errorf("the stream tells that the dictionary was announced first at %s", first)
	}
}

// TestFramesDoNotWaitForDictionariesOfOthers has a unit with a new dictionary follow one with a known one while the stream of dictionaries is away.
func TestFramesDoNotWaitForDictionariesOfOthers(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn)
	r.run()
	r.offer(0, r.named("first", r.unit(1, 10)))
	r.expect("first")
	if err := conn.JS.DeleteStream(t.Context(), conn.Stream(stream.Dicts)); err != nil {
		t.Fatal(err)
	}
	r.linger = 5 * time.Second
	r.offer(0, r.named("known", r.unit(2, 10)), r.named("new", r.unit(3, 12)))
	if err := r.expect("known"); err != nil {
		t.Error(err)
	}
	r.nothing()
	if err := conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	if err := r.expect("new"); err != nil {
		t.Error(err)
	}
}

func TestAPublisherThatIsInterruptedGoesOnWhereItWas(t *testing.T) {
	conn := streamtest.New(t, 2)
	r := newRig(t, conn, func(c *Config) { c.MaxBatchBytes = 2000 })
	r.offer(0, r.named("a", r.unit(1, 10)), r.named("b", r.unit(2, 30_000)), r.named("c", r.unit(3, 10)))
	p := r.list[0]
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
	p.drain(t.Context())
	if n := total(stored(t, conn, 0)); n != 30_020 {
		t.Errorf("%d samples are in the stream, want 30020", n)
	}
	if err := r.expect("a", "b", "c"); err != nil || r.budget.Pending() != 0 {
		t.Errorf("error %v, %d bytes are pending", err, r.budget.Pending())
	}
}

func TestAPublisherDoesNotPublishBehindWhatItCannotRead(t *testing.T) {
	conn := streamtest.New(t, 2)
	if _, err := conn.Publish(t.Context(), &nats.Msg{Subject: conn.Frames(0), Data: []byte{200}}, nil); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, conn)
	p := r.list[0]
	err := p.serve(t.Context(), t.Context())
	if err == nil || !strings.Contains(err.Error(), "partition 0") || !strings.Contains(err.Error(), frame.ErrVersion.Error()) {
		t.Errorf("error %v", err)
	}
	if reasons := r.Waiting(); len(reasons) != 1 || !strings.Contains(reasons[0], frame.ErrVersion.Error()) {
		t.Errorf("it waits: %q", reasons)
	}
	// Others go on, and in the end it is said that this one's are lost.
	stop := r.run()
	r.offer(0, r.named("here", r.unit(1, 10)))
	r.offer(1, r.named("other", r.unit(1, 10)))
	if err := r.expect("other"); err != nil {
		t.Error(err)
	}
	stop()
	if err := r.expect("here"); !errors.Is(err, ErrDropped) || !errors.Is(err, frame.ErrVersion) {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(r.log.String(), "they are lost") || r.budget.Pending() != 0 {
		t.Errorf("%d bytes are pending\n%s", r.budget.Pending(), r.log)
	}
}

func TestOldDictionariesAreForgotten(t *testing.T) {
	r := newRig(t, streamtest.New(t, 2))
	p := r.list[0]
	for i := range 1023 {
		p.known[frame.DictID{byte(i), byte(i >> 8)}] = announced{at: time.Now().Add(-r.cfg.DictAge)}
	}
	p.known[frame.DictID{15: 1}] = announced{at: time.Now()}
	p.forget()
	if len(p.known) != 1 {
		t.Errorf("%d dictionaries are known, want the one that is not old", len(p.known))
	}
}

// noise returns bytes that no compression makes fit into a message.
func noise(conn *stream.Conn) []byte {
	rnd := rand.New(rand.NewPCG(1, 1))
	b := make([]byte, conn.MaxMessage()+100_000)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}
