package frame

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
)

func TestDictionaryRoundTrip(t *testing.T) {
	for name, series := range map[string][]Series{"empty": nil, "rich": richSeries(), "recorded": scrapes(t)[0].series} {
		t.Run(name, func(t *testing.T) {
			d, msg, err := NewDictionary("some job", series)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "returned dictionary", d, &Dictionary{ID: d.ID, Job: "some job", Series: series})
			got, err := ReadDictionary(msg, d.ID)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, "dictionary", got, d)
		})
	}
}

func TestSameSeriesHaveTheSameName(t *testing.T) {
	base, msg, err := NewDictionary("a", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := NewDictionary("b", richSeries())
	if err != nil || other.ID != base.ID {
		t.Errorf("same series of another job: %v, %v, want %v", other.ID, err, base.ID)
	}
	read, err := ReadDictionary(msg, base.ID)
	if err != nil {
		t.Fatal(err)
	}
	if again, _, err := NewDictionary("a", read.Series); err != nil || again.ID != base.ID {
		t.Errorf("decoded series: %v, %v, want %v", again.ID, err, base.ID)
	}
	changes := map[string]func(s []Series) []Series{
		"order":    func(s []Series) []Series { s[0], s[1] = s[1], s[0]; return s },
		"label":    func(s []Series) []Series { s[2].Labels = labels.FromStrings("__name__", "up", "job", "wen"); return s },
		"boundary": func(s []Series) []Series { s[2].Labels = labels.FromStrings("__name__", "upj", "ob", "web"); return s },
		"family":   func(s []Series) []Series { s[0].Family = "f"; return s },
		"help":     func(s []Series) []Series { s[0].Metadata.Help += "."; return s },
		"unit":     func(s []Series) []Series { s[0].Metadata.Unit = ""; return s },
		"length":   func(s []Series) []Series { return s[:4] },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			d, _, err := NewDictionary("a", change(richSeries()))
			if err != nil || d.ID == base.ID {
				t.Errorf("%v, %v: has the old name", d.ID, err)
			}
		})
	}
}

func TestDictionaryUnderAnotherNameIsRefused(t *testing.T) {
	d, msg, err := NewDictionary("a", richSeries())
	if err != nil {
		t.Fatal(err)
	}
	d.ID[3] ^= 1
	if _, err := ReadDictionary(msg, d.ID); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error %v, want %v", err, ErrCorrupt)
	}
}

func unsorted(pairs ...string) labels.Labels {
	b := labels.NewScratchBuilder(0)
	for i := 0; i < len(pairs); i += 2 {
		b.Add(pairs[i], pairs[i+1])
	}
	return b.Labels()
}

func TestSeriesThatReadersRefuseAreNotEncoded(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	many := make([]Series, MaxSeries+1)
	heavy := make([]Series, 400)
	distinct := make([]Series, 200)
	for i := range many {
		many[i].Labels = labels.FromStrings("i", fmt.Sprint(i))
	}
	for i := range heavy {
		heavy[i].Labels = labels.FromStrings("i", fmt.Sprint(i), "long", long)
	}
	for i := range distinct {
		distinct[i].Labels = labels.FromStrings("long", fmt.Sprint(i, long))
	}
	cases := map[string][]Series{
		"too many":             many,
		"not sorted":           {{Labels: unsorted("b", "1", "a", "2")}},
		"a name twice":         {{Labels: unsorted("a", "1", "a", "2")}},
		"an empty name twice":  {{Labels: unsorted("", "1", "", "2")}},
		"a huge label set":     {{Labels: labels.FromStrings("a", strings.Repeat("x", MaxLabelSetBytes))}},
		"huge label sets":      heavy,
		"huge different ones":  distinct,
		"the second is faulty": {richSeries()[0], {Labels: unsorted("b", "1", "a", "2")}},
	}
	for name, series := range cases {
		t.Run(name, func(t *testing.T) {
			if _, _, err := NewDictionary("j", series); err == nil {
				t.Error("NewDictionary gave no error")
			}
			if _, err := EncodeRelabelled(DictID{}, "r", series); err == nil {
				t.Error("EncodeRelabelled gave no error")
			}
		})
	}
	if _, _, err := NewDictionary("j", append(richSeries(), Series{})); err == nil {
		t.Error("NewDictionary took a series without labels")
	}
	if _, _, err := NewDictionary("j", many[:MaxSeries]); err != nil {
		t.Errorf("%d series: %v", MaxSeries, err)
	}
}

func TestRelabelledRoundTrip(t *testing.T) {
	series := richSeries()
	series[1] = Series{}
	series[3].Labels = labels.EmptyLabels()
	msg, err := EncodeRelabelled(DictID{5}, "rules-1", series)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ReadRelabelled(msg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Dict != (DictID{5}) || r.Rules != "rules-1" || r.Kept != 3 || r.Size == 0 {
		t.Errorf("envelope %+v", r)
	}
	for range 2 {
		got, err := r.Series()
		if err != nil {
			t.Fatal(err)
		}
		diff(t, "series", got, series)
	}

	other, err := EncodeRelabelled(DictID{6}, "rules-2", series)
	if err != nil {
		t.Fatal(err)
	}
	if r2, err := ReadRelabelled(other); err != nil || r2.Content != r.Content {
		t.Errorf("the same final series of another endpoint have content %v, %v, want %v", r2.Content, err, r.Content)
	}
	if msg2, err := EncodeRelabelled(DictID{5}, "rules-1", series); err != nil || !bytes.Equal(msg, msg2) {
		t.Errorf("encoding twice gives different bytes, %v", err)
	}
}

func TestRelabelledThatDropsEverything(t *testing.T) {
	msg, err := EncodeRelabelled(DictID{}, "", make([]Series, 7))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ReadRelabelled(msg)
	if err != nil {
		t.Fatal(err)
	}
	if series, err := r.Series(); err != nil || len(series) != 7 || r.Kept != 0 {
		t.Errorf("%d series, %d kept, %v", len(series), r.Kept, err)
	}
}
