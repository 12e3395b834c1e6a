package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/tail"
	"github.com/millrace/millrace/pkg/web"
)

// tailOptions are the flags of `millrace tail`.
type tailOptions struct {
	place
	query tail.Query
	json  bool
}

func tailCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &tailOptions{place: newPlace(log)}
	c := app.Command("tail", "Print samples as they pass.")
	c.Flag("match", `Print only series that this selector matches: {job="api"}. Repeatable: one of them has to match.`).PlaceHolder("SELECTOR").StringsVar(&o.query.Match)
	c.Flag("endpoint", "Print series as this endpoint gets them, after external_labels, write_relabel_configs and limits; by default, as they were collected.").PlaceHolder("NAME").StringVar(&o.query.Endpoint)
	c.Flag("limit", "End after so many samples.").PlaceHolder("N").Uint64Var(&o.query.Limit)
	c.Flag("json", "Print a line of JSON for each, whose fields the README of the command has.").BoolVar(&o.json)
	o.flags(c)
	return subcommand{c, o.run}
}

// tail answers the API.
func (p *process) tail(ctx context.Context, q tail.Query) (*tail.Tail, error) {
	conn := p.conn.Load()
	if conn == nil {
		return nil, web.ErrNotReady
	}
	return tail.Open(ctx, conn, q)
}

// run is `millrace tail`: it returns when ctx ends, or as many samples were printed as were asked for.
func (o *tailOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if _, err := tail.ParseQuery(o.query.Parameters()); err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	show := func(e *tail.Event) error {
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case o.json:
			line, err := e.Encode()
			if err == nil {
				_, err = stdout.Write(line)
			}
			return err
		case e.Missed != nil:
			_, err := fmt.Fprintln(stderr, "millrace: "+e.Line())
			return err
		}
		_, err := fmt.Fprintln(stdout, e.Line())
		return err
	}
	var err error
	if o.overNATS() {
		err = o.tailNATS(ctx, show)
	} else {
		err = o.tailWeb(ctx, show)
	}
	if ctx.Err() != nil {
		return nil // the user has seen enough
	}
	return err
}

// tailNATS reads the streams of a fleet.
func (o *tailOptions) tailNATS(ctx context.Context, show func(*tail.Event) error) error {
	conn, m, err := o.dial(ctx, "writer")
	if err != nil {
		return err
	}
	defer conn.NC.Close()
	opening, cancel := context.WithTimeout(ctx, statusTime)
	t, err := tail.Open(opening, conn, o.query)
	cancel()
	if err != nil {
		if err := denied(conn, m, "WRITER"); err != nil {
			return err
		}
		return err
	}
	defer t.Close()
	for {
		e, err := t.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			if err := denied(conn, m, "WRITER"); err != nil {
				return err
			}
			return err
		}
		if err := show(&e); err != nil {
			return err
		}
	}
}

// maxTailLine bounds a line that is read, in bytes: a series with the largest labels there may be, every character of them escaped.
const maxTailLine = 2 << 20

// tailWeb asks a running Millrace.
func (o *tailOptions) tailWeb(ctx context.Context, show func(*tail.Event) error) error {
	c, err := o.newClient()
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	body, err := c.stream(ctx, "/api/v1/tail", o.query.Parameters())
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxTailLine)
	shown := uint64(0)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue // a sign of life
		}
		var e tail.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading the answer of %s: %w", c.base.Redacted(), err)
		}
		if err := show(&e); err != nil {
			return err
		}
		if e.Missed == nil && e.Exemplar == nil {
			shown++
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the answer of %s: %w: %w", c.base.Redacted(), errUnanswered, err)
	}
	if o.query.Limit == 0 || shown < o.query.Limit {
		return fmt.Errorf("%s has ended the answer; it may be stopping: try again", c.base.Redacted())
	}
	return nil
}

// stream asks for what goes on. The caller closes the body.
func (c *client) stream(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	a, err := c.read(resp)
	if err != nil {
		return nil, err
	}
	_, err = c.data(path, a)
	return nil, err
}
