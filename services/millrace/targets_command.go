package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/fleet"
	"github.com/millrace/millrace/pkg/status"
	"github.com/millrace/millrace/services/millrace/screen"
)

// targetsOptions are the flags of `millrace targets`.
type targetsOptions struct {
	place
	query         status.TargetQuery
	dropped, json bool
	limit         int
}

func targetsCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &targetsOptions{place: newPlace(log)}
	c := app.Command("targets", "List the targets of the whole fleet.")
	c.Flag("job", "List only targets of this scrape job.").PlaceHolder("NAME").StringVar(&o.query.Pool)
	c.Flag("health", "List only targets that are up, down or unknown, which is not scraped yet.").PlaceHolder("up|down|unknown").EnumVar(&o.query.Health, "up", "down", "unknown")
	c.Flag("search", `List only targets whose URL, labels or last error contain all of these words. Labels are written name="value".`).PlaceHolder("WORDS").StringVar(&o.query.Search)
	c.Flag("dropped", "Also say how many targets relabelling has dropped, by job.").BoolVar(&o.dropped)
	c.Flag("limit", "List at most so many; 0 for all.").Default("0").IntVar(&o.limit)
	c.Flag("json", "Print it as JSON, whose fields the README of the command has.").BoolVar(&o.json)
	o.flags(c)
	return subcommand{c, o.run}
}

// run is `millrace targets`.
func (o *targetsOptions) run(ctx context.Context, stdout, _ io.Writer) error {
	if err := o.check(); err != nil {
		return err
	}
	if o.limit < 0 {
		return usageError{fmt.Errorf("--limit=%d: give a number above zero, or 0 for all", o.limit)}
	}
	ask, done, err := o.asker(ctx)
	if err != nil {
		return err
	}
	defer done()
	page, err := o.collect(ctx, ask)
	if err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(page)
	}
	left := max(page.Matching-len(page.Targets), 0)
	_, err = io.WriteString(stdout, screen.Targets(screen.TargetsView{Page: page, Now: time.Now(), Width: terminalSize(stdout).Width, Dropped: o.dropped, Left: left}))
	return err
}

// askTargets asks for one page of targets.
type askTargets func(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error)

// collect asks for one page after the other, and makes one of them.
func (o *targetsOptions) collect(ctx context.Context, ask askTargets) (*status.TargetPage, error) {
	q := o.query
	var all *status.TargetPage
	for {
		q.Limit = status.MaxTargets
		if all != nil && o.limit > 0 {
			q.Limit = min(q.Limit, o.limit-len(all.Targets))
		} else if o.limit > 0 {
			q.Limit = min(q.Limit, o.limit)
		}
		asking, cancel := context.WithTimeout(ctx, statusTime)
		page, err := ask(asking, &q)
		cancel()
		if err != nil {
			return nil, err
		}
		next := page.Next
		if all == nil {
			all = page
		} else {
			all.Targets = append(all.Targets, page.Targets...)
			for _, p := range page.Problems {
				if !slices.Contains(all.Problems, p) {
					all.Problems = append(all.Problems, p)
				}
			}
		}
		all.Next, all.Previous = next, ""
		if next == "" || len(page.Targets) == 0 || o.limit > 0 && len(all.Targets) >= o.limit {
			return all, nil
		}
		if q.After, err = status.ParseTargetKey(next); err != nil {
			return nil, err
		}
	}
}

// asker returns who is asked, and how to let go of it.
func (o *targetsOptions) asker(ctx context.Context) (ask askTargets, done func(), err error) {
	if o.overNATS() {
		return o.overStreams(ctx)
	}
	c, err := o.newClient()
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error) {
		v := url.Values{"fleet": {"true"}, "limit": {strconv.Itoa(q.Limit)}}
		for name, value := range map[string]string{"pool": q.Pool, "health": q.Health, "search": q.Search} {
			if value != "" {
				v.Set(name, value)
			}
		}
		if q.After != nil {
			v.Set("after", q.After.String())
		}
		data, err := c.get(ctx, "/api/v1/targets", v)
		if err != nil {
			return nil, err
		}
		var page status.TargetPage
		if err := json.Unmarshal(data, &page); err != nil {
			return nil, fmt.Errorf("reading the answer of %s: %w", c.base.Redacted(), err)
		}
		if page.Pools == nil {
			return nil, fmt.Errorf("%s knows its own targets only: it is an older version; ask a process of this one", c.base.Redacted())
		}
		return &page, nil
	}, c.http.CloseIdleConnections, nil
}

// overStreams asks the members over NATS.
func (o *targetsOptions) overStreams(ctx context.Context) (ask askTargets, done func(), err error) {
	dialing, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	conn, m, err := o.dial(dialing, "status")
	if err != nil {
		return nil, nil, err
	}
	src := status.TargetSource{Conn: conn}
	view, err := fleet.Look(dialing, conn)
	if refused := denied(conn, m, "STATUS"); refused != nil {
		err = refused
	}
	if err != nil {
		conn.NC.Close()
		return nil, nil, fmt.Errorf("looking for the members of the fleet: %w", err)
	}
	for _, member := range view.Members {
		if slices.Contains(member.Services, "scraper") || slices.Contains(member.Services, "discovery") {
			src.Holders = append(src.Holders, member.ID)
		}
	}
	return func(ctx context.Context, q *status.TargetQuery) (*status.TargetPage, error) {
		if len(src.Holders) == 0 {
			return nil, errors.New("no process of the fleet runs the services discovery or scraper: there are no targets; start one")
		}
		page, err := status.FindTargets(ctx, src, q)
		if refused := denied(conn, m, "STATUS"); refused != nil {
			return nil, refused
		}
		return page, err
	}, conn.NC.Close, nil
}
