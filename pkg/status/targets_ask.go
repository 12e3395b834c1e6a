package status

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/millrace/millrace/pkg/stream"
)

// TargetHolder is what one process tells of targets.
type TargetHolder struct {
	// Member is its ID.
	Member string
	// List are the targets that it scrapes; nil where it scrapes none.
	List *TargetList
	// Dropped counts the targets that its relabelling has dropped, by scrape pool.
	Dropped map[string]int
}

func (h *TargetHolder) answer(q *TargetQuery) *targetAnswer {
	list := h.List
	if list == nil {
		list = &TargetList{}
	}
	a := list.answer(q, h.Dropped)
	a.Member = h.Member
	return a
}

// TargetSource is where [FindTargets] finds the targets of a fleet.
type TargetSource struct {
	// Conn reaches NATS; nil while the process that is asked does not, and where there is nobody else.
	Conn *stream.Conn
	// Holders are the other processes that scrape or discover targets, by the IDs of their members.
	Holders []string
	// Self is what the process that is asked knows; nil where the fleet is looked at from outside, and where it has nothing to do with targets.
	Self *TargetHolder
}

// targetQuestion is what is sent.
type targetQuestion struct {
	Version int `json:"version"`
	*TargetQuery
}

// FindTargets asks all who have targets for those that are asked for. Whose targets are missing is said in the page's problems; an error is about the question.
func FindTargets(ctx context.Context, src TargetSource, q *TargetQuery) (*TargetPage, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	var answers []*targetAnswer
	var problems []string
	if src.Self != nil {
		answers = append(answers, src.Self.answer(q))
	}
	switch {
	case len(src.Holders) == 0:
	case src.Conn == nil:
		problems = append(problems, "NATS is not reached: the targets of other processes are not known")
	default:
		others, silent, err := askTargets(ctx, src.Conn, src.Holders, q)
		answers = append(answers, others...)
		for _, id := range silent {
			problems = append(problems, fmt.Sprintf("%s does not answer: its targets are missing here", id))
		}
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	slices.SortFunc(answers, func(a, b *targetAnswer) int { return strings.Compare(a.Member, b.Member) })
	page := mergeTargets(q, answers)
	page.Problems = append(page.Problems, problems...)
	return page, nil
}

// askTargets returns what others answer, and who did not.
func askTargets(ctx context.Context, conn *stream.Conn, holders []string, query *TargetQuery) (answers []*targetAnswer, silent []string, err error) {
	data, err := json.Marshal(targetQuestion{targetVersion, query})
	if err != nil {
		return nil, holders, fmt.Errorf("asking for targets: %w", err)
	}
	answered := map[string]*targetAnswer{}
	q := question{subject: conn.StatusTargets(), data: data, expected: holders, read: func(b []byte) (string, error) {
		a, err := decodeTargetAnswer(b)
		if err != nil {
			return "", err
		}
		if slices.Contains(holders, a.Member) { // the process that asks hears itself
			answered[a.Member] = a
		}
		return a.Member, nil
	}}
	unread, silent, err := q.ask(ctx, conn)
	for _, id := range slices.Sorted(maps.Keys(answered)) {
		answers = append(answers, answered[id])
	}
	if err == nil && len(unread) > 0 {
		err = unread[0]
	}
	if err != nil {
		err = fmt.Errorf("asking for targets: %w", err)
	}
	return answers, silent, err
}

func decodeTargetAnswer(b []byte) (*targetAnswer, error) {
	var a targetAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("%w: %w", errReport, err)
	}
	if a.Member == "" {
		return nil, fmt.Errorf("%w: it does not name its process", errReport)
	}
	if a.Version != targetVersion {
		return nil, fmt.Errorf("%w: that of %s has version %d, this build reads version %d: upgrade the older of the two", errReport, a.Member, a.Version, targetVersion)
	}
	return &a, nil
}

// mergeTargets makes one page of what each process has answered.
func mergeTargets(q *TargetQuery, answers []*targetAnswer) *TargetPage {
	page := &TargetPage{Pools: []Pool{}, Targets: []Target{}, Problems: []string{}}
	pools := map[string]*Pool{}
	before, cut := 0, false
	var horizon *TargetKey // behind it, or where those before a place are asked for in front of it, targets may be missing
	for _, a := range answers {
		for _, p := range a.Pools {
			if pools[p.Name] == nil {
				pools[p.Name] = &Pool{Name: p.Name}
			}
			pools[p.Name].add(p)
			page.All.add(p)
		}
		page.Matching += a.Matching
		before += a.Before
		for i := range a.Targets {
			a.Targets[i].Owner = a.Member
		}
		page.Targets = append(page.Targets, a.Targets...)
		if !a.Cut {
			continue
		}
		cut = true
		if len(a.Targets) == 0 {
			continue // nothing was to be listed
		}
		edge := &a.Targets[len(a.Targets)-1].TargetKey
		if q.Before != nil {
			edge = &a.Targets[0].TargetKey
		}
		if horizon == nil || (edge.Compare(*horizon) < 0) == (q.Before == nil) {
			horizon = edge
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		page.Pools = append(page.Pools, *pools[name])
	}
	page.arrange(q, horizon, before, cut)
	return page
}

// arrange puts the targets of all answers in order, and keeps those between which none is missing.
func (p *TargetPage) arrange(q *TargetQuery, horizon *TargetKey, before int, cut bool) {
	slices.SortStableFunc(p.Targets, func(a, b Target) int {
		if c := a.Compare(b.TargetKey); c != 0 {
			return c
		}
		return b.LastScrape.Compare(a.LastScrape) // it has just moved, and two know it
	})
	p.Targets = slices.CompactFunc(p.Targets, func(a, b Target) bool { return a.TargetKey == b.TargetKey })
	all := len(p.Targets)
	if horizon != nil {
		p.Targets = slices.DeleteFunc(p.Targets, func(t Target) bool {
			c := t.Compare(*horizon)
			return q.Before == nil && c > 0 || q.Before != nil && c < 0
		})
	}
	if n := len(p.Targets) - q.Limit; n > 0 {
		if q.Before != nil {
			p.Targets = p.Targets[n:]
		} else {
			p.Targets = p.Targets[:q.Limit]
		}
	}
	left := all - len(p.Targets) // listed by somebody, and not here
	if q.Before != nil {
		before += left
	}
	p.First = before + 1
	n := len(p.Targets)
	if n == 0 {
		return
	}
	more := cut || left > 0
	if q.Before != nil || more {
		p.Next = p.Targets[n-1].String()
	}
	if q.Before == nil && q.After != nil || q.Before != nil && more {
		p.Previous = p.Targets[0].String()
	}
}

// AnswerTargets has the process answer whoever asks for targets, until stop is called or the connection is closed. holder is called once for each question.
func AnswerTargets(conn *stream.Conn, holder func() *TargetHolder, failed func(error)) (stop func(), err error) {
	sub, err := conn.NC.Subscribe(conn.StatusTargets(), func(m *nats.Msg) {
		if m.Reply == "" {
			return
		}
		b, err := answerTargets(m.Data, holder())
		if err == nil {
			err = m.Respond(b)
		}
		if err != nil {
			failed(fmt.Errorf("answering a question for targets: %w", err))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listening for questions for targets: %w", err)
	}
	return func() { _ = sub.Unsubscribe() }, nil // which fails where the connection is closed already
}

func answerTargets(data []byte, h *TargetHolder) ([]byte, error) {
	q := targetQuestion{TargetQuery: &TargetQuery{}}
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, err
	}
	if q.Version != targetVersion { // who asks sees from the version of the answer that it cannot be understood
		return json.Marshal(&targetAnswer{Version: targetVersion, Member: h.Member})
	}
	if err := q.Validate(); err != nil {
		return nil, err
	}
	return json.Marshal(h.answer(q.TargetQuery))
}
