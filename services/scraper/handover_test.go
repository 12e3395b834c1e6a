package scraper

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

// successor returns another process that scrapes the same targets.
func (f *bed) successor(jobs ...string) *bed {
	f.t.Helper()
	next := &bed{conn: f.conn, exporter: f.exporter}
	next.rig = newRig(f.t, onServer(f.conn))
	next.apply(jobs...)
	return next
}

func (f *bed) dictionaries() uint64 {
	f.t.Helper()
	s, err := f.conn.JS.Stream(f.t.Context(), f.conn.Stream(stream.Dicts))
	if err != nil {
		f.t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// TestTheNextOwnerGoesOn hands a target over while one of its series vanishes.
func TestTheNextOwnerGoesOn(t *testing.T) {
	f := newBed(t, "a")
	text := "metric 1\nvanishing 1\nother 2\n"
	f.text.Store(&text)
	f.publishTarget("a")
	f.waitFor(`{__name__="vanishing", instance="one", job="a"}`)
	f.stop()
	before, _ := f.count(metricOfOne)
	dictionaries := f.dictionaries()
	text2 := "metric 1\nother 2\n"
	f.text.Store(&text2)
	next := f.successor("a")
	next.start()
	await.True(t, "samples of the next owner", func() bool { n, _ := next.count(metricOfOne); return n > before+1 })
	if _, stale := next.count(`{__name__="vanishing", instance="one", job="a"}`); stale != 1 {
		t.Errorf("the series that vanished in between has %d staleness markers", stale)
	}
	for _, series := range []string{metricOfOne, `{__name__="up", instance="one", job="a"}`, `{__name__="other", instance="one", job="a"}`} {
		if _, stale := next.count(series); stale != 0 {
			t.Errorf("%s has %d staleness markers though it goes on", series, stale)
		}
	}
	if n := next.dictionaries(); n != dictionaries {
		t.Errorf("the next owner published %d dictionaries", n-dictionaries)
	}
}

// TestATargetThatGoesBetweenOwnersIsEnded removes a target while nobody scrapes.
func TestATargetThatGoesBetweenOwnersIsEnded(t *testing.T) {
	f := newBed(t, "a")
	gone := f.publishTarget("a")
	f.waitFor(metricOfOne)
	f.stop()
	f.removeTarget(gone)
	next := f.successor("a")
	next.start()
	for _, series := range []string{metricOfOne, `{__name__="up", instance="one", job="a"}`} {
		await.True(t, "a staleness marker of "+series, func() bool { _, stale := next.count(series); return stale == 1 })
	}
}

// TestShardsMoveBetweenRunningScrapers has two scrapers at once, then one again.
func TestShardsMoveBetweenRunningScrapers(t *testing.T) {
	f := newBed(t, "a")
	for i := range 12 {
		f.publishTarget("a", "instance", numbered("host", i))
	}
	series := func(i int) string { return `{__name__="metric", instance="` + numbered("host", i) + `", job="a"}` }
	f.waitFor(series(11))
	second := f.successor("a")
	second.start()
	await.True(t, "both have targets", func() bool {
		return len(f.Targets()) > 0 && len(second.Targets()) > 0 && len(f.Targets())+len(second.Targets()) == 12
	})
	second.stop()
	await.True(t, "the first has all", func() bool { return len(f.Targets()) == 12 })
	n, _ := f.count(series(3))
	await.True(t, "more samples", func() bool { now, _ := f.count(series(3)); return now > n+2 })
	for i := range 12 {
		if _, stale := f.count(series(i)); stale != 0 {
			t.Errorf("%s has %d staleness markers though its target was there all the time", series(i), stale)
		}
	}
}

// TestATimestampAheadHoldsNothingBack starts a target again of which one series has a timestamp of its own in the future.
func TestATimestampAheadHoldsNothingBack(t *testing.T) {
	f := newBed(t, "a")
	ahead := time.Now().Add(5 * time.Minute).UnixMilli()
	text := fmt.Sprintf("metric 1\nahead 1 %d\n", ahead)
	f.text.Store(&text)
	f.publishTarget("a")
	f.waitFor(`{__name__="ahead", instance="one", job="a"}`)
	f.stop()
	next := f.successor("a")
	next.start()
	next.wantMore(metricOfOne, upOfOne)
}

// wantMore waits for more samples of series, and fails where a timestamp does not follow on the one before. It returns the timestamps of the first new ones.
func (f *bed) wantMore(series ...string) (first []int64) {
	f.t.Helper()
	for _, s := range series {
		times := func() (list []int64) {
			for _, x := range f.published() {
				if x.Series == s {
					list = append(list, x.T)
				}
			}
			return list
		}
		before := len(times())
		await.True(f.t, "more samples of "+s, func() bool { return len(times()) > before+1 })
		list := times()
		for i := 1; i < len(list); i++ {
			if list[i] <= list[i-1] {
				f.t.Errorf("a sample of %s at %d follows one at %d", s, list[i], list[i-1])
			}
		}
		first = append(first, list[before])
	}
	return first
}

// TestTimesOfRecords has a record with a time ahead of the clock, as earlier builds and clocks that differ have left them.
func TestTimesOfRecords(t *testing.T) {
	for what, c := range map[string]struct {
		ahead time.Duration
		waits bool
	}{
		"a sample's":         {5 * time.Minute, false},
		"by another clock's": {2 * time.Second, true},
	} {
		t.Run(what, func(t *testing.T) {
			f := newBed(t, "a")
			of := f.publishTarget("a")
			f.waitFor(metricOfOne)
			f.stop()
			at := time.Now().Add(c.ahead).UnixMilli()
			f.changeRecord(of, func(r *sourceRecord) { r.Time = at })
			next := f.successor("a")
			next.start()
			for _, first := range next.wantMore(metricOfOne, upOfOne) {
				if (first > at) != c.waits {
					t.Errorf("the first new sample is at %d, the record's time is %d", first, at)
				}
			}
		})
	}
}

func (f *bed) changeRecord(of *target.Target, change func(*sourceRecord)) {
	f.t.Helper()
	key := sourceKey(target.SourceID(of.Labels.Range))
	entry, err := f.bucket().Get(f.t.Context(), key)
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := decodeRecord(entry.Value())
	if err != nil {
		f.t.Fatal(err)
	}
	change(&r)
	b, err := msgpack.Marshal(&r)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.bucket().Put(f.t.Context(), key, append([]byte{sourceVersion}, b...)); err != nil {
		f.t.Fatal(err)
	}
}

func TestRecordsAreReadAsTheyWereWritten(t *testing.T) {
	r := newRig(t)
	l := r.plainLoop(1)
	r.give(l, step{body: "a 1\nb 1\nc 1\nahead 1 9000\n", contentType: plainText}, 1000)
	r.give(l, step{body: "a 1\nc 1\nahead 2 9001\n", contentType: plainText}, 2000)
	rec, err := decodeRecord(l.source.record())
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Dicts) != 16 || rec.Time != 2000 {
		t.Errorf("record %+v", rec)
	}
	for i, want := range []bool{true, false, true, false, true, true, true, true, true} { // a, b, c, ahead, which is not ended, and the reports
		if got := rec.Live[i/8]&(1<<(i%8)) != 0; got != want {
			t.Errorf("series %d is live: %t", i, got)
		}
	}
	for i, bad := range [][]byte{nil, {2}, {1}, {1, 0x81, 0xa5, 'd', 'i', 'c', 't', 's', 0xc4, 3, 1, 2, 3}} {
		if _, err := decodeRecord(bad); err == nil {
			t.Errorf("bad record %d was read", i)
		}
	}
}

// watchedBody is a body that calls a function whenever it is read.
type watchedBody struct {
	io.Reader
	seen func()
}

func (b watchedBody) Read(to []byte) (int, error) {
	b.seen()
	return b.Reader.Read(to[:min(len(to), 100)])
}

// TestARecordWithinAScrapeHasAllThatIsLive stores what is known of a source while the rest of a body is waited for, in which metadata has changed.
func TestARecordWithinAScrapeHasAllThatIsLive(t *testing.T) {
	r := newRig(t)
	r.piece = 300
	l := r.plainLoop(1)
	body := func(help string) string {
		var b strings.Builder
		for i := range 50 {
			fmt.Fprintf(&b, "# HELP x_%02d %s\n# TYPE x_%02d gauge\nx_%02d 1\n", i, help, i, i)
		}
		return b.String()
	}
	r.give(l, step{body: body("Before."), contentType: plainText}, 1000)
	moved := 0
	for scrape, help := range []string{"Now.", "Later."} {
		x := &exposition{contentType: plainText, limit: math.MaxInt64}
		x.response = &http.Response{Body: io.NopCloser(watchedBody{strings.NewReader(body(help)), func() {
			rec, err := decodeRecord(l.source.record())
			if err != nil {
				t.Fatal(err)
			}
			live := map[string]bool{}
			for i, ls := range labelsOf(t, l.source) {
				if i < 8*len(rec.Live) && rec.Live[i/8]&(1<<(i%8)) != 0 {
					live[ls.String()] = true
				} else if i >= 8*len(rec.Live) {
					moved++
				}
			}
			if n := 50 + 5; len(live) != n { // and the reports
				t.Fatalf("scrape %d: the record has %d live series, want %d", scrape, len(live), n)
			}
		}})}
		if err := x.begin(r.piece, r.piece); err != nil {
			t.Fatal(err)
		}
		o := outcome{}
		l.deliver(time.Now(), int64(2000+1000*scrape), x, &o)
		x.close()
		if r.unitOf(l.source) == nil || o.err != nil {
			t.Fatalf("scrape %d: %v", scrape, o.err)
		}
	}
	if moved == 0 {
		t.Error("no record was made while there were new entries")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte{1, 0x83, 0xa5, 'd', 'i', 'c', 't', 's', 0xc4, 0, 0xa4, 'l', 'i', 'v', 'e', 0xc4, 1, 7, 0xa4, 't', 'i', 'm', 'e', 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil && len(r.Dicts)+len(r.Live) > len(b) {
			t.Errorf("%d bytes became %d", len(b), len(r.Dicts)+len(r.Live))
		}
	})
}
