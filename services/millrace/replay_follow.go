package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/millrace/millrace/pkg/replay"
	"github.com/millrace/millrace/services/millrace/screen"
)

// replays are those of a running process, a fleet or a storage path.
type replays interface {
	Start(ctx context.Context, spec replay.Spec, hold bool) (replay.Status, error)
	Stop(ctx context.Context, name string) (replay.Status, error)
	Get(ctx context.Context, name string) (replay.Status, error)
}

// stopReplayTime is how long it may take to stop a replay whose command is interrupted.
const stopReplayTime = 10 * time.Second

// follow starts the replay, says what is to be expected before anything is sent, shows how it goes, and tells what came of it.
func (o *replayOptions) follow(ctx context.Context, r replays, log *slog.Logger) error {
	spec := o.spec
	st, err := r.Start(ctx, spec, true)
	if err != nil {
		return asUsage(err)
	}
	spec.Name = st.Name
	o.announce(st, log)
	began, before := time.Now(), st.Samples
	if st.State == replay.Stopped {
		if st, err = r.Start(ctx, spec, false); err != nil {
			return asUsage(err)
		}
	}
	show := o.newProgress(log)
	defer show.close()
	tick := time.NewTicker(o.pollEvery)
	defer tick.Stop()
	said := time.Now()
	for st.State == replay.Running {
		show.update(st)
		select {
		case <-ctx.Done():
			return o.interrupted(r, st.Name, log)
		case <-tick.C:
		}
		next, err := r.Get(ctx, st.Name)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, replay.ErrUnknown):
			return fmt.Errorf("replay %q was removed by another", st.Name)
		case err != nil:
			if time.Since(said) > 10*time.Second {
				said = time.Now()
				log.Warn("Cannot see how the replay goes, trying again; it goes on by itself", "replay", st.Name, "err", err)
			}
		default:
			st = next
		}
	}
	show.update(st)
	show.close()
	return o.summary(st, time.Since(began), st.Samples-min(before, st.Samples))
}

func asUsage(err error) error {
	var field *replay.FieldError
	if errors.As(err, &field) {
		return usageError{asFlags(err)}
	}
	if errors.Is(err, replay.ErrTaken) {
		return usageError{err}
	}
	return err
}

// announce says what is to be expected.
func (o *replayOptions) announce(st replay.Status, log *slog.Logger) {
	what := []any{"replay", st.Name, "messages", st.AllMessages}
	if !st.FromTime.IsZero() {
		what = append(what, "from", st.FromTime.Format(time.RFC3339))
	}
	if !st.ToTime.IsZero() {
		what = append(what, "to", st.ToTime.Format(time.RFC3339))
	}
	if st.Messages > 0 {
		what = append(what, "done", fmt.Sprintf("%.1f%%", 100*st.Fraction()))
	}
	switch {
	case st.HeldSince.IsZero():
	case st.Rejected:
		log.Warn("The stream no longer holds all that was refused: what was refused before the time below is gone", "held_since", st.HeldSince.Format(time.RFC3339))
	default:
		missing := "all of it"
		if st.HeldSince.Before(st.ToTime) {
			missing = fmt.Sprintf("of %s, the first %s", st.ToTime.Sub(st.FromTime).Round(time.Second), st.HeldSince.Sub(st.FromTime).Round(time.Second))
		}
		log.Warn("The stream no longer holds all of this time: what was stored before the time below is gone", "held_since", st.HeldSince.Format(time.RFC3339), "missing", missing)
	}
	if st.DryRun {
		log.Info("Counting, nothing is sent", what...)
		return
	}
	log.Info("Replaying; if this is interrupted, the same command with --name goes on", what...)
}

// interrupted stops the replay, which can go on later.
func (o *replayOptions) interrupted(r replays, name string, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopReplayTime)
	defer cancel()
	st, err := r.Get(ctx, name)
	if err == nil && st.State == replay.Running {
		st, err = r.Stop(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("stopping the replay %q: %w", name, err)
	}
	log.Info("Stopped; it goes on with: millrace replay --name="+name, "sent", st.Sent, "done", fmt.Sprintf("%.1f%%", 100*st.Fraction()))
	return errors.New("interrupted")
}

// summary tells what came of the samples.
func (o *replayOptions) summary(st replay.Status, took time.Duration, now uint64) error {
	w := o.stdout
	fmt.Fprintf(w, "replay   %s: %s after %s\n", st.Name, st.State, took.Round(100*time.Millisecond))
	if st.DryRun {
		series := grouped(st.Series)
		if st.SeriesAtLeast {
			series = "more than " + series
		}
		fmt.Fprintf(w, "series   %s\nsamples  %s\nbytes    %s of requests\n", series, grouped(st.Samples), grouped(st.Bytes))
	} else {
		fmt.Fprintf(w, "sent     %s samples", grouped(st.Sent))
		if took > time.Second && now > 0 {
			fmt.Fprintf(w, ", %s a second", grouped(uint64(float64(now)/took.Seconds())))
		}
		fmt.Fprintf(w, "\nrefused  %s samples\n", grouped(st.Refused))
	}
	fmt.Fprintf(w, "skipped  %s samples", grouped(st.Skipped))
	var why []string
	if st.Lost > 0 {
		why = append(why, grouped(st.Lost)+" have gone from the stream, or their labels have")
	}
	if st.Unsupported > 0 {
		why = append(why, grouped(st.Unsupported)+" histograms that the endpoint's protocol cannot carry")
	}
	if len(why) > 0 {
		fmt.Fprintf(w, ": %s", strings.Join(why, "; "))
	}
	fmt.Fprintln(w)
	switch {
	case st.State == replay.Stopped:
		return fmt.Errorf("replay %q was stopped by another; it goes on with --name=%s", st.Name, st.Name)
	case st.Messages < st.AllMessages:
		return fmt.Errorf("%d of %d messages had gone from the stream before they were read", st.AllMessages-st.Messages, st.AllMessages)
	case st.Refused > 0:
		return fmt.Errorf("the endpoint refused %d samples for good; they are kept in the stream REJECTED", st.Refused)
	}
	return nil
}

// grouped writes a number with commas.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows how far a replay is: a bar on a terminal, log lines elsewhere.
type progress struct {
	bar  *progressbar.ProgressBar // nil where there is no terminal
	to   io.Writer
	log  *slog.Logger
	rate rateMeter
	said time.Time
}

// sayProgress is the time between two log lines.
const sayProgress = 5 * time.Second

func (o *replayOptions) newProgress(log *slog.Logger) *progress {
	p := &progress{log: log, to: o.stderr, said: time.Now()}
	if o.terminal {
		p.bar = progressbar.NewOptions64(1, progressbar.OptionSetWriter(o.stderr), progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false),
			progressbar.OptionShowDescriptionAtLineEnd(), progressbar.OptionSetElapsedTime(false), progressbar.OptionUseANSICodes(true))
	}
	return p
}

func (p *progress) update(st replay.Status) {
	p.rate.add(time.Now(), st.Samples, st.Fraction())
	perSecond, left := p.rate.read()
	if p.bar != nil {
		text := fmt.Sprintf("%s samples, %s/s", grouped(st.Samples), grouped(uint64(perSecond)))
		if left > 0 {
			text += ", " + left.Round(time.Second).String() + " left"
		}
		if st.Waiting != "" {
			text += "; " + st.Waiting
		}
		p.bar.ChangeMax64(int64(max(st.AllMessages, 1)))
		p.bar.Describe(screen.OneLine(text, p.room()))
		done := int64(st.Fraction() * float64(max(st.AllMessages, 1)))
		_ = p.bar.Set64(done) // it fails when the terminal does, which is no reason to end the replay
		return
	}
	if time.Since(p.said) < sayProgress {
		return
	}
	p.said = time.Now()
	what := []any{"replay", st.Name, "done", fmt.Sprintf("%.1f%%", 100*st.Fraction()), "samples", st.Samples, "samples_per_second", uint64(perSecond), "refused", st.Refused}
	if left > 0 {
		what = append(what, "left", left.Round(time.Second))
	}
	if st.Waiting != "" {
		what = append(what, "waiting", st.Waiting)
	}
	p.log.Info("Replaying", what...)
}

// besideText is what the line of the bar holds beside the text: the percentage, a bar that is short but can be seen, and what stands between.
const besideText = 21

// room returns how many characters of text stand on one line with the bar, which is drawn over only as long as it is one; 0 is no limit.
func (p *progress) room() int {
	f, ok := p.to.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return 0
	}
	return max(width-besideText, 1)
}

func (p *progress) close() {
	if p.bar != nil {
		_ = p.bar.Exit()
		fmt.Fprintln(p.to)
		p.bar = nil
	}
}

// rateMeter works out the rate of the last seconds.
type rateMeter struct {
	points []ratePoint
}

type ratePoint struct {
	at       time.Time
	samples  uint64
	fraction float64
}

// rateWindow is how far back the rate looks.
const rateWindow = 10 * time.Second

func (m *rateMeter) add(at time.Time, samples uint64, fraction float64) {
	m.points = append(m.points, ratePoint{at, samples, fraction})
	for len(m.points) > 2 && at.Sub(m.points[1].at) > rateWindow {
		m.points = m.points[1:]
	}
}

// read returns samples a second and the time left; 0 where that is not known.
func (m *rateMeter) read() (perSecond float64, left time.Duration) {
	if len(m.points) < 2 {
		return 0, 0
	}
	a, b := m.points[0], m.points[len(m.points)-1]
	took := b.at.Sub(a.at).Seconds()
	if took <= 0 {
		return 0, 0
	}
	if done := b.fraction - a.fraction; done > 0 {
		left = time.Duration((1 - b.fraction) / done * took * float64(time.Second))
	}
	return float64(b.samples-min(a.samples, b.samples)) / took, left
}
