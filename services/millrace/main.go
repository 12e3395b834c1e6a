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

// subcommand is one of the commands: its flags, and what it does.
type subcommand struct {
	clause *kingpin.CmdClause
	run    func(ctx context.Context, stdout, stderr io.Writer) error
}

// newApp returns the command line with all commands. Each file of a command has its part.
func newApp() (*kingpin.Application, []subcommand) {
	app := kingpin.New("millrace", "Millrace collects metrics the Prometheus way and carries them to any remote_write endpoint without losing one.")
	app.HelpFlag.Short('h')
	log := &promslog.Config{}
	commands := []subcommand{runCommand(app, log), cardinalityCommand(app, log), relabelTestCommand(app), replayCommand(app, log)}
	commands = append(commands, checkCommands(app)...)
	commands = append(commands, statusCommand(app, log), topCommand(app, log), targetsCommand(app, log), tailCommand(app, log))
	return app, append(append(commands, completionCommands(app)...), versionCommand(app))
}

// command runs one command line and returns its exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app, commands := newApp()
	app.UsageWriter(stdout).ErrorWriter(stderr)
	ended := -1
	app.Terminate(func(code int) { ended = code })
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
	for _, c := range commands {
		if c.clause.FullCommand() == name {
			err = c.run(ctx, stdout, stderr)
		}
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

func versionCommand(app *kingpin.Application) subcommand {
	return subcommand{app.Command("version", "Print the version."), func(_ context.Context, stdout, _ io.Writer) error {
		_, err := fmt.Fprintln(stdout, version.Print("millrace"))
		return err
	}}
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

func runCommand(app *kingpin.Application, log *promslog.Config) subcommand {
	o := &runOptions{log: log}
	c := app.Command("run", "Run Millrace: all services over an embedded NATS server, or some of them over a NATS cluster.")
	c.Flag("config.file", "Configuration file.").Default("prometheus.yml").StringVar(&o.configFile)
	c.Flag("storage.path", "Directory of the embedded NATS server's streams.").Default("data/").StringVar(&o.storagePath)
	c.Flag("services", "Services to run, separated by commas: "+strings.Join(allServices, ", ")+".").Default(strings.Join(allServices, ",")).StringVar(&o.services)
	c.Flag("web.listen-address", "Address to listen on for the page, metrics and API. Repeatable.").Default(":9474").StringsVar(&o.listen)
	c.Flag("web.config.file", "File with TLS and authentication of the web address (exporter-toolkit format).").Default("").StringVar(&o.webConfig)
	c.Flag("web.enable-remote-write-receiver", "Take remote_write 1.0 and 2.0 at /api/v1/write of the web address.").BoolVar(&o.remoteWrite)
	natsFlags(c, o)
	flag.AddFlags(app, o.log)
	return subcommand{c, o.run}
}

// natsFlags are the flags that say where NATS is.
func natsFlags(c *kingpin.CmdClause, o *runOptions) {
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
}
