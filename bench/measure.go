package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/millrace/millrace/bench/numbered"
	"github.com/millrace/millrace/bench/pusher"
	"github.com/millrace/millrace/bench/receiver"
)

// lagOfBacklog is from which latency on a sample belongs to the backlog of an outage, in seconds.
const lagOfBacklog = 2.0

// bench is one agent at work.
type bench struct {
	agent    agent
	scenario scenario
	process  *process
	// start starts the agent, again too.
	start   func() (*process, error)
	address string
	// receiver and load are URLs; load is that of the targets, or of the pusher.
	receiver, load string

	// maxRSS is the largest resident set since the measurement began.
	maxRSS int64
	// spent is the CPU time of agents that were killed.
	spent time.Duration
	// down is when the outage began and ended.
	down [2]time.Time
}

// mark is the state at one end of the time measured.
type mark struct {
	at     time.Time
	usage  usage
	report receiver.Report
	stored float64
	pushes pusher.Stats
}

func (b *bench) mark(ctx context.Context) (m mark, err error) {
	if err = b.process.alive(); err != nil {
		return m, err
	}
	m.at = time.Now()
	if m.usage, err = b.process.usage(); err != nil {
		return m, err
	}
	m.usage.cpu += b.spent
	if err = call(ctx, http.MethodGet, b.receiver+"/report", nil, &m.report); err != nil {
		return m, err
	}
	if b.scenario.Push != "" {
		if err = call(ctx, http.MethodGet, b.load+"/stats", nil, &m.pushes); err != nil {
			return m, err
		}
	}
	if b.agent.stored {
		m.stored, err = storedBytes(ctx, b.address)
	}
	return m, err
}

// measure warms up and measures.
func (b *bench) measure(ctx context.Context, warmup, duration time.Duration) (result, error) {
	if err := b.watch(ctx, warmup, nil); err != nil {
		return result{}, err
	}
	if err := call(ctx, http.MethodPost, b.receiver+"/window", nil, nil); err != nil {
		return result{}, err
	}
	if b.scenario.Push != "" {
		if err := call(ctx, http.MethodPost, b.load+"/window", nil, nil); err != nil {
			return result{}, err
		}
	}
	b.maxRSS = 0
	from, err := b.mark(ctx)
	if err != nil {
		return result{}, err
	}
	var recovered *catchUp
	if b.scenario.Outage > 0 {
		recovered, err = b.outage(ctx, duration)
	} else {
		err = b.watch(ctx, duration, nil)
	}
	if err != nil {
		return result{}, err
	}
	to, err := b.mark(ctx)
	if err != nil {
		return result{}, err
	}
	r, err := b.result(from, to)
	if err != nil {
		return result{}, err
	}
	r.CatchUp = recovered
	if b.scenario.Push != "" {
		r.Pushes = pushesBetween(from.pushes, to.pushes)
	}
	return r, b.incomplete(ctx, to.at, &r)
}

// result is what happened between two marks.
func (b *bench) result(from, to mark) (result, error) {
	arrived := func(r receiver.Report) int { return r.Samples + r.Histograms }
	r := result{
		Agent: b.agent.name, Samples: arrived(to.report) - arrived(from.report), Seconds: to.at.Sub(from.at).Seconds(),
		RSS: mebibytes(b.maxRSS), PeakRSS: mebibytes(to.usage.peak),
		P50: to.report.Latency.P50, P99: to.report.Latency.P99,
		Lost: to.report.Lost, Reordered: to.report.Reordered, Changed: to.report.Changed, Repeated: to.report.Repeated,
	}
	if r.Samples <= 0 {
		return r, fmt.Errorf("no samples arrived from %s in the %.0f s measured%s; its last output:\n%s", b.agent.name, r.Seconds, lastFailure(to.pushes),
			b.process.output())
	}
	r.CPUPerSample = float64((to.usage.cpu - from.usage.cpu).Microseconds()) / float64(r.Samples)
	r.WirePerSample = float64(to.report.WireBytes-from.report.WireBytes) / float64(r.Samples)
	if b.agent.stored {
		stored := (to.stored - from.stored) / float64(r.Samples)
		r.StoredPerSample = &stored
	}
	return r, nil
}

// lastFailure says how the last push failed, if one did.
func lastFailure(s pusher.Stats) string {
	if s.LastFailure == "" {
		return ""
	}
	return ", and a push failed: " + s.LastFailure
}

// pushesBetween is what a pusher did between two marks.
func pushesBetween(from, to pusher.Stats) *pushes {
	return &pushes{
		Acknowledged: to.Acknowledged - from.Acknowledged, Refused: to.Refused - from.Refused, Rejected: to.Rejected - from.Rejected,
		Skipped: to.Skipped - from.Skipped, Failures: to.Failures, P50: 1e3 * to.Answer.P50, P99: 1e3 * to.Answer.P99, Max: 1e3 * to.Answer.Max,
	}
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// watch lets the agent run for a while and looks at its memory each second. It ends early if over, called each second,
// returns true.
func (b *bench) watch(ctx context.Context, duration time.Duration, over func() (bool, error)) error {
	end := time.NewTimer(duration)
	defer end.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.process.done:
			return b.process.alive()
		case <-end.C:
			return nil
		case <-second.C:
		}
		u, err := b.process.usage()
		if err != nil {
			return err
		}
		b.maxRSS = max(b.maxRSS, u.rss)
		if over == nil {
			continue
		}
		if done, err := over(); err != nil || done {
			return err
		}
	}
}

// outage makes the receiver refuse requests for a time, and then waits until the backlog has been gone for 10 s, at most
// three times as long as the outage and not less than the given duration.
func (b *bench) outage(ctx context.Context, atLeast time.Duration) (*catchUp, error) {
	if err := call(ctx, http.MethodPost, b.receiver+"/control", receiver.Control{Mode: receiver.Unavailable}, nil); err != nil {
		return nil, err
	}
	b.down[0] = time.Now()
	rest := b.scenario.Outage
	if b.scenario.Kill {
		if err := b.watch(ctx, rest/2, nil); err != nil {
			return nil, err
		}
		if err := b.restart(); err != nil {
			return nil, err
		}
		rest -= rest / 2
	}
	if err := b.watch(ctx, rest, nil); err != nil {
		return nil, err
	}
	if err := call(ctx, http.MethodPost, b.receiver+"/control", receiver.Control{Mode: receiver.OK}, nil); err != nil {
		return nil, err
	}
	recovered := time.Now()
	b.down[1] = recovered
	var c catchUp
	err := b.watch(ctx, max(3*b.scenario.Outage, atLeast), func() (bool, error) {
		var seconds []receiver.Second
		if err := call(ctx, http.MethodGet, b.receiver+"/rate", nil, &seconds); err != nil {
			return false, err
		}
		c = catchUpOf(seconds, recovered, time.Now())
		return c.Gone && time.Since(recovered) >= atLeast, nil
	})
	return &c, err
}

// restart kills the agent and starts it again.
func (b *bench) restart() error {
	u, err := b.process.usage()
	if err != nil {
		return err
	}
	b.spent += u.cpu
	b.process.kill()
	b.process, err = b.start()
	return err
}

// catchUpOf judges what arrived in the seconds after recovery.
func catchUpOf(seconds []receiver.Second, recovered, now time.Time) catchUp {
	const quiet = 10 * time.Second
	var c catchUp
	last, fresh := recovered, false
	for _, s := range seconds {
		// A second counts as a whole, so the first one begins before the recovery.
		if s.Unix < recovered.Unix() || s.Samples == 0 {
			continue
		}
		c.PeakRate = max(c.PeakRate, s.Samples)
		if fresh = s.MaxLag < lagOfBacklog; !fresh {
			last = time.Unix(s.Unix+1, 0)
		}
	}
	c.Seconds = max(last.Sub(recovered).Seconds(), 0)
	c.Gone = fresh && now.Sub(last) >= quiet
	return c
}

// incomplete counts in r the scrapes, or acknowledged pushes, of which nothing or not all arrived. Those of the last seconds may be on their way.
func (b *bench) incomplete(ctx context.Context, end time.Time, r *result) error {
	const onTheirWay = 5 * time.Second
	var log numbered.Log
	if err := call(ctx, http.MethodGet, b.load+"/served?log=1", nil, &log); err != nil {
		return err
	}
	for name, served := range log {
		settled := 0
		for settled < len(served) && served[settled].At.Before(end.Add(-onTheirWay)) {
			if at := served[settled].At; at.After(b.down[0]) && at.Before(b.down[1]) {
				r.ServedDown++
			}
			settled++
		}
		log[name] = served[:settled]
	}
	var c receiver.Completeness
	if err := call(ctx, http.MethodPost, b.receiver+"/complete", log, &c); err != nil {
		return err
	}
	r.Missing, r.Partial = len(c.Missing), len(c.Partial)
	return nil
}

// call sends in as JSON and decodes the answer into out, unless they are nil.
func call(ctx context.Context, method, url string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return fmt.Errorf("calling %s: %w", url, err)
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, url, &body)
	if err != nil {
		return fmt.Errorf("calling %s: %w", url, err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("calling %s: %w", url, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("calling %s: %w", url, err)
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("calling %s: %s: %s", url, response.Status, bytes.TrimSpace(data))
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			return fmt.Errorf("calling %s: %w", url, err)
		}
	}
	return nil
}
