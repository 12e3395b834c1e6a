package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

// checkTime is how long a running Millrace may take to answer a check.
const checkTime = 5 * time.Second

// checkCommands are `millrace check` with its parts.
func checkCommands(app *kingpin.Application) []subcommand {
	check := app.Command("check", "Check configuration files, or a running Millrace.")
	config := check.Command("config", "Check configuration files, without connecting to anything.")
	files := config.Arg("file", "Configuration files.").Required().Strings()
	ready := check.Command("ready", "Check that a running Millrace is ready, as the health checks of containers do.")
	readyURL := checkURL(ready)
	healthy := check.Command("healthy", "Check that a running Millrace is alive.")
	healthyURL := checkURL(healthy)
	return []subcommand{
		{config, func(_ context.Context, stdout, stderr io.Writer) error { return checkConfigs(*files, stdout, stderr) }},
		{ready, func(ctx context.Context, stdout, _ io.Writer) error {
			return checkRunning(ctx, *readyURL, "/-/ready", stdout)
		}},
		{healthy, func(ctx context.Context, stdout, _ io.Writer) error {
			return checkRunning(ctx, *healthyURL, "/-/healthy", stdout)
		}},
	}
}

func checkURL(c *kingpin.CmdClause) **url.URL {
	return c.Flag("url", "Where the running Millrace's page is.").Default("http://localhost:9474").URL()
}

// checkRunning is `millrace check ready` and `check healthy`: it prints what a running Millrace answers at path, and is an error unless that is 200.
func checkRunning(ctx context.Context, base *url.URL, path string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	u := base.JoinPath(path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return usageError{fmt.Errorf("--url: %w", err)}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("checking whether Millrace answers: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", u.Redacted(), err)
	}
	answer := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", u.Redacted(), resp.Status, answer)
	}
	fmt.Fprintln(stdout, answer)
	return nil
}
