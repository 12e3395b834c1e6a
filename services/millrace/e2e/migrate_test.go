package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// arrival is how long samples may take from the start of Millrace to the endpoint.
const arrival = 60 * time.Second

// closedDoors keep a process from the ports of OTLP, which others may have.
const closedDoors = "millrace:\n  ingest: {otlp: {grpc: {listen: \"\"}, http: {listen: \"\"}}}\n"

// migration is an example of a README, run between targets, discovery and an endpoint that take the places of those it names.
type migration struct {
	config   string   // the example's text
	endpoint string   // the URL in it that is replaced by that of a recorder
	places   []string // what else is replaced, in pairs
	files    map[string]string
	options  []option
	want     []string                    // series that arrive, as text
	never    []string                    // parts of such texts that no series has
	header   [2]string                   // of the requests: name and value
	begin    func(t *testing.T, p *proc) // is called when Millrace runs; may be nil
}

// example returns the text of a file of the migration guide.
func example(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, migrations, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// run starts Millrace with the example, and waits until the endpoint has got what it should, twice.
func (m migration) run(t *testing.T) {
	t.Helper()
	rcv := newRecorder(t, "")
	dir := t.TempDir()
	for name, text := range m.files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, text)
	}
	config := m.config
	places := append(slices.Clone(m.places), m.endpoint, rcv.URL, "scrape_interval: 15s", "scrape_interval: 1s")
	if len(m.files) == 0 && !strings.Contains(config, "scrape_interval") {
		places = places[:len(places)-2] // it does not scrape
	}
	for i := 0; i < len(places); i += 2 {
		if !strings.Contains(config, places[i]) {
			t.Fatalf("the example does not have %q:\n%s", places[i], config)
		}
	}
	config = strings.NewReplacer(places...).Replace(config)
	switch {
	case strings.Contains(config, "\n  ingest:\n"):
	case strings.Contains(config, "\nmillrace:\n"):
		config = strings.Replace(config, "\nmillrace:\n", "\n"+closedDoors, 1)
	default:
		config += closedDoors
	}
	p := startMillrace(t, config, append(m.options, inDir(dir))...)
	if m.begin != nil {
		m.begin(t, p)
	}
	for range 2 { // what must not arrive has had its time when the rest has come again
		eventually(t, arrival, "the example's series arrive", func() error { return m.arrived(rcv) })
		for _, series := range rcv.got("") {
			for _, part := range m.never {
				if strings.Contains(series, part) {
					t.Errorf("%s arrived, but nothing with %s should", series, part)
				}
			}
		}
		if m.header[0] != "" {
			if got, _ := rcv.header(m.header[0]); got != m.header[1] {
				t.Errorf("requests have the header %s: %q, want %q", m.header[0], got, m.header[1])
			}
		}
		if m.begin != nil {
			return // it is pushed once
		}
		rcv.reset()
	}
}

func (m migration) arrived(rcv *recorder) error {
	got := rcv.got("")
	for _, want := range m.want {
		if !slices.Contains(got, want) {
			return fmt.Errorf("%s is not among\n%s", want, strings.Join(got, "\n"))
		}
	}
	return nil
}

// node is a target with a metric of its own and one of Go's runtime. It returns its address. contentType may be empty: then there is none.
func node(t testing.TB, contentType string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		fmt.Fprint(w, "go_goroutines 7\ndemo_requests_total{path=\"/\"} 42\n")
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// nodeFiles are two files with a target each, of which one is a test's.
func nodeFiles(berlin, rome string) map[string]string {
	file := `[{"targets": [%q], "labels": {"env": %q}}]`
	return map[string]string{"targets/berlin.json": fmt.Sprintf(file, berlin, "prod"), "targets/rome.json": fmt.Sprintf(file, rome, "test")}
}

const prometheusEndpoint = "http://prometheus.example:9090/api/v1/write"

// TestFirstConfiguration runs the configuration of the first README.
func TestFirstConfiguration(t *testing.T) {
	blocks := readREADME(t, filepath.Join(repository, "README.md")).blocks
	i := slices.IndexFunc(blocks, func(b block) bool { return b.language == "yaml" })
	if i < 0 {
		t.Fatal("the README shows no configuration")
	}
	web := lastingAddress(t)
	migration{
		config: blocks[i].text, endpoint: "http://localhost:9090/api/v1/write", places: []string{"localhost:9474", web}, options: []option{onAddress(web)},
		want: []string{fmt.Sprintf(`{__name__="up", cluster="demo", instance=%q, job="millrace"}`, web)},
	}.run(t)
}

func TestMigrationFromPrometheusAgent(t *testing.T) {
	berlin, rome := node(t, textType), node(t, textType)
	migration{
		config: example(t, "prometheus-agent/prometheus.yml"), endpoint: prometheusEndpoint, files: nodeFiles(berlin, rome),
		want: []string{
			fmt.Sprintf(`{__name__="up", cluster="demo", env="prod", instance=%q, job="nodes", site="berlin"}`, berlin),
			fmt.Sprintf(`{__name__="demo_requests_total", cluster="demo", env="prod", instance=%q, job="nodes", path="/", site="berlin"}`, berlin),
		},
		never: []string{`"go_goroutines"`, `env="test"`},
	}.run(t)
}

func TestMigrationFromVmagent(t *testing.T) {
	berlin, rome := node(t, textType), node(t, textType)
	migration{
		config: example(t, "vmagent/prometheus.yml"), endpoint: "http://victoria.example:8428/api/v1/write", files: nodeFiles(berlin, rome),
		want: []string{
			fmt.Sprintf(`{__name__="up", cluster="demo", env="prod", host="%[1]s/nodes", instance="%[1]s", job="nodes", region="west"}`, berlin),
			fmt.Sprintf(`{__name__="demo_requests_total", cluster="demo", env="prod", host="%[1]s/nodes", instance="%[1]s", job="nodes", path="/", region="west"}`, berlin),
		},
		never: []string{`"go_goroutines"`, `env="test"`},
	}.run(t)
}

// TestMigrationFromAlloysFiles has targets that do not say what they send, which Alloy takes for text.
func TestMigrationFromAlloysFiles(t *testing.T) {
	berlin, rome := node(t, ""), node(t, "")
	migration{
		config: example(t, "alloy/file.yml"), endpoint: prometheusEndpoint, files: nodeFiles(berlin, rome),
		want: []string{
			fmt.Sprintf(`{__name__="up", cluster="demo", env="prod", instance=%q, job="nodes"}`, berlin),
			fmt.Sprintf(`{__name__="demo_requests_total", cluster="demo", env="prod", instance=%q, job="nodes", path="/"}`, berlin),
		},
		never:  []string{`"go_goroutines"`, `env="test"`, `site=`},
		header: [2]string{"X-Scope-OrgID", "staging"},
	}.run(t)
}

// otlpPush is a push of a counter, as OTLP's JSON has it. It lacks the time.
const otlpPush = `{"resourceMetrics": [{
  "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}, {"key": "service.instance.id", "value": {"stringValue": "shop-1"}},
    {"key": "host.name", "value": {"stringValue": "node-7"}}]},
  "scopeMetrics": [{"scope": {"name": "shop/server", "version": "1.2.3"}, "metrics": [{"name": "orders.taken", "unit": "1", "sum": {
    "aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{"timeUnixNano": "%d", "asInt": "7"}]}}]}]}]}`

func TestMigrationFromAlloysReceiver(t *testing.T) {
	w := newWays(t)
	migration{
		config: example(t, "alloy/otlp.yml"), endpoint: prometheusEndpoint, places: []string{"0.0.0.0:4317", w.grpc, "0.0.0.0:4318", w.http},
		begin: func(t *testing.T, _ *proc) {
			resp, err := http.Post(w.otlpURL(), "application/json", strings.NewReader(fmt.Sprintf(otlpPush, time.Now().UnixNano())))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("the push is answered %s", resp.Status)
			}
		},
		want:  []string{`{__name__="orders_taken", cluster="demo", instance="shop-1", job="shop", otel_scope_name="shop/server", otel_scope_version="1.2.3"}`},
		never: []string{`"target_info"`},
	}.run(t)
}
