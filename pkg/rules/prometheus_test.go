package rules

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang/snappy"
	"github.com/google/go-cmp/cmp"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/agent"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/frame"
)

// seriesReceiver collects the label sets that arrive at each path.
type seriesReceiver struct {
	mu   sync.Mutex
	sets map[string]map[string]bool
}

func (r *seriesReceiver) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		panic(err)
	}
	raw, err := snappy.Decode(nil, body)
	if err != nil {
		panic(err)
	}
	var msg prompb.WriteRequest
	if err := msg.Unmarshal(raw); err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ts := range msg.Timeseries {
		var b labels.ScratchBuilder
		for _, l := range ts.Labels {
			b.Add(l.Name, l.Value)
		}
		b.Sort()
		if r.sets[req.URL.Path] == nil {
			r.sets[req.URL.Path] = map[string]bool{}
		}
		r.sets[req.URL.Path][b.Labels().String()] = true
	}
}

func (r *seriesReceiver) got(path string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := []string{}
	for s := range r.sets[path] {
		list = append(list, s)
	}
	sort.Strings(list)
	return list
}

// endpoints are write_relabel_configs, each of an endpoint of its own. None drops the series "marker", which tells that all has arrived.
var endpoints = map[string]string{
	"none":       "[]",
	"replace":    "[{source_labels: [job, code], separator: '/', regex: '(.+)/(2..)', target_label: both, replacement: '$2-$1'}]",
	"overwrite":  "[{target_label: region, replacement: moved}]",
	"drop":       "[{source_labels: [__name__], regex: requests_total, action: drop}]",
	"keep":       "[{source_labels: [__name__], regex: 'requests_total|marker', action: keep}]",
	"external":   "[{source_labels: [region], regex: west, target_label: seen, replacement: 'yes'}, {regex: region, action: labeldrop}]",
	"in order":   "[{target_label: a, replacement: '1'}, {source_labels: [a], target_label: b}, {target_label: a, replacement: '2'}, {source_labels: [a], target_label: c}]",
	"empty":      "[{target_label: code, replacement: ''}]",
	"rename":     "[{source_labels: [__name__], regex: 'requests_(.*)', target_label: __name__, replacement: 'asked_$1'}]",
	"labelmap":   "[{regex: 'co(.*)', replacement: 'mapped_$1', action: labelmap}]",
	"labelkeep":  "[{regex: '__name__|job', action: labelkeep}]",
	"hashmod":    "[{source_labels: [__name__, code], modulus: 16, target_label: shard, action: hashmod}]",
	"case":       "[{source_labels: [job], target_label: job, action: uppercase}]",
	"dropequal":  "[{source_labels: [code], target_label: same, action: dropequal}]",
	"temporary":  "[{target_label: __tmp, replacement: x}, {source_labels: [__tmp], target_label: made}]",
	"other name": "[{target_label: 'with space', replacement: x}]",
}

func testSeries() []frame.Series {
	var list []frame.Series
	for _, text := range []string{
		`{__name__="requests_total", code="200", job="web"}`,
		`{__name__="requests_total", code="500", job="web", region="own"}`,
		`{__name__="requests_total", code="500", job="web", same="500"}`,
		`{__name__="up", job="Web", zone="é"}`,
		`{__name__="ünïcode", job="web"}`,
		`{__name__="marker", code="x"}`,
	} {
		var b labels.ScratchBuilder
		for pair := range strings.SplitSeq(strings.Trim(text, "{}"), ", ") {
			name, value, _ := strings.Cut(pair, "=")
			b.Add(name, strings.Trim(value, `"`))
		}
		b.Sort()
		list = append(list, frame.Series{Labels: b.Labels()})
	}
	return list
}

// An agent of Prometheus itself sends the series to each of the endpoints; what arrives is what Apply has to return.
func TestRulesDoWhatPrometheusDoes(t *testing.T) {
	receiver := &seriesReceiver{sets: map[string]map[string]bool{}}
	server := httptest.NewServer(receiver)
	defer server.Close()
	external := labels.FromStrings("region", "west", "replica", "a")
	text := "global: {external_labels: {region: west, replica: a}}\nremote_write:\n"
	for name, rules := range endpoints {
		text += fmt.Sprintf("- {url: '%s/%s', name: '%s', queue_config: {batch_send_deadline: 100ms}, write_relabel_configs: %s}\n",
			server.URL, strings.ReplaceAll(name, " ", "_"), name, rules)
	}
	logger := slog.New(slog.DiscardHandler)
	cfg, err := promconfig.Load(text, logger)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	store := remote.NewStorage(logger, nil, func() (int64, error) { return 0, nil }, dir, time.Second, noScrapes{}, false)
	defer store.Close()
	if err := store.ApplyConfig(cfg); err != nil {
		t.Fatal(err)
	}
	db, err := agent.Open(logger, nil, store, dir, agent.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetWriteNotified(store)

	// The agent sends what was appended after it has begun to watch, so samples come until all endpoints have the marker.
	now := time.Now().UnixMilli()
	await.True(t, "all endpoints have something", func() bool {
		now += 1000
		app := db.Appender(t.Context())
		for _, s := range testSeries() {
			if _, err := app.Append(0, s.Labels, now, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		for name := range endpoints {
			if !strings.Contains(strings.Join(receiver.got("/"+strings.ReplaceAll(name, " ", "_")), ""), "marker") {
				return false
			}
		}
		return true
	})
	for _, rw := range cfg.RemoteWriteConfigs {
		r := Rules{External: external, Relabel: rw.WriteRelabelConfigs}
		out, _ := r.Apply(testSeries())
		want := []string{}
		for i := range out {
			if !out[i].Labels.IsEmpty() {
				want = append(want, out[i].Labels.String())
			}
		}
		sort.Strings(want)
		want = slices.Compact(want) // rules can make two series one
		if d := cmp.Diff(receiver.got("/"+strings.ReplaceAll(rw.Name, " ", "_")), want); d != "" {
			t.Errorf("endpoint %q gets (-Prometheus +Apply):\n%s", rw.Name, d)
		}
	}
}

// noScrapes stands for the scrape manager, which remote storage asks for metadata.
type noScrapes struct{}

func (noScrapes) Get() (*scrape.Manager, error) { return nil, fmt.Errorf("there is none") }
