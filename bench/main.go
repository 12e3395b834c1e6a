// Command bench measures agents that scrape, or are pushed to, and remote-write, and proves what became of every sample. See README.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/millrace/millrace/bench/loadgen"
	"github.com/millrace/millrace/bench/receiver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := kingpin.New("bench", "Load generator, verifying remote_write receiver, and comparison of agents.")
	app.HelpFlag.Short('h')
	targets := addTargets(app)
	receiver := addReceiver(app)
	push := addPush(app)
	run := addRun(app)
	var err error
	switch command := kingpin.MustParse(app.Parse(os.Args[1:])); command {
	case "targets":
		err = targets.serve(ctx)
	case "receiver":
		err = receiver.serve(ctx)
	case "push":
		err = push.serve(ctx)
	case "run":
		err = run.run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// targetsCommand serves a load generator.
type targetsCommand struct {
	listen, kind, sdFile string
	config               loadgen.Config
}

func addTargets(app *kingpin.Application) *targetsCommand {
	c := new(targetsCommand)
	cmd := app.Command("targets", "Serve scrape targets whose scrapes are numbered.")
	cmd.Flag("listen", "Address to listen on.").Default("127.0.0.1:9475").StringVar(&c.listen)
	cmd.Flag("targets", "Number of targets.").Default("100").IntVar(&c.config.Targets)
	cmd.Flag("series", "Series per target, if they are not recorded.").Default("1000").IntVar(&c.config.Series)
	cmd.Flag("kind", "What targets expose.").Default("generated").EnumVar(&c.kind, "generated", "recorded", "protobuf")
	cmd.Flag("encoding", "The only encoding that answers may have: gzip, zstd or identity. Default: what the request asks for.").
		EnumVar(&c.config.Encoding, "", "gzip", "zstd", "identity")
	cmd.Flag("churn", "Percent of the series of a generated target that each scrape replaces.").Float64Var(&c.config.ChurnPercent)
	cmd.Flag("reorder-every", "List the series in another order at each such scrape; 0 is never.").IntVar(&c.config.ReorderEvery)
	cmd.Flag("fail-every", "Answer each such request with 500; 0 is never.").IntVar(&c.config.FailEvery)
	cmd.Flag("sd-file", "Write the targets to this file, for file_sd_configs.").StringVar(&c.sdFile)
	return c
}

func (c *targetsCommand) serve(ctx context.Context) error {
	c.config.Kind = loadgen.Kind(c.kind)
	g, err := loadgen.New(c.config)
	if err != nil {
		return err
	}
	return listenAndServe(ctx, c.listen, g, func(ctx context.Context, address string) error {
		if c.sdFile == "" {
			return nil
		}
		return g.WriteSDFile(c.sdFile, address)
	})
}

// receiverCommand serves a verifying receiver.
type receiverCommand struct {
	listen string
	every  time.Duration
	config receiver.Config
}

func addReceiver(app *kingpin.Application) *receiverCommand {
	c := new(receiverCommand)
	cmd := app.Command("receiver", "Receive remote_write 1.0 and 2.0 and verify it.")
	cmd.Flag("listen", "Address to listen on.").Default("127.0.0.1:9476").StringVar(&c.listen)
	cmd.Flag("every", "How often to print a line; 0s is never.").Default("5s").DurationVar(&c.every)
	cmd.Flag("history", "Values to remember of each series whose values do not tell the scrape.").Default("128").IntVar(&c.config.History)
	return c
}

func (c *receiverCommand) serve(ctx context.Context) error {
	r := receiver.New(c.config)
	return listenAndServe(ctx, c.listen, r, func(ctx context.Context, _ string) error {
		if c.every > 0 {
			go printLines(ctx, r, c.every)
		}
		return nil
	})
}

// printLines prints what arrived, every so often.
func printLines(ctx context.Context, r *receiver.Receiver, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	before := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		report := r.Report()
		r.ResetWindow()
		total := report.Samples + report.Histograms
		fmt.Printf("%s  %8.0f samples/s  %8d series  lag p99 %6.2f s  lost %d  reordered %d  changed %d\n", time.Now().Format(time.TimeOnly),
			float64(max(total-before, 0))/every.Seconds(), report.Series, report.Latency.P99, report.Lost, report.Reordered, report.Changed)
		before = total
	}
}

// listeningPrefix is how the line begins by which a server says where it listens; run reads it.
const listeningPrefix = "listening on "

// listenAndServe serves until ctx is done. It calls started with the address once it listens.
func listenAndServe(ctx context.Context, listen string, handler http.Handler, started func(context.Context, string) error) error {
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", listen, err)
	}
	defer listener.Close()
	address := listener.Addr().String()
	if err := started(ctx, address); err != nil {
		return err
	}
	fmt.Println(listeningPrefix + address)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	// Close, not Shutdown: connections that hang on purpose must not hold it up.
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving on %s: %w", address, err)
	}
	return nil
}
