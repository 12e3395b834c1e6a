package receiver

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/millrace/millrace/bench/numbered"
)

const maxExamples = 10

// Report is what a receiver found since it was made or reset. Each sample is counted once as arrived (Samples, Histograms,
// StaleMarkers; reordered ones too), Repeated, Changed or BeyondHistory.
type Report struct {
	// Samples are the float samples that arrived, each once, without stale markers.
	Samples int `json:"samples"`
	// Histograms are the native histograms that arrived, each once.
	Histograms int `json:"histograms"`
	// StaleMarkers are the stale markers that arrived, each once.
	StaleMarkers int `json:"stale_markers"`
	// Exemplars and Metadata are what requests held, repetitions included.
	Exemplars int `json:"exemplars"`
	Metadata  int `json:"metadata"`
	// Series are the series seen, and Numbered those of them whose values tell the number of the scrape.
	Series   int `json:"series"`
	Numbered int `json:"numbered"`
	// Lost are the scrape numbers missing in series, between the first and the newest number of each.
	Lost int `json:"lost"`
	// Repeated are samples that had arrived before, with the same timestamp and value.
	Repeated int `json:"repeated"`
	// Reordered are samples older than the newest of their series that had not arrived before.
	Reordered int `json:"reordered"`
	// Changed are samples with another value or timestamp than before, or with a value of no scrape.
	Changed int `json:"changed"`
	// BeyondHistory are old samples of series without number of which it is not known whether they had arrived before.
	BeyondHistory int `json:"beyond_history"`
	// Requests are those taken, WireBytes their compressed bodies' size; Refused those answered
	// with 400, 413 or 415, and Failed those that failed on command in another way.
	Requests  int `json:"requests"`
	WireBytes int `json:"wire_bytes"`
	Refused   int `json:"refused"`
	Failed    int `json:"failed"`
	// Latency is that of the samples that arrived since the window began.
	Latency LatencySummary `json:"latency"`
	// Examples are some series with each defect.
	Examples Examples `json:"examples"`
}

// Examples are series with defects, at most 10 of each class, with a few words of what was wrong.
type Examples struct {
	Lost      []string `json:"lost"`
	Reordered []string `json:"reordered"`
	Changed   []string `json:"changed"`
}

func (r *Report) example(list *[]string, s *series, timestamp int64, what string) {
	if len(*list) < maxExamples {
		*list = append(*list, fmt.Sprintf("%s @%d: %s", s.text, timestamp, what))
	}
}

// Report returns what was found so far.
func (r *Receiver) Report() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := r.counts
	report.Failed = int(r.control.failed.Load())
	report.Latency = r.window.Summary()
	report.Examples.Reordered = append([]string{}, report.Examples.Reordered...)
	report.Examples.Changed = append([]string{}, report.Examples.Changed...)
	report.Examples.Lost = []string{}
	if report.Lost > 0 {
		for _, s := range r.all {
			if len(report.Examples.Lost) == maxExamples {
				break
			}
			if missing, first := s.seen.missing(); missing > 0 {
				report.Examples.Lost = append(report.Examples.Lost, fmt.Sprintf("%s: %d scrapes, the first is %d", s.text, missing, first))
			}
		}
	}
	return report
}

// Latency is a histogram of the times from a sample's timestamp to its arrival, exact to 3 %. Its zero value is empty.
type Latency struct {
	count   int
	max     int64
	buckets [64 * latencySteps]int
}

// latencySteps is into how many steps each power of two is divided.
const latencySteps = 32

// LatencySummary are the quantiles of a Latency, in seconds.
type LatencySummary struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
}

// observe adds a latency in milliseconds; a negative one counts as 0.
func (l *Latency) observe(ms int64) {
	ms = max(ms, 0)
	l.count++
	l.max = max(l.max, ms)
	l.buckets[bucketOf(ms)]++
}

// bucketOf maps the numbers below latencySteps to themselves, and those of each power of two above to latencySteps buckets.
func bucketOf(ms int64) int {
	if ms < latencySteps {
		return int(ms)
	}
	shift := bits.Len64(uint64(ms)) - bits.Len64(latencySteps)
	return shift*latencySteps + int(ms>>shift)
}

// upperOf is the largest number in a bucket.
func upperOf(bucket int) int64 {
	if bucket < 2*latencySteps {
		return int64(bucket)
	}
	shift := bucket/latencySteps - 1
	return (int64(bucket%latencySteps+latencySteps)+1)<<shift - 1
}

// Summary returns the quantiles, all 0 if nothing was observed.
func (l *Latency) Summary() LatencySummary {
	s := LatencySummary{Count: l.count, Max: float64(l.max) / 1000}
	seen := 0
	quantiles := []struct {
		to   *float64
		rank int
	}{{&s.P50, (l.count + 1) / 2}, {&s.P90, (l.count*9 + 9) / 10}, {&s.P99, (l.count*99 + 99) / 100}}
	for i, count := range l.buckets {
		seen += count
		for len(quantiles) > 0 && count > 0 && seen >= quantiles[0].rank {
			*quantiles[0].to = float64(min(upperOf(i), l.max)) / 1000
			quantiles = quantiles[1:]
		}
	}
	return s
}

// Second is what arrived for the first time within one second.
type Second struct {
	// Unix is the second, in seconds since 1970.
	Unix int64 `json:"unix"`
	// Samples counts float samples and histograms.
	Samples int `json:"samples"`
	// MaxLag is the largest latency of them in seconds.
	MaxLag float64 `json:"max_lag"`
}

// second is a Second in the making.
type second struct {
	unix    int64
	samples int
	maxLag  int64
}

func (s *second) observe(lag int64) {
	s.samples++
	s.maxLag = max(s.maxLag, lag)
}

// rate holds the seconds in which a request arrived, of the last hour at least.
type rate struct{ seconds []*second }

const maxSeconds = 7200

func (r *rate) at(now time.Time) *second {
	unix := now.Unix()
	if last := len(r.seconds) - 1; last >= 0 && r.seconds[last].unix >= unix {
		return r.seconds[last]
	}
	if len(r.seconds) == maxSeconds {
		r.seconds = append([]*second(nil), r.seconds[maxSeconds/2:]...)
	}
	s := &second{unix: unix}
	r.seconds = append(r.seconds, s)
	return s
}

// Rate returns what arrived in each of the seconds in which a request arrived, of the last hour at least, oldest first.
func (r *Receiver) Rate() []Second {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Second, 0, len(r.rate.seconds))
	for _, s := range r.rate.seconds {
		out = append(out, Second{Unix: s.unix, Samples: s.samples, MaxLag: float64(s.maxLag) / 1000})
	}
	return out
}

// ScrapeRef names a scrape of a target.
type ScrapeRef struct {
	Target string `json:"target"`
	Number uint64 `json:"number"`
	// Served and Arrived are numbers of samples.
	Served  int `json:"served"`
	Arrived int `json:"arrived"`
	// Completed is the generator's word on whether it could write the whole answer.
	Completed bool `json:"completed"`
}

// Completeness is the comparison of what a generator served with what arrived.
type Completeness struct {
	// Scrapes and Samples are what was served, and ArrivedSamples what arrived of it.
	Scrapes        int `json:"scrapes"`
	Samples        int `json:"samples"`
	ArrivedSamples int `json:"arrived_samples"`
	// Missing are scrapes of which nothing arrived, Partial those of which some samples did not.
	Missing []ScrapeRef `json:"missing"`
	Partial []ScrapeRef `json:"partial"`
}

// Complete compares with a generator's log. A scrape's samples are found by the target label and the number. Samples that
// relabelling or limits drop on purpose show as partial scrapes. The newest scrapes may still be on their way. Of a scrape or
// push without samples nothing is expected: no answer promised any.
func (r *Receiver) Complete(log numbered.Log) Completeness {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := Completeness{Missing: []ScrapeRef{}, Partial: []ScrapeRef{}}
	for name, served := range log {
		for i, s := range served {
			if s.Samples == 0 {
				continue
			}
			ref := ScrapeRef{Target: name, Number: uint64(i) + 1, Served: s.Samples, Completed: s.Completed}
			if t := r.targets[name]; t != nil && t.byNumber[ref.Number] != nil {
				ref.Arrived = t.byNumber[ref.Number].samples
			}
			c.Scrapes++
			c.Samples += ref.Served
			c.ArrivedSamples += ref.Arrived
			switch {
			case ref.Arrived == 0:
				c.Missing = append(c.Missing, ref)
			case ref.Arrived < ref.Served:
				c.Partial = append(c.Partial, ref)
			}
		}
	}
	sortRefs(c.Missing)
	sortRefs(c.Partial)
	return c
}
