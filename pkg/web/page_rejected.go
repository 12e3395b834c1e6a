package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/millrace/millrace/pkg/rejected"
)

// Rejected finds what endpoints have refused for good, as [rejected.Shelf] does.
type Rejected interface {
	// List returns the newest batches of an endpoint, or of all, before the message of a number, or the newest where it is 0.
	List(ctx context.Context, endpoint string, before uint64, n int) (*rejected.Page, error)
	// Open looks inside a batch, at its samples from a number on. One that is not there is [rejected.ErrGone].
	Open(ctx context.Context, message uint64, from int) (*rejected.Look, error)
}

// rejectedPage lists the batches that endpoints have refused for good, and shows what is in one.
var rejectedPage = page{
	name: "rejected", path: "/rejected", Title: "Rejected", Style: "rejected.css", view: (*Server).viewRejected,
	absent: func(c *Config) bool { return c.Rejected == nil },
}

// batchesOnPage is how many batches a page lists.
const batchesOnPage = 20

// rejectedView is what the page shows: a list, or a look inside one batch.
type rejectedView struct {
	Endpoint  string
	Endpoints []string
	Batches   []batchView
	// Newest and Older are links; empty where there is nothing to go to.
	Newest, Older   string
	Messages, Bytes uint64
	// Gone says that the batch that was asked for is not there.
	Gone string
	Look *lookView
}

type batchView struct {
	rejected.Batch
	Link string
}

type lookView struct {
	*rejected.Look
	Rows []rowView
	// First and Last count the samples that are shown from 1.
	First, Last int
	// Previous, Following and Back are links.
	Previous, Following, Back string
	// Replay is the link to a form that sends it again; empty where this process has no replays.
	Replay string
}

type rowView struct {
	rejected.Row
	Metric string
	Pairs  []labelPair
}

// labelPair is a label for a template.
type labelPair struct{ Name, Value string }

func (s *Server) viewRejected(ctx context.Context, r *http.Request) (view, error) {
	q := r.URL.Query()
	v := rejectedView{Endpoint: q.Get("endpoint"), Endpoints: s.cfg.Endpoints()}
	if q.Has("message") {
		return s.viewBatch(ctx, q, v)
	}
	before := whole(q.Get("before"))
	p, err := s.cfg.Rejected.List(ctx, v.Endpoint, before, batchesOnPage)
	if err != nil {
		return view{}, err
	}
	v.Messages, v.Bytes = p.Messages, p.Bytes
	link := func(set ...string) string {
		to := url.Values{}
		if v.Endpoint != "" {
			to.Set("endpoint", v.Endpoint)
		}
		for i := 0; i < len(set); i += 2 {
			to.Set(set[i], set[i+1])
		}
		if len(to) == 0 {
			return "rejected"
		}
		return "rejected?" + to.Encode()
	}
	for _, b := range p.Batches {
		v.Batches = append(v.Batches, batchView{b, link("message", strconv.FormatUint(b.Message, 10))})
	}
	if p.Older > 0 {
		v.Older = link("before", strconv.FormatUint(p.Older, 10))
	}
	if before > 0 {
		v.Newest = link()
	}
	return view{Content: v, Still: before > 0}, nil
}

// viewBatch shows what is in a batch.
func (s *Server) viewBatch(ctx context.Context, q url.Values, v rejectedView) (view, error) {
	look, err := s.cfg.Rejected.Open(ctx, whole(q.Get("message")), int(min(whole(q.Get("from")), 1<<30)))
	if errors.Is(err, rejected.ErrGone) {
		v.Gone = fmt.Sprintf("Message %d is not there: the stream keeps batches only for so long, or never had it.", whole(q.Get("message")))
		return view{Content: v, Still: true}, nil
	}
	if err != nil {
		return view{}, err
	}
	l := &lookView{Look: look, First: look.From + 1, Last: look.From + len(look.Rows), Back: "rejected"}
	if v.Endpoint != "" {
		l.Back += "?" + url.Values{"endpoint": {v.Endpoint}}.Encode()
	}
	for _, row := range look.Rows {
		l.Rows = append(l.Rows, rowView{row, row.Labels.Get(model.MetricNameLabel), pairsOf(row.Labels)})
	}
	from := func(n int) string {
		to := url.Values{"message": {strconv.FormatUint(look.Message, 10)}}
		if v.Endpoint != "" {
			to.Set("endpoint", v.Endpoint)
		}
		if n > 0 {
			to.Set("from", strconv.Itoa(n))
		}
		return "rejected?" + to.Encode()
	}
	if look.From > 0 {
		l.Previous = from(max(look.From-rejected.MaxRows, 0))
	}
	if look.Next > look.From {
		l.Following = from(look.Next)
	}
	if s.cfg.Replays != nil {
		l.Replay = "replays?" + url.Values{"endpoint": {look.Endpoint}, "rejected": {"on"}, "new": {"1"}}.Encode()
	}
	v.Look = l
	return view{Content: v, Still: true}, nil
}

// pairsOf returns labels without the metric's name, for a template.
func pairsOf(ls labels.Labels) (pairs []labelPair) {
	ls.Range(func(l labels.Label) {
		if l.Name != model.MetricNameLabel {
			pairs = append(pairs, labelPair{l.Name, l.Value})
		}
	})
	return pairs
}

// whole reads a whole number of a link; 0 where it is none.
func whole(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
