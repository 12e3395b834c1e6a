package receiver

import (
	"fmt"
	"math"
)

// verdict judges the samples of one request.
type verdict struct {
	r *Receiver
	// now is when the request was read, in milliseconds.
	now    int64
	second *second
}

// sample judges one float sample or stale marker.
func (v *verdict) sample(s *series, e sampleEntry) {
	if e.stale() || !s.numbered {
		v.remembered(s, e, e.stale(), &v.r.counts.Samples)
		return
	}
	value := math.Float64frombits(e.bits)
	n, ok := s.code.N(value)
	if !ok {
		v.changed(s, e.timestamp, "%v is the value of no scrape", value)
		return
	}
	sc := s.target.at(e.timestamp)
	switch {
	case !s.target.claim(sc, n):
		v.contradicted(s, e.timestamp, n)
		return
	case s.seen.has(n):
		v.r.counts.Repeated++
		return
	case s.any && e.timestamp == s.newest:
		v.changed(s, e.timestamp, "scrape %d after a stale marker", n)
		return
	}
	v.advance(s, e.timestamp)
	v.r.counts.Lost += s.seen.add(n)
	v.arrived(s, sc, e.timestamp, &v.r.counts.Samples)
}

// histogram judges one native histogram.
func (v *verdict) histogram(s *series, e histogramEntry) {
	var n uint64
	if s.numbered && !e.stale {
		var ok bool
		if n, ok = s.code.N(e.count); !ok {
			v.changed(s, e.timestamp, "count %v is of no scrape", e.count)
			return
		}
		if !s.target.claim(s.target.at(e.timestamp), n) {
			v.contradicted(s, e.timestamp, n)
			return
		}
	}
	if v.remembered(s, sampleEntry{e.timestamp, e.hash}, e.stale, &v.r.counts.Histograms) && n != 0 && !s.seen.has(n) {
		v.r.counts.Lost += s.seen.add(n)
	}
}

// remembered judges a sample by the values that are kept, and counts it in arrived if it is new. It reports whether it is.
func (v *verdict) remembered(s *series, e sampleEntry, stale bool, arrived *int) bool {
	if s.any && e.timestamp <= s.newest {
		bits, found := s.past.find(e.timestamp)
		switch {
		case found && bits == e.bits:
			v.r.counts.Repeated++
			return false
		case found || e.timestamp == s.newest:
			v.changed(s, e.timestamp, "another value")
			return false
		case !s.numbered && len(s.past.entries) == v.r.config.History:
			if oldest := s.past.entries[s.past.oldest].timestamp; e.timestamp < oldest {
				v.r.counts.BeyondHistory++
				return false
			}
		}
	}
	v.advance(s, e.timestamp)
	s.past.push(e, v.r.config.History)
	if stale {
		v.r.counts.StaleMarkers++
		return true
	}
	var sc *scrape
	if s.target != nil {
		sc = s.target.at(e.timestamp)
	}
	v.arrived(s, sc, e.timestamp, arrived)
	return true
}

// advance moves the series' newest timestamp, or notes that the sample is late.
func (v *verdict) advance(s *series, timestamp int64) {
	if s.any && timestamp < s.newest {
		v.r.counts.Reordered++
		v.r.counts.example(&v.r.counts.Examples.Reordered, s, timestamp, fmt.Sprintf("%d ms late", s.newest-timestamp))
		return
	}
	s.newest, s.any = timestamp, true
}

// arrived counts a sample that arrived for the first time.
func (v *verdict) arrived(s *series, sc *scrape, timestamp int64, count *int) {
	*count++
	if sc != nil && !s.report {
		sc.samples++
	}
	lag := v.now - timestamp
	if timestamp >= v.r.from {
		v.r.window.observe(lag)
	}
	v.second.observe(lag)
}

// contradicted notes a sample of scrape n at a timestamp that is not that scrape's.
func (v *verdict) contradicted(s *series, timestamp int64, n uint64) {
	if at := s.target.byNumber[n]; at != nil {
		v.changed(s, timestamp, "scrape %d, which was at %d", n, at.timestamp)
		return
	}
	v.changed(s, timestamp, "scrape %d, but this is the time of scrape %d", n, s.target.at(timestamp).number)
}

func (v *verdict) changed(s *series, timestamp int64, format string, args ...any) {
	v.r.counts.Changed++
	if len(v.r.counts.Examples.Changed) < maxExamples {
		v.r.counts.example(&v.r.counts.Examples.Changed, s, timestamp, fmt.Sprintf(format, args...))
	}
}
