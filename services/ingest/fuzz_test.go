package ingest

import (
	"errors"
	"testing"

	promconfig "github.com/prometheus/prometheus/config"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/millrace/millrace/pkg/publish"
	"github.com/millrace/millrace/services/ingest/door"
)

// readAny reads a body as far as frames: what it holds has to be fit for them, or refused.
func readAny(t *testing.T, s *Service, format door.Format, body []byte) {
	r := s.begin(&door.Push{Format: format, Limits: testLimits})
	defer r.release()
	var err error
	switch format {
	case door.OTLP:
		err = r.readOTLP(body)
	case door.RemoteWriteV1:
		err = r.readV1(body)
	case door.RemoteWriteV2:
		err = r.readV2(body)
	}
	var refusal *door.Refusal
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("%v is no refusal", err)
	}
	if err != nil {
		return
	}
	for _, g := range r.gathers {
		src := s.registry.lock(g.src)
		for i := range g.samples {
			g.samples[i].ser = r.settle(src, g.samples[i].ser, g.samples[i].about)
		}
		list := r.attach(src, g, r.judge(src, g))
		if err := src.seal(); err != nil {
			t.Fatalf("series that no dictionary takes: %v", err)
		}
		r.build.frames(src, list, &publish.Unit{})
		src.mu.Unlock()
	}
}

// readTwice reads a body twice, the second time with what is known by then, and forgets all of it.
func readTwice(t *testing.T, s *Service, format door.Format, body []byte) {
	readAny(t, s, format, body)
	readAny(t, s, format, body)
	s.registry.sweep(1<<62, false)
}

// FuzzOTLP reads arbitrary bytes as an OTLP request, twice: the second time what it holds is known.
func FuzzOTLP(f *testing.F) {
	for seed := range uint64(20) {
		body, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(newGenerator(seed, 1).metrics())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	custom := promconfig.DefaultOTLPConfig
	custom.ConvertHistogramsToNHCB = true
	plain, buckets := newTranslating(promconfig.DefaultOTLPConfig), newTranslating(custom)
	f.Fuzz(func(t *testing.T, body []byte) {
		readTwice(t, plain, door.OTLP, body)
		readTwice(t, buckets, door.OTLP, body)
	})
}

// FuzzRemoteWriteV1 reads arbitrary bytes as a remote_write 1.0 request.
func FuzzRemoteWriteV1(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(encodeV1(f, randomSeries(seed, 1, false)))
	}
	s := newTranslating(promconfig.DefaultOTLPConfig)
	f.Fuzz(func(t *testing.T, body []byte) { readTwice(t, s, door.RemoteWriteV1, body) })
}

// FuzzRemoteWriteV2 reads arbitrary bytes as a remote_write 2.0 request.
func FuzzRemoteWriteV2(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(encodeV2(f, randomSeries(seed, 1, true)))
	}
	s := newTranslating(promconfig.DefaultOTLPConfig)
	f.Fuzz(func(t *testing.T, body []byte) { readTwice(t, s, door.RemoteWriteV2, body) })
}
