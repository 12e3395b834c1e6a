package screen

import (
	"math"

	"github.com/millrace/millrace/pkg/status"
)

// historyLength is how many answers are remembered: more than a screen is wide.
const historyLength = 512

// series are the values of one thing at the last times that were asked, the oldest first. NaN stands where there was no answer.
type series []float64

func (s series) add(v float64) series {
	if len(s) >= historyLength {
		s = append(s[:0], s[len(s)-historyLength+1:]...)
	}
	return append(s, v)
}

// last returns the newest value, 0 where it is not known.
func (s series) last() float64 {
	if len(s) == 0 || math.IsNaN(s[len(s)-1]) {
		return 0
	}
	return s[len(s)-1]
}

// history is what was seen of a fleet.
type history struct {
	taken, sent, lag series
	endpoints        map[endpointKey]*endpointHistory
}

// endpointKey names an endpoint. Processes of different configurations may have several of one name.
type endpointKey struct{ name, url string }

type endpointHistory struct {
	sent, lag series
	seen      bool // in the newest document
}

// add notes what a document says; nil, where there was no answer.
func (h *history) add(d *status.Document) {
	if h.endpoints == nil {
		h.endpoints = map[endpointKey]*endpointHistory{}
	}
	unknown := math.NaN()
	if d == nil {
		h.taken, h.sent, h.lag = h.taken.add(unknown), h.sent.add(unknown), h.lag.add(unknown)
		for _, e := range h.endpoints {
			e.sent, e.lag = e.sent.add(unknown), e.lag.add(unknown)
		}
		return
	}
	h.taken = h.taken.add(takenPerSecond(d))
	sent, lag := 0.0, 0.0
	for _, e := range h.endpoints {
		e.seen = false
	}
	for i := range d.Endpoints {
		e := &d.Endpoints[i]
		sent, lag = sent+e.SamplesPerSecond, max(lag, e.LagSeconds)
		key := endpointKey{e.Name, e.URL}
		if h.endpoints[key] == nil {
			h.endpoints[key] = &endpointHistory{}
		}
		eh := h.endpoints[key]
		eh.sent, eh.lag, eh.seen = eh.sent.add(e.SamplesPerSecond), eh.lag.add(e.LagSeconds), true
	}
	for key, e := range h.endpoints {
		if !e.seen {
			delete(h.endpoints, key)
		}
	}
	h.sent, h.lag = h.sent.add(sent), h.lag.add(lag)
}

// of returns what is known of an endpoint.
func (h *history) of(e *status.Endpoint) *endpointHistory {
	if eh := h.endpoints[endpointKey{e.Name, e.URL}]; eh != nil {
		return eh
	}
	return &endpointHistory{}
}

// takenPerSecond is how many samples scrapers and receivers take a second, over all members.
func takenPerSecond(d *status.Document) (n float64) {
	for i := range d.Members {
		for j := range d.Members[i].Services {
			if s := &d.Members[i].Services[j]; s.Name == "scraper" || s.Name == "ingest" {
				n += s.Figures["samplesPerSecond"]
			}
		}
	}
	return n
}
