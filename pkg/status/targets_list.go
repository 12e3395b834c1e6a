package status

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
)

// ListedTarget is a target of this process, as far as finding and describing it takes.
type ListedTarget interface {
	// Key is the target's place. It does not change, and is asked for once.
	Key() TargetKey
	// Health is "up", "down" or "unknown".
	Health() string
	// LastError is that of the last scrape, with its secrets hidden; empty when it went well.
	LastError() string
	// Text is where a search looks beside the URL and the last error: the labels. It does not change.
	Text() string
	// Describe tells all but the owner.
	Describe() Target
}

// TargetList are the targets of one process in their order. It is safe for concurrent use by those who only read it.
type TargetList struct {
	entries []listed
}

type listed struct {
	key    TargetKey
	target ListedTarget
	text   string // lower case
}

// NewTargetList puts targets in order.
func NewTargetList[T ListedTarget](targets []T) *TargetList {
	l := &TargetList{entries: make([]listed, 0, len(targets))}
	for _, t := range targets {
		key := t.Key()
		l.entries = append(l.entries, listed{key, t, strings.ToLower(key.URL + " " + t.Text())})
	}
	slices.SortFunc(l.entries, func(a, b listed) int { return a.key.Compare(b.key) })
	return l
}

// targetAnswer is what one process answers.
type targetAnswer struct {
	Version int    `json:"version"`
	Member  string `json:"member"`
	// Pools counts all targets of the process; without names where there are too many.
	Pools []Pool `json:"pools"`
	// Matching counts those that were asked for, Before those of them in front of the first one listed.
	Matching int      `json:"matching"`
	Before   int      `json:"before"`
	Targets  []Target `json:"targets"`
	// Cut says that there are more behind the last one listed, or where those before a place were asked for, in front of the first.
	Cut bool `json:"cut"`
}

// targetVersion changes when a field of the question or the answer goes or comes to mean something else, and not when one is added.
const targetVersion = 1

// Bounds of an answer, so that it stays below what NATS carries in one message (1 MiB by default).
const (
	maxAnswerBytes = 512 << 10
	maxLabelBytes  = 32 << 10
	maxAnswerPools = 2000
	maxPoolName    = 100
)

// answer finds what is asked for. dropped counts the targets that relabelling dropped, by scrape pool.
func (l *TargetList) answer(q *TargetQuery, dropped map[string]int) *targetAnswer {
	a := &targetAnswer{Version: targetVersion, Pools: []Pool{}, Targets: []Target{}}
	words := strings.Fields(strings.ToLower(q.Search))
	pools := map[string]*Pool{}
	var pool *Pool
	var found []*listed // all that match, behind the place that was given or before it
	for i := range l.entries {
		e := &l.entries[i]
		if pool == nil || pool.Name != e.key.Pool {
			pool = &Pool{Name: e.key.Pool}
			pools[pool.Name] = pool
		}
		health := e.target.Health()
		switch health {
		case "up":
			pool.Up++
		case "down":
			pool.Down++
		default:
			pool.Unknown++
		}
		if q.Pool != "" && q.Pool != e.key.Pool || q.Health != "" && q.Health != health || !e.contains(words) {
			continue
		}
		a.Matching++
		switch {
		case q.After != nil && e.key.Compare(*q.After) <= 0:
			a.Before++
		case q.Before != nil && e.key.Compare(*q.Before) >= 0:
		default:
			found = append(found, e)
		}
	}
	for name, n := range dropped {
		if pools[name] == nil {
			pools[name] = &Pool{Name: name}
		}
		pools[name].Dropped = n
	}
	for _, p := range pools {
		a.Pools = append(a.Pools, *p)
	}
	a.boundPools()
	a.list(q, found)
	return a
}

// contains reports whether the target contains all words.
func (e *listed) contains(words []string) bool {
	failure := ""
	for _, w := range words {
		if strings.Contains(e.text, w) {
			continue
		}
		if failure == "" {
			failure = strings.ToLower(e.target.LastError())
		}
		if !strings.Contains(failure, w) {
			return false
		}
	}
	return true
}

// boundPools leaves room for targets where there are very many pools, or long names of them.
func (a *targetAnswer) boundPools() {
	if len(a.Pools) <= maxAnswerPools && !slices.ContainsFunc(a.Pools, func(p Pool) bool { return len(p.Name) > maxPoolName }) {
		return
	}
	slices.SortFunc(a.Pools, func(x, y Pool) int { return strings.Compare(x.Name, y.Name) })
	var rest Pool
	kept := a.Pools[:0]
	for _, p := range a.Pools {
		if len(p.Name) > maxPoolName || len(kept) == maxAnswerPools {
			rest.add(p)
			continue
		}
		kept = append(kept, p)
	}
	a.Pools = append(kept, rest)
}

// list describes as many as were asked for and fit: the first of those found, or the last where those before a place are asked for.
func (a *targetAnswer) list(q *TargetQuery, found []*listed) {
	size := 0
	for i := range found {
		e := found[i]
		if q.Before != nil {
			e = found[len(found)-1-i]
		}
		if len(a.Targets) == q.Limit {
			a.Cut = true
			break
		}
		t := e.describe()
		b, err := json.Marshal(&t)
		if size += len(b); err != nil || size > maxAnswerBytes && i > 0 {
			a.Cut = true
			break
		}
		a.Targets = append(a.Targets, t)
	}
	if q.Before != nil {
		slices.Reverse(a.Targets)
		a.Before = len(found) - len(a.Targets)
	}
}

// describe leaves out what is too large to send.
func (e *listed) describe() Target {
	t := e.target.Describe()
	t.TargetKey, t.LastError = e.key, shorten(t.LastError)
	if t.DiscoveredLabels.ByteSize() > maxLabelBytes {
		t.DiscoveredLabels, t.DiscoveredLeftOut = labels.EmptyLabels(), true
	}
	if t.Labels.ByteSize() > maxLabelBytes {
		t.Labels = t.Labels.MatchLabels(true, "instance", "job")
	}
	return t
}
