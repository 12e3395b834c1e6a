package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
)

// median of values; of the two in the middle, their mean.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// column is a measure in the table.
type column struct {
	head string
	// of is the measure of a result, false if it has none.
	of       func(result) (float64, bool)
	decimals int
	// ratio says that agents are compared by it.
	ratio bool
}

// columns returns the measures; those of answers only where the load is pushed, and those of catching up only after an outage.
func columns(s scenario) []column {
	always := func(f func(result) float64) func(result) (float64, bool) {
		return func(r result) (float64, bool) { return f(r), true }
	}
	list := []column{
		{"samples/s", always(func(r result) float64 { return float64(r.Samples) / r.Seconds }), 0, false},
		{"CPU µs/sample", always(func(r result) float64 { return r.CPUPerSample }), 2, true},
		{"RSS MiB", always(func(r result) float64 { return r.RSS }), 0, true},
		{"peak MiB", always(func(r result) float64 { return r.PeakRSS }), 0, true},
		{"stored B/sample", func(r result) (float64, bool) {
			if r.StoredPerSample == nil {
				return 0, false
			}
			return *r.StoredPerSample, true
		}, 2, false},
		{"wire B/sample", always(func(r result) float64 { return r.WirePerSample }), 1, true},
		{"p50 s", always(func(r result) float64 { return r.P50 }), 3, true},
		{"p99 s", always(func(r result) float64 { return r.P99 }), 3, true},
		{"missing", always(func(r result) float64 { return float64(r.Missing) }), 0, false},
		{"partial", always(func(r result) float64 { return float64(r.Partial) }), 0, false},
		{"lost", always(func(r result) float64 { return float64(r.Lost) }), 0, false},
		{"reordered", always(func(r result) float64 { return float64(r.Reordered) }), 0, false},
		{"changed", always(func(r result) float64 { return float64(r.Changed) }), 0, false},
		{"repeated", always(func(r result) float64 { return float64(r.Repeated) }), 0, false},
	}
	if s.Push != "" {
		list = append(list, pushColumns()...)
	}
	if s.Outage == 0 {
		return list
	}
	return append(list,
		column{"peak samples/s", func(r result) (float64, bool) {
			if r.CatchUp == nil {
				return 0, false
			}
			return float64(r.CatchUp.PeakRate), true
		}, 0, true},
		column{"caught up s", func(r result) (float64, bool) {
			if r.CatchUp == nil || !r.CatchUp.Gone {
				return 0, false
			}
			return r.CatchUp.Seconds, true
		}, 1, true},
		column{"missing %", func(r result) (float64, bool) {
			return 100 * float64(r.Missing) / float64(max(r.ServedDown, 1)), true
		}, 1, false},
	)
}

// pushColumns are the measures of answers to pushes.
func pushColumns() []column {
	of := func(f func(*pushes) float64) func(result) (float64, bool) {
		return func(r result) (float64, bool) {
			if r.Pushes == nil {
				return 0, false
			}
			return f(r.Pushes), true
		}
	}
	return []column{
		{"answer p50 ms", of(func(p *pushes) float64 { return p.P50 }), 1, true},
		{"answer p99 ms", of(func(p *pushes) float64 { return p.P99 }), 1, true},
		{"answer max ms", of(func(p *pushes) float64 { return p.Max }), 1, false},
		{"failed", of(func(p *pushes) float64 {
			failed := 0
			for _, n := range p.Failures {
				failed += n
			}
			return float64(failed)
		}), 0, false},
		{"refused", of(func(p *pushes) float64 { return float64(p.Refused) }), 0, false},
		{"rejected", of(func(p *pushes) float64 { return float64(p.Rejected) }), 0, false},
		{"skipped", of(func(p *pushes) float64 { return float64(p.Skipped) }), 0, false},
	}
}

// summary is the medians of one agent.
type summary struct {
	Agent string `json:"agent"`
	// Medians are by the columns' heads; a column without any value is absent.
	Medians map[string]float64 `json:"medians"`
}

// summarize returns the medians of each agent in the order in which they were measured.
func summarize(s scenario, results []result) []summary {
	var out []summary
	for _, r := range results {
		if slices.ContainsFunc(out, func(s summary) bool { return s.Agent == r.Agent }) {
			continue
		}
		medians := map[string]float64{}
		for _, c := range columns(s) {
			var values []float64
			for _, other := range results {
				if v, ok := c.of(other); ok && other.Agent == r.Agent {
					values = append(values, v)
				}
			}
			if len(values) > 0 {
				medians[c.head] = median(values)
			}
		}
		out = append(out, summary{r.Agent, medians})
	}
	return out
}

// ratio compares the first agent with another one.
type ratio struct {
	Of string             `json:"of"`
	To string             `json:"to"`
	By map[string]float64 `json:"by"`
}

// ratios divides the medians of the first agent by those of the others.
func ratios(s scenario, summaries []summary) []ratio {
	var out []ratio
	for _, other := range summaries[min(1, len(summaries)):] {
		r := ratio{Of: summaries[0].Agent, To: other.Agent, By: map[string]float64{}}
		for _, c := range columns(s) {
			a, okA := summaries[0].Medians[c.head]
			b, okB := other.Medians[c.head]
			if c.ratio && okA && okB && b > 0 {
				r.By[c.head] = a / b
			}
		}
		out = append(out, r)
	}
	return out
}

// writeResults writes everything as JSON.
func writeResults(w io.Writer, s scenario, results []result) error {
	summaries := summarize(s, results)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		Scenario  scenario  `json:"scenario"`
		Results   []result  `json:"results"`
		Summaries []summary `json:"summaries"`
		Ratios    []ratio   `json:"ratios"`
	}{s, results, summaries, ratios(s, summaries)})
}

// printTable prints a line for each measurement, the medians of each agent and the ratios of medians.
func printTable(w io.Writer, s scenario, results []result) error {
	list := columns(s)
	series := strconv.Itoa(s.Series)
	if s.Kind == "recorded" {
		series = "about 612"
	}
	if s.Push != "" {
		fmt.Fprintf(w, "%d senders of %d series (%d histograms) every %s by %s, remote_write %s", s.Senders, s.PushSeries, s.PushHistograms, s.PushInterval,
			s.Push, s.Protocol)
	} else {
		fmt.Fprintf(w, "%d %s targets of %s series every %s, %s, remote_write %s", s.Targets, s.Kind, series, s.Interval, s.Encoding, s.Protocol)
	}
	if s.Outage > 0 {
		fmt.Fprintf(w, ", endpoint down for %s", s.Outage)
	}
	if s.Kill {
		fmt.Fprint(w, ", agent killed and started again in the middle of that")
	}
	fmt.Fprint(w, "\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, cell func(column) (float64, int, bool)) {
		fmt.Fprintf(t, "%s\t", name)
		for _, c := range list {
			if v, decimals, ok := cell(c); ok {
				fmt.Fprintf(t, "%.*f\t", decimals, v)
			} else {
				fmt.Fprint(t, "-\t")
			}
		}
		fmt.Fprintln(t)
	}
	fmt.Fprint(t, "agent\t")
	for _, c := range list {
		fmt.Fprintf(t, "%s\t", c.head)
	}
	fmt.Fprintln(t)
	for _, r := range results {
		line(fmt.Sprintf("%s %d", r.Agent, r.Round), func(c column) (float64, int, bool) {
			v, ok := c.of(r)
			return v, c.decimals, ok
		})
	}
	summaries := summarize(s, results)
	for _, m := range summaries {
		line(m.Agent+" median", func(c column) (float64, int, bool) {
			v, ok := m.Medians[c.head]
			return v, c.decimals, ok
		})
	}
	for _, r := range ratios(s, summaries) {
		line(r.Of+" / "+r.To, func(c column) (float64, int, bool) {
			v, ok := r.By[c.head]
			return v, 2, ok
		})
	}
	return t.Flush()
}
