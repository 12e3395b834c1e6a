package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/millrace/screen"
	"github.com/millrace/millrace/services/millrace/terminal"
)

// topOptions are the flags of `millrace top`.
type topOptions struct {
	place
	interval time.Duration
}

func topCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &topOptions{place: newPlace(log)}
	c := app.Command("top", "Show how a running Millrace, or a whole fleet, stands, and keep it up to date.")
	c.Flag("interval", "How often to ask.").Default("2s").DurationVar(&o.interval)
	o.flags(c)
	return subcommand{c, o.run}
}

const (
	// leastInterval is how old what a process tells may be.
	leastInterval = 500 * time.Millisecond
	// clockTime is how often the screen is drawn where nothing else happens.
	clockTime = time.Second
)

// topAnswer is what came of asking once.
type topAnswer struct {
	doc *status.Document
	err error
	at  time.Time
}

// run is `millrace top`: it returns when the user quits, or ctx ends.
func (o *topOptions) run(ctx context.Context, stdout, _ io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.interval < leastInterval {
		return usageError{fmt.Errorf("--interval=%s: give at least %s", o.interval, leastInterval)}
	}
	if !o.overNATS() {
		if _, err := o.newClient(); err != nil {
			return err
		}
	}
	out, ok := stdout.(*os.File)
	if !ok {
		return errNoTerminal
	}
	tty, err := terminal.Open(os.Stdin, out)
	if errors.Is(err, terminal.ErrNone) {
		return errNoTerminal
	}
	if err != nil {
		return err
	}
	defer tty.Close()
	top := &screen.Top{Place: o.name(), Every: o.interval}
	return o.loop(ctx, tty, top)
}

var errNoTerminal = usageError{errors.New("top needs a terminal for its input and its output; `millrace status` prints the same once, to wherever it is to go")}

// name says who is asked, without secrets.
func (o *topOptions) name() string {
	switch {
	case !o.overNATS():
		c, err := o.newClient()
		if err != nil {
			return o.server
		}
		return c.base.Redacted()
	case o.natsURL != "":
		return "NATS at " + stream.Redact(o.natsURL)
	}
	return "NATS of " + o.configFile
}

// loop asks, draws, and follows keys.
func (o *topOptions) loop(ctx context.Context, tty *terminal.Terminal, top *screen.Top) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, questions := make(chan topAnswer, 1), make(chan struct{}, 1)
	go o.ask(ctx, tty, questions, answers)
	questions <- struct{}{}
	asking := true
	tick, clock := time.NewTicker(o.interval), time.NewTicker(clockTime)
	defer tick.Stop()
	defer clock.Stop()
	colours := os.Getenv("NO_COLOR") == ""
	for {
		width, height := tty.Size()
		var lines []string
		for _, l := range top.Lines(screen.Size{Width: width, Height: height}, time.Now()) {
			lines = append(lines, l.Styled(colours))
		}
		if err := tty.Draw(lines); err != nil {
			return fmt.Errorf("writing to the terminal: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case k, ok := <-tty.Keys():
			if !ok || top.Press(k) {
				return nil
			}
			if k == terminal.CtrlL {
				tty.Forget()
			}
		case a := <-answers:
			asking = false
			var usage usageError
			switch {
			case errors.As(a.err, &usage):
				return a.err
			case top.Paused():
			case a.err != nil:
				top.Failed(a.err, a.at)
			default:
				top.Answer(a.doc)
			}
		case <-tick.C:
			if !asking && !top.Paused() {
				asking = true
				questions <- struct{}{}
			}
		case <-tty.Redraw():
		case <-clock.C:
		}
	}
}

// ask asks whenever there is a question, until ctx ends.
func (o *topOptions) ask(ctx context.Context, tty *terminal.Terminal, questions <-chan struct{}, answers chan<- topAnswer) {
	defer func() {
		if r := recover(); r != nil {
			tty.Close() // so that what is wrong can be read
			panic(r)
		}
	}()
	asker := &statusAsker{place: &o.place}
	defer asker.close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-questions:
		}
		a := topAnswer{at: time.Now()}
		body, err := asker.ask(ctx)
		if a.err = err; err == nil {
			a.doc, a.err = readStatus(body)
		}
		answers <- a
	}
}
