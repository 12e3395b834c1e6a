// Command millrace collects metrics the Prometheus way and carries them to any remote_write endpoint without losing one. The README of this
// folder has its commands and flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // bad flags or configuration
)

// usageError is an error of what the user wrote: flags or configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command runs one command line and returns its exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := kingpin.New("millrace", "Millrace collects metrics the Prometheus way and carries them to any remote_write endpoint without losing one.")
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout).ErrorWriter(stderr)
	ended := -1
	app.Terminate(func(code int) { ended = code })

	run, o := runCommand(app)
	check := app.Command("check", "Check configuration files, or a running Millrace.")
	checkConfig := check.Command("config", "Check configuration files, without connecting to anything.")
	files := checkConfig.Arg("file", "Configuration files.").Required().Strings()
	checkReady := check.Command("ready", "Check that a running Millrace is ready, as the health checks of containers do.")
	readyURL := checkURL(checkReady)
	checkHealthy := check.Command("healthy", "Check that a running Millrace is alive.")
	healthyURL := checkURL(checkHealthy)
	versionCommand := app.Command("version", "Print the version.")

	if len(args) == 0 {
		app.UsageWriter(stderr)
		app.Usage(nil)
		return exitUsage
	}
	name, err := app.Parse(args)
	if ended >= 0 {
		return ended
	}
	if err != nil {
		fmt.Fprintf(stderr, "millrace: %v; try --help\n", err)
		return exitUsage
	}
	switch name {
	case run.FullCommand():
		err = o.run(ctx, stderr)
	case checkConfig.FullCommand():
		err = checkConfigs(*files, stdout, stderr)
	case checkReady.FullCommand():
		err = checkRunning(ctx, *readyURL, "/-/ready", stdout)
	case checkHealthy.FullCommand():
		err = checkRunning(ctx, *healthyURL, "/-/healthy", stdout)
	case versionCommand.FullCommand():
		fmt.Fprintln(stdout, version.Print("millrace"))
	}
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "millrace: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "millrace: %v\n", err)
		return exitFailed
	}
}

// runOptions are the flags of `millrace run`.
type runOptions struct {
	configFile, storagePath, webConfig string
	listen                             []string
	services                           string
	natsURL, natsCreds, natsSeed       string
	natsUser, natsPassword             string
	natsCA, natsCert, natsKey, natsSNI string
	natsInsecure, remoteWrite          bool
	log                                *promslog.Config
}

// allServices is the default of --services, in the order of the data's way.
var allServices = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

func runCommand(app *kingpin.Application) (*kingpin.CmdClause, *runOptions) {
	o := &runOptions{log: &promslog.Config{}}
	c := app.Command("run", "Run Millrace: all services over an embedded NATS server, or some of them over a NATS cluster.")
	c.Flag("config.file", "Configuration file.").Default("prometheus.yml").StringVar(&o.configFile)
	c.Flag("storage.path", "Directory of the embedded NATS server's streams.").Default("data/").StringVar(&o.storagePath)
	c.Flag("services", "Services to run, separated by commas: "+strings.Join(allServices, ", ")+".").Default(strings.Join(allServices, ",")).StringVar(&o.services)
	c.Flag("web.listen-address", "Address to listen on for the page, metrics and API. Repeatable.").Default(":9474").StringsVar(&o.listen)
	c.Flag("web.config.file", "File with TLS and authentication of the web address (exporter-toolkit format).").Default("").StringVar(&o.webConfig)
	c.Flag("web.enable-remote-write-receiver", "Take remote_write 1.0 and 2.0 at /api/v1/write of the web address.").BoolVar(&o.remoteWrite)
	c.Flag("nats.url", "NATS servers, separated by commas. Empty for an embedded server. Overrides millrace.nats.url.").Default("").StringVar(&o.natsURL)
	c.Flag("nats.creds", "NATS credentials file. Overrides millrace.nats.credentials_file.").Default("").StringVar(&o.natsCreds)
	c.Flag("nats.nkey-seed-file", "File with an NKey seed. Overrides millrace.nats.nkey_seed_file.").Default("").StringVar(&o.natsSeed)
	c.Flag("nats.user", "NATS user. Overrides millrace.nats.username.").Default("").StringVar(&o.natsUser)
	c.Flag("nats.password-file", "File with the NATS user's password. Overrides millrace.nats.password_file.").Default("").StringVar(&o.natsPassword)
	c.Flag("nats.tls.ca-file", "CA certificates for NATS. Overrides millrace.nats.tls.ca_file.").Default("").StringVar(&o.natsCA)
	c.Flag("nats.tls.cert-file", "Client certificate for NATS. Overrides millrace.nats.tls.cert_file.").Default("").StringVar(&o.natsCert)
	c.Flag("nats.tls.key-file", "Key of the client certificate. Overrides millrace.nats.tls.key_file.").Default("").StringVar(&o.natsKey)
	c.Flag("nats.tls.server-name", "Name to expect in the NATS server's certificate. Overrides millrace.nats.tls.server_name.").Default("").StringVar(&o.natsSNI)
	c.Flag("nats.tls.insecure-skip-verify", "Do not verify the NATS server's certificate.").BoolVar(&o.natsInsecure)
	flag.AddFlags(app, o.log)
	return c, o
}
