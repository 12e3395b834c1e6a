package tail

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/frame"
)

// Event is a sample or an exemplar that has passed, or what was left out.
type Event struct {
	// Time is the timestamp, Start the start timestamp where there is one.
	Time  time.Time `json:"time,omitzero"`
	Start time.Time `json:"start,omitzero"`
	// Labels are those of the series.
	Labels labels.Labels `json:"labels,omitzero"`
	// Value is that of a float sample, written as Prometheus's API does: "NaN" and "+Inf" are no numbers of JSON.
	Value string `json:"value,omitempty"`
	// Stale says that it is a staleness marker: the series ends here.
	Stale bool `json:"stale,omitempty"`
	// Histogram is a native histogram sample.
	Histogram *Histogram `json:"histogram,omitempty"`
	// Exemplar is an exemplar of the series, in place of a sample.
	Exemplar *Exemplar `json:"exemplar,omitempty"`
	// Missed is what was left out since the last time that it was said.
	Missed *Missed `json:"missed,omitempty"`
	// Error is why no more comes.
	Error string `json:"error,omitempty"`
}

// Histogram is what is shown of a native histogram.
type Histogram struct {
	Count string `json:"count"`
	Sum   string `json:"sum"`
}

// Exemplar is an exemplar. Its own time is the event's.
type Exemplar struct {
	Labels labels.Labels `json:"labels"`
	Value  string        `json:"value"`
}

// Missed counts what was left out.
type Missed struct {
	// Samples came faster than they were taken.
	Samples uint64 `json:"samples,omitempty"`
	// Unlabelled are samples whose dictionary was not there. They may be of any series.
	Unlabelled uint64 `json:"unlabelled,omitempty"`
	// Messages of the stream were passed over to catch up.
	Messages uint64 `json:"messages,omitempty"`
}

// item is an event that waits.
type item struct {
	labels      labels.Labels
	time, start int64
	value       float64
	histogram   *frame.Histogram
	exemplar    *exemplar.Exemplar
}

// event writes it down.
func (i *item) event() Event {
	e := Event{Time: time.UnixMilli(i.time).UTC(), Labels: i.labels}
	if i.start != 0 {
		e.Start = time.UnixMilli(i.start).UTC()
	}
	switch h := i.histogram; {
	case i.exemplar != nil:
		e.Exemplar = &Exemplar{Labels: i.exemplar.Labels, Value: number(i.exemplar.Value)}
	case h == nil:
		if e.Stale = value.IsStaleNaN(i.value); !e.Stale {
			e.Value = number(i.value)
		}
	case h.Int != nil:
		if e.Stale = value.IsStaleNaN(h.Int.Sum); !e.Stale {
			e.Histogram = &Histogram{Count: strconv.FormatUint(h.Int.Count, 10), Sum: number(h.Int.Sum)}
		}
	default:
		if e.Stale = value.IsStaleNaN(h.Float.Sum); !e.Stale {
			e.Histogram = &Histogram{Count: number(h.Float.Count), Sum: number(h.Float.Sum)}
		}
	}
	return e
}

// number writes a value as Prometheus's API does.
func number(v float64) string {
	format := byte('f')
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, format, -1, 64)
}

// Line returns the event as a line of text: time, series and value. What labels hold is quoted.
func (e *Event) Line() string {
	switch {
	case e.Missed != nil:
		return e.Missed.String()
	case e.Error != "":
		return e.Error
	}
	s := e.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00") + " " + Name(e.Labels)
	switch {
	case e.Exemplar != nil:
		s += " exemplar " + e.Exemplar.Labels.String() + " " + e.Exemplar.Value
	case e.Stale:
		s += " stale"
	case e.Histogram != nil:
		s += " count=" + e.Histogram.Count + " sum=" + e.Histogram.Sum
	default:
		s += " " + e.Value
	}
	if !e.Start.IsZero() {
		s += " since " + e.Start.UTC().Format(time.RFC3339)
	}
	return s
}

// String says it in words.
func (m *Missed) String() string {
	var parts []string
	if m.Samples > 0 {
		parts = append(parts, fmt.Sprintf("%d samples that came faster than they were taken", m.Samples))
	}
	if m.Unlabelled > 0 {
		parts = append(parts, fmt.Sprintf("%d samples whose labels are not there", m.Unlabelled))
	}
	if m.Messages > 0 {
		parts = append(parts, fmt.Sprintf("%d messages of the stream, to catch up with it", m.Messages))
	}
	return "left out: " + strings.Join(parts, "; ")
}

// Name writes a series the usual way: up{job="api"}.
func Name(ls labels.Labels) string {
	name := ls.Get(model.MetricNameLabel)
	if !model.LegacyValidation.IsValidMetricName(name) {
		return ls.String()
	}
	rest := labels.NewBuilder(ls).Del(model.MetricNameLabel).Labels()
	if rest.IsEmpty() {
		return name
	}
	return name + rest.String()
}

// Encode returns the event as a line of JSON.
func (e *Event) Encode() ([]byte, error) {
	b, err := json.Marshal(e)
	return append(b, '\n'), err
}
