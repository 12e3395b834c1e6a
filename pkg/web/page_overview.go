package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/millrace/millrace/pkg/readable"
	"github.com/millrace/millrace/pkg/status"
)

// overviewPage shows the whole fleet: the data's way, what needs a look, and who does what.
var overviewPage = page{name: "overview", path: "/", Title: "Overview", Style: "overview.css", view: (*Server).viewOverview}

// Bounds of the page.
const (
	maxEndpointBoxes = 8
	maxMembers       = 200
	maxProblems      = 50
	maxDetailRunes   = 100
)

// overview is what the page shows.
type overview struct {
	// Summary says in a sentence what flows.
	Summary string
	// Reached is false where this process does not reach NATS: then all that is shown is what it knows of itself.
	Reached      bool
	Problems     []string
	MoreProblems int
	Way          way
	Members      []memberLine
	MoreMembers  int
}

// way is the data's way: where targets and pushes come from, the streams, and the endpoints.
type way struct {
	Discovery, Scraper, Ingest, Stream, Relabel, Writer station
	// Pushed says that the fleet takes pushes: there is something to draw for them.
	Pushed        bool
	Endpoints     []endpointBox
	MoreEndpoints int
	// The links between the stations. Each says how strongly it flows, from 0 (not at all) to 3.
	ToScraper, FromScraper, ToIngest, FromIngest, ToWriter, ToRelabel, ToEndpoints int
}

// station is a step of the data's way.
type station struct {
	Name, Does string
	// State is empty where no process does it.
	State   string
	Detail  string // on what it waits, or what is wrong
	Figures []figure
	Full    *gauge
}

// placed is a station or a link with its place in the grid.
type placed struct {
	Place    string
	Strength int
	station
}

// figure is a number with its name.
type figure struct {
	Value, Name string
	// Tone is "warn" or "bad" where the number needs a look.
	Tone string
}

// gauge is how full something is.
type gauge struct{ Used, Limit uint64 }

// endpointBox is an endpoint at the end of the way.
type endpointBox struct {
	Name, URL, State, Detail string
	Figures                  []figure
}

// memberLine is a process of the fleet.
type memberLine struct {
	status.Member
	Does []memberService
}

// memberService is what a member does in one service.
type memberService struct {
	Name, State, Rate string
	Owned, All        int // of the shares of the service; All 0: it has none
	Epoch, Restarts   uint64
}

// errNoFleet is shown by a process that is told of no fleet.
var errNoFleet = errors.New("this process does not know how the fleet stands")

func (s *Server) viewOverview(ctx context.Context, _ *http.Request) (view, error) {
	if s.cfg.Fleet == nil {
		return view{}, errNoFleet
	}
	d, err := s.cfg.Fleet(ctx)
	if err != nil {
		return view{}, err
	}
	var targets *status.Pool
	if s.cfg.FleetTargets != nil {
		// Without the health of the targets, the rest is shown.
		if found, err := s.cfg.FleetTargets(ctx, &status.TargetQuery{}); err == nil && len(found.Problems) == 0 {
			targets = &found.All
		}
	}
	o := overviewOf(d, targets)
	v := view{Content: o}
	if n := len(o.Problems) + o.MoreProblems; n > 0 {
		v.Alert = plural(n, "problem", "problems")
	}
	return v, nil
}

// overviewOf works out what the page shows. targets counts all targets; nil where that is not known.
func overviewOf(d *status.Document, targets *status.Pool) *overview {
	o := &overview{Reached: d.Reached}
	o.Way = wayOf(d, targets)
	o.Summary = summary(d)
	o.Problems = append(slices.Clone(d.Problems), further(d, targets)...)
	if n := len(o.Problems) - maxProblems; n > 0 {
		o.Problems, o.MoreProblems = o.Problems[:maxProblems], n
	}
	for i, m := range d.Members {
		if i == maxMembers {
			o.MoreMembers = len(d.Members) - maxMembers
			break
		}
		o.Members = append(o.Members, memberOf(d, m))
	}
	return o
}

// further are problems that the document shows without saying so.
func further(d *status.Document, targets *status.Pool) []string {
	var list []string
	for _, m := range d.Members {
		for _, w := range m.WaitingFor {
			list = append(list, fmt.Sprintf("%s waits: %s", m.ID, w))
		}
	}
	for _, e := range d.Endpoints {
		if e.State == status.Waiting {
			why := ""
			if len(e.WaitingFor) > 0 {
				why = ": " + e.WaitingFor[0]
			}
			list = append(list, fmt.Sprintf("the endpoint %s does not take samples now%s", e.Name, why))
		}
		if e.RejectedSamples > 0 {
			list = append(list, fmt.Sprintf("the endpoint %s has refused %s for good; they are kept with its answer", e.Name, samples(float64(e.RejectedSamples))))
		}
	}
	if targets != nil && targets.Down > 0 {
		list = append(list, fmt.Sprintf("%s of %s down", readable.Exact(uint64(targets.Down)), plural(targets.Total(), "target is", "targets are")))
	}
	return list
}

func samples(n float64) string {
	if n == 1 {
		return "1 sample"
	}
	return readable.Count(n) + " samples"
}

// perSecond is a rate for reading.
func perSecond(v float64) string {
	if v > 0 && v < 1 {
		return "< 1"
	}
	return readable.Count(math.Round(v))
}

// total adds a figure of a service over all members.
func total(d *status.Document, service, name string) float64 {
	sum := 0.0
	for _, m := range d.Members {
		for _, s := range m.Services {
			if s.Name == service {
				sum += finite(s.Figures[name])
			}
		}
	}
	return sum
}

func summary(d *status.Document) string {
	in := total(d, ServiceScraper, "samplesPerSecond") + total(d, ServiceIngest, "samplesPerSecond")
	out, lag := 0.0, 0.0
	for _, e := range d.Endpoints {
		out, lag = out+finite(e.SamplesPerSecond), max(lag, finite(e.LagSeconds))
	}
	s := fmt.Sprintf("%s samples/s come in, %s go out to %s.", perSecond(in), perSecond(out), plural(len(d.Endpoints), "endpoint", "endpoints"))
	if lag > 0 {
		s += fmt.Sprintf(" The longest lag is %s.", readable.Seconds(lag))
	}
	return s
}

// wayOf draws the data's way.
func wayOf(d *status.Document, targets *status.Pool) way {
	w := way{
		Discovery: serviceStation(d, ServiceDiscovery, "finds targets"), Scraper: serviceStation(d, ServiceScraper, "scrapes them"),
		Ingest: serviceStation(d, ServiceIngest, "takes OTLP and remote_write"), Stream: streamStation(d),
		Relabel: serviceStation(d, ServiceRelabel, "labels, once a series"), Writer: serviceStation(d, ServiceWriter, "sends, in order"),
	}
	w.Pushed = w.Ingest.State != ""
	found := total(d, ServiceDiscovery, "targets")
	w.Discovery.add(readable.Count(found), "targets", "")
	w.Discovery.addSome(total(d, ServiceDiscovery, "droppedTargets"), "dropped by relabelling", "")
	scraped, pushed := total(d, ServiceScraper, "samplesPerSecond"), total(d, ServiceIngest, "samplesPerSecond")
	w.Scraper.add(perSecond(scraped), "samples/s", "")
	if targets != nil {
		tone := ""
		if targets.Down > 0 {
			tone = "bad"
		}
		w.Scraper.add(readable.Exact(uint64(targets.Up))+" / "+readable.Exact(uint64(targets.Total())), "targets up", tone)
	}
	w.Scraper.add(readable.Count(total(d, ServiceScraper, "series")), "series", "")
	w.Scraper.addSome(total(d, ServiceScraper, "droppedScrapes"), "scrapes dropped", "warn")
	w.Ingest.add(perSecond(pushed), "samples/s", "")
	w.Ingest.add(readable.Count(total(d, ServiceIngest, "series")), "series", "")
	w.Ingest.addSome(total(d, ServiceIngest, "refusedPoints"), "points refused", "warn")
	w.Relabel.add(readable.Count(total(d, ServiceRelabel, "evaluatedSeries")), "series evaluated", "")
	sent := total(d, ServiceWriter, "samplesPerSecond")
	w.Writer.add(perSecond(sent), "samples/s", "")
	w.endpoints(d)
	w.ToScraper = min(strength(found), 1)
	w.FromScraper, w.FromIngest, w.ToIngest = strength(scraped), strength(pushed), strength(pushed)
	w.ToWriter, w.ToEndpoints = strength(max(scraped+pushed, sent)), strength(sent)
	w.ToRelabel = min(w.ToWriter, 1)
	return w
}

// strength is how thick a rate is drawn.
func strength(rate float64) int {
	switch {
	case rate <= 0:
		return 0
	case rate < 1000:
		return 1
	case rate < 100_000:
		return 2
	}
	return 3
}

func (s *station) add(value, name, tone string) {
	if s.State != "" {
		s.Figures = append(s.Figures, figure{value, name, tone})
	}
}

// addSome adds a number unless it is 0.
func (s *station) addSome(value float64, name, tone string) {
	if value > 0 {
		s.add(readable.Count(value), name, tone)
	}
}

// severity puts the states in an order, the worst last.
var severity = []string{status.Ready, status.OK, status.Idle, status.Sending, status.Starting, status.Degraded, status.Waiting, status.Unknown, status.Silent, status.NoLeader}

func worse(a, b string) bool { return slices.Index(severity, a) > slices.Index(severity, b) }

// serviceStation is a service over all members: with the state of the process that is worst off.
func serviceStation(d *status.Document, name, does string) station {
	st := station{Name: name, Does: does}
	n := 0
	for _, m := range d.Members {
		for _, s := range m.Services {
			if s.Name != name {
				continue
			}
			n++
			if st.State == "" || worse(s.State, st.State) {
				st.State, st.Detail = s.State, ""
				if len(s.WaitingFor) > 0 {
					st.Detail = s.WaitingFor[0]
				}
				if s.State == status.Silent {
					st.Detail = m.ID + " does not answer"
				}
			}
		}
	}
	for _, sh := range d.Shares {
		if free := len(sh.Free); sh.Service == name && free > 0 && st.State != "" {
			if worse(status.Waiting, st.State) {
				st.State = status.Waiting
			}
			st.Detail = cmp.Or(st.Detail, fmt.Sprintf("nobody owns %d of its %d shares", free, sh.All))
		}
	}
	if n > 1 {
		st.add(readable.Exact(uint64(n)), "processes", "")
	}
	return st
}

// streamStation is the log between the services.
func streamStation(d *status.Document) station {
	st := station{Name: "streams", Does: "keep what is taken"}
	var messages, size uint64
	for _, s := range d.Streams {
		if st.State == "" || worse(s.State, st.State) {
			st.State, st.Detail = s.State, ""
			if s.State != status.OK {
				st.Detail = cmp.Or(s.Error, s.Name+" is "+s.State)
			}
		}
		messages, size = messages+s.Messages, size+s.Bytes
		if s.Name != "FRAMES" || s.State == status.Unknown {
			continue
		}
		if s.MaxBytes > 0 {
			st.Full = &gauge{s.Bytes, s.MaxBytes}
		}
		st.Figures = append(st.Figures, figure{readable.Count(float64(s.Messages)), "batches of samples", ""})
		if s.OldestAgeSeconds > 0 {
			st.Figures = append(st.Figures, figure{readable.Seconds(s.OldestAgeSeconds), "back to the oldest", ""})
		}
	}
	for _, s := range d.Streams {
		if s.Name == "REJECTED" && s.Messages > 0 {
			st.Figures = append(st.Figures, figure{readable.Count(float64(s.Messages)), "rejected batches", "warn"})
		}
	}
	if size > 0 {
		st.Figures = append(st.Figures, figure{readable.Bytes(size), "stored in all", ""})
	}
	return st
}

// endpoints draws the endpoints that are worst off, and counts the others.
func (w *way) endpoints(d *status.Document) {
	list := slices.Clone(d.Endpoints)
	slices.SortStableFunc(list, func(a, b status.Endpoint) int {
		return cmp.Or(cmp.Compare(slices.Index(severity, b.State), slices.Index(severity, a.State)), cmp.Compare(b.LagSeconds, a.LagSeconds))
	})
	if n := len(list) - maxEndpointBoxes; n > 0 {
		list, w.MoreEndpoints = list[:maxEndpointBoxes], n
	}
	slices.SortStableFunc(list, func(a, b status.Endpoint) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range list {
		b := endpointBox{Name: e.Name, URL: e.URL, State: e.State}
		if e.State == status.Waiting && len(e.WaitingFor) > 0 {
			b.Detail = readable.Shorten(e.WaitingFor[0], maxDetailRunes) // the whole of it is among the problems
		}
		b.Figures = append(b.Figures, figure{perSecond(finite(e.SamplesPerSecond)), "samples/s", ""}, figure{readable.Count(float64(e.PendingSamples)), "pending", ""})
		lag := figure{readable.Seconds(finite(e.LagSeconds)), "lag", ""}
		if e.LagSeconds >= 60 {
			lag.Tone = "warn"
		}
		b.Figures = append(b.Figures, lag)
		if e.RejectedSamples > 0 {
			b.Figures = append(b.Figures, figure{readable.Count(float64(e.RejectedSamples)), "refused", "warn"})
		}
		if e.LostSamples > 0 {
			b.Figures = append(b.Figures, figure{readable.Count(float64(e.LostSamples)), "lost", "bad"})
		}
		w.Endpoints = append(w.Endpoints, b)
	}
}

// memberOf tells what a member does and owns.
func memberOf(d *status.Document, m status.Member) memberLine {
	line := memberLine{Member: m}
	for _, s := range m.Services {
		ms := memberService{Name: s.Name, State: s.State, Restarts: s.Restarts}
		if v, known := s.Figures["samplesPerSecond"]; known {
			ms.Rate = perSecond(finite(v)) + " samples/s"
		}
		for _, sh := range d.Shares {
			if sh.Service != s.Name {
				continue
			}
			ms.All = sh.All
			for _, o := range sh.Owners {
				if o.Member == m.ID {
					ms.Owned, ms.Epoch = len(o.Shares), o.NewestEpoch
				}
			}
		}
		line.Does = append(line.Does, ms)
	}
	return line
}

// Up is how long the member runs; 0 where that is not known.
func (m memberLine) Up(now time.Time) time.Duration {
	if m.Started.IsZero() {
		return 0
	}
	return max(now.Sub(m.Started), time.Second)
}
