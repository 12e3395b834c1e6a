package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/services/ingest/door"
)

// repeated is n fields with a number and this content.
func repeated(n, field int, content []byte) []byte {
	return bytes.Repeat(appendBytesField(nil, field, content), n)
}

// nested is messages within messages, the outermost field first.
func nested(content []byte, fields ...int) []byte {
	for i := len(fields) - 1; i >= 0; i-- {
		content = appendBytesField(nil, fields[i], content)
	}
	return content
}

// labelV1 is the field of a label of remote_write 1.0.
func labelV1(name, value string) []byte {
	return appendBytesField(nil, 1, append(appendBytesField(nil, 1, []byte(name)), appendBytesField(nil, 2, []byte(value))...))
}

// attribute is the content of a KeyValue with a string.
func attribute(name, value string) []byte {
	return append(appendBytesField(nil, 1, []byte(name)), nested([]byte(value), 2, 1)...)
}

// gaugeAt is the content of a gauge's point at a time, with attributes.
func gaugeAt(at time.Time, attributes ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{3<<3 | wireFixed64}, uint64(at.UnixNano()))
	for _, a := range attributes {
		b = appendBytesField(b, 7, a)
	}
	return b
}

// histogramOf is the content of a histogram's point with many buckets.
func histogramOf(at time.Time, buckets int, attributes ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{3<<3 | wireFixed64}, uint64(at.UnixNano()))
	b = appendBytesField(b, 6, make([]byte, 8*buckets+8))
	var bounds []byte
	for i := range buckets {
		bounds = binary.LittleEndian.AppendUint64(bounds, math.Float64bits(float64(i)))
	}
	b = appendBytesField(b, 7, bounds)
	for _, a := range attributes {
		b = appendBytesField(b, 9, a)
	}
	return b
}

// TestRequestsThatGrowAreRefused reads requests whose content would take many times their bytes.
func TestRequestsThatGrowAreRefused(t *testing.T) {
	const size = 16 << 20 // of the larger ones
	now := time.Now()
	name := labelV1("__name__", "a")
	huge := string(bytes.Repeat([]byte("x"), size))
	refs := func(n int, ref byte) []byte { return bytes.Repeat([]byte{ref}, n) }
	symbols := func(list ...string) (b []byte) {
		for _, s := range list {
			b = appendBytesField(b, 4, []byte(s))
		}
		return b
	}
	named := func(metric []byte) []byte { return append(appendBytesField(nil, 1, []byte("m")), metric...) }
	cumulative := []byte{2<<3 | wireVarint, temporalityCumulative}
	oneMetric := func(metric []byte) []byte { return nested(named(metric), 1, 2, 2) }
	listed := func() []byte { // an attribute whose value is an array of many items
		return append(appendBytesField(nil, 1, []byte("a")), nested(repeated(size/2, 1, nil), 2, 5)...)
	}
	metrics := func(n int) (b []byte) {
		for i := range n {
			b = appendBytesField(b, 2, append(appendBytesField(nil, 1, fmt.Append(nil, "m", i)), nested(gaugeAt(now), 5, 1)...))
		}
		return b
	}
	tooLarge, malformed := door.TooLarge, door.Malformed
	for _, c := range []struct {
		name    string
		format  door.Format
		body    func() []byte
		kind    *door.Kind // of the refusal; nil: it is taken but for the points that are refused
		refused int
		says    string
	}{
		{"samples of one series 1.0", door.RemoteWriteV1, func() []byte { return nested(append(name[:len(name):len(name)], repeated(size/2, 2, nil)...), 1) }, &tooLarge, 0, "200000 samples, histograms and exemplars"},
		{"histograms of one series 1.0", door.RemoteWriteV1, func() []byte { return nested(append(name[:len(name):len(name)], repeated(size/2, 4, nil)...), 1) }, &tooLarge, 0, "max_in_flight_bytes"},
		{"exemplars of one series 1.0", door.RemoteWriteV1, func() []byte { return nested(append(name[:len(name):len(name)], repeated(size/2, 3, nil)...), 1) }, &tooLarge, 0, "200000 samples, histograms and exemplars"},
		{"a histogram of many buckets 1.0", door.RemoteWriteV1, func() []byte {
			return nested(append(name[:len(name):len(name)], nested(make([]byte, size), 4, 12)...), 1)
		}, nil, 1, "invalid histogram"},
		{"labels that stand apart 1.0", door.RemoteWriteV1, func() []byte {
			return nested(bytes.Repeat([]byte{1<<3 | wireBytes, 0, 6<<3 | wireVarint, 0}, size/4), 1)
		}, &malformed, 0, "places"},
		{"a long label 1.0", door.RemoteWriteV1, func() []byte {
			return nested(append(name[:len(name):len(name)], append(labelV1("b", huge), appendBytesField(nil, 2, nil)...)...), 1)
		}, nil, 1, "the most is 4096"},
		{"symbols 2.0", door.RemoteWriteV2, func() []byte { return repeated(size/2, 4, nil) }, &tooLarge, 0, "max_in_flight_bytes"},
		{"samples of one series 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols("", "__name__", "a"), nested(append([]byte{1<<3 | wireBytes, 2, 1, 2}, repeated(size/2, 2, nil)...), 5)...)
		}, &tooLarge, 0, "200000 samples, histograms and exemplars"},
		{"references 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols(""), nested(append(nested(refs(size, 0), 1), appendBytesField(nil, 2, nil)...), 5)...)
		}, nil, 1, "more than 64 labels"},
		{"references to one symbol 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols("", huge), nested(append(nested(refs(128, 1), 1), appendBytesField(nil, 2, nil)...), 5)...)
		}, nil, 1, "the most is 1024"},
		{"series of one long symbol 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols("", "a", huge[:4000]), repeated(50_000, 5, append(nested(bytes.Repeat([]byte{1, 2}, 60), 1), appendBytesField(nil, 2, nil)...))...)
		}, nil, 50_000, "bytes of labels"},
		{"exemplars of one symbol 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols("", "__name__", "a", huge), nested(append([]byte{1<<3 | wireBytes, 2, 1, 2, 2<<3 | wireBytes, 0}, repeated(100_000, 4, nested(refs(100, 3), 1))...), 5)...)
		}, nil, 0, ""},
		{"references of an exemplar 2.0", door.RemoteWriteV2, func() []byte {
			return append(symbols("", "__name__", "a"), nested(append([]byte{1<<3 | wireBytes, 2, 1, 2, 2<<3 | wireBytes, 0}, nested(refs(size, 0), 4, 1)...), 5)...)
		}, nil, 0, ""},
		{"scopes", door.OTLP, func() []byte { return nested(repeated(size/2, 2, nil), 1) }, &tooLarge, 0, "max_in_flight_bytes"},
		{"metrics", door.OTLP, func() []byte { return nested(repeated(size/2, 2, nil), 1, 2) }, &tooLarge, 0, "max_in_flight_bytes"},
		{"points", door.OTLP, func() []byte { return oneMetric(nested(repeated(size/2, 1, nil), 5)) }, &tooLarge, 0, "more than 100000 points"},
		{"quantiles", door.OTLP, func() []byte { return oneMetric(nested(append(gaugeAt(now), repeated(size/2, 6, nil)...), 11, 1)) }, &malformed, 0, "quantiles"},
		{"exemplars", door.OTLP, func() []byte { return oneMetric(nested(append(gaugeAt(now), repeated(size/2, 5, nil)...), 5, 1)) }, &tooLarge, 0, "max_in_flight_bytes"},
		{"buckets of points with long attributes", door.OTLP, func() []byte {
			return oneMetric(appendBytesField(nil, 9, append(repeated(100, 1, histogramOf(now, 8000, attribute("a", huge[:4000]))), cumulative...)))
		}, &tooLarge, 0, "max_in_flight_bytes"},
		{"items of a point's attribute", door.OTLP, func() []byte { return oneMetric(nested(gaugeAt(now, listed()), 5, 1)) }, nil, 1, "the most is 262144"},
		{"items of a resource's attribute", door.OTLP, func() []byte { return nested(append(nested(listed(), 1, 1), nested(metrics(10), 2)...), 1) }, nil, 10, "a resource has"},
		{"attributes of a scope", door.OTLP, func() []byte { return nested(append(nested(repeated(100_000, 3, nil), 1), metrics(10)...), 1, 2) }, nil, 10, "a scope with 100000 attributes"},
		{"items of a scope's attribute", door.OTLP, func() []byte { return nested(append(nested(listed(), 1, 3), metrics(10)...), 1, 2) }, nil, 10, "a scope of"},
		{"metadata of a metric", door.OTLP, func() []byte { return oneMetric(append(repeated(size/2, 12, nil), nested(gaugeAt(now), 5, 1)...)) }, nil, 1, "besides its points"},
		{"a large resource of many metrics", door.OTLP, func() []byte {
			return nested(append(nested(attribute("a", huge[:200<<10]), 1, 1), nested(metrics(50_000), 2)...), 1)
		}, &tooLarge, 0, "new metrics"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTranslating(promconfig.DefaultOTLPConfig)
			const limit = 128 << 20
			held := int64(0)
			push := &door.Push{Format: c.format, Limits: testLimits, Hold: func(n int64) error {
				if held += n; held > limit {
					return &door.Refusal{Kind: door.TooLarge, Message: "max_in_flight_bytes"}
				}
				return nil
			}}
			body := c.body()
			runtime.GC()
			peak, stop := watchHeap()
			r := s.begin(push)
			read := r.readOTLP
			switch c.format {
			case door.RemoteWriteV1:
				read = r.readV1
			case door.RemoteWriteV2:
				read = r.readV2
			}
			began := time.Now()
			err := read(body)
			took := time.Since(began)
			stop()
			t.Logf("%d MiB more memory, %d MiB held, %v", *peak>>20, held>>20, took)
			var refusal *door.Refusal
			switch {
			case c.kind != nil && (!errors.As(err, &refusal) || refusal.Kind != *c.kind || !strings.Contains(refusal.Message, c.says)):
				t.Errorf("error %v, want %v: %q", err, *c.kind, c.says)
			case c.kind == nil && (err != nil || r.out.Refused != c.refused || !strings.Contains(r.reason(), c.says)):
				t.Errorf("error %v, %d refused because of %q; want %d because of %q", err, r.out.Refused, r.reason(), c.refused, c.says)
			}
			// Much of it is garbage at any time.
			if *peak > 2*limit {
				t.Errorf("it took %d MiB", *peak>>20)
			}
			r.release()
		})
	}
}

// watchHeap looks at how much more the heap has, again and again until it is stopped.
func watchHeap() (peak *uint64, stop func()) {
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	peak = new(uint64)
	look := func() {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		if now.HeapAlloc > before.HeapAlloc {
			*peak = max(*peak, now.HeapAlloc-before.HeapAlloc)
		}
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
				look()
			}
		}
	}()
	return peak, func() { close(ended); <-done; look() }
}

// A sender that has gone is not worked for, whatever it has sent.
func TestReadingEndsWithTheSender(t *testing.T) {
	s := newTranslating(promconfig.DefaultOTLPConfig)
	s.open.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := make([]translated, 0, 20_000)
	for i := range cap(list) {
		list = append(list, translated{labels: labels.FromStrings("__name__", fmt.Sprint("m", i)), t: time.Now().UnixMilli()})
	}
	for format, body := range map[door.Format][]byte{door.RemoteWriteV1: encodeV1(t, list), door.RemoteWriteV2: encodeV2(t, list)} {
		if _, err := s.Take(ctx, &door.Push{Format: format, Body: body, Limits: testLimits}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v: %v", format, err)
		}
	}
	body := nested(append(appendBytesField(nil, 1, []byte("m")), nested(gaugeAt(time.Now()), 5, 1)...), 1, 2, 2)
	if _, err := s.Take(ctx, &door.Push{Body: body, Limits: testLimits}); !errors.Is(err, context.Canceled) {
		t.Errorf("OTLP: %v", err)
	}
	if n := s.registry.series.Load(); n > 10_000 {
		t.Errorf("%d series were learned for nobody", n)
	}
}

// What a large request has grown is not kept for small ones.
func TestLargeRequestsLeaveNoMemoryBehind(t *testing.T) {
	r := newTranslating(promconfig.DefaultOTLPConfig).begin(&door.Push{Limits: testLimits})
	r.symbols, r.refs, r.pushed.samples = make([]symbol, 1<<15), make([]uint32, 1<<15), make([]sample, 1<<15)
	r.otlp.resource.scopes, r.otlp.metric.head, r.otlp.point.counts = make([][]byte, 1<<15), make([]byte, 1<<20), make([]uint64, 1<<15)
	r.release()
	if cap(r.symbols)+cap(r.refs)+cap(r.pushed.samples)+cap(r.otlp.resource.scopes)+cap(r.otlp.metric.head)+cap(r.otlp.point.counts) > 0 {
		t.Error("lists of a large request are kept")
	}
}

// A point that has more series than there is room for leaves none of them behind.
func TestPointsWithoutRoomRegisterNothing(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxSeries = 10 })
	body := nested(append(appendBytesField(nil, 1, []byte("m")), appendBytesField(nil, 9, append(nested(histogramOf(time.Now(), 20), 1), 2<<3|wireVarint, temporalityCumulative))...), 1, 2, 2)
	for range 2 {
		out, err := r.Take(t.Context(), &door.Push{Body: body, Limits: testLimits})
		if err != nil || out.Refused != 1 || !strings.Contains(out.Reason, "max_series") {
			t.Errorf("%+v, %v", out, err)
		}
	}
	if n := r.registry.series.Load(); n > 0 {
		t.Errorf("%d series are registered", n)
	}
	r.mustPush(r.at("a", 0, 1))
}
