package writer

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/rules"
)

func TestSamplesArriveInOrder(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){"1.0": func(*Endpoint) {}, "2.0": v2} {
		t.Run(name, func(t *testing.T) {
			r, e := newRig(t), newRecorder(t)
			cfg := e.endpoint("prod", change, func(e *Endpoint) { e.QueueConfig.MaxSamplesPerSend = 100 })
			s := r.start([]Endpoint{cfg})
			const series, scrapes = 70, 30
			var dicts [partitions]*dict
			for p := range partitions {
				dicts[p] = r.named(fmt.Sprint("p", p), series)
				r.announce(p, dicts[p], cfg)
			}
			for i := range scrapes {
				for p := range partitions {
					r.send(p, r.floats(dicts[p], int64(1000+2*i), float64(i)), r.floats(dicts[p], int64(1001+2*i), float64(i)))
				}
			}
			last := map[string]int64{}
			for _, x := range e.wait(2 * partitions * series * scrapes) {
				if want := last[x.Series] + 1; last[x.Series] != 0 && x.T != want {
					t.Fatalf("%s has a sample of %d, want %d", x.Series, x.T, want)
				}
				last[x.Series] = x.T
				if want := float64((x.T - 1000) / 2); x.V != want {
					t.Fatalf("%s at %d is %v, want %v", x.Series, x.T, x.V, want)
				}
			}
			if len(last) != partitions*series {
				t.Errorf("%d series, want %d", len(last), partitions*series)
			}
			for _, req := range e.requests() {
				if len(req.points) > 100 {
					t.Errorf("a request has %d samples", len(req.points))
				}
			}
			await.True(t, "all is counted and sent", func() bool {
				st := s.Status()[0]
				return st.Sent == 2*partitions*series*scrapes && st.Messages == 0 && st.Oldest.IsZero() && st.Lag == 0
			})
		})
	}
}

func TestPartialFramesOfSeveralDictionaries(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) {
		e.Rules = rules.Rules{External: labels.FromStrings("region", "west"), Relabel: []*relabel.Config{{
			SourceLabels: model.LabelNames{"__name__"}, Regex: relabel.MustNewRegexp("a_0001"), Action: relabel.Drop, NameValidationScheme: model.UTF8Validation,
		}}}
	})
	r.start([]Endpoint{cfg})
	a, b := r.named("a", 3), r.named("b", 4)
	r.announce(0, a, cfg)
	r.announce(0, b, cfg)
	r.send(0, &frame.Frame{Source: 1, Epoch: 1, Seq: 1, Time: 1000, Sections: []frame.Section{
		{Dict: a.ID, Series: 3, Values: []float64{1, 2, 3}},
		{Dict: b.ID, Series: 4, Present: []uint32{1, 3}, Values: []float64{4, 5}, Times: []int64{900, 1000}},
		{Dict: a.ID, Series: 3, Present: []uint32{1, 2}, Values: []float64{6, 7}, Times: []int64{1001, 1002}},
	}})
	label := func(name string) string { return fmt.Sprintf(`{__name__=%q, region="west"}`, name) }
	want := []point{
		{label("a_0000"), 1000, 1, false}, {label("a_0002"), 1000, 3, false}, {label("b_0001"), 900, 4, false}, {label("b_0003"), 1000, 5, false},
		{label("a_0002"), 1002, 7, false},
	}
	if d := cmp.Diff(want, e.wait(len(want))); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
}

func TestRepeatedFramesAndThoseOfFormerOwnersAreDropped(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod")
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 1)
	r.announce(0, d, cfg)
	at := func(source, epoch, seq uint64, at int64) *frame.Frame {
		f := r.floats(d, at, 1)
		f.Source, f.Epoch, f.Seq = source, epoch, seq
		return f
	}
	first := at(1, 5, 1, 1000)
	r.send(0, first, at(1, 5, 2, 1001))
	r.send(0, first)             // a batch that was stored twice
	r.send(0, at(1, 4, 9, 1002)) // a former owner that has woken up
	r.send(0, at(1, 6, 1, 1003)) // the next owner
	r.send(0, at(1, 5, 3, 1004)) // the one before, too late
	r.send(0, at(2, 1, 1, 2000)) // another source has its own owners
	r.send(0, at(1, 6, 2, 1005))
	var got []int64
	for _, x := range e.wait(5) {
		got = append(got, x.T)
	}
	if d := cmp.Diff([]int64{1000, 1001, 1003, 2000, 1005}, got); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if n := s.value(t, "millrace_writer_repeated_frames_total", "prod"); n != 3 {
		t.Errorf("%v frames are counted as repeated, want 3", n)
	}
	if n := s.value(t, "millrace_writer_lost_samples_total", "prod"); n != 0 {
		t.Errorf("%v samples are counted as lost", n)
	}
}

func TestOldSamplesAreDroppedWhereTheyHaveALimit(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) {
		e.QueueConfig.SampleAgeLimit, e.SendNativeHistograms = model.Duration(time.Hour), true
	})
	s := r.start([]Endpoint{cfg})
	d := r.named("x", 2)
	r.announce(0, d, cfg)
	now := time.Now().UnixMilli()
	old := now - 2*time.Hour.Milliseconds()
	before, f := r.floats(d, old, 1), r.floats(d, now, 7)
	f.Sections[0].Times = []int64{old, now}
	f.Sections[0].Histograms = []frame.Histogram{{Index: 0, Time: old, Int: &histogram.Histogram{}}, {Index: 0, Time: now, Int: &histogram.Histogram{Sum: 3}}}
	r.send(0, before, f)
	want := []point{{seriesName("x", 1), now, 7, false}, {seriesName("x", 0), now, 3, true}}
	if d := cmp.Diff(want, e.wait(2)); d != "" {
		t.Errorf("samples (-want +got):\n%s", d)
	}
	if n := s.value(t, "millrace_writer_aged_samples_total", "prod"); n != 4 {
		t.Errorf("%v samples are counted as too old, want 4", n)
	}
}

func TestHistogramsAndExemplarsGoWhereTheyAreWanted(t *testing.T) {
	r := newRig(t)
	all, none, both := newRecorder(t), newRecorder(t), newRecorder(t)
	wanted := func(e *Endpoint) { e.SendExemplars, e.SendNativeHistograms = true, true }
	endpoints := []Endpoint{all.endpoint("all", wanted), none.endpoint("none"), both.endpoint("both", wanted, v2)}
	s := r.start(endpoints)
	d := r.named("x", 3)
	r.announce(1, d, endpoints...)
	f := r.floats(d, 1000, 1)
	sec := &f.Sections[0]
	sec.Present, sec.Values = []uint32{0}, []float64{5}
	sec.Histograms = []frame.Histogram{
		{Index: 1, Time: 1000, Int: &histogram.Histogram{Sum: 6}},
		{Index: 2, Time: 1000, Float: &histogram.FloatHistogram{Schema: histogram.CustomBucketsSchema, Sum: 7}},
	}
	for i := range uint32(3) {
		sec.Exemplars = append(sec.Exemplars, frame.Exemplar{Index: i, Exemplar: exemplar.Exemplar{Value: 1, Ts: 999, HasTs: true}})
	}
	r.send(1, f)
	float, hist, custom := point{seriesName("x", 0), 1000, 5, false}, point{seriesName("x", 1), 1000, 6, true}, point{seriesName("x", 2), 1000, 7, true}
	for _, test := range []struct {
		name      string
		e         *recorder
		want      []point
		exemplars int
	}{
		{"all", all, []point{float, hist}, 2}, {"none", none, []point{float}, 0}, {"both", both, []point{float, hist, custom}, 3},
	} {
		if d := cmp.Diff(test.want, test.e.wait(len(test.want))); d != "" {
			t.Errorf("%s: samples (-want +got):\n%s", test.name, d)
		}
		if got := test.e.requests()[0].exemplars; got != test.exemplars {
			t.Errorf("%s: %d exemplars, want %d", test.name, got, test.exemplars)
		}
		await.True(t, "the counts of "+test.name, func() bool {
			return s.value(t, "millrace_writer_sent_samples_total", test.name) == float64(len(test.want)) &&
				s.value(t, "millrace_writer_sent_exemplars_total", test.name) == float64(test.exemplars)
		})
	}
	if n := s.value(t, "millrace_writer_unsupported_samples_total", "all"); n != 1 {
		t.Errorf("%v histograms are counted as unsupported", n)
	}
}

func TestEndpointsWithALittleCacheGetAllTheSame(t *testing.T) {
	r, a, b := newRig(t), newRecorder(t), newRecorder(t)
	endpoints := []Endpoint{a.endpoint("a"), b.endpoint("b", v2)}
	s := r.start(endpoints, func(c *Config) { c.CacheBytes = 1 })
	const dicts, rounds = 12, 5
	var list []*dict
	for i := range dicts {
		list = append(list, r.named(fmt.Sprint("d", i), 5))
		r.announce(0, list[i], endpoints...)
	}
	for i := range rounds {
		for k, d := range list {
			f := r.floats(d, int64(1000+i), 1)
			f.Source = uint64(k)
			r.send(0, f)
		}
	}
	for _, e := range []*recorder{a, b} {
		seen := map[point]bool{}
		for _, x := range e.wait(dicts * rounds * 5) {
			seen[x] = true
		}
		if len(seen) != dicts*rounds*5 {
			t.Errorf("%d different samples, want %d", len(seen), dicts*rounds*5)
		}
	}
	if n := s.cache.order.Len(); n != 1 {
		t.Errorf("a cache of one byte holds %d entries", n)
	}
}

func TestTheCacheKeepsPackedListsLongest(t *testing.T) {
	c := newCache(100)
	key := func(i byte, p remotewrite.Protocol) cacheKey { return cacheKey{frame.DictID{i}, p} }
	c.put(&entry{key: key(1, 0), bytes: 10})
	c.put(&entry{key: key(1, 1), bytes: 40})
	c.put(&entry{key: key(2, 0), bytes: 10})
	c.put(&entry{key: key(2, 1), bytes: 40})
	c.get(key(1, 1))
	c.put(&entry{key: key(3, 0), bytes: 10}) // too much by 10: what was used longest ago is the block of 2
	for _, k := range []cacheKey{key(1, 0), key(1, 1), key(2, 0), key(3, 0)} {
		if c.get(k) == nil {
			t.Errorf("entry %v is gone", k)
		}
	}
	if c.get(key(2, 1)) != nil || c.size() != 70 {
		t.Errorf("the cache holds %d bytes", c.size())
	}
	c.put(&entry{key: key(1, 1), bytes: 20})
	if c.size() != 50 {
		t.Errorf("replacing an entry made the cache hold %d bytes", c.size())
	}
}

func TestASlowEndpointHoldsBackNobody(t *testing.T) {
	r, dead, live := newRig(t), newRecorder(t), newRecorder(t)
	dead.answers(func(*request) (int, string, map[string]string) { return 503, "not now", nil })
	endpoints := []Endpoint{dead.endpoint("dead"), live.endpoint("live")}
	s := r.start(endpoints)
	d := r.named("x", 2)
	r.announce(0, d, endpoints...)
	for i := range 50 {
		r.send(0, r.floats(d, int64(1000+i), 1))
	}
	live.wait(100)
	await.True(t, "the lag of the dead one", func() bool {
		st := s.Status()[0]
		return st.Lag > 0 && st.Oldest.UnixMilli() == 1000 && st.Messages == 50 && st.Samples == 100 && strings.Contains(st.Waiting, "not now") &&
			strings.Contains(st.LastError, "not now") && st.Retried > 0 && st.Sent == 0
	})
	dead.answers(nil)
	if d := cmp.Diff(live.points(), dead.wait(100)); d != "" {
		t.Errorf("the one that came back has other samples:\n%s", d)
	}
	await.True(t, "no more lag", func() bool { st := s.Status()[0]; return st.Lag == 0 && st.Messages == 0 && st.Waiting == "" })
}

// TestWhoHasGivenAPartitionAwayDoesNotWaitForIt looks at what is left of a partition whose endpoint is dead.
func TestWhoHasGivenAPartitionAwayDoesNotWaitForIt(t *testing.T) {
	r, dead := newRig(t), newRecorder(t)
	dead.answers(func(*request) (int, string, map[string]string) { return 503, "not now", nil })
	endpoint := dead.endpoint("dead")
	s := r.start([]Endpoint{endpoint})
	d := r.named("x", 2)
	r.announce(0, d, endpoint)
	r.send(0, r.floats(d, 1000, 1))
	await.True(t, "the endpoint is waited for", func() bool { return s.Status()[0].Waiting != "" })
	s.Give([]int{0}, false)
	if st := s.Status()[0]; st.Waiting != "" || st.Messages != 0 || !st.Oldest.IsZero() {
		t.Errorf("afterwards it waits for %q, with %d messages, the oldest of %s", st.Waiting, st.Messages, st.Oldest)
	}
}

func TestMetadataGoesOutByItself(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", func(e *Endpoint) {
		e.MetadataConfig.Send, e.MetadataConfig.SendInterval, e.MetadataConfig.MaxSamplesPerSend = true, model.Duration(20*time.Millisecond), 1
	})
	s := r.start([]Endpoint{cfg})
	d := r.dict(
		frame.Series{Labels: labels.FromStrings("__name__", "a_total"), Family: "a", Metadata: metadata.Metadata{Type: "counter", Help: "of a"}},
		frame.Series{Labels: labels.FromStrings("__name__", "b"), Family: "b", Metadata: metadata.Metadata{Type: "gauge", Help: "of b"}},
		frame.Series{Labels: labels.FromStrings("__name__", "c")},
	)
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	sent := func() map[string]bool {
		got := map[string]bool{}
		for _, req := range e.requests() {
			if len(req.metadata) > 1 {
				t.Errorf("a request has %d families", len(req.metadata))
			}
			for _, m := range req.metadata {
				got[m] = true
			}
		}
		return got
	}
	await.True(t, "the metadata", func() bool { return len(sent()) >= 2 })
	if d := cmp.Diff(map[string]bool{"a COUNTER of a": true, "b GAUGE of b": true}, sent()); d != "" {
		t.Errorf("metadata (-want +got):\n%s", d)
	}
	if n := s.value(t, "millrace_writer_sent_metadata_total", "prod"); n < 2 {
		t.Errorf("%v entries are counted", n)
	}
	// What is forgotten is learned again, also of a dictionary that the partition has at hand.
	ep := s.endpoints[0].endpoint
	ep.families.forget()
	if n := len(ep.families.list()); n != 0 {
		t.Errorf("%d families are left", n)
	}
	r.send(0, r.floats(d, 1001, 1))
	await.True(t, "the families again", func() bool { return len(ep.families.list()) == 2 })
	e.answers(func(r *request) (int, string, map[string]string) { return 400, "no", nil })
	await.True(t, "a count of failures", func() bool { return s.value(t, "millrace_writer_failed_metadata_total", "prod") > 0 })
}

func TestAnEndpointOf2LearnsNoMetadataApart(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	cfg := e.endpoint("prod", v2, func(e *Endpoint) { e.MetadataConfig.Send = true })
	s := r.start([]Endpoint{cfg})
	d := r.dict(frame.Series{Labels: labels.FromStrings("__name__", "a"), Family: "a", Metadata: metadata.Metadata{Help: "of a"}})
	r.announce(0, d, cfg)
	r.send(0, r.floats(d, 1000, 1))
	e.wait(1)
	if n := len(s.endpoints[0].families.list()); n != 0 {
		t.Errorf("%d families were learned", n)
	}
}

func TestARequestIsSentAtItsDeadline(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	svc := New(Config{Conn: r.conn, Partitions: 1, CacheBytes: 1, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()}, nil)
	ep, err := newEndpoint(svc, e.endpoint("prod", func(e *Endpoint) { e.QueueConfig.BatchSendDeadline = model.Duration(20 * time.Millisecond) }))
	if err != nil {
		t.Fatal(err)
	}
	p := ep.partitions[0]
	if p.mb, err = r.conn.OpenMailbox(t.Context(), p.mailbox()); err != nil {
		t.Fatal(err)
	}
	defer p.mb.Close()
	p.current, p.began = &parcel{}, time.Now()
	if _, late, err := p.next(t.Context()); !late || err != nil {
		t.Errorf("no message, but next returned %t, %v", late, err)
	}
	p.began = time.Now().Add(time.Hour)
	r.publish(r.conn.Frames(0), []byte("message"))
	if msg, late, err := p.next(t.Context()); late || err != nil || string(msg.Data) != "message" {
		t.Errorf("next returned %q, %t, %v", msg.Data, late, err)
	}
}

func TestMetricNamesAreClean(t *testing.T) {
	r, e := newRig(t), newRecorder(t)
	s := r.start([]Endpoint{e.endpoint("prod")})
	problems, err := testutil.GatherAndLint(s.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
