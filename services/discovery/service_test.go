package discovery

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/target"
)

func TestStaticTargetsArePublished(t *testing.T) {
	checkLeaks(t)
	f := newBed(t)
	f.start(static("a", "h1:1", "h2:2") + static("b", "h1:1"))
	f.wait(address, "a h1:1", "a h2:2", "b h1:1")
	for _, got := range f.targets() {
		if got.Job != "a" || got.Labels.Get("__address__") != "h1:1" {
			continue
		}
		want := labels.FromStrings("__address__", "h1:1", "__always_scrape_classic_histograms__", "false", "__convert_classic_histograms_to_nhcb__", "false",
			"__metrics_path__", "/metrics", "__scheme__", "http", "__scrape_interval__", "1m", "__scrape_native_histograms__", "false",
			"__scrape_timeout__", "10s", "instance", "h1:1", "job", "a")
		if !labels.Equal(got.Labels, want) {
			t.Errorf("labels are %s, want %s", got.Labels, want)
		}
		if want := labels.NewBuilder(want).Del("instance").Labels(); !labels.Equal(got.Discovered, want) {
			t.Errorf("discovered labels are %s, want %s", got.Discovered, want)
		}
	}
}

func TestRelabellingDecidesWhatIsPublished(t *testing.T) {
	f := newBed(t)
	r := f.start(`
- job_name: web
  params: {token: [s3cret], module: [http_2xx]}
  keep_dropped_targets: 1
  static_configs:
  - targets: [keep-1:80, keep-2:80, drop-1:80, drop-2:80, drop-3:80, twice-1:80, twice-2:80]
    labels: {zone: a, __meta_secret: m}
  relabel_configs:
  - {source_labels: [__address__], regex: 'drop-.*', action: drop}
  - {source_labels: [__address__], regex: 'twice-.*', target_label: __address__, replacement: 'same:80'}
  - {source_labels: [__address__], regex: 'keep-2:80', target_label: __param_module, replacement: tcp}
  - {source_labels: [__address__], regex: 'keep-(.*):80', target_label: number, replacement: 'n$1'}
  - {regex: '__scheme__|job', action: labeldrop}
- job_name: other
  static_configs: [{targets: [o:1]}]
`)
	public := func(t *target.Target) string {
		return fmt.Sprint(t.Job, " ", t.Labels.DropReserved(func(n string) bool { return strings.HasPrefix(n, "__") }), t.Labels.Get("__param_module"), t.Absent)
	}
	f.wait(public,
		`web {instance="keep-1:80", number="n1", zone="a"}[job __scheme__]`,
		`web {instance="keep-2:80", number="n2", zone="a"}tcp[job __scheme__]`,
		`web {instance="same:80", zone="a"}[job __scheme__]`,
		`other {instance="o:1", job="other"}[]`,
	)
	for _, got := range f.targets() {
		if all := got.Labels.String() + got.Discovered.String(); strings.Contains(all, "s3cret") {
			t.Errorf("a credential of params is on a subject: %s", all)
		}
		if got.Labels.Has("__meta_secret") {
			t.Errorf("labels hold __meta_: %s", got.Labels)
		}
		if got.Job == "web" && !got.Discovered.Has("__meta_secret") {
			t.Errorf("discovered labels lack __meta_: %s", got.Discovered)
		}
	}
	await.True(t, "all targets are stored", func() bool {
		st := r.Status()
		return len(st.Jobs) == 2 && st.Jobs[1].Unpublished == 0 && st.Jobs[1].Active == 3
	})
	active, dropped, counts := r.Targets()
	if len(active) != 4 || len(dropped) != 1 {
		t.Errorf("Targets() returns %d active and %d dropped, want 4 and 1 (keep_dropped_targets)", len(active), len(dropped))
	}
	if diff := cmp.Diff(map[string]int{"web": 3, "other": 0}, counts); diff != "" {
		t.Errorf("dropped counts differ (-want +got):\n%s", diff)
	}
	if len(dropped) == 1 && (dropped[0].Job != "web" || dropped[0].Discovered.Get("__address__") != "drop-1:80" || dropped[0].Discovered.Has("__param_token")) {
		t.Errorf("dropped target is %v", dropped[0])
	}
	if got := r.value("millrace_discovery_targets", "web"); got != 3 {
		t.Errorf("millrace_discovery_targets = %v, want 3", got)
	}
	if got := r.value("millrace_discovery_dropped_targets", "web"); got != 3 {
		t.Errorf("millrace_discovery_dropped_targets = %v, want 3", got)
	}
}

func TestMalformedTargetsAreCountedAndTheOthersGoOn(t *testing.T) {
	f := newBed(t)
	r := f.start(`
- job_name: mixed
  static_configs:
  - targets: [good:1]
  - targets: [bad-1, bad-2]
    labels: {path: /x}
  - targets: [fast:1]
    labels: {__scrape_interval__: soon}
  - targets: [slow:1]
    labels: {__scrape_timeout__: 5m}
  relabel_configs:
  - {source_labels: [__address__, path], regex: '(bad.*);(.*)', target_label: __address__, replacement: '$1$2'}
`)
	f.wait(address, "mixed good:1")
	await.True(t, "four targets have failed", func() bool { return r.value("millrace_discovery_failed_targets_total", "mixed") == 4 })
	if got := r.Status().Jobs[0].Failed; got != 4 {
		t.Errorf("Status() counts %d malformed targets, want 4", got)
	}
}

func TestReloadAddsChangesAndRemoves(t *testing.T) {
	checkLeaks(t)
	f := newBed(t)
	r := f.start("")
	if got := r.Status().Waiting; got == "" {
		t.Error("a service without configuration waits for nothing")
	}
	r.apply(static("a", "h1:1", "h2:1") + static("b", "h3:1"))
	f.wait(address, "a h1:1", "a h2:1", "b h3:1")
	r.apply(static("a", "h2:1", "h4:1") + static("c", "h5:1"))
	f.wait(address, "a h2:1", "a h4:1", "c h5:1")
	await.True(t, "the removed job is gone", func() bool { return len(r.Status().Jobs) == 2 })
	r.apply(static("b", "h3:1"))
	f.wait(address, "b h3:1")
	if slices.Contains(f.history(), "-h2:1") {
		before := slices.Index(f.history(), "-h2:1")
		after := slices.Index(f.history(), "+h5:1")
		if before < after {
			t.Errorf("the target that stayed was removed for a moment: %v", f.history())
		}
	}
	// Back again at once, while the old actor may still be removing.
	r.apply(static("z", "h9:1"))
	r.apply(static("b", "h3:1"))
	f.wait(address, "b h3:1")
	r.apply("")
	f.wait(address)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ttl := range f.ttls {
		if ttl != tombstoneTTL {
			t.Errorf("a removal has the TTL %q, want %q", ttl, tombstoneTTL)
		}
	}
}

func TestReloadOfRelabelConfigsRelabelsWhatIsKnown(t *testing.T) {
	f := newBed(t)
	r := f.start(static("a", "h1:1", "h2:1"))
	f.wait(address, "a h1:1", "a h2:1")
	r.apply(static("a", "h1:1", "h2:1") + "  relabel_configs: [{source_labels: [__address__], regex: 'h1.*', action: drop}]\n")
	f.wait(address, "a h2:1")
	if slices.Contains(f.history(), "-h2:1") {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
}

func TestApplyConfigRefusesTheWhole(t *testing.T) {
	f := newBed(t)
	r := f.start(static("a", "h1:1"))
	f.wait(address, "a h1:1")
	one, two := parse(t, static("x", "h2:1"))[0], parse(t, static("x", "h3:1"))[0]
	for name, bad := range map[string][]*promconfig.ScrapeConfig{"one name twice": {one, two}, "no name": {one, {}}} {
		t.Run(name, func(t *testing.T) {
			if err := r.ApplyConfig(bad); err == nil {
				t.Fatal("ApplyConfig() takes it")
			}
		})
	}
	if *r.config.Load() == nil || len(*r.config.Load()) != 1 || (*r.config.Load())["a"] == nil {
		t.Error("the refused configuration is in use")
	}
}

func TestTwoThousandTargetsAreEachPublishedOnce(t *testing.T) {
	f := newBed(t)
	var addresses, want []string
	for i := range 2000 {
		addresses = append(addresses, fmt.Sprintf("host-%04d:9100", i))
		want = append(want, "many "+addresses[i])
	}
	r := f.start(static("many", addresses...))
	f.wait(address, want...)
	f.mu.Lock()
	messages := f.messages
	f.mu.Unlock()
	if messages != 2000 {
		t.Errorf("%d messages for 2000 targets", messages)
	}
	shards := map[int]bool{}
	for _, got := range f.targets() {
		shards[got.Shard()] = true
	}
	if len(shards) < stream.Shards*9/10 {
		t.Errorf("2000 targets are on %d of %d shards", len(shards), stream.Shards)
	}
	r.apply(static("many", addresses[1000:]...))
	f.wait(address, want[1000:]...)
	await.True(t, "1000 removals are counted", func() bool { return r.value("millrace_discovery_removed_total", "") == 1000 })
	if got := r.value("millrace_discovery_published_total", ""); got != 2000 {
		t.Errorf("published_total = %v, want 2000", got)
	}
}

func TestRestartPublishesOnlyTheDifference(t *testing.T) {
	checkLeaks(t)
	f := newBed(t)
	first := f.start(static("a", "h1:1", "h2:1") + static("gone", "h3:1"))
	f.wait(address, "a h1:1", "a h2:1", "gone h3:1")
	await.True(t, "all is acknowledged", func() bool { return first.value("millrace_discovery_published_total", "") == 3 })
	first.stop()

	second := f.start(static("a", "h2:1", "h4:1"))
	f.wait(address, "a h2:1", "a h4:1")
	if slices.Contains(f.history(), "-h2:1") {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
	if got := second.value("millrace_discovery_published_total", ""); got != 1 {
		t.Errorf("the restarted service published %v targets, want 1", got)
	}
}

func TestRestartKeepsTargetsWhileDiscoveryFails(t *testing.T) {
	f := newBed(t)
	sd := newHTTPSD(t)
	sd.set("h1:1", "h2:1")
	first := f.start(sd.job("web"))
	f.wait(address, "web h1:1", "web h2:1")
	first.stop()

	sd.fail()
	second := f.start(sd.job("web") + static("alive", "h9:1"))
	f.wait(address, "web h1:1", "web h2:1", "alive h9:1")
	sd.waitForRequests(3)
	st := second.Status()
	if len(st.Jobs) != 2 || st.Jobs[1].Held != 2 || st.Jobs[1].Active != 2 || !strings.Contains(st.Jobs[1].Waiting, "http discovery") {
		t.Errorf("Status() = %+v, want 2 targets held that wait for http discovery", st)
	}
	if active, _, _ := second.Targets(); len(active) != 3 {
		t.Errorf("Targets() has %d active, want 3 with those held", len(active))
	}
	sd.set("h2:1")
	f.wait(address, "web h2:1", "alive h9:1")
	if slices.Contains(f.history(), "-h2:1") {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
}

func TestGraceEndsTheWaitForDiscoveryThatDeliversNothing(t *testing.T) {
	f := newBed(t)
	sd := newHTTPSD(t)
	sd.set("h1:1")
	first := f.start(sd.job("web"))
	f.wait(address, "web h1:1")
	first.stop()
	sd.fail()
	f.start(sd.job("web"), func(c *Config) { c.Grace = settleForTests })
	f.wait(address)
}

func TestReloadOfAProviderKeepsTargetsUntilTheNewOneDelivers(t *testing.T) {
	f := newBed(t)
	old, next := newHTTPSD(t), newHTTPSD(t)
	old.set("h1:1", "h2:1")
	next.fail()
	r := f.start(old.job("web"))
	f.wait(address, "web h1:1", "web h2:1")
	r.apply(next.job("web"))
	next.waitForRequests(3)
	next.set("h2:1", "h3:1")
	f.wait(address, "web h2:1", "web h3:1")
	if slices.Contains(f.history(), "-h2:1") {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
}

func TestPublishingGoesOnOnceTheStreamIsThereAgain(t *testing.T) {
	f := newUnwatchedFleet(t)
	lose := func() {
		if err := f.conn.JS.DeleteStream(t.Context(), f.conn.Stream(stream.Targets)); err != nil {
			t.Fatal(err)
		}
	}
	restore := func() {
		if err := f.conn.Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1}); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	r := f.start(static("a", "h1:1"))
	await.True(t, "the service waits for the stream", func() bool { return strings.Contains(r.Status().Waiting, "targets of the last run: ") })
	restore()
	await.True(t, "the target is published", func() bool { return r.value("millrace_discovery_published_total", "") == 1 })
	if got := r.Status().Waiting; got != "" {
		t.Errorf("the running service waits for %q", got)
	}
	lose()
	r.apply(static("a", "h1:1") + static("b", "h2:1"))
	await.True(t, "the job waits for NATS", func() bool {
		st := r.Status()
		return len(st.Jobs) == 2 && strings.Contains(st.Jobs[1].Waiting, "NATS") && st.Jobs[1].Unpublished == 1
	})
	restore()
	await.True(t, "the target is published", func() bool { return r.value("millrace_discovery_published_total", "") == 2 })
	if got := r.value("millrace_discovery_publish_retries_total", ""); got == 0 {
		t.Error("no retries are counted")
	}
	await.True(t, "the job has nothing to wait for", func() bool {
		j := r.Status().Jobs[1]
		return j.Waiting == "" && j.Unpublished == 0
	})
}

func TestUnreadableStoredTargetsStay(t *testing.T) {
	f := newUnwatchedFleet(t)
	future := &nats.Msg{Subject: f.conn.Target(3, 4), Data: []byte{99, 1, 2, 3}}
	if _, err := f.conn.Publish(t.Context(), future, nil); err != nil {
		t.Fatal(err)
	}
	r := f.start(static("a", "h1:1"))
	await.True(t, "the target is published", func() bool { return r.value("millrace_discovery_published_total", "") == 1 })
	if m, err := f.conn.Last(t.Context(), stream.Targets, future.Subject); err != nil || len(m.Data) != len(future.Data) {
		t.Errorf("the message of a newer version became %v, %v", m, err)
	}
}

func TestDiscoveredLabelsTooLargeToSendAreLeftOut(t *testing.T) {
	f := newBed(t)
	big := strings.Repeat("x", f.conn.MaxMessage())
	f.start("- job_name: a\n  static_configs: [{targets: ['h1:1'], labels: {__meta_big: " + big + "}}]\n")
	f.wait(address, "a h1:1")
	if got := f.targets()[0].Discovered; !got.IsEmpty() {
		t.Errorf("discovered labels of %d bytes came", len(got.String()))
	}
}

func TestServicesMetricsAreClean(t *testing.T) {
	f := newBed(t)
	r := f.start(static("a", "h1:1"))
	f.wait(address, "a h1:1")
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families = slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "millrace_discovery_") })
	if len(families) != 6 {
		t.Errorf("%d metrics begin with millrace_discovery_, want 6", len(families))
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
