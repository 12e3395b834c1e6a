package rejected

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/millrace/millrace/pkg/frame"
)

// Look is a look inside a batch: some of its samples.
type Look struct {
	Batch
	// Series is how many time series it has, All how many samples, floats and histograms.
	Series int `json:"series"`
	All    int `json:"all"`
	// From is the number of the first of Rows, counted from 0, and Next that of the first which follows; 0 where none does.
	From int   `json:"from"`
	Next int   `json:"next"`
	Rows []Row `json:"rows"`
}

// Row is a sample.
type Row struct {
	Labels labels.Labels `json:"labels"`
	Time   time.Time     `json:"time"`
	// Value is the number, "stale" for a staleness marker, or a histogram in words.
	Value string `json:"value"`
	// Histogram says that it is a native histogram.
	Histogram bool `json:"histogram,omitempty"`
}

const (
	// MaxRows is how many samples a look shows at most.
	MaxRows = 200
	// maxRowBytes bounds the labels and values of a look, so that it fits into a message.
	maxRowBytes = 512 << 10
	// maxHistogram bounds the words of a histogram.
	maxHistogram = 1024
)

// Open looks inside the batch of a message, at the samples from a number on. A batch that the stream does not hold is [ErrGone].
func (s *Shelf) Open(ctx context.Context, seq uint64, from int) (*Look, error) {
	msg, err := s.message(ctx, seq)
	if err != nil {
		return nil, err
	}
	l := &Look{Rows: []Row{}}
	b, r := s.describe(&msg)
	l.Batch = b
	if r == nil {
		return l, nil
	}
	list, err := Decode(r)
	if err != nil {
		l.Unreadable = "the request in it cannot be read: " + err.Error()
		return l, nil
	}
	l.show(list, max(from, 0))
	return l, nil
}

// show takes the samples from a number on, as many as a look may have.
func (l *Look) show(list []Series, from int) {
	l.Series, l.From = len(list), from
	bytes, full := 0, false
	add := func(s *Series, t int64, histogram bool, text func() string) {
		n := l.All
		l.All++
		if n < from || full {
			return
		}
		row := Row{Labels: s.Labels, Time: time.UnixMilli(t).UTC(), Value: text(), Histogram: histogram}
		size := len(row.Value)
		s.Labels.Range(func(x labels.Label) { size += len(x.Name) + len(x.Value) })
		if len(l.Rows) == MaxRows || len(l.Rows) > 0 && bytes+size > maxRowBytes {
			full, l.Next = true, n
			return
		}
		bytes += size
		l.Rows = append(l.Rows, row)
	}
	for i := range list {
		s := &list[i]
		for _, v := range s.Samples {
			add(s, v.Timestamp, false, func() string { return number(v.Value) })
		}
		for _, h := range s.Histograms {
			add(s, h.Time, true, func() string { return words(&h) })
		}
	}
}

func number(v float64) string {
	if math.Float64bits(v) == value.StaleNaN {
		return "stale"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func words(h *frame.Histogram) string {
	text := ""
	switch {
	case h.Int != nil && math.Float64bits(h.Int.Sum) == value.StaleNaN, h.Float != nil && math.Float64bits(h.Float.Sum) == value.StaleNaN:
		return "stale"
	case h.Int != nil:
		text = h.Int.String()
	case h.Float != nil:
		text = h.Float.String()
	}
	if len(text) > maxHistogram {
		text = text[:maxHistogram] + "…"
	}
	return text
}
