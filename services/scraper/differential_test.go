package scraper

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	promconfig "github.com/prometheus/prometheus/config"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// differentialJobs are scrape configs that together use every option that has a say in what becomes of a body.
const differentialJobs = `
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: plain
- job_name: honor
  honor_labels: true
  track_timestamps_staleness: true
  extra_scrape_metrics: true
- job_name: no_timestamps
  honor_timestamps: false
- job_name: sample_limit
  sample_limit: 12
  track_timestamps_staleness: true
- job_name: no_timestamps_tracked
  honor_timestamps: false
  track_timestamps_staleness: true
- job_name: label_limit
  label_limit: 6
- job_name: label_name_length_limit
  label_name_length_limit: 12
- job_name: label_value_length_limit
  label_value_length_limit: 24
- job_name: label_limits
  label_limit: 6
  label_name_length_limit: 12
  label_value_length_limit: 24
- job_name: relabel
  metric_relabel_configs:
  - {source_labels: [__name__], regex: "drop.*", action: drop}
  - {source_labels: [kind], regex: "gone", action: drop}
  - {regex: "noise.*", action: labeldrop}
  - {source_labels: [kind], regex: "noname", target_label: __name__, replacement: ""}
  - {source_labels: [path], regex: "/(.*)", target_label: path}
- job_name: native
  scrape_native_histograms: true
  always_scrape_classic_histograms: true
  native_histogram_bucket_limit: 6
  native_histogram_min_bucket_factor: 1.3
- job_name: native_alone
  scrape_native_histograms: true
- job_name: convert
  scrape_native_histograms: true
  convert_classic_histograms_to_nhcb: true
- job_name: convert_and_classic
  scrape_native_histograms: true
  always_scrape_classic_histograms: true
  convert_classic_histograms_to_nhcb: true
- job_name: body_limit
  body_size_limit: 900B
  extra_scrape_metrics: true
- job_name: legacy
  metric_name_validation_scheme: legacy
  metric_name_escaping_scheme: underscores
  fallback_scrape_protocol: PrometheusText0.0.4
`

func differentialConfig(t testing.TB) *promconfig.Config {
	t.Helper()
	cfg, err := promconfig.Load(differentialJobs, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const (
	plainText   = "text/plain; version=0.0.4; charset=utf-8"
	openMetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	protobuf    = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)

// listing is a body that changes from scrape to scrape, as lines.
type listing struct {
	contentType string
	lines       []string
}

// seedExpositions are what sequences begin with.
var seedExpositions = []listing{
	{plainText, strings.SplitAfter(`# HELP requests_total The requests.
# TYPE requests_total counter
requests_total{code="200",path="/a"} 1027
requests_total{code="500",path="/a"} 3
# TYPE temperature gauge
temperature 36.6
temperature{room="one",kind="gone"} -3.5e-2
# HELP latency_seconds A histogram.
# TYPE latency_seconds histogram
latency_seconds_bucket{le="0.1"} 5
latency_seconds_bucket{le="1"} 9
latency_seconds_bucket{le="+Inf"} 10
latency_seconds_sum 3.25
latency_seconds_count 10
# TYPE duration_seconds summary
duration_seconds{quantile="0.5"} NaN
duration_seconds{quantile="1"} 2
duration_seconds_sum 17
duration_seconds_count 8
# a comment of no kind
drop_me 1
with_time 5 1700000000000
  indented{instance="mine",job="own",exported_job="x"} 4
{"dotted.name","label.dots"="x"} 6
`, "\n")},
	{openMetrics, strings.SplitAfter(`# HELP requests The requests.
# TYPE requests counter
requests_total{code="200"} 1027 # {trace_id="abc"} 0.67
requests_created{code="200"} 1600000000.5
# TYPE latency_seconds histogram
# UNIT latency_seconds seconds
latency_seconds_bucket{le="0.1"} 5 # {trace_id="def"} 0.05 1520879607.789
latency_seconds_bucket{le="1"} 9
latency_seconds_bucket{le="+Inf"} 10
latency_seconds_sum 3.25
latency_seconds_count 10
latency_seconds_created 1600000001
# TYPE temperature gauge
temperature{room="one"} 20.5 1700000000.25
# TYPE duration_seconds summary
duration_seconds{quantile="0.5"} 1
duration_seconds_sum 17
duration_seconds_count 8
# EOF
`, "\n")},
	{plainText, []string{"only 1\n"}},
	{plainText, []string{"# nothing but a comment\n"}},
}

// recordedExposition returns one of three consecutive real scrapes of a node_exporter.
func recordedExposition(t testing.TB, n int) listing {
	t.Helper()
	return listing{plainText, strings.SplitAfter(unpacked(t, filepath.Join("testdata", "expositions", fmt.Sprintf("node_exporter_%02d.txt.gz", n))), "\n")}
}

// unpacked returns the text of a file.
func unpacked(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (e listing) text() string { return strings.Join(e.lines, "") }

var oddValues = []string{
	"0", "-0", "1e300", "1e-300", "5e-324", "1.7976931348623157e308", "2e308", "NaN", "nan", "+Inf", "-Inf", "inf", "0x1p-2", "1_000", "+5", ".5", "5.", "-.5e+3", "1e", "",
	"123456789012345678901234567890", "0.1", "3.0000000000000004", "9007199254740993", "0.000000000000000000000000000001", "1E5", "1e+05", "00012", "1 ", "1\t", "1 1700000000001", "1  1700000000002",
	"1 -5", "1 99999999999999", "1 1700000000003 ", "1.5\r", "7 # {a=\"b\"} 1", "7 # {a=\"b\"} 1 5.5", "7 1700000000.5 # {a=\"b\"} 1", "1{", "--1", "1-1", "1e99999", "1e-99999", "17976931348623157e292",
	"18446744073709551616", "18446744073709551616.000000", "1.8446744073709551616e+19", "36893488147419103232", "73786976294838206464", "92233720368547758080", "0.18446744073709551616",
}

var oddLines = []string{
	"\n", "   \n", "# TYPE odd histogram\n", "# TYPE odd summary\n", "# HELP odd Words with \\\\ and \\n in them.\n", "#\n", "#no space\n", "# TYPE odd nonsense\n", "odd{le=\"1\"} 1\n", "odd{quantile=\"1\"} 2\n",
	"odd{a=\"1\",a=\"2\"} 1\n", "odd{a=\"\"} 1\n", "odd{kind=\"noname\"} 1\n", "odd{noise1=\"x\",noise2=\"y\"} 1\n", "odd{path=\"/x\"} 1\n", "odd{path=\"x\"} 2\n", "bro{ken 1\n", "odd{a=\"\xff\"} 1\n", "odd{a=\"line\nbreak\"} 1\n",
	"odd{a=\"long value, longer than limits\"} 1\n", "odd{a_long_label_name=\"x\"} 1\n", "odd{a=\"1\",b=\"2\",c=\"3\",d=\"4\",e=\"5\"} 1\n", "\x00 1\n", "odd{a=\"\x00\"} 1\n", "# EOF\n", "odd_created 1\n", "odd\xff 1\n", "no value\n", "odd 1", "ödd 1\n",
	"# UNIT odd seconds\n", "{\"quoted\"} 1\n", "{a=\"nameless\"} 1\n",
}

// change alters an exposition as targets do, and as they should not.
func (c *choices) change(e *listing) {
	lines := append([]string(nil), e.lines...)
	at := func() int { return (c.pick(256)<<8 + c.pick(256)) % max(len(lines), 1) }
	setValue := func(i int, v string) {
		line := strings.TrimSuffix(lines[i], "\n")
		if k := strings.LastIndexAny(line, "} "); k > 0 && !strings.HasPrefix(line, "#") {
			lines[i] = line[:k+1] + strings.TrimPrefix(" ", line[k:k+1]) + v + "\n"
		}
	}
	if len(lines) == 0 {
		lines = append(lines, "first 1\n")
	}
	for range 1 + c.pick(3) {
		switch i := at(); c.pick(14) {
		case 0, 1, 2:
			setValue(i, fmt.Sprint(c.pick(1000), ".", c.pick(100)))
		case 3:
			setValue(i, oddValues[c.pick(len(oddValues))])
		case 4, 5:
			if len(lines) > 1 {
				lines = append(lines[:i:i], lines[i+1:]...)
			}
		case 6:
			lines = append(lines[:i:i], append([]string{fmt.Sprintf("added{n=\"%d\"} %d\n", c.pick(20), c.pick(9))}, lines[i:]...)...)
		case 7:
			lines = append(lines[:i:i], append([]string{oddLines[c.pick(len(oddLines))]}, lines[i:]...)...)
		case 8:
			k := at()
			lines[i], lines[k] = lines[k], lines[i]
		case 9:
			lines = append(lines[:i:i], append([]string{lines[at()]}, lines[i:]...)...)
		case 10: // a block moves
			k := i + (len(lines)-i)/2
			lines = append(append(append([]string(nil), lines[k:]...), lines[:i]...), lines[i:k]...)
		case 11:
			if b := []byte(lines[i]); c.oneIn(3) && len(b) > 0 {
				b[c.pick(256)%len(b)] = byte(c.pick(256))
				lines[i] = string(b)
			}
		case 12:
			if c.oneIn(4) {
				lines[i] = lines[i][:c.pick(256)%(len(lines[i])+1)]
			}
		case 13: // further samples with timestamps of their own
			for n := range 1 + c.pick(3) {
				lines = append(lines[:i:i], append([]string{fmt.Sprintf("timed{n=\"%d\"} %d %d\n", c.pick(2), c.pick(3), 1700000000000+int64(c.pick(4)+n)*1000)}, lines[i:]...)...)
			}
		}
	}
	e.lines = lines
}

// sequence makes up what a target answers.
func (c *choices) sequence(jobs []*promconfig.ScrapeConfig, seeds []listing) sequence {
	s := sequence{job: jobs[c.pick(len(jobs))].JobName}
	e := seeds[c.pick(len(seeds))]
	good := e
	for range 4 + c.pick(6) {
		st := step{body: e.text(), contentType: e.contentType}
		switch c.pick(24) {
		case 17, 18:
			st.cut = c.pick(256) * max(len(st.body)/256, 1)
		case 19:
			st.status = 503
		case 20:
			st.body = ""
		case 21:
			st.contentType = ""
		case 22:
			st = step{body: protobufExposition(c), contentType: protobuf}
		case 23:
			st.contentType = seeds[c.pick(len(seeds))].contentType
		}
		s.steps = append(s.steps, st)
		switch c.pick(8) {
		case 0: // the same again
		case 1:
			e = good
		case 2:
			good = e
			c.change(&e)
		default:
			c.change(&e)
		}
	}
	return s
}

// protobufExposition has native histograms and exemplars.
func protobufExposition(c *choices) string {
	var b bytes.Buffer
	enc := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeProtoDelim))
	counter := &dto.MetricFamily{Name: proto.String("requests_total"), Type: dto.MetricType_COUNTER.Enum()}
	for i := range 1 + c.pick(3) {
		counter.Metric = append(counter.Metric, &dto.Metric{
			Label: []*dto.LabelPair{{Name: proto.String("code"), Value: proto.String(fmt.Sprint(200 + i))}},
			Counter: &dto.Counter{Value: proto.Float64(float64(c.pick(100))), Exemplar: &dto.Exemplar{
				Label: []*dto.LabelPair{{Name: proto.String("trace_id"), Value: proto.String("x")}}, Value: proto.Float64(float64(c.pick(9))), Timestamp: timestamppb.New(time.Unix(1700000000+int64(c.pick(9)), 0)),
			}},
		})
	}
	native := &dto.MetricFamily{Name: proto.String("native_seconds"), Type: dto.MetricType_HISTOGRAM.Enum()}
	for i := range c.pick(3) {
		h := &dto.Histogram{
			Schema: proto.Int32(int32(c.pick(5))), ZeroThreshold: proto.Float64(1e-128), ZeroCount: proto.Uint64(uint64(c.pick(4))), SampleSum: proto.Float64(float64(c.pick(50))),
			SampleCount: proto.Uint64(20), PositiveSpan: []*dto.BucketSpan{{Offset: proto.Int32(0), Length: proto.Uint32(uint32(1 + c.pick(9)))}},
			Bucket: []*dto.Bucket{{UpperBound: proto.Float64(1), CumulativeCount: proto.Uint64(5)}},
		}
		for range h.PositiveSpan[0].GetLength() {
			h.PositiveDelta = append(h.PositiveDelta, int64(c.pick(3)))
		}
		native.Metric = append(native.Metric, &dto.Metric{Label: []*dto.LabelPair{{Name: proto.String("n"), Value: proto.String(fmt.Sprint(i))}}, Histogram: h})
	}
	families := []*dto.MetricFamily{counter}
	if len(native.Metric) > 0 {
		families = append(families, native)
	}
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			panic(err) // it is well-formed
		}
	}
	return b.String()
}

func (c *choices) sequences(t testing.TB, cfg *promconfig.Config, n int) (list []sequence) {
	seeds := append([]listing{recordedExposition(t, 1)}, seedExpositions...)
	seeds = append(seeds, seedExpositions[:2]...) // these are the most telling
	for range n {
		list = append(list, c.sequence(cfg.ScrapeConfigs, seeds))
	}
	return list
}

// TestScrapesAreThoseOfPrometheus compares the loop with Prometheus's on sequences of bodies that targets might answer.
func TestScrapesAreThoseOfPrometheus(t *testing.T) {
	cfg := differentialConfig(t)
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 11))
			data := make([]byte, 40_000)
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			c := &choices{data}
			compareWithPrometheus(t, cfg, c.sequences(t, cfg, 100), seed == 1)
		})
	}
}

// TestLinesThatComeBackUnderAnotherType compares on lines that come, go and move while the TYPE comment before them changes, on which their labels depend.
func TestLinesThatComeBackUnderAnotherType(t *testing.T) {
	cfg := differentialConfig(t)
	const histogram, summary = "# TYPE odd histogram\n", "# TYPE odd summary\n"
	lines := []string{"odd{le=\"1\"} 1\n", "odd{quantile=\"1\",le=\"2\"} 1\n", "{\"odd\",\"le\"=\"1\"} 1\n", "drop_me{le=\"1\"} 1\n", "odd{kind=\"gone\",quantile=\"1\"} 1\n", "odd{a=\"1\"} 1\n"}
	with := func(comment string) string { return "a 1\n" + comment + strings.Join(lines, "") + "z 1\n" }
	without := func(comment string) string { return "a 1\n" + comment + "z 1\n" }
	var list []sequence
	for _, job := range []string{"plain", "relabel", "native"} {
		for _, bodies := range [][]string{
			{with(histogram), without(histogram), with("")},
			{with(histogram), without(histogram), with(summary)},
			{with(summary), without(summary), with(histogram)},
			{with(""), without(""), with(histogram), without(""), with("")},
			{with(histogram), without(""), with(histogram)},
			// The labels are those of the first type, until the lines are gone.
			{with(histogram), with(""), with(""), without(""), with("")},
			{with(histogram), with(summary), without(summary), with(summary), with(summary)},
			{with(histogram), with(""), without(""), with(histogram), without(histogram), with(histogram), with("")},
			// A scrape that fails tells of lines too.
			{"a 1\n", with(histogram) + "bro{ken\n", with(""), without(""), with("")},
			{without(""), with(histogram) + "bro{ken\n", without(""), with("")},
		} {
			for _, contentType := range []string{plainText, openMetrics} {
				s := sequence{job: job}
				for _, body := range bodies {
					if contentType == openMetrics {
						body += "# EOF\n"
					}
					s.steps = append(s.steps, step{body: body, contentType: contentType})
				}
				list = append(list, s)
			}
		}
	}
	compareWithPrometheus(t, cfg, list, false)
}

// TestRecordedScrapesAreThoseOfPrometheus is the same on consecutive scrapes of a real target.
func TestRecordedScrapesAreThoseOfPrometheus(t *testing.T) {
	cfg := differentialConfig(t)
	var list []sequence
	for _, j := range cfg.ScrapeConfigs {
		s := sequence{job: j.JobName}
		for n := range 3 {
			s.steps = append(s.steps, step{body: recordedExposition(t, n+1).text(), contentType: plainText})
		}
		list = append(list, s)
	}
	compareWithPrometheus(t, cfg, list, false)
}

// TestManyRecordedScrapesAreThoseOfPrometheus is the same on all that there are, which stand where the load generator has them.
func TestManyRecordedScrapesAreThoseOfPrometheus(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "bench", "loadgen", "testdata", "*.txt.gz"))
	if err != nil || len(files) < 45 {
		t.Fatal(files, err)
	}
	s := sequence{job: "plain"}
	for _, file := range files {
		s.steps = append(s.steps, step{body: unpacked(t, file), contentType: plainText})
	}
	compareWithPrometheus(t, differentialConfig(t), []sequence{s}, false)
}

// TestNativeHistogramsAreThoseOfPrometheus is the same on protobuf alone.
func TestNativeHistogramsAreThoseOfPrometheus(t *testing.T) {
	cfg := differentialConfig(t)
	rnd := rand.New(rand.NewPCG(3, 12))
	data := make([]byte, 40_000)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	c := &choices{data}
	var list []sequence
	for _, j := range cfg.ScrapeConfigs {
		for range 8 {
			s := sequence{job: j.JobName}
			for range 8 {
				s.steps = append(s.steps, step{body: protobufExposition(c), contentType: protobuf})
			}
			list = append(list, s)
		}
	}
	compareWithPrometheus(t, cfg, list, false)
	if len(c.b) == 0 {
		t.Error("there was not enough chance")
	}
}

func FuzzScrapes(f *testing.F) {
	rnd := rand.New(rand.NewPCG(5, 5))
	for range 4 {
		data := make([]byte, 1500)
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		f.Add(data, false)
		f.Add(data, true)
	}
	cfg := differentialConfig(f)
	f.Fuzz(func(t *testing.T, data []byte, startTimestamps bool) {
		c := &choices{data[:min(len(data), 1<<12)]}
		var list []sequence
		for range 4 {
			list = append(list, c.sequence(cfg.ScrapeConfigs, seedExpositions)) // without long ones, so that there are many of them
		}
		compareWithPrometheus(t, cfg, list, startTimestamps)
	})
}
