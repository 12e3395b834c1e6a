package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace/millrace/pkg/replay"
)

// replaysPage lists the replays, and starts, stops and removes them.
var replaysPage = page{
	name: "replays", path: "/replays", Title: "Replays", Style: "replays.css", view: (*Server).viewReplays, act: (*Server).actReplays,
	absent: func(c *Config) bool { return c.Replays == nil },
}

// replaysView is what the page shows.
type replaysView struct {
	Form replayForm
	// Confirm is the replay that was made and waits for a word; nil where there is none.
	Confirm *replayView
	// Missing says that the replay to confirm is not there.
	Missing string
	Replays []replayView
	// New has the form for another one shown, on a page that holds still.
	New bool
	// Endpoints are those that a replay can go to.
	Endpoints []string
}

// replayForm is what is filled in.
type replayForm struct {
	Name, From, To, Match, Endpoint, Rate string
	Rejected, DryRun                      bool
}

// replayView is a replay with what follows from its status.
type replayView struct {
	replay.Status
	// Percent is how much of it is done. PerSecond is how many samples it goes through; below 0 while that is not known.
	Percent   int
	PerSecond float64
	// New says that it has not done anything yet.
	New bool
}

func newReplayView(st replay.Status, perSecond float64) replayView {
	return replayView{Status: st, Percent: int(st.Fraction() * 100), PerSecond: perSecond, New: st.State == replay.Stopped && st.Messages == 0}
}

// The buttons of the page, as the field "do" has them.
const (
	doHold   = "hold"
	doStart  = "start"
	doStop   = "stop"
	doRemove = "remove"
)

func (s *Server) viewReplays(ctx context.Context, r *http.Request) (view, error) {
	list, err := s.cfg.Replays.List(ctx)
	if err != nil {
		return view{}, err
	}
	q := r.URL.Query()
	v := replaysView{Endpoints: s.cfg.Endpoints(), Form: readReplayForm(q), New: q.Has("new")}
	if r.PostForm.Get("do") == doHold { // which was refused
		v.Form = readReplayForm(r.PostForm)
	}
	running := 0
	rates := s.replayRates.note(time.Now(), list)
	for _, st := range list {
		if st.State == replay.Running {
			running++
		}
		v.Replays = append(v.Replays, newReplayView(st, rates[st.Name]))
	}
	if name := q.Get("confirm"); name != "" {
		st, err := s.cfg.Replays.Get(ctx, name)
		if err != nil {
			v.Missing = err.Error()
		} else if st.State == replay.Stopped || st.State == replay.Done {
			c := newReplayView(st, -1)
			v.Confirm = &c
		}
	}
	out := view{Content: v, Still: v.Confirm != nil || v.New}
	if running > 0 {
		out.Alert = plural(running, "replay runs", "replays run")
	}
	return out, nil
}

func readReplayForm(q url.Values) replayForm {
	return replayForm{
		Name: q.Get("name"), From: q.Get("from"), To: q.Get("to"), Match: q.Get("match"), Endpoint: q.Get("endpoint"), Rate: q.Get("rate"),
		Rejected: q.Has("rejected"), DryRun: q.Has("dryrun"),
	}
}

// spec returns what the form asks for.
func (f *replayForm) spec() (replay.Spec, error) {
	spec := replay.Spec{
		Name: strings.TrimSpace(f.Name), From: strings.TrimSpace(f.From), To: strings.TrimSpace(f.To), Endpoint: f.Endpoint, DryRun: f.DryRun, Rejected: f.Rejected,
	}
	for line := range strings.Lines(f.Match) {
		if line = strings.TrimSpace(line); line != "" {
			spec.Match = append(spec.Match, line)
		}
	}
	if text := strings.TrimSpace(f.Rate); text != "" {
		rate, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return spec, &fieldError{"rate", fmt.Errorf("%q is no number; give samples a second, or leave it empty for as many as go", text)}
		}
		spec.Rate = rate
	}
	return spec, nil
}

func (s *Server) actReplays(ctx context.Context, r *http.Request) (string, error) {
	replays, name := s.cfg.Replays, r.PostForm.Get("name")
	switch do := r.PostForm.Get("do"); do {
	case doHold:
		form := readReplayForm(r.PostForm)
		spec, err := form.spec()
		if err != nil {
			return "", err
		}
		st, err := replays.Start(ctx, spec, true)
		if err != nil {
			return "", aboutField(err)
		}
		return "replays?" + url.Values{"confirm": {st.Name}}.Encode(), nil
	case doStart:
		if _, err := replays.Start(ctx, replay.Spec{Name: name}, false); err != nil {
			return "", err
		}
	case doStop, doRemove:
		st, err := replays.Get(ctx, name)
		if err != nil {
			return "", err
		}
		switch running := st.State == replay.Running; {
		case do == doRemove && running:
			return "", fmt.Errorf("the replay %q runs; stop it first", name)
		case do == doStop && !running:
			return "replays", nil // it has ended by itself: stopping it would remove it
		}
		if _, err := replays.Stop(ctx, name); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("%q is nothing to be done with a replay", do)
	}
	return "replays", nil
}

// aboutField makes an error about a field of a replay one about a field of the form.
func aboutField(err error) error {
	switch field, ok := errors.AsType[*replay.FieldError](err); {
	case ok && field.Field == "dry-run":
		return &fieldError{"dryrun", errors.New(field.Message + "; " + field.Remedy)}
	case ok:
		return &fieldError{field.Field, errors.New(field.Message + "; " + field.Remedy)}
	case errors.Is(err, replay.ErrTaken):
		return &fieldError{"name", err}
	}
	return err
}

// replayRates finds out how fast replays go, from one look at them to the next.
type replayRates struct {
	mu   sync.Mutex
	last map[string]replayRate
}

type replayRate struct {
	at        time.Time
	created   time.Time
	samples   uint64
	perSecond float64
}

// note takes how the replays stand and returns the samples per second of each; below 0 where that is not known.
func (r *replayRates) note(now time.Time, list []replay.Status) map[string]float64 {
	const least = 2 * time.Second // between two looks, since progress is told about once a second
	r.mu.Lock()
	defer r.mu.Unlock()
	next, out := map[string]replayRate{}, map[string]float64{}
	for i := range list {
		st := &list[i]
		rate, known := r.last[st.Name]
		switch age := now.Sub(rate.at); {
		case st.State != replay.Running:
			rate = replayRate{at: now, created: st.Created, samples: st.Samples, perSecond: -1}
		case !known || !rate.created.Equal(st.Created) || age > time.Minute || st.Samples < rate.samples:
			rate = replayRate{now, st.Created, st.Samples, -1}
		case age >= least:
			rate = replayRate{now, st.Created, st.Samples, float64(st.Samples-rate.samples) / age.Seconds()}
		}
		next[st.Name], out[st.Name] = rate, rate.perSecond
	}
	r.last = next
	return out
}
