package replay

import (
	"fmt"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/millrace/millrace/pkg/redact"
)

// Spec says what is to be sent again, and where to, in the words of whoever asks for it.
type Spec struct {
	// Name is the replay's: letters, digits, - and _, at most 64. A replay that is asked for again by its name goes on where it was.
	Name string `json:"name"`
	// From and To bound the samples' timestamps, both included: a time such as 2026-01-31T15:00:00Z, a duration before now such as -2h, or now. An empty To means now. With
	// Rejected both may be empty, which means all.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Match are selectors of the series as the endpoint gets them, such as {job="api"}. A series that one of them selects is sent; without any, all are.
	Match []string `json:"match,omitempty"`
	// Endpoint is the name of an endpoint of the configuration, or URL the address of any other: it gets remote_write 1.0 without authentication, and the series with
	// the external labels but without write_relabel_configs. One of the two is set.
	Endpoint string `json:"endpoint,omitempty"`
	URL      string `json:"url,omitempty"`
	// Rate is the most samples a second; 0 for as many as go.
	Rate float64 `json:"rate,omitempty"`
	// DryRun counts and sends nothing.
	DryRun bool `json:"dryRun,omitempty"`
	// Rejected sends what Endpoint has refused for good, from the stream REJECTED, in place of what was collected.
	Rejected bool `json:"rejected,omitempty"`
	// Raw sends series to Endpoint as they go to a URL: with the external labels, but without its write_relabel_configs and limits.
	Raw bool `json:"raw,omitempty"`
}

// FieldError says what is wrong with a field of a [Spec].
type FieldError struct {
	// Field is the field's name as that of a flag: "dry-run".
	Field string
	// Message says what is wrong, Remedy what would be right.
	Message, Remedy string
}

// Error returns the field, what is wrong and the remedy.
func (e *FieldError) Error() string { return e.Field + ": " + e.Message + "; " + e.Remedy }

func wrong(field, remedy, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Selection is which samples are to be sent.
type Selection struct {
	// From and To bound the timestamps in milliseconds, both included.
	From, To int64
	// Match selects series.
	Match Selectors
}

// Selectors select a series where all matchers of one of them match. None select all.
type Selectors [][]*labels.Matcher

// Holds reports whether a timestamp is one to send.
func (s *Selection) Holds(t int64) bool { return t >= s.From && t <= s.To }

// Selects reports whether a series is one to send.
func (s *Selection) Selects(ls labels.Labels) bool { return s.Match.Select(ls) }

// Select reports whether a series is one of those that are selected.
func (s Selectors) Select(ls labels.Labels) bool {
	return len(s) == 0 || slices.ContainsFunc(s, func(all []*labels.Matcher) bool {
		return !slices.ContainsFunc(all, func(m *labels.Matcher) bool { return !m.Matches(ls.Get(m.Name)) })
	})
}

// ParseSelectors reads selectors such as {job="api"}. What is wrong is a [FieldError] of the field match.
func ParseSelectors(texts []string) (list Selectors, err error) {
	if len(texts) > maxMatch {
		return nil, wrong("match", fmt.Sprintf("give at most %d", maxMatch), "%d selectors", len(texts))
	}
	for _, text := range texts {
		m, err := parser.NewParser(parser.Options{}).ParseMetricSelector(text)
		if err != nil {
			return nil, wrong("match", `write a selector such as {job="api"}`, "%q is no selector: %v", text, err)
		}
		list = append(list, m)
	}
	return list, nil
}

const (
	timeRemedy = "write a time such as 2026-01-31T15:00:00Z, a duration before now such as -2h, or now"
	maxMatch   = 64
)

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Select checks the spec and returns which samples it is about, with relative times before now. An error is a [*FieldError].
func (s *Spec) Select(now time.Time) (Selection, error) {
	sel := Selection{From: math.MinInt64, To: math.MaxInt64}
	if !namePattern.MatchString(s.Name) {
		return sel, wrong("name", "use 1 to 64 letters, digits, - and _", "%q cannot be a replay's name", s.Name)
	}
	if err := s.checkTarget(); err != nil {
		return sel, err
	}
	if math.IsNaN(s.Rate) || math.IsInf(s.Rate, 0) || s.Rate < 0 || s.Rate > 0 && s.Rate < 1 {
		return sel, wrong("rate", "give samples a second, at least 1, or leave it out for as many as go", "%v is no rate", s.Rate)
	}
	if s.From == "" && !s.Rejected {
		return sel, wrong("from", timeRemedy, "it is missing")
	}
	for _, bound := range []struct {
		field, text string
		to          *int64
	}{{"from", s.From, &sel.From}, {"to", s.To, &sel.To}} {
		text := bound.text
		if text == "" && s.Rejected {
			continue
		}
		if text == "" {
			text = "now"
		}
		t, err := parseTime(text, now)
		if err != nil {
			return sel, wrong(bound.field, timeRemedy, "%v", err)
		}
		*bound.to = t.UnixMilli()
	}
	if sel.From > sel.To {
		return sel, wrong("from", "exchange the two", "%s is after --to=%s", s.From, s.To)
	}
	var err error
	sel.Match, err = ParseSelectors(s.Match)
	return sel, err
}

func (s *Spec) checkTarget() error {
	switch {
	case s.Endpoint == "" && s.URL == "":
		return wrong("endpoint", "give the name of an endpoint of the configuration, or with --url the address of another", "nothing says where to send to")
	case s.Endpoint != "" && s.URL != "":
		return wrong("url", "leave one of the two out", "it stands beside --endpoint=%s", s.Endpoint)
	case s.Rejected && s.Endpoint == "":
		return wrong("rejected", "give --endpoint=NAME", "only what an endpoint of the configuration has refused can be sent again, and it goes to the same one")
	case s.Rejected && s.Raw:
		return wrong("raw", "leave one of the two out", "it stands beside --rejected, and what was refused is kept with the labels that it was sent with")
	case s.URL == "":
		return nil
	}
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return wrong("url", "write it as https://host/path", "it is no HTTP URL")
	}
	if redact.URLs(s.URL) != s.URL {
		return wrong("url", "add the endpoint to the configuration and use --endpoint", "it holds a secret, and none goes onto a subject or a page")
	}
	return nil
}

// parseTime reads RFC 3339, a negative duration in Prometheus's notation, or "now".
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if d, ok := strings.CutPrefix(text, "-"); ok {
		ago, err := model.ParseDuration(d)
		if err != nil {
			return time.Time{}, fmt.Errorf("%q is no duration", text)
		}
		return now.Add(-time.Duration(ago)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time", text)
	}
	return t, nil
}

// continues reports whether the spec asks for another one to go on: it is the same in other words than its rate, or names it and says nothing else.
func (s *Spec) continues(have *Spec) bool {
	a, b := *s, *have
	a.Rate, b.Rate = 0, 0
	only := Spec{Name: s.Name}
	return a.equal(&b) || a.equal(&only)
}

func (s *Spec) equal(o *Spec) bool {
	return s.Name == o.Name && s.From == o.From && s.To == o.To && slices.Equal(s.Match, o.Match) && s.Endpoint == o.Endpoint && s.URL == o.URL &&
		s.Rate == o.Rate && s.DryRun == o.DryRun && s.Rejected == o.Rejected && s.Raw == o.Raw
}
