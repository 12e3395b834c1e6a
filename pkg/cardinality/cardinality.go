package cardinality

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
)

// Query says what is to be counted.
type Query struct {
	// Window is the time before the newest sample in which a series has to have one. A staleness marker ends it.
	Window time.Duration `json:"window"`
	// Since is the time before the newest sample in which a series has to have appeared to be a new one.
	Since time.Duration `json:"since"`
	// Top is how many of each list are reported; 0 for all.
	Top int `json:"top"`
	// Metric counts the series of one metric only; empty: those of all.
	Metric string `json:"metric,omitempty"`
}

// ErrBad is wrapped by errors of [Parse].
var ErrBad = errors.New("bad parameter")

// maxMetric bounds the name of a metric that is asked for, in bytes.
const maxMetric = 4096

// Parse reads a query from parameters, as the API has them: window and since as Prometheus writes durations, top, and metric. By default it is 5m, 1h and 10 of all metrics.
func Parse(parameters url.Values) (Query, error) {
	q := Query{Window: 5 * time.Minute, Since: time.Hour, Top: 10, Metric: parameters.Get("metric")}
	for _, f := range []struct {
		name string
		to   *time.Duration
	}{{"window", &q.Window}, {"since", &q.Since}} {
		if !parameters.Has(f.name) {
			continue
		}
		d, err := model.ParseDuration(parameters.Get(f.name))
		if err != nil || d <= 0 {
			return q, &ParameterError{f.name, fmt.Sprintf("%q is no duration above zero; write it as 5m or 1h", parameters.Get(f.name))}
		}
		*f.to = time.Duration(d)
	}
	if parameters.Has("top") {
		n, err := strconv.Atoi(parameters.Get("top"))
		if err != nil || n < 0 {
			return q, &ParameterError{"top", fmt.Sprintf("%q is no number; give a whole one, 0 for all", parameters.Get("top"))}
		}
		q.Top = n
	}
	if len(q.Metric) > maxMetric {
		return q, &ParameterError{"metric", fmt.Sprintf("it has %d bytes; a name may have %d", len(q.Metric), maxMetric)}
	}
	return q, nil
}

// ParameterError says what is wrong with a parameter. It wraps [ErrBad].
type ParameterError struct {
	// Name is the parameter's; Message says what is wrong and what would be right.
	Name, Message string
}

func (e *ParameterError) Error() string { return e.Name + ": " + ErrBad.Error() + ": " + e.Message }

// Unwrap returns [ErrBad].
func (e *ParameterError) Unwrap() error { return ErrBad }

// Values returns the query as parameters, which [Parse] reads.
func (q Query) Values() url.Values {
	v := url.Values{"window": {model.Duration(q.Window).String()}, "since": {model.Duration(q.Since).String()}, "top": {strconv.Itoa(q.Top)}}
	if q.Metric != "" {
		v.Set("metric", q.Metric)
	}
	return v
}
