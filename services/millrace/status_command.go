package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	"golang.org/x/term"

	"github.com/millrace/millrace/services/millrace/screen"
)

// statusOptions are the flags of `millrace status`.
type statusOptions struct {
	place
	json bool
}

func statusCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &statusOptions{place: newPlace(log)}
	c := app.Command("status", "Show how a running Millrace, or a whole fleet, stands.")
	c.Flag("json", "Print it as JSON, whose fields the README of the command has.").BoolVar(&o.json)
	o.flags(c)
	return subcommand{c, o.run}
}

// statusTime is how long it may take to find out everything.
const statusTime = 20 * time.Second

// run is `millrace status`.
func (o *statusOptions) run(ctx context.Context, stdout, _ io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	asker := &statusAsker{place: &o.place}
	defer asker.close()
	body, err := asker.ask(ctx)
	if err != nil {
		return err
	}
	if o.json {
		var b bytes.Buffer
		if err := json.Indent(&b, body, "", "  "); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		b.WriteByte('\n')
		_, err := b.WriteTo(stdout)
		return err
	}
	d, err := readStatus(body)
	if err != nil {
		return err
	}
	_, err = io.WriteString(stdout, screen.Text(d, terminalSize(stdout)))
	return err
}

// terminalSize returns the size of the terminal that is written to; that of a file or pipe has no limits.
func terminalSize(w io.Writer) screen.Size {
	if f, ok := w.(*os.File); ok {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil {
			return screen.Size{Width: width, Height: height}
		}
	}
	return screen.Size{}
}
