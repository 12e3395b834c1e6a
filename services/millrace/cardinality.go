package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"
	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"

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
	top                int
	json               bool
}

func cardinalityCommand(app *kingpin.Application, log *promslog.Config) (*kingpin.CmdClause, *cardinalityOptions) {
	o := &cardinalityOptions{runOptions: runOptions{log: log}}
	c := app.Command("cardinality", "Print how many series there are by metric, label, job and target, and what is new.")
	c.Flag("window", "Count series that have a sample so long before the newest one.").Default("5m").StringVar(&o.window)
	c.Flag("since", "Count series as new that have appeared so long before the newest sample.").Default("1h").StringVar(&o.since)
	c.Flag("top", "Print so many of each; 0 for all.").Default("10").IntVar(&o.top)
	c.Flag("json", "Print JSON.").BoolVar(&o.json)
	c.Flag("web.url", "Where the page of a running Millrace is, which is asked. User and password may stand in it.").Default("http://localhost:9474").StringVar(&o.server)
	c.Flag("http.config.file", "File with TLS and authentication for --web.url (Prometheus's HTTP client configuration).").PlaceHolder("FILE").StringVar(&o.httpConfig)
	c.Flag("storage.path", "Read the storage of a Millrace that does not run.").PlaceHolder("DIR").StringVar(&o.storagePath)
	c.Flag("config.file", "Configuration file, of which only the millrace block counts; with --storage.path and --nats.url.").IsSetByUser(&o.configGiven).PlaceHolder("FILE").StringVar(&o.configFile)
	natsFlags(c, &o.runOptions)
	return c, o
}

// run is `millrace cardinality`.
func (o *cardinalityOptions) run(ctx context.Context, stdout, stderr io.Writer) error {
	o.log.Writer = stderr
	parameters := url.Values{"window": {o.window}, "since": {o.since}, "top": {strconv.Itoa(o.top)}}
	cfg, err := surveyConfig(parameters)
	if err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	var report *survey.Report
	if o.storagePath == "" && o.natsURL == "" && !o.configGiven {
		report, err = o.overHTTP(ctx, parameters)
	} else {
		report, err = o.overStreams(ctx, cfg)
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

// surveyConfig reads what is to be counted from parameters, as the API has them.
func surveyConfig(parameters url.Values) (survey.Config, error) {
	cfg := survey.Config{Window: 5 * time.Minute, Since: time.Hour, Top: 10}
	for name, to := range map[string]*time.Duration{"window": &cfg.Window, "since": &cfg.Since} {
		if !parameters.Has(name) {
			continue
		}
		d, err := model.ParseDuration(parameters.Get(name))
		if err != nil || d <= 0 {
			return cfg, fmt.Errorf("%s: %w: %q is no duration above zero; write it as 5m or 1h", name, web.ErrBadParameter, parameters.Get(name))
		}
		*to = time.Duration(d)
	}
	if parameters.Has("top") {
		n, err := strconv.Atoi(parameters.Get("top"))
		if err != nil || n < 0 {
			return cfg, fmt.Errorf("top: %w: %q is no number; give a whole one, 0 for all", web.ErrBadParameter, parameters.Get("top"))
		}
		cfg.Top = n
	}
	return cfg, nil
}

// cardinality answers the API.
func (p *process) cardinality(ctx context.Context, parameters url.Values) (any, error) {
	cfg, err := surveyConfig(parameters)
	if err != nil {
		return nil, err
	}
	if cfg.Conn = p.conn.Load(); cfg.Conn == nil {
		return nil, errNotReady
	}
	return survey.Take(ctx, cfg)
}

// overHTTP asks a running Millrace.
func (o *cardinalityOptions) overHTTP(ctx context.Context, parameters url.Values) (*survey.Report, error) {
	base, err := url.Parse(o.server)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Hostname() == "" {
		return nil, usageError{errors.New("--web.url: it is no HTTP URL; write it as http://host:9474")}
	}
	cfg := &promcommon.HTTPClientConfig{FollowRedirects: true, EnableHTTP2: true}
	if o.httpConfig != "" {
		if cfg, _, err = promcommon.LoadHTTPConfigFile(o.httpConfig); err != nil {
			return nil, usageError{fmt.Errorf("--http.config.file: %w", err)}
		}
	}
	client, err := promcommon.NewClientFromConfig(*cfg, "millrace")
	if err != nil {
		return nil, usageError{fmt.Errorf("--http.config.file: %w", err)}
	}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, web.CardinalityTimeout)
	defer cancel()
	u := base.JoinPath("/api/v1/cardinality")
	u.RawQuery = parameters.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, usageError{errors.New("--web.url: it is no HTTP URL; write it as http://host:9474")}
	}
	resp, err := client.Do(req)
	if err != nil {
		if cause := (*url.Error)(nil); errors.As(err, &cause) {
			err = cause.Err // without the URL, which may hold a password
		}
		return nil, fmt.Errorf("asking Millrace at %s: %w; start it, give --web.url, or --storage.path for the storage of one that does not run", base.Redacted(), err)
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          *survey.Report
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", base.Redacted(), err)
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Data == nil {
		why := answer.Error
		if why == "" {
			why = strings.TrimSpace(string(body[:min(len(body), 200)]))
		}
		return nil, fmt.Errorf("%s answers %s: %s", base.Redacted(), resp.Status, why)
	}
	return answer.Data, nil
}

// overStreams reads the streams of a fleet, or of a storage path that no other process has open.
func (o *cardinalityOptions) overStreams(ctx context.Context, cfg survey.Config) (*survey.Report, error) {
	p := &process{opts: &o.runOptions, services: []string{"cardinality"}, log: promslog.New(o.log)}
	m := config.DefaultMillrace()
	if o.configGiven {
		loaded, err := p.load()
		if err != nil {
			return nil, usageError{fmt.Errorf("loading the configuration: %w", err)}
		}
		m = loaded.Millrace
	} else {
		p.override(&m)
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
	cfg.Conn = conn
	return survey.Take(ctx, cfg)
}

// printReport prints a report for people.
func printReport(w io.Writer, r *survey.Report) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	since := r.Since.Format(time.DateTime) + " UTC"
	fmt.Fprintf(w, "%d series with samples in the last %s before %s UTC\n%d are new since %s, %d are refused by limits\n",
		r.Series, model.Duration(r.WindowSeconds*float64(time.Second)), r.Time.Format(time.DateTime), r.New, since, r.Refused)
	if r.Unknown > 0 {
		fmt.Fprintf(w, "%d series more have lost their labels with the stream's retention\n", r.Unknown)
	}
	groups := func(what string, list []survey.Group) {
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
