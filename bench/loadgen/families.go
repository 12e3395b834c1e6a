package loadgen

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace/millrace/bench/numbered"
)

// familySpec is a metric family of a generated target.
type familySpec struct {
	name, kind, help string
	shape            numbered.Kind
	// labels are what the family has beside those of every series; %d is the number of the entity.
	labels string
}

// families is what one entity, a handler of a service, exposes: 2 histograms, 6 counters, 6 gauges, 40 series or so. The
// shares are roughly those of a service with a standard instrumentation library.
var families = []familySpec{
	{"http_request_duration_seconds", "histogram", "How long requests took.", numbered.Histogram, `method="GET",code="200"`},
	{"http_response_size_kilobytes", "histogram", "How large responses were.", numbered.Histogram, `method="GET"`},
	{"http_requests_total", "counter", "Requests that were answered.", numbered.Counter, `method="GET",code="200"`},
	{"http_request_errors_total", "counter", "Requests that failed.", numbered.Counter, `method="POST",code="503"`},
	{"http_received_bytes_total", "counter", "Bytes that were received.", numbered.Counter, `method="POST"`},
	{"http_sent_bytes_total", "counter", "Bytes that were sent.", numbered.Counter, `method="GET"`},
	{"db_queries_total", "counter", "Queries by table.", numbered.Counter, `table="orders_%d",operation="select"`},
	{"worker_cpu_seconds_total", "counter", "CPU time spent, by worker.", numbered.Seconds, `worker="w-%d",mode="user"`},
	{"http_requests_in_flight", "gauge", "Requests being served.", numbered.Gauge, `method="GET"`},
	{"queue_length", "gauge", "Jobs that wait.", numbered.Gauge, `queue="jobs-%d",priority="normal"`},
	{"queue_oldest_age_seconds", "gauge", "Age of the oldest job.", numbered.Gauge, `queue="jobs-%d",priority="normal"`},
	{"cache_size_bytes", "gauge", "Bytes held in the cache.", numbered.Gauge, `cache="items_%d",tier="memory"`},
	{"cache_entries", "gauge", "Entries in the cache.", numbered.Gauge, `cache="items_%d",tier="memory"`},
	{"last_run_number", "gauge", "Number of the last run.", numbered.Plain, `task="compact-%d"`},
}

// fillFamily takes the series that do not make a whole entity.
var fillFamily = familySpec{"process_events_total", "counter", "Events by type.", numbered.Counter, `type="event_%d",severity="info"`}

// series is one line of a body without its value.
type series struct {
	// prefix is the line up to its value, or up to the value of the generation label if there is one.
	prefix []byte
	code   numbered.Code
}

// family is a family's HELP and TYPE lines and its series in blocks (the series of one histogram, or one other series) that
// stay together when the order changes.
type family struct {
	header []byte
	blocks [][]series
}

// seriesOf is how many series one entity has in a family.
func (s familySpec) seriesOf() int {
	if s.kind == "histogram" {
		return len(numbered.Bounds) + 3
	}
	return 1
}

// buildFamilies lays out count series. With generations, each line's prefix ends within its generation label.
func buildFamilies(count int, generations bool) ([]family, error) {
	perEntity := 0
	for _, spec := range families {
		perEntity += spec.seriesOf()
	}
	entities := count / perEntity
	var out []family
	step := uint64(1)
	add := func(spec familySpec, entities int) error {
		if entities == 0 {
			return nil
		}
		f := family{header: fmt.Appendf(nil, "# HELP %s %s\n# TYPE %s %s\n", spec.name, spec.help, spec.name, spec.kind)}
		for entity := range entities {
			step = step*1664525%numbered.MaxStep + 1
			block, err := buildBlock(spec, entity, spec.shape.Step(step), generations)
			if err != nil {
				return err
			}
			f.blocks = append(f.blocks, block)
		}
		out = append(out, f)
		return nil
	}
	for _, spec := range families {
		if err := add(spec, entities); err != nil {
			return nil, err
		}
	}
	if err := add(fillFamily, count-entities*perEntity); err != nil {
		return nil, err
	}
	return out, nil
}

// buildBlock makes the series of one entity in a family.
func buildBlock(spec familySpec, entity int, step uint64, generations bool) ([]series, error) {
	labels := spec.labels
	labels = strings.ReplaceAll(labels, "%d", strconv.Itoa(entity))
	labels = fmt.Sprintf(`cluster="eu-central-1",namespace="shop",handler="/api/v1/items/%d",%s,%s=%q`,
		entity, labels, numbered.ShapeLabel, numbered.Shape(spec.shape, step))
	var block []series
	line := func(suffix, le string) error {
		code, err := numbered.Parse(numbered.Shape(spec.shape, step), spec.name+suffix, le)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		b.WriteString(spec.name + suffix + "{" + labels)
		if le != "" {
			fmt.Fprintf(&b, ",le=%q", le)
		}
		if generations {
			b.WriteString(`,generation="`)
		} else {
			b.WriteString("} ")
		}
		block = append(block, series{prefix: b.Bytes(), code: code})
		return nil
	}
	if spec.kind != "histogram" {
		err := line("", "")
		return block, err
	}
	for _, bound := range numbered.Bounds {
		if err := line("_bucket", strconv.FormatFloat(bound, 'g', -1, 64)); err != nil {
			return nil, err
		}
	}
	for _, l := range [][2]string{{"_bucket", "+Inf"}, {"_sum", ""}, {"_count", ""}} {
		if err := line(l[0], l[1]); err != nil {
			return nil, err
		}
	}
	return block, nil
}
