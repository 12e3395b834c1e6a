package scraper

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/util/logging"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/target"
)

// loop is the actor that scrapes one target, beat by beat.
type loop struct {
	svc    *Service
	target *scrape.Target
	id     uint64 // of the target
	source *source
	view   *view
	rules  *rules
	fetch  *fetcher
	log    *slog.Logger

	interval, timeout time.Duration
	broken            error                      // with which every scrape fails
	forced            atomic.Pointer[error]      // the same, from time to time
	failures          atomic.Pointer[failureLog] // nil for none

	discovered *target.Target
	stopping   context.Context    // ends when the service stops, or another process takes the target over
	move       context.CancelFunc // ends stopping
	ref        *actor.Ref
	started    chan struct{} // closed when ref is set

	last time.Time // when the last scrape began; zero before the first
	size int       // of the last body, in bytes
}

// failureLog is a scrape_failure_log_file, with the words about the target.
type failureLog struct{ *slog.Logger }

func newFailureLog(file *logging.JSONFileLogger, job string, t *scrape.Target) *failureLog {
	if file == nil {
		return nil
	}
	return &failureLog{slog.New(file).With("job_name", job, "target", t.URL().String())}
}

// tolerance is how late after its beat a scrape still gets the beat's timestamp, so that timestamps are regular and compress well. It is at most a
// hundredth of the interval.
const tolerance = 2 * time.Millisecond

// Serve scrapes at each beat until ctx ends. A beat's place in the interval follows from the target and the external labels, so
// that a target keeps it whoever scrapes it, and a second pipeline with other external labels scrapes at another time.
func (l *loop) Serve(ctx context.Context) error {
	l.svc.keeper.restore(ctx, l.source, l.view)
	beat := l.nextBeat(time.Now())
	timer := time.NewTimer(time.Until(beat))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now := time.Now().Round(0)
		if now.Sub(beat).Abs() <= min(tolerance, l.interval/100) {
			now = beat
		}
		l.scrape(ctx, now)
		if ctx.Err() != nil {
			return nil
		}
		// A scrape that took longer than the interval is followed by the next at once.
		if beat = beat.Add(l.interval); time.Since(beat) >= l.interval || time.Until(beat) > l.interval {
			beat = l.nextBeat(time.Now())
		}
		timer.Reset(time.Until(beat))
	}
}

// nextBeat returns the first beat that is not before now.
func (l *loop) nextBeat(now time.Time) time.Time {
	now = now.Round(0)
	offset := int64((l.id ^ l.svc.seed.Load()) % uint64(l.interval))
	since := (now.UnixNano() - offset) % int64(l.interval)
	if since == 0 {
		return now
	}
	return now.Add(l.interval - time.Duration(since))
}

// stopGrace is how long a scrape that is under way may go on when the service stops. What it would bring is lost then, like what comes later.
const stopGrace = 2 * time.Second

// scrape scrapes once, and commits what came of it with the timestamp at.
func (l *loop) scrape(ctx context.Context, at time.Time) {
	start := time.Now()
	if !l.last.IsZero() {
		l.svc.scrapeMetrics.interval(l.interval).Observe(start.Sub(l.last).Seconds())
	}
	l.last = start
	var o outcome
	x := &exposition{}
	if forced := l.forced.Load(); forced != nil {
		o.err = *forced
	} else {
		got, err := l.get()
		if err != nil {
			if l.stopping.Err() != nil {
				return // it was cut short, which says nothing about the target
			}
			l.note(err, &o)
		} else {
			x = got
			defer x.close()
		}
	}
	l.deliver(start, at.UnixMilli(), x, &o)
}

// deliver turns what a scrape has brought into frames: o tells of it so far, and t is its timestamp in milliseconds.
func (l *loop) deliver(start time.Time, t int64, x *exposition, o *outcome) {
	c := l.svc.collector()
	defer l.svc.release(c)
	c.begin(l, t)
	err := l.collect(c, x)
	if x.err != nil {
		if l.stopping.Err() != nil {
			c.rollback() // it was cut short
			return
		}
		l.note(x.err, o)
	} else if o.err == nil {
		if o.err, o.bytes = err, int(x.size); x.size > 0 {
			l.size = int(x.size)
		}
	}
	o.scraped, o.added, o.seriesAdded = c.total, c.added, c.seriesAdded
	o.duration = time.Since(start)
	l.target.Report(start, o.duration, o.err)
	if err := c.report(t, o); err != nil {
		l.log.Warn("The scrape's report could not be appended", "err", err)
		c.restart()
	}
	if _, err := c.commit(); err != nil {
		l.log.Error("A scrape could not be committed", "err", err)
	}
}

// piece is how much of a body is in memory at a time, in bytes; smaller ones are there as a whole before they are read.
const piece = 1 << 20

// get fetches the exposition, or the beginning of a large one; the caller closes it. A stopping service lets it finish for a while.
func (l *loop) get() (*exposition, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	stop := context.AfterFunc(l.stopping, func() {
		select {
		case <-time.After(stopGrace):
			cancel()
		case <-ctx.Done():
		}
	})
	x, err := l.fetch.fetch(ctx, l.size, l.svc.piece)
	if err != nil {
		stop()
		cancel()
		return nil, err
	}
	x.cancel = func() {
		stop()
		cancel()
	}
	return x, nil
}

// note takes the error with which there is no body.
func (l *loop) note(err error, o *outcome) {
	o.err = err
	l.log.Debug("Scrape failed", "err", err)
	if f := l.failures.Load(); f != nil {
		f.Error(err.Error())
	}
	if errors.Is(err, errBodySizeLimit) {
		o.bytes = -1
		l.svc.scrapeMetrics.bodySizeLimit.Inc()
	}
}

// collect appends what a body holds. A body that is empty, missing or faulty leaves staleness markers.
func (l *loop) collect(c *collector, x *exposition) error {
	var err error
	if len(x.body) > 0 {
		if err = c.collect(x); err == nil {
			return nil
		}
		if x.err == nil {
			l.log.Debug("Reading a scrape failed", "err", err)
		}
		c.restart()
	}
	if err := c.collectNothing(); err != nil {
		l.log.Warn("Staleness markers could not be appended", "err", err)
		c.restart()
	}
	return err
}

// ending is the actor that writes the staleness markers of a target that is gone. It waits as long as the target may take to come
// back, with the same labels or in another loop; then its series have newer samples, and the markers are refused. Where there is no room for the markers, it tries again.
type ending struct {
	*loop
	w *watcher
}

// endingTries is how often the markers are tried, an interval apart. After that they are the keeper's, which holds nothing in memory for them.
const endingTries = 10

// Serve writes the markers, unless the service stops before: then the target is not gone.
func (e ending) Serve(ctx context.Context) error {
	next := e.nextBeat(time.Now()) // the time of the markers: that of the first scrape that was not made
	due := time.NewTimer(time.Until(next.Add(e.interval + e.interval/10)))
	defer due.Stop()
	taken := e.last.IsZero() && !e.exposes() // there is nothing to end
	for try := 0; !taken && try < endingTries; try++ {
		select {
		case <-ctx.Done():
			e.svc.keeper.leave(e.source, e.view)
			return nil
		case <-due.C:
		}
		taken = e.markStale(next.UnixMilli())
		due.Reset(e.interval)
	}
	e.w.mu.Lock()
	delete(e.w.endings, e.loop)
	e.w.mu.Unlock()
	if !taken {
		e.svc.keeper.postpone(e.source, e.view)
		return nil
	}
	e.svc.keeper.end(ctx, e.source, e.view)
	return nil
}

// exposes reports whether the target's last scrape, which may have been another process's, had series.
func (l *loop) exposes() bool {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	return l.view.exposed.count(0, len(l.source.series)) > 0
}

// markStale ends the series of the target at the time t. It reports false where that is to be tried again.
func (l *loop) markStale(t int64) bool {
	c := l.svc.collector()
	defer l.svc.release(c)
	c.begin(l, t)
	if err := c.collectNothing(); err != nil {
		l.log.Warn("Staleness markers could not be appended", "err", err)
		c.restart()
	}
	if err := c.reportStale(t); err != nil {
		l.log.Warn("Staleness markers could not be appended", "err", err)
	}
	taken, err := c.commit()
	if err != nil {
		l.log.Error("Staleness markers could not be committed", "err", err)
	}
	return taken || err != nil
}
