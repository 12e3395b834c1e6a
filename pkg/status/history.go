package status

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/pkg/stream"
)

// HistoryStep is the time from one point of a history to the next, and HistoryPoints how many there are: an hour of them.
const (
	HistoryStep   = 15 * time.Second
	HistoryPoints = 240
)

// History is how the endpoints stood over the last hour. In a fleet, lags are the longest of all writers, and rates their sums.
type History struct {
	// End is when the step of the newest points ends.
	End    time.Time `json:"end"`
	Tracks []Track   `json:"tracks"`
}

// Track is one endpoint's part of a [History]: [HistoryPoints] points, the oldest first. A point below 0 is a gap: nothing is known of that time.
type Track struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	// Lag is in seconds, Rate in accepted samples per second.
	Lag  []float32 `json:"lag"`
	Rate []float32 `json:"rate"`
}

// gap is a point of which nothing is known.
const gap = -1

// step returns the number of the step that a time is in. All processes count alike, so that their points can be added.
func step(t time.Time) int64 { return t.UnixNano() / int64(HistoryStep) }

// endOf is when a step ends.
func endOf(n int64) time.Time { return time.Unix(0, (n+1)*int64(HistoryStep)).UTC() }

// Recorder keeps the history of the endpoints that a process writes to, since it started. The zero value is ready; it is safe for concurrent use.
type Recorder struct {
	mu    sync.Mutex
	rings map[endpointKey]*ring
}

type endpointKey struct{ name, url string }

// ring holds the points of the steps up to last, each at its number modulo their count.
type ring struct {
	last      int64
	noted     int // how often in the last step
	lag, rate [HistoryPoints]float32
}

// Note takes how the endpoints stand at a time. Of a step that is noted several times, the longest lag and the mean rate count.
func (r *Recorder) Note(at time.Time, endpoints []Endpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := step(at)
	for i := range endpoints {
		e := &endpoints[i]
		k := endpointKey{e.Name, e.URL}
		g := r.rings[k]
		if g == nil {
			if r.rings == nil {
				r.rings = map[endpointKey]*ring{}
			}
			g = &ring{last: now - HistoryPoints - 1}
			r.rings[k] = g
		}
		g.note(now, float32(e.LagSeconds), float32(e.SamplesPerSecond))
	}
	for k, g := range r.rings {
		if g.last < now-HistoryPoints { // no endpoint any more
			delete(r.rings, k)
		}
	}
}

func (g *ring) note(now int64, lag, rate float32) {
	if now < g.last {
		return // the clock was set back
	}
	for n := max(g.last+1, now-HistoryPoints+1); n <= now; n++ {
		g.lag[n%HistoryPoints], g.rate[n%HistoryPoints] = gap, gap
	}
	if now > g.last {
		g.last, g.noted = now, 0
	}
	i := now % HistoryPoints
	g.noted++
	g.lag[i] = max(g.lag[i], lag)
	g.rate[i] = max(g.rate[i], 0)
	g.rate[i] += (rate - g.rate[i]) / float32(g.noted)
}

// History returns the hour up to a time.
func (r *Recorder) History(at time.Time) *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := step(at)
	h := &History{End: endOf(now), Tracks: []Track{}}
	for k, g := range r.rings {
		t := newTrack(k)
		for i := range HistoryPoints {
			if n := now - HistoryPoints + 1 + int64(i); n <= g.last && n > g.last-HistoryPoints {
				t.Lag[i], t.Rate[i] = g.lag[n%HistoryPoints], g.rate[n%HistoryPoints]
			}
		}
		h.Tracks = append(h.Tracks, t)
	}
	h.sort()
	return h
}

func newTrack(k endpointKey) Track {
	t := Track{Name: k.name, URL: k.url, Lag: make([]float32, HistoryPoints), Rate: make([]float32, HistoryPoints)}
	for i := range t.Lag {
		t.Lag[i], t.Rate[i] = gap, gap
	}
	return t
}

func (h *History) sort() {
	slices.SortFunc(h.Tracks, func(a, b Track) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.URL, b.URL)) })
}

// mergeHistories adds up what the writers tell, over the hour that the newest of them ends.
func mergeHistories(parts []*History) *History {
	end := int64(0)
	for _, p := range parts {
		end = max(end, step(p.End.Add(-1)))
	}
	out := &History{End: endOf(end), Tracks: []Track{}}
	at := map[endpointKey]int{}
	for _, p := range parts {
		late := end - step(p.End.Add(-1)) // how many steps it ends earlier
		for _, t := range p.Tracks {
			k := endpointKey{t.Name, t.URL}
			i, ok := at[k]
			if !ok {
				i = len(out.Tracks)
				at[k], out.Tracks = i, append(out.Tracks, newTrack(k))
			}
			out.Tracks[i].add(&t, late)
		}
	}
	out.sort()
	return out
}

func (t *Track) add(o *Track, late int64) {
	for i := range HistoryPoints {
		from := int64(i) + late
		if from >= HistoryPoints {
			return
		}
		if int(from) >= len(o.Lag) || int(from) >= len(o.Rate) {
			return
		}
		t.Lag[i] = max(t.Lag[i], o.Lag[from])
		if rate := o.Rate[from]; rate >= 0 {
			t.Rate[i] = max(t.Rate[i], 0) + rate
		}
	}
}

// historyQuestion is what a process is sent that is asked for its history and not for its [Report].
const historyQuestion = "history"

// historyAnswer is what a process tells when it is asked for its history.
type historyAnswer struct {
	Version int           `json:"version"`
	Member  historyMember `json:"member"`
	// History is none from a process of an earlier version, which answers with its report.
	History *History `json:"history"`
}

// historyMember is as much of a [Member] as the answer has, in the same place as in a report.
type historyMember struct {
	ID string `json:"id"`
}

// CollectHistory asks all processes for their histories. own is what the process itself has, which is not asked; writers are the IDs of the others that are to answer. A process
// that does not answer in time is left out.
func CollectHistory(ctx context.Context, conn *stream.Conn, own *History, writers []string) (*History, error) {
	var parts []*History
	if own != nil {
		parts = append(parts, own)
	}
	if len(writers) > 0 && conn != nil {
		q := question{subject: conn.Status(), data: []byte(historyQuestion), expected: writers, read: func(b []byte) (string, error) {
			var a historyAnswer
			if err := json.Unmarshal(b, &a); err != nil {
				return "", fmt.Errorf("%w: %w", errReport, err)
			}
			if a.History != nil && a.Version == reportVersion && slices.Contains(writers, a.Member.ID) {
				parts = append(parts, a.History)
			}
			return a.Member.ID, nil
		}}
		if _, _, err := q.ask(ctx, conn); err != nil {
			return nil, fmt.Errorf("asking the writers for their histories: %w", err)
		}
	}
	if len(parts) == 0 {
		parts = []*History{{End: endOf(step(time.Now()))}}
	}
	return mergeHistories(parts), nil
}
