package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/pkg/stream"
)

// reportVersion changes when a field of [Report] goes or comes to mean something else, and not when one is added.
const reportVersion = 1

// Report is what one process says of itself.
type Report struct {
	Version int `json:"version"`
	// Member describes the process. LastSeen and OtherConfig are left to others.
	Member Member `json:"member"`
	// Shares is into how many shares the work of each service is cut that it knows of.
	Shares map[string]int `json:"shares"`
	// Endpoints are those that it writes to, with its own figures.
	Endpoints []Endpoint `json:"endpoints"`
	// Replays are all that there are, which every writer knows.
	Replays []replay.Status `json:"replays,omitempty"`
}

// errReport is returned for an answer that cannot be read.
var errReport = errors.New("an answer that cannot be read")

// maxText bounds each text of a report, in bytes: answers of endpoints may be long.
const maxText = 2048

// encode returns the report as it is sent.
func (r *Report) encode() ([]byte, error) {
	out := *r
	out.Version = reportVersion
	out.Endpoints = slices.Clone(r.Endpoints)
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		e.LastError, e.WaitingFor = shorten(e.LastError), slices.Clone(e.WaitingFor)
		for j, w := range e.WaitingFor {
			e.WaitingFor[j] = shorten(w)
		}
	}
	out.Replays = shortened(r.Replays)
	b, err := json.Marshal(&out)
	if err != nil {
		return nil, fmt.Errorf("encoding how the process stands: %w", err)
	}
	return b, nil
}

func shorten(s string) string { return shortenTo(s, maxText) }

func shortenTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most] + "…" // a rune that is cut in two is mended by the encoder
}

// What a report tells of replays is bounded too: how many there are, and the selectors of each with the bytes of one.
const (
	maxReplays       = 32
	maxSelectors     = 8
	maxSelectorBytes = 256
)

// shortened returns the replays that a report tells of: those that run, and the newest of the others. Their texts are shortened as all are.
func shortened(list []replay.Status) []replay.Status {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b replay.Status) int {
		if running := a.State == replay.Running; running != (b.State == replay.Running) {
			if running {
				return -1
			}
			return 1
		}
		return b.Created.Compare(a.Created)
	})
	list = list[:min(len(list), maxReplays)]
	for i := range list {
		st := &list[i]
		st.Waiting, st.URL, st.Endpoint = shorten(st.Waiting), shorten(st.URL), shorten(st.Endpoint)
		if len(st.Match) > maxSelectors {
			st.Match = append(slices.Clone(st.Match[:maxSelectors]), "…")
		}
		st.Match = slices.Clone(st.Match)
		for j, m := range st.Match {
			st.Match[j] = shortenTo(m, maxSelectorBytes)
		}
	}
	return list
}

// decodeReport reads an answer.
func decodeReport(b []byte) (*Report, error) {
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errReport, err)
	}
	if r.Member.ID == "" {
		return nil, fmt.Errorf("%w: it does not name its process", errReport)
	}
	if r.Version != reportVersion {
		return nil, fmt.Errorf("%w: that of %s has version %d, this build reads version %d: upgrade the older of the two", errReport, r.Member.ID, r.Version, reportVersion)
	}
	return &r, nil
}

// Answers is what a process tells when it is asked.
type Answers struct {
	// Member is the process's ID.
	Member string
	// Report returns how it stands.
	Report func() *Report
	// History returns the history of its endpoints; nil where it writes to none.
	History func() *History
	// Failed is told of answers that cannot be sent.
	Failed func(error)
}

// Answer has the process answer whoever asks how it stands, until stop is called or the connection is closed. Report or History is called once for each question.
func Answer(conn *stream.Conn, a Answers) (stop func(), err error) {
	sub, err := conn.NC.Subscribe(conn.Status(), func(m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		b, err := a.answer(m.Data)
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			a.Failed(fmt.Errorf("answering how the process stands: %w", err))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listening for questions how the process stands: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // which fails where the connection is closed already
}

func (a *Answers) answer(question []byte) ([]byte, error) {
	if string(question) != historyQuestion {
		return a.Report().encode()
	}
	out := historyAnswer{Version: reportVersion, Member: historyMember{a.Member}}
	if a.History != nil {
		out.History = a.History()
	}
	b, err := json.Marshal(&out)
	if err != nil {
		return nil, fmt.Errorf("encoding the history: %w", err)
	}
	return b, nil
}
