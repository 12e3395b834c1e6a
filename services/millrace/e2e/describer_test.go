package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	promstorage "github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// describer stands before a Prometheus and notes what its OTLP endpoint makes of metadata, which the server itself does not keep. For that it has Prometheus's handler.
type describer struct {
	url     string
	handler http.Handler

	mu    sync.Mutex
	known map[string]string // metadata's text by that of the series
}

func newDescriber(t testing.TB, text string, p *proc) *describer {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg, err := config.Load(text, log)
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	d := &describer{known: map[string]string{}}
	d.handler = remote.NewOTLPWriteHandler(log, prometheus.NewRegistry(), d, func() config.Config { return *cfg }, remote.OTLPOptions{ConvertDelta: true})
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer, copied := httptest.NewRecorder(), r.Clone(r.Context())
		copied.Body = io.NopCloser(bytes.NewReader(body))
		d.handler.ServeHTTP(answer, copied)
		if answer.Code != http.StatusOK {
			t.Errorf("Prometheus's OTLP handler: status %d: %s", answer.Code, answer.Body)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

// ways returns where to push.
func (d *describer) ways() ways {
	return ways{http: strings.TrimPrefix(d.url, "http://"), path: "/api/v1/otlp/v1/metrics"}
}

// AppenderV2 implements [promstorage.AppendableV2].
func (d *describer) AppenderV2(context.Context) promstorage.AppenderV2 { return &describing{d} }

// metadata returns what is known of each series.
func (d *describer) metadata() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.known)
}

// arrives waits until remote_write 1.0, which tells of families, has told of those of all series.
func (d *describer) arrives(t testing.TB, rec *recorder) {
	t.Helper()
	eventually(t, 20*time.Second, "metadata by remote_write 1.0", func() error {
		got := map[string]bool{}
		for name, set := range rec.metadata() {
			for m := range set {
				got[name+": "+metadataText(m.Type, m.Unit, m.Help)] = true
			}
		}
		var errs []error
		for series, text := range d.metadata() {
			found := false
			for _, name := range familyNames(metricName(t, series)) {
				found = found || got[name+": "+text]
			}
			if !found && len(errs) < 5 {
				errs = append(errs, fmt.Errorf("%s: nothing tells %s", series, text))
			}
		}
		return errors.Join(errs...)
	})
}

// describing is an appender of a describer.
type describing struct{ d *describer }

// Append implements [promstorage.AppenderV2].
func (a *describing) Append(_ promstorage.SeriesRef, ls labels.Labels, _, _ int64, _ float64, _ *histogram.Histogram, _ *histogram.FloatHistogram, opts promstorage.AOptions) (promstorage.SeriesRef, error) {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	a.d.known[ls.String()] = textOf(opts.Metadata)
	return 0, nil
}

// Commit implements [promstorage.AppenderTransaction].
func (*describing) Commit() error { return nil }

// Rollback implements [promstorage.AppenderTransaction].
func (*describing) Rollback() error { return nil }

func textOf(m metadata.Metadata) string { return metadataText(string(m.Type), m.Unit, m.Help) }

func metadataText(metricType, unit, help string) string {
	return fmt.Sprintf("%s, unit %q, help %q", metricType, unit, help)
}

// storedMetadata returns the metadata that a Prometheus has written for its series. It has ended, or has nothing more to write.
func storedMetadata(t testing.TB, p *proc) map[string]string {
	t.Helper()
	segments, err := wlog.NewSegmentsReader(filepath.Join(p.Dir, "tsdb", "wal"))
	if err != nil {
		t.Fatal(err)
	}
	defer segments.Close()
	decoder := record.NewDecoder(nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	names := map[chunks.HeadSeriesRef]string{}
	known := map[string]string{}
	reader := wlog.NewReader(segments)
	for reader.Next() {
		switch decoder.Type(reader.Record()) {
		case record.Series:
			list, err := decoder.Series(reader.Record(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list {
				names[s.Ref] = s.Labels.String()
			}
		case record.Metadata:
			list, err := decoder.Metadata(reader.Record(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list {
				known[names[m.Ref]] = metadataText(string(record.ToMetricType(m.Type)), m.Unit, m.Help)
			}
		}
	}
	if err := reader.Err(); err != nil {
		t.Fatalf("%s of %s: %v", filepath.Join(p.Dir, "tsdb", "wal"), p.name, err)
	}
	if len(known) < 20 {
		t.Errorf("only %d series of %s have metadata", len(known), p.URL)
	}
	return known
}

// metricName returns the metric name of a series' text.
func metricName(t testing.TB, series string) string {
	t.Helper()
	_, rest, found := strings.Cut(series, `__name__="`)
	name, _, closed := strings.Cut(rest, `"`)
	if !found || !closed {
		t.Fatalf("series %s has no name", series)
	}
	return name
}
