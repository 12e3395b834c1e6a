package limit

import (
	"cmp"
	"hash/maphash"
	"log/slog"
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/frame"
)

// Offenders knows what meets limits in this process, for the log and for metrics. All that it keeps is bounded.
type Offenders struct {
	mu    sync.Mutex
	met   map[stop]int       // series by limit, name and metric; label and number are empty
	label map[string]string  // the label of a metric that has grown most
	grew  map[string]*growth // by metric
	said  map[key]time.Time  // when the log named a limit last
	desc  *prometheus.Desc
}

const (
	// shown is how many offenders metrics name, the largest.
	shown = 10
	// counted is of how many the series are counted.
	counted = 4096
	// watched is for how many metrics the labels' values are counted.
	watched = 64
	// sayEvery is how often the log names the same limit.
	sayEvery = time.Minute
	// sayAgain is when it names one again whose label is not known yet.
	sayAgain = 5 * time.Second
	// remembered is how many limits are remembered as named.
	remembered = 1024
)

// NewOffenders returns one that knows of none. It collects its metric for reg.
func NewOffenders(reg prometheus.Registerer) *Offenders {
	o := &Offenders{
		met: map[stop]int{}, label: map[string]string{}, grew: map[string]*growth{}, said: map[key]time.Time{},
		desc: prometheus.NewDesc("millrace_relabel_limited_series",
			"Series that a limit refuses, merges or, where it only warns, does not want; of the limits and metrics that have most of them, once for each dictionary that has them. label has grown most.",
			[]string{"limit", "name", "metric", "label"}, nil),
	}
	reg.MustRegister(o)
	return o
}

// Describe implements [prometheus.Collector].
func (o *Offenders) Describe(ch chan<- *prometheus.Desc) { ch <- o.desc }

// Collect implements [prometheus.Collector].
func (o *Offenders) Collect(ch chan<- prometheus.Metric) {
	for _, s := range o.top() {
		ch <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, float64(s.Series), s.Kind.String(), s.Name, s.Metric, s.Label)
	}
}

// top returns the largest offenders.
func (o *Offenders) top() []stop {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]stop, 0, len(o.met))
	for s, n := range o.met {
		s.Series, s.Label = n, o.label[s.Metric]
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b stop) int {
		return cmp.Or(cmp.Compare(b.Series, a.Series), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Metric, b.Metric))
	})
	return list[:min(len(list), shown)]
}

// add counts what dictionaries have met, or with sign -1 does not any more.
func (o *Offenders) add(stops []stop, sign int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range stops {
		if sign > 0 && s.Label != "" {
			o.label[s.Metric] = s.Label
		}
		k := stop{Kind: s.Kind, Name: s.Name, Metric: s.Metric}
		if _, known := o.met[k]; !known && len(o.met) >= counted {
			continue
		}
		if o.met[k] += sign * s.Series; o.met[k] <= 0 {
			delete(o.met, k)
			o.forget(s.Metric)
		}
	}
}

// forget drops what is known of a metric that meets no limit any more. The lock is held.
func (o *Offenders) forget(metric string) {
	for k := range o.met {
		if k.Metric == metric {
			return
		}
	}
	delete(o.label, metric)
	delete(o.grew, metric)
}

// say names offenders in the log, each limit once in a while.
func (o *Offenders) say(stops []stop, limits *Limits, log *slog.Logger) {
	now := time.Now()
	for _, s := range stops {
		k := key{s.Kind, s.Name}
		o.mu.Lock()
		last, known := o.said[k]
		if known && now.Sub(last) < sayEvery {
			o.mu.Unlock()
			continue
		}
		if len(o.said) >= remembered {
			clear(o.said)
		}
		if o.said[k] = now; s.Label == "" {
			o.said[k] = now.Add(sayAgain - sayEvery) // more is known soon
		}
		series, values := 0, 0
		for m, n := range o.met {
			if m.Kind == s.Kind && m.Name == s.Name {
				series += n
			}
		}
		if g := o.grew[s.Metric]; g != nil {
			values = g.values(s.Label)
		}
		o.mu.Unlock()
		rule := limits.rule(s.Kind)
		log.Warn("A limit on series is reached", "limit", s.Kind, "name", s.Name, "max_series", rule.MaxSeries, "action", rule.Action,
			"metric", s.Metric, "label", s.Label, "label_values", values, "series_beyond", series,
			"remedy", "take the label away where it is made or by metric_relabel_configs, or raise millrace.cardinality."+s.Kind.String()+".max_series")
	}
}

// grown counts the values of the labels of the metrics that have met limits in a dictionary, and returns for each metric the label that has most.
func (o *Offenders) grown(d *frame.Dictionary, stops []stop) map[string]string {
	if len(stops) == 0 {
		return nil
	}
	wanted := map[string]bool{}
	for _, s := range stops {
		wanted[s.Metric] = true
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range d.Series {
		metric := metric(d.Series[i].Labels)
		if !wanted[metric] {
			continue
		}
		g := o.grew[metric]
		if g == nil {
			if len(o.grew) >= watched {
				clear(o.grew)
			}
			g = &growth{}
			o.grew[metric] = g
		}
		g.note(d.Series[i].Labels)
	}
	most := map[string]string{}
	for metric := range wanted {
		if g := o.grew[metric]; g != nil {
			most[metric] = g.most()
		}
	}
	return most
}

// growth counts the values of the labels of a metric.
type growth struct{ labels []labelGrowth }

// maxLabels is of how many labels the values are counted.
const maxLabels = 32

// labelGrowth counts values approximately: each sets one of the bits (linear counting).
type labelGrowth struct {
	name string
	bits [64]uint64
}

func (g *growth) note(ls labels.Labels) {
	ls.Range(func(l labels.Label) {
		if l.Name == model.MetricNameLabel {
			return
		}
		name := clip(l.Name)
		i := slices.IndexFunc(g.labels, func(x labelGrowth) bool { return x.name == name })
		if i < 0 {
			if len(g.labels) >= maxLabels {
				return
			}
			i = len(g.labels)
			g.labels = append(g.labels, labelGrowth{name: name})
		}
		h := maphash.String(hashSeed, l.Value)
		g.labels[i].bits[h>>6&63] |= 1 << (h & 63)
	})
}

// most returns the label with the most values; "" where none has more than one yet.
func (g *growth) most() string {
	best, most := "", 1
	for i := range g.labels {
		if n := g.labels[i].set(); n > most {
			best, most = g.labels[i].name, n
		}
	}
	return best
}

func (l *labelGrowth) set() (n int) {
	for _, w := range l.bits {
		n += bits.OnesCount64(w)
	}
	return n
}

// values returns about how many values a label has been seen with.
func (g *growth) values(label string) int {
	for i := range g.labels {
		if l := &g.labels[i]; l.name == label {
			size := float64(64 * len(l.bits))
			return int(math.Round(-size * math.Log(max(size-float64(l.set()), 0.5)/size)))
		}
	}
	return 0
}
