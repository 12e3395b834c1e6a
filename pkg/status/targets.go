package status

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// TargetQuery says which targets of the fleet are asked for. Those who have targets choose: only what was asked for travels.
type TargetQuery struct {
	// Pool and Health choose the targets of one scrape pool, or with the health "up", "down" or "unknown". Default: all.
	Pool   string `json:"pool,omitempty"`
	Health string `json:"health,omitempty"`
	// Search is what the URL, the labels or the last error must contain, in whatever case; of several words, each. Labels are written name="value". Default: all.
	Search string `json:"search,omitempty"`
	// After and Before ask for the targets behind a place or before it, for one of both. Default: from the first on.
	After  *TargetKey `json:"after,omitempty"`
	Before *TargetKey `json:"before,omitempty"`
	// Limit is how many are listed at most, up to [MaxTargets]. 0: they are only counted.
	Limit int `json:"limit"`
}

// MaxTargets bounds what one question has listed.
const MaxTargets = 1000

// ErrQuery is wrapped by errors about a [TargetQuery].
var ErrQuery = errors.New("a question for targets that cannot be answered")

// Validate reports what is wrong with a question.
func (q *TargetQuery) Validate() error {
	switch {
	case q.Limit < 0 || q.Limit > MaxTargets:
		return fmt.Errorf("%w: limit %d is not from 0 to %d", ErrQuery, q.Limit, MaxTargets)
	case q.Health != "" && q.Health != "up" && q.Health != "down" && q.Health != "unknown":
		return fmt.Errorf("%w: health %q is none of up, down and unknown", ErrQuery, q.Health)
	case q.After != nil && q.Before != nil:
		return fmt.Errorf("%w: of after and before, only one can be given", ErrQuery)
	}
	return nil
}

// TargetKey is the place of a target in the order of all: by scrape pool, then by URL.
type TargetKey struct {
	Pool string `json:"pool"`
	URL  string `json:"url"`
	// ID is the name of the target, see [target.Target].
	ID uint64 `json:"id,string"`
}

// Compare returns a number below 0 where k stands before o, 0 where they are the same, and one above 0 otherwise.
func (k TargetKey) Compare(o TargetKey) int {
	return cmp.Or(cmp.Compare(k.Pool, o.Pool), cmp.Compare(k.URL, o.URL), cmp.Compare(k.ID, o.ID))
}

// String writes the key for a link; [ParseTargetKey] reads it.
func (k TargetKey) String() string {
	b, err := json.Marshal(k)
	if err != nil {
		panic(fmt.Sprintf("encoding the key of a target: %v", err)) // it consists of texts and a number
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseTargetKey reads what [TargetKey.String] has written.
func ParseTargetKey(s string) (*TargetKey, error) {
	var k TargetKey
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not the place of a target: %w", ErrQuery, s, err)
	}
	return &k, nil
}

// Target is a target of the fleet as the process that scrapes it describes it.
type Target struct {
	TargetKey
	// Owner is the process, by the ID of its member.
	Owner string `json:"owner"`
	// Labels are those that every series of the target gets, DiscoveredLabels those before relabelling, without what the scrape config's params add. Secrets in the URL
	// are hidden, and in the error where it quotes the URL.
	Labels           labels.Labels `json:"labels"`
	DiscoveredLabels labels.Labels `json:"discoveredLabels"`
	// DiscoveredLeftOut says that the labels before relabelling were too large to send.
	DiscoveredLeftOut bool   `json:"discoveredLeftOut,omitempty"`
	Health            string `json:"health"`
	LastError         string `json:"lastError,omitempty"`
	// LastScrape is when the last scrape began, zero before the first one, and LastScrapeSeconds how long it took.
	LastScrape        time.Time `json:"lastScrape,omitzero"`
	LastScrapeSeconds float64   `json:"lastScrapeSeconds"`
	Interval          string    `json:"scrapeInterval"`
	Timeout           string    `json:"scrapeTimeout"`
}

// Pool counts the targets of a scrape pool, whatever was asked for.
type Pool struct {
	Name    string `json:"name"`
	Up      int    `json:"up"`
	Down    int    `json:"down"`
	Unknown int    `json:"unknown"`
	// Dropped are those that relabelling dropped.
	Dropped int `json:"dropped"`
}

// Total counts the targets that are scraped.
func (p *Pool) Total() int { return p.Up + p.Down + p.Unknown }

func (p *Pool) add(o Pool) {
	p.Up, p.Down, p.Unknown, p.Dropped = p.Up+o.Up, p.Down+o.Down, p.Unknown+o.Unknown, p.Dropped+o.Dropped
}

// TargetPage is a part of the fleet's targets. Lists are never nil.
type TargetPage struct {
	// All counts the targets of all pools, Pools those of each, in the order of their names.
	All   Pool   `json:"all"`
	Pools []Pool `json:"pools"`
	// Matching counts the targets that were asked for, on all pages; First is the number of the first one listed, from 1.
	Matching int      `json:"matching"`
	First    int      `json:"first"`
	Targets  []Target `json:"targets"`
	// Next and Previous are where to ask on, see [TargetKey.String]; empty where there are no more.
	Next     string `json:"next,omitempty"`
	Previous string `json:"previous,omitempty"`
	// Problems say whose targets are missing, and why.
	Problems []string `json:"problems"`
}
