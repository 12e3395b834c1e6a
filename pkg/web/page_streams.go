package web

import (
	"context"
	"net/http"
	"net/url"

	"github.com/millrace/millrace/pkg/status"
)

// streamsPage shows the endpoints of the fleet with their last hour, and the streams.
var streamsPage = page{
	name: "streams", path: "/streams", Title: "Streams", Style: "streams.css", view: (*Server).viewStreams,
	absent: func(c *Config) bool { return c.Fleet == nil },
}

// streamsView is what the page shows.
type streamsView struct {
	Endpoints        []endpointView
	Streams, Buckets []status.Stream
	// NoHistory says why there are no charts.
	NoHistory string
}

// endpointView is an endpoint with its charts.
type endpointView struct {
	status.Endpoint
	// ID is unique on the page.
	ID string
	// Charts are the lag and the rate; none where nothing is known.
	Charts []chart
	// Rejected is the link to its rejected batches; empty where they are not shown.
	Rejected string
}

func (s *Server) viewStreams(ctx context.Context, _ *http.Request) (view, error) {
	d, err := s.cfg.Fleet(ctx)
	if err != nil {
		return view{}, err
	}
	v := streamsView{}
	for _, st := range d.Streams {
		if st.Bucket {
			v.Buckets = append(v.Buckets, st)
		} else {
			v.Streams = append(v.Streams, st)
		}
	}
	tracks := map[[2]string]status.Track{}
	if s.cfg.History != nil && len(d.Endpoints) > 0 {
		h, err := s.cfg.History(ctx)
		if err != nil {
			v.NoHistory = err.Error()
		} else {
			for _, t := range h.Tracks {
				tracks[[2]string{t.Name, t.URL}] = t
			}
		}
	}
	waiting := 0
	for _, e := range d.Endpoints {
		ev := endpointView{Endpoint: e, ID: "endpoint " + e.Name + " " + e.URL}
		if t, ok := tracks[[2]string{e.Name, e.URL}]; ok {
			ev.Charts = []chart{newChart("Lag", ofSeconds, t.Lag), newChart("Samples", ofRate, t.Rate)}
		}
		if s.cfg.Rejected != nil {
			ev.Rejected = "rejected?" + url.Values{"endpoint": {e.Name}}.Encode()
		}
		if e.State == status.Waiting {
			waiting++
		}
		v.Endpoints = append(v.Endpoints, ev)
	}
	out := view{Content: v}
	if waiting > 0 {
		out.Alert = plural(waiting, "endpoint waits", "endpoints wait")
	}
	return out, nil
}
