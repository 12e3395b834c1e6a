package replay

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

var now = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)

func TestWhatIsWrongWithASpecNamesTheFlagAndTheRemedy(t *testing.T) {
	good := Spec{Name: "x", From: "-2h", To: "-1h", Endpoint: "prod"}
	if _, err := good.Select(now); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		field, remedy string
		change        func(*Spec)
	}{
		{"name", "use 1 to 64 letters", func(s *Spec) { s.Name = "a.b" }},
		{"name", "use 1 to 64 letters", func(s *Spec) { s.Name = strings.Repeat("x", 65) }},
		{"from", "-2h", func(s *Spec) { s.From = "" }},
		{"from", "-2h", func(s *Spec) { s.From = "yesterday" }},
		{"from", "-2h", func(s *Spec) { s.From = "2h" }},
		{"from", "-2h", func(s *Spec) { s.From = "-2x" }},
		{"to", "2026-01-31T15:00:00Z", func(s *Spec) { s.To = "2026-01-31 15:00" }},
		{"from", "exchange", func(s *Spec) { s.From, s.To = s.To, s.From }},
		{"match", `{job="api"}`, func(s *Spec) { s.Match = []string{`{job="api"`} }},
		{"match", `{job="api"}`, func(s *Spec) { s.Match = []string{`rate(x[5m])`} }},
		{"match", "at most 64", func(s *Spec) { s.Match = make([]string, 65) }},
		{"endpoint", "--url", func(s *Spec) { s.Endpoint = "" }},
		{"url", "leave one", func(s *Spec) { s.URL = "http://x/" }},
		{"url", "https://host/path", func(s *Spec) { s.Endpoint, s.URL = "", "ftp://x/" }},
		{"url", "https://host/path", func(s *Spec) { s.Endpoint, s.URL = "", "http://" }},
		{"url", "add the endpoint to the configuration", func(s *Spec) { s.Endpoint, s.URL = "", "http://me:secret@x/" }},
		{"rate", "at least 1", func(s *Spec) { s.Rate = -1 }},
		{"rate", "at least 1", func(s *Spec) { s.Rate = 0.5 }},
		{"rate", "at least 1", func(s *Spec) { s.Rate = math.NaN() }},
		{"rejected", "--endpoint=NAME", func(s *Spec) { s.Endpoint, s.URL, s.Rejected = "", "http://x/", true }},
		{"raw", "leave one", func(s *Spec) { s.Rejected, s.Raw = true, true }},
	} {
		s := good
		c.change(&s)
		_, err := s.Select(now)
		var field *FieldError
		if !errors.As(err, &field) || field.Field != c.field || !strings.Contains(field.Remedy, c.remedy) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%+v: %v, want one about %s with %q", s, err, c.field, c.remedy)
		}
	}
}

func TestTimesAreAbsoluteOrBeforeNow(t *testing.T) {
	for _, c := range []struct {
		from, to string
		f, t     time.Time
	}{
		{"-2h", "-90m", now.Add(-2 * time.Hour), now.Add(-90 * time.Minute)},
		{"-1d", "now", now.Add(-24 * time.Hour), now},
		{"-1h30m", "", now.Add(-90 * time.Minute), now},
		{"2026-01-31T12:00:00+01:00", "2026-01-31T11:00:00.001Z", now.Add(-4 * time.Hour), now.Add(-4*time.Hour + time.Millisecond)},
	} {
		s := Spec{Name: "x", From: c.from, To: c.to, URL: "http://x/"}
		sel, err := s.Select(now)
		if err != nil || sel.From != c.f.UnixMilli() || sel.To != c.t.UnixMilli() {
			t.Errorf("%q to %q is %d to %d, %v; want %d to %d", c.from, c.to, sel.From, sel.To, err, c.f.UnixMilli(), c.t.UnixMilli())
		}
		if !sel.Holds(sel.From) || !sel.Holds(sel.To) || sel.Holds(sel.From-1) || sel.Holds(sel.To+1) {
			t.Errorf("%q to %q does not include just its ends", c.from, c.to)
		}
	}
}

func TestSelectorsAreAlternatives(t *testing.T) {
	s := Spec{Name: "x", From: "-2h", URL: "http://x/", Match: []string{`{job="api",zone!="b"}`, `up`, `{env=""}`}}
	sel, err := s.Select(now)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		series labels.Labels
		want   bool
	}{
		{labels.FromStrings("__name__", "x", "job", "api", "env", "e"), true},
		{labels.FromStrings("__name__", "x", "job", "api", "zone", "b", "env", "e"), false},
		{labels.FromStrings("__name__", "up", "job", "db", "env", "e"), true},
		{labels.FromStrings("__name__", "x", "job", "db", "env", "e"), false},
		{labels.FromStrings("__name__", "x", "job", "db"), true},
	} {
		if got := sel.Selects(c.series); got != c.want {
			t.Errorf("%s is selected: %t", c.series, got)
		}
	}
}

// FuzzRecord shows that no entry of the bucket ends the process that reads it.
func FuzzRecord(f *testing.F) {
	r := Record{Spec: Spec{Name: "x", From: "-2h", URL: "http://x/", Match: []string{"up"}}, Created: now, Parts: []Part{{1, 2, 3}}}
	b, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := Decode(b)
		if (rec == nil) != (err != nil) {
			t.Errorf("%v, %v", rec, err)
		}
	})
}
