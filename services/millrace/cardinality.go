package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/cardinality"
	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/web"
	"github.com/millrace/millrace/services/millrace/survey"
)

// cardinalityOptions are the flags of `millrace cardinality`.
type cardinalityOptions struct {
	runOptions
	server, httpConfig string
	configGiven        bool
	window, since      string
	metric             string
	top                int
	json               bool
}

func cardinalityCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &cardinalityOptions{runOptions: runOptions{log: log}}
	c := app.Command("cardinality", "Print how many series there are by metric, label, job and target, and what is new.")
	c.Flag("window", "Count series that have a sample so long before the newest one.").Default("5m").StringVar(&o.window)
	c.Flag("since", "Count series as new that have appeared so long before the newest sample.").Default("1h").StringVar(&o.since)
	c.Flag("top", "Print so many of each; 0 for all.").Default("10").IntVar(&o.top)
	c.Flag("metric", "Count the series of this metric only.").PlaceHolder("NAME").StringVar(&o.metric)
	c.Flag("json", "Print JSON.").BoolVar(&o.json)
	c.Flag("web.url", "Where the page of a running Millrace is, which is asked. User and password may stand in it.").Default("http://localhost:9474").StringVar(&o.server)
	c.Flag("http.config.file", "File with TLS and authentication for --web.url (Prometheus's HTTP client configuration).").PlaceHolder("FILE").StringVar(&o.httpConfig)
	c.Flag("storage.path", "Read the storage of a Millrace that does not run.").PlaceHolder("DIR").StringVar(&o.storagePath)
	c.Flag("config.file", "Configuration file, of which only the millrace block counts; with --storage.path and --nats.url.").IsSetByUser(&o.configGiven).PlaceHolder("FILE").StringVar(&o.configFile)
	natsFlags(c, &o.runOptions)
	return subcommand{c, o.run}
}

// run is `millrace cardinality`.
func (o *cardinalityOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	o.log.Writer = stderr
	parameters := url.Values{"window": {o.window}, "since": {o.since}, "top": {strconv.Itoa(o.top)}}
	if o.metric != "" {
		parameters.Set("metric", o.metric)
	}
	q, err := cardinality.Parse(parameters)
	if err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	var report *cardinality.Report
	if o.storagePath == "" && o.natsURL == "" && !o.configGiven {
		report, err = o.overHTTP(ctx, parameters)
	} else {
		report, err = o.overStreams(ctx, q)
	}
	if err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	return printReport(stdout, report)
}

// takeSurvey counts.
func takeSurvey(ctx context.Context, conn *stream.Conn, q cardinality.Query) (*cardinality.Report, error) {
	return survey.Take(ctx, survey.Config{Conn: conn, Query: q})
}

// overHTTP asks a running Millrace.
func (o *cardinalityOptions) overHTTP(ctx context.Context, parameters url.Values) (*cardinality.Report, error) {
	c, err := newClient(o.server, o.httpConfig, "start it, give --web.url, or --storage.path for the storage of one that does not run")
	if err != nil {
		return nil, usageError{err}
	}
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, web.CardinalityTimeout)
	defer cancel()
	data, err := c.get(ctx, "/api/v1/cardinality", parameters)
	if err != nil {
		return nil, err
	}
	var report cardinality.Report
	if err := json.Unmarshal(data, &report); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", c.base.Redacted(), err)
	}
	return &report, nil
}

// overStreams reads the streams of a fleet, or of a storage path that no other process has open.
func (o *cardinalityOptions) overStreams(ctx context.Context, q cardinality.Query) (*cardinality.Report, error) {
	p := &process{opts: &o.runOptions, services: []string{"cardinality"}, log: promslog.New(o.log)}
	m := config.DefaultMillrace()
	if o.configGiven {
		loaded, err := p.load()
		if err != nil {
			return nil, usageError{fmt.Errorf("loading the configuration: %w", err)}
		}
		m = loaded.Millrace
	} else {
		o.override(&m)
	}
	var server *stream.Server
	switch embedded := m.NATS.IsEmbedded(); {
	case o.storagePath != "" && !embedded:
		return nil, usageError{errors.New("--storage.path: the streams are in a NATS cluster; leave the flag out, or millrace.nats.url and --nats.url")}
	case o.storagePath == "" && embedded:
		return nil, usageError{errors.New("--config.file: its streams are in an embedded server; ask the running Millrace at --web.url, or give --storage.path")}
	case o.storagePath != "":
		if _, err := os.Stat(o.storagePath); err != nil {
			return nil, usageError{fmt.Errorf("--storage.path: %w; give the directory that `millrace run` had", err)}
		}
		m.NATS.Embedded.Listen = ""
		var err error
		if server, err = startServer(o.storagePath, &m, slog.New(slog.DiscardHandler)); err != nil {
			return nil, fmt.Errorf("%w; a running Millrace is asked at --web.url, without --storage.path", err)
		}
		defer server.Shutdown()
	}
	conn, err := p.connect(ctx, server, &m)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return takeSurvey(ctx, conn, q)
}

// printReport prints a report for people.
func printReport(w io.Writer, r *cardinality.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	since := r.Since.Format(time.DateTime) + " UTC"
	fmt.Fprintf(w, "%d series with samples in the last %s before %s UTC\n%d are new since %s, %d are refused by limits\n",
		r.Series, model.Duration(r.WindowSeconds*float64(time.Second)), r.Time.Format(time.DateTime), r.New, since, r.Refused)
	if r.Unknown > 0 {
		fmt.Fprintf(w, "%d series more have lost their labels with the stream's retention\n", r.Unknown)
	}
	if r.Partial {
		fmt.Fprintln(w, "There are more, which are not counted: they do not fit into the memory that a count may take. All numbers are those of a part.")
	}
	groups := func(what string, list []cardinality.Group) {
		fmt.Fprintf(t, "\nseries\tnew\trefused\t  %s\n", what)
		for _, g := range list {
			name := g.Name
			if g.Instance != "" {
				name += " " + g.Instance
			}
			fmt.Fprintf(t, "%d\t%d\t%d\t  %s\n", g.Series, g.New, g.Refused, printable(name))
		}
	}
	groups("metric", r.Metrics)
	fmt.Fprintf(t, "\nvalues\tnew\tseries\t  label\n")
	for _, l := range r.Labels {
		fmt.Fprintf(t, "%d\t%d\t%d\t  %s\n", l.Values, l.New, l.Series, printable(l.Name))
	}
	groups("job", r.Jobs)
	groups("target", r.Targets)
	return t.Flush()
}

// printable leaves out of a name what would upset a terminal or a table.
func printable(s string) string {
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}
