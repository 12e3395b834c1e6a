package web

import (
	"context"
	"errors"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/status"
)

// post sends a form of the page itself, as a browser does.
func post(t *testing.T, s *Server, path string, form url.Values) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

// shows reports what of the texts a page lacks, with what is escaped read as it is shown.
func shows(t *testing.T, where string, w *httptest.ResponseRecorder, code int, texts ...string) {
	t.Helper()
	body := html.UnescapeString(w.Body.String())
	if w.Code != code {
		t.Errorf("%s answers %d, want %d", where, w.Code, code)
	}
	for _, text := range texts {
		if !strings.Contains(body, text) {
			t.Errorf("%s lacks %q:\n%s", where, text, body)
		}
	}
}

func TestStreamsShowTheLastHour(t *testing.T) {
	w := do(t, fleetServer(t), "GET", "/streams")
	shows(t, "streams", w, 200, "mimir", "ring unhealthy", "1 endpoint waits – Streams", "3 GiB / 10 GiB", `href="rejected?endpoint=dead"`,
		`aria-label="Lag over the last 1 h: from 1 s to 2 s, now `, `aria-label="Lag over the last 45 min: from 0 s to 2 min 59 s, now 2 min 59 s; nothing is known of 5 min 15 s in between"`,
		`aria-label="Samples over the last 45 min: 0/s all the time, now 0/s`)
	s := newServer(t, func(c *Config) {
		c.Fleet = func(context.Context) (*status.Document, error) { return sampleFleet(), nil }
		c.History = func(context.Context) (*status.History, error) { return nil, errors.New("nobody remembers") }
	})
	shows(t, "streams without a history", do(t, s, "GET", "/streams"), 200, "The last hour cannot be shown now:", "nobody remembers", "mimir")
}

func TestChartsLeaveGapsOut(t *testing.T) {
	points := []float32{-1, 2, 4, -1, 1, -1}
	c := newChart("Lag", ofSeconds, points)
	if c.Line != "M120 60L240 20M480 80h0.1" || c.Area != "M120 100L120 60L240 20V100ZM480 100L480 80V100Z" || c.Top != "5 s" || c.Middle != "2.5 s" || c.Now != "1 s" {
		t.Errorf("%+v", c)
	}
	if c := newChart("Lag", ofSeconds, []float32{-1, -1}); c.Line != "" || c.Words != "Lag: nothing is known of the last hour yet" {
		t.Errorf("of nothing: %+v", c)
	}
	for most, want := range map[float64]float64{0: 1, 0.5: 1, 3: 4, 4.5: 5, 51_000: 100_000, 38_000: 40_000} {
		if got := ofRate.top(most); got != want {
			t.Errorf("an axis for %v ends at %v, want %v", most, got, want)
		}
	}
}

func TestRejectedBatchesAreListedAndOpened(t *testing.T) {
	f := &fakeRejected{text: "mimir"}
	s := newServer(t, func(c *Config) {
		c.Rejected, c.Replays = f, sampleReplays()
		c.Endpoints = func() []string { return []string{"mimir"} }
	})
	shows(t, "the list", do(t, s, "GET", "/rejected"), 200, `href="rejected?message=1234"`, `href="rejected?before=1230"`, "1,234", "450", `data-refresh="5"`)
	shows(t, "of an endpoint", do(t, s, "GET", "/rejected?endpoint=gone&before=1230"), 200, `href="rejected?endpoint=gone&message=1233"`, `<option selected>gone</option>`, `data-refresh="0"`)
	shows(t, "a batch", do(t, s, "GET", "/rejected?message=1234"), 200, "Rejected batch 1,234", "1 to 200 of 450, in 3 series", `href="rejected?from=200&message=1234"`, "2023-11-14 22:13:20.000",
		`href="replays?endpoint=mimir&new=1&rejected=on"`, `data-refresh="0"`)
	shows(t, "its end", do(t, s, "GET", "/rejected?message=1234&from=400"), 200, "401 to 450 of 450", `href="rejected?from=200&message=1234"`, "Earlier samples")
	shows(t, "one that is gone", do(t, s, "GET", "/rejected?message=404"), 200, "Message 404 is not there")
	if got, want := strings.Join(f.asks, "; "), "list  0 20; list gone 1230 20; open 1234 0; open 1234 400; open 404 0"; got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	hostile := do(t, hostileServer(t), "GET", "/rejected?message=1").Body.String()
	if strings.Contains(hostile, "<script>") || strings.Count(hostile, "&lt;script&gt;alert(1)") < 200 {
		t.Error("the labels of a hostile batch are not shown as text")
	}
}

func TestReplaysAreHeldConfirmedStoppedAndRemoved(t *testing.T) {
	f := sampleReplays()
	s := newServer(t, func(c *Config) {
		c.Replays = f
		c.Endpoints = func() []string { return []string{"mimir", "dead"} }
	})
	shows(t, "the list", do(t, s, "GET", "/replays"), 200, "incident", "40 %", "40 of 100 messages", "503 Service Unavailable", "567 refused", `aria-label="Start held"`, "at least 99 series", "1 replay runs – Replays")
	shows(t, "the form", do(t, s, "GET", "/replays?new=1&endpoint=dead&rejected=on"), 200, "<option selected>dead</option>", `name="rejected" checked`, `data-refresh="0"`)

	form := url.Values{"do": {"hold"}, "name": {"again"}, "from": {"yesterday"}, "match": {"{job=\"api\"}\n\n up "}, "endpoint": {"dead"}, "rate": {"x"}, "dryrun": {"on"}}
	shows(t, "a wrong rate", post(t, s, "/replays?new=1", form), 400, `"x" is no number`, `name="rate" value="x"`, `value="yesterday"`, "<option selected>dead</option>", `name="dryrun" checked`, `{job="api"}`, `href="#rate"`)
	form.Set("rate", "5000")
	f.wrong = &replay.FieldError{Field: "from", Message: "it is no time", Remedy: "write one"}
	w := post(t, s, "/replays?new=1", form)
	f.wrong = nil
	if w.Code != 503 { // the list fails alike here
		t.Errorf("a wrong time: %d", w.Code)
	}
	w = post(t, s, "/replays?new=1", form)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "replays?confirm=again" {
		t.Fatalf("held: %d to %q", w.Code, w.Header().Get("Location"))
	}
	made := f.list[len(f.list)-1].Spec
	if len(made.Match) != 2 || made.Match[1] != "up" || made.Rate != 5000 || !made.DryRun || made.Endpoint != "dead" {
		t.Errorf("asked for %+v", made)
	}
	shows(t, "to be confirmed", do(t, s, "GET", "/replays?confirm=again"), 200, "Count what would be sent?", "7 messages of the stream", "Some of it is gone:", `value="start"`, `data-refresh="0"`)
	shows(t, "nothing to be confirmed", do(t, s, "GET", "/replays?confirm=other"), 200, "there is no replay of this name")
	f.done = nil
	for _, step := range []struct{ do, name, want string }{
		{"start", "again", "start again hold false"}, {"stop", "incident", "stop incident"}, {"remove", "counted", "stop counted"},
	} {
		if w := post(t, s, "/replays", url.Values{"do": {step.do}, "name": {step.name}}); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "replays" {
			t.Errorf("%s %s: %d to %q", step.do, step.name, w.Code, w.Header().Get("Location"))
		}
		if got := f.done[len(f.done)-1]; got != step.want {
			t.Errorf("%s %s did %q", step.do, step.name, got)
		}
	}
	f.done = nil
	shows(t, "removing one that runs", post(t, s, "/replays", url.Values{"do": {"remove"}, "name": {"incident"}}), 400, "stop it first")
	if w := post(t, s, "/replays", url.Values{"do": {"stop"}, "name": {"counted"}}); w.Code != http.StatusSeeOther {
		t.Errorf("stopping what has ended: %d", w.Code)
	}
	shows(t, "something else", post(t, s, "/replays", url.Values{"do": {"purge"}, "name": {"counted"}}), 400, `"purge" is nothing to be done`)
	if len(f.done) > 0 {
		t.Errorf("done: %q", f.done)
	}
	r := httptest.NewRequest("POST", "/replays", strings.NewReader("do=stop&name=incident"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	other := httptest.NewRecorder()
	if s.Handler().ServeHTTP(other, r); other.Code != http.StatusForbidden || len(f.done) > 0 {
		t.Errorf("from another site: %d, %q", other.Code, f.done)
	}
}

func TestErrorsOfAReplayStandBesideTheField(t *testing.T) {
	for _, tc := range []struct {
		err   error
		field string
	}{
		{&replay.FieldError{Field: "from", Message: "a", Remedy: "b"}, "from"}, {&replay.FieldError{Field: "dry-run", Message: "a", Remedy: "b"}, "dryrun"}, {replay.ErrTaken, "name"}, {replay.ErrMany, ""},
	} {
		field := ""
		if f, ok := errors.AsType[*fieldError](aboutField(tc.err)); ok {
			field = f.field
		}
		if field != tc.field {
			t.Errorf("%v stands beside %q, want %q", tc.err, field, tc.field)
		}
	}
}

func TestRatesOfReplaysAreMeasured(t *testing.T) {
	var r replayRates
	now := time.Now()
	look := func(after time.Duration, samples uint64, state string) float64 {
		return r.note(now.Add(after), []replay.Status{{Spec: replay.Spec{Name: "x"}, State: state, Samples: samples}})["x"]
	}
	for _, step := range []struct {
		after   time.Duration
		samples uint64
		state   string
		want    float64
	}{{0, 0, replay.Running, -1}, {time.Second, 50, replay.Running, -1}, {5 * time.Second, 500, replay.Running, 100}, {6 * time.Second, 510, replay.Running, 100}, {10 * time.Second, 500, replay.Running, 0}, {12 * time.Second, 900, replay.Stopped, -1}} {
		if got := look(step.after, step.samples, step.state); got != step.want {
			t.Errorf("after %s: %v, want %v", step.after, got, step.want)
		}
	}
}

func TestSeriesAreCountedWhenAskedForAndOnceAtATime(t *testing.T) {
	began, go_ := make(chan cardinality.Query, 4), make(chan struct{})
	s := newServer(t, func(c *Config) {
		c.Cardinality = func(ctx context.Context, q cardinality.Query) (*cardinality.Report, error) {
			began <- q
			select {
			case <-go_:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if q.Metric == "broken" {
				return nil, errors.New("the stream is away")
			}
			return sampleReport(q.Metric), nil
		}
		c.SeriesLimits = func() []SeriesLimit { return []SeriesLimit{{"metric", 10_000, "refuse"}} }
	})
	t.Cleanup(s.surveys.stop)
	shows(t, "before", do(t, s, "GET", "/cardinality"), 200, "Nothing was counted in the last hour.", `data-refresh="0"`, "10,000")
	shows(t, "a wrong window", post(t, s, "/cardinality", url.Values{"window": {"x"}, "top": {"25"}}), 400, `"x" is no duration`, `name="window" value="x"`)
	shows(t, "too much", post(t, s, "/cardinality", url.Values{"top": {"100000"}}), 400, "the page shows 1 to 1000 of each")
	w := post(t, s, "/cardinality", url.Values{"window": {"10m"}})
	link := w.Header().Get("Location")
	if w.Code != http.StatusSeeOther || link != "cardinality?since=1h&top=25&window=10m" {
		t.Fatalf("%d to %q", w.Code, link)
	}
	if q := <-began; q.Window != 10*time.Minute || q.Since != time.Hour || q.Top != 25 {
		t.Errorf("counting %+v", q)
	}
	shows(t, "while it counts", do(t, s, "GET", "/"+link), 200, "Counting…", `data-refresh="5"`, "disabled>Count")
	if w := post(t, s, "/cardinality", url.Values{"window": {"10m"}}); w.Code != http.StatusSeeOther {
		t.Errorf("asking for the same: %d", w.Code)
	}
	shows(t, "asking for another", post(t, s, "/cardinality", url.Values{"metric": {"up"}}), 400, "only one count runs at a time")
	go_ <- struct{}{}
	s.surveys.ended.Wait()
	texts := []string{"node_cpu_seconds_total", "12,345", `name="metric" value="up"`, "user_id", "no name", "a:9100", `data-refresh="0"`}
	shows(t, "what was counted", do(t, s, "GET", "/"+link), 200, texts...)
	shows(t, "what was counted last", do(t, s, "GET", "/cardinality"), 200, texts...)
	close(go_)
	w = post(t, s, "/cardinality", url.Values{"metric": {"up"}, "window": {"10m"}})
	s.surveys.ended.Wait()
	shows(t, "one metric", do(t, s, "GET", "/"+w.Header().Get("Location")), 200, "Series of", `href="cardinality?since=1h&top=25&window=10m"`, "There are more,")
	w = post(t, s, "/cardinality", url.Values{"metric": {"broken"}})
	s.surveys.ended.Wait()
	shows(t, "a failure", do(t, s, "GET", "/"+w.Header().Get("Location")), 200, "Counting failed.", "the stream is away")
	if n := len(began); n != 2 {
		t.Errorf("%d counts beside the first", n)
	}

	h := hostileServer(t)
	w = post(t, h, "/cardinality", url.Values{"metric": {hostile}})
	h.surveys.ended.Wait()
	w = do(t, h, "GET", "/"+w.Header().Get("Location"))
	if body := w.Body.String(); strings.Contains(body, "<script>") || strings.Count(body, "&lt;script&gt;alert(1)") < 5 {
		t.Errorf("hostile names are not shown as text:\n%s", body)
	}
}

func TestACountEndsWithTheServer(t *testing.T) {
	began := make(chan struct{})
	s := newServer(t, func(c *Config) {
		c.Cardinality = func(ctx context.Context, _ cardinality.Query) (*cardinality.Report, error) {
			close(began)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	stop := serve(t, s)
	if w := post(t, s, "/cardinality", url.Values{}); w.Code != http.StatusSeeOther {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	<-began
	if err := stop(); err != nil {
		t.Error(err)
	}
	if s.surveys.running != nil {
		t.Error("it goes on")
	}
	shows(t, "afterwards", post(t, s, "/cardinality", url.Values{}), 400, "this process is stopping")
}

func TestRulesAreTried(t *testing.T) {
	s := fleetServer(t)
	shows(t, "the form", do(t, s, "GET", "/relabel"), 200, `<optgroup label="relabel_configs"><option value="relabel_configs node">node (1 rule)</option>`, `data-refresh="0"`)
	rules := "- source_labels: [job]\n  target_label: team\n- regex: instance\n  action: labeldrop\n- source_labels: [job]\n  regex: web\n  action: drop\n"
	sets := "up{job=\"api\", instance=\"a\"}\n\n up{job=\"web\"}\n"
	shows(t, "written rules", post(t, s, "/relabel", url.Values{"rules": {rules}, "labels": {sets}}), 200, "What came of it", `<span class="unseen">added</span>`, `team=<q>api</q>`, `<span class="unseen">removed</span>`, "no change",
		`{__name__="up", job="api", team="api"}`, `<p class="state bad">dropped</p>`, "target_label: team")
	shows(t, "an endpoint's", post(t, s, "/relabel", url.Values{"of": {"write_relabel_configs mimir"}, "labels": {`up{zone="x"}`}}), 200, "external_labels", `cluster=<q>c1</q>`, `was <span class="mono"><q>x</q>`, "selected>mimir")
	shows(t, "to be edited", post(t, s, "/relabel", url.Values{"of": {"relabel_configs node"}, "do": {"edit"}, "labels": {"{}"}}), 200, "target_label: zone\n", `<option value="">those written below`)
	long := strings.Repeat("x", 1000)
	for name, tc := range map[string]struct{ rules, labels, of, want string }{
		"no rules":          {"", "up", "", "there are none; write some, or choose"},
		"no YAML":           {"- a: [", "up", "", "write a list of rules as relabel_configs has them"},
		"an unknown key":    {"- sauce_labels: [a]", "up", "", "field sauce_labels not found"},
		"a wrong rule":      {"- action: replace", "up", "", "rule 1: "},
		"many rules":        {strings.Repeat("- {regex: a, action: labeldrop}\n", 201), "up", "", "201 rules; try at most 200"},
		"large rules":       {strings.Repeat("#", maxRuleBytes+1), "up", "", "65537 bytes"},
		"no labels":         {rules, " \n", "", `there are none; write some as up{job="api"}`},
		"wrong labels":      {rules, "up{", "", `labels "up{"`},
		"many labels":       {rules, strings.Repeat("up\n", 21), "", "more than 20"},
		"a rule that grows": {"- {source_labels: [a], target_label: a, replacement: '" + strings.Repeat("$0", 500) + "'}", `{a="` + long + `"}`, "", "could make more than"},
		"unknown rules":     {"", "up", "relabel_configs other", `no "relabel_configs other" any more`},
		"nothing to edit":   {"", "up", "edit", "choose the rules of the configuration"},
	} {
		form := url.Values{"rules": {tc.rules}, "labels": {tc.labels}, "of": {tc.of}}
		if tc.of == "edit" {
			form = url.Values{"do": {"edit"}, "of": {""}, "labels": {"up"}}
		}
		shows(t, name, post(t, s, "/relabel", form), 400, tc.want, `aria-invalid="true"`, "\n"+strings.TrimSuffix(tc.labels, "\n"))
	}
	h := post(t, s, "/relabel", url.Values{"rules": {"- {target_label: x, replacement: '" + strings.ReplaceAll(hostile, "'", "''") + "'}"}, "labels": {"up"}})
	if body := h.Body.String(); strings.Contains(body, "<script>") || strings.Count(body, "&lt;script&gt;alert(1)") < 3 {
		t.Errorf("%d: a hostile rule is not shown as text:\n%s", h.Code, body)
	}
}
