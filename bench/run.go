package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

// runCommand compares agents.
type runCommand struct {
	millrace, prometheus, vmagent string
	rounds                        int
	warmup, duration              time.Duration
	scenario                      scenario
	json                          bool
	keep                          bool
}

func addRun(app *kingpin.Application) *runCommand {
	c := new(runCommand)
	cmd := app.Command("run", "Measure agents in turn on the same load. Linux only.")
	cmd.Flag("millrace", "Path of the millrace binary.").Envar("BENCH_MILLRACE").StringVar(&c.millrace)
	cmd.Flag("prometheus", "Path of a prometheus binary.").Envar("BENCH_PROMETHEUS").StringVar(&c.prometheus)
	cmd.Flag("vmagent", "Path of a vmagent binary.").Envar("BENCH_VMAGENT").StringVar(&c.vmagent)
	cmd.Flag("rounds", "How often each agent is measured.").Default("3").IntVar(&c.rounds)
	cmd.Flag("warmup", "How long each agent runs before it is measured.").Default("15s").DurationVar(&c.warmup)
	cmd.Flag("duration", "How long it is measured. With an outage, until the backlog is gone.").Default("40s").DurationVar(&c.duration)
	cmd.Flag("targets", "Number of targets.").Default("100").IntVar(&c.scenario.Targets)
	cmd.Flag("series", "Series per target, if they are not recorded.").Default("1000").IntVar(&c.scenario.Series)
	cmd.Flag("interval", "Scrape interval.").Default("2s").DurationVar(&c.scenario.Interval)
	cmd.Flag("protocol", "remote_write protocol; vmagent knows only 1.0.").Default("1.0").EnumVar(&c.scenario.Protocol, "1.0", "2.0")
	cmd.Flag("encoding", "Encoding of the targets' answers, for agents that accept it.").Default("gzip").
		EnumVar(&c.scenario.Encoding, "gzip", "zstd", "identity")
	cmd.Flag("kind", "What targets expose.").Default("generated").EnumVar(&c.scenario.Kind, "generated", "recorded", "protobuf")
	cmd.Flag("outage", "After the warm-up the receiver answers 503 for that long, and the catching up is measured.").
		DurationVar(&c.scenario.Outage)
	cmd.Flag("kill", "Halfway through the outage the agent is killed with SIGKILL and started again.").BoolVar(&c.scenario.Kill)
	cmd.Flag("push", "Push by this protocol instead of scraping: "+strings.Join(protocols(), ", ")+". Agents that do not take it are left out.").
		EnumVar((*string)(&c.scenario.Push), protocols()...)
	cmd.Flag("senders", "Applications that push.").Default("100").IntVar(&c.scenario.Senders)
	cmd.Flag("push-series", "Series per application that pushes.").Default("500").IntVar(&c.scenario.PushSeries)
	cmd.Flag("push-histograms", "Classic histograms among them, of 13 series each.").IntVar(&c.scenario.PushHistograms)
	cmd.Flag("push-interval", "Time from one push of an application to its next.").Default("1s").DurationVar(&c.scenario.PushInterval)
	cmd.Flag("json", "Print the results as JSON.").BoolVar(&c.json)
	cmd.Flag("keep", "Keep the agents' folders, with their logs.").BoolVar(&c.keep)
	return c
}

func (c *runCommand) run(ctx context.Context) error {
	list := agents(c.millrace, c.prometheus, c.vmagent)
	if len(list) == 0 {
		return errors.New("no agent to measure: give --millrace, --prometheus or --vmagent the path of a binary")
	}
	if c.scenario.Push == "" {
		// They would only be noise among what was measured.
		c.scenario.Senders, c.scenario.PushSeries, c.scenario.PushHistograms, c.scenario.PushInterval = 0, 0, 0, 0
	} else if list = slices.DeleteFunc(list, func(a agent) bool { return a.pushURL(c.scenario.Push, "", "") == "" }); len(list) == 0 {
		return fmt.Errorf("none of the agents takes %s", c.scenario.Push)
	}
	if c.rounds < 1 || c.duration <= 0 || c.warmup < 0 || c.scenario.Interval < time.Millisecond || c.scenario.Outage < 0 {
		return errors.New("rounds, duration and interval must be positive, warmup and outage not negative")
	}
	if c.scenario.Kill && c.scenario.Outage == 0 {
		return errors.New("--kill is for the middle of an outage: give --outage a time as well")
	}
	folder, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	if c.keep {
		fmt.Fprintf(os.Stderr, "folders and logs: %s\n", folder)
	} else {
		defer os.RemoveAll(folder)
	}
	var results []result
	for round := 1; round <= c.rounds; round++ {
		for _, a := range list {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round, c.rounds, a.name)
			r, err := c.measure(ctx, a, filepath.Join(folder, a.name+"-"+strconv.Itoa(round)))
			if err != nil {
				return fmt.Errorf("measuring %s, round %d: %w", a.name, round, err)
			}
			r.Round = round
			results = append(results, r)
		}
	}
	if c.json {
		return writeResults(os.Stdout, c.scenario, results)
	}
	return printTable(os.Stdout, c.scenario, results)
}

// result is one measurement of one agent.
type result struct {
	Agent string `json:"agent"`
	Round int    `json:"round"`
	// Samples arrived within Seconds, the time measured.
	Samples int     `json:"samples"`
	Seconds float64 `json:"seconds"`
	// CPUPerSample is the agent's user and system time in microseconds, by samples arrived.
	CPUPerSample float64 `json:"cpu_us_per_sample"`
	// RSS is the largest resident set of all seconds measured, and PeakRSS that of the process's whole life, in MiB.
	RSS     float64 `json:"rss_mib"`
	PeakRSS float64 `json:"peak_rss_mib"`
	// StoredPerSample is the growth of Millrace's frames in bytes, by samples arrived; absent for others.
	StoredPerSample *float64 `json:"stored_bytes_per_sample,omitempty"`
	// WirePerSample is the size of requests' bodies in bytes, by samples arrived.
	WirePerSample float64 `json:"wire_bytes_per_sample"`
	// P50 and P99 are latencies in seconds from a sample's timestamp to its arrival.
	P50 float64 `json:"latency_p50_s"`
	P99 float64 `json:"latency_p99_s"`
	// CatchUp is set if there was an outage.
	CatchUp *catchUp `json:"catch_up,omitempty"`
	// Missing and Partial are scrapes of which nothing or not all arrived, without those of the last seconds.
	Missing int `json:"scrapes_missing"`
	Partial int `json:"scrapes_partial"`
	// ServedDown is how many scrapes, or pushes, were answered during the outage.
	ServedDown int `json:"scrapes_in_outage,omitempty"`
	// Lost, Reordered, Changed and Repeated are the receiver's verdicts on samples.
	Lost      int `json:"lost"`
	Reordered int `json:"reordered"`
	Changed   int `json:"changed"`
	Repeated  int `json:"repeated"`
	// Pushes is set if the load was pushed.
	Pushes *pushes `json:"pushes,omitempty"`
}

// pushes is what became of pushes within the time measured.
type pushes struct {
	Acknowledged int `json:"acknowledged"`
	// Refused are pushes that were answered with an error for good, and Rejected samples of acknowledged ones that were not taken.
	Refused  int `json:"refused"`
	Rejected int `json:"rejected"`
	// Skipped are pushes that were not made, since too many waited for an answer.
	Skipped int `json:"skipped"`
	// Failures are attempts by how they failed.
	Failures map[string]int `json:"failures"`
	// P50, P99 and Max are times from the first attempt of a push to its acknowledgement, in milliseconds.
	P50 float64 `json:"answer_p50_ms"`
	P99 float64 `json:"answer_p99_ms"`
	Max float64 `json:"answer_max_ms"`
}

// catchUp is what followed an outage.
type catchUp struct {
	// PeakRate is the largest number of samples that arrived within one second after the outage.
	PeakRate int `json:"peak_samples_per_second"`
	// Seconds is how long after the outage's end the last sample arrived that was 2 s old or older.
	Seconds float64 `json:"seconds"`
	// Gone says that the backlog was gone in the time given.
	Gone bool `json:"gone"`
}

// measure runs one agent with a load generator and a receiver of its own.
func (c *runCommand) measure(ctx context.Context, a agent, folder string) (r result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var children []*process
	b := bench{agent: a, scenario: c.scenario}
	defer func() {
		cancel()
		for _, child := range children {
			<-child.done
		}
		if b.process != nil {
			<-b.process.done
		}
		if !c.keep {
			os.RemoveAll(folder)
		}
	}()
	if err := os.Mkdir(folder, 0o755); err != nil {
		return r, fmt.Errorf("making a folder: %w", err)
	}
	p, address, err := startServer(ctx, "receiver", filepath.Join(folder, "receiver.log"), "receiver", "--listen=127.0.0.1:0", "--every=0s")
	if err != nil {
		return r, err
	}
	children = append(children, p)
	b.receiver = "http://" + address
	sdFile := filepath.Join(folder, "targets.json")
	s := c.scenario
	if s.Push == "" {
		p, address, err = startServer(ctx, "targets", filepath.Join(folder, "targets.log"), "targets", "--listen=127.0.0.1:0",
			"--sd-file="+sdFile, "--targets="+strconv.Itoa(s.Targets), "--series="+strconv.Itoa(s.Series), "--kind="+s.Kind, "--encoding="+s.Encoding)
		if err != nil {
			return r, err
		}
		children = append(children, p)
		b.load = "http://" + address
	}
	var pushURL string
	if b.start, b.address, pushURL, err = prepareAgent(ctx, a, s, folder, sdFile, b.receiver+"/api/v1/write"); err != nil {
		return r, err
	}
	if b.process, err = b.start(); err != nil {
		return r, err
	}
	if s.Push != "" {
		// Only an agent that takes them is pushed to, or all senders would begin by backing off.
		if err := waitForListener(ctx, b.process, pushURL); err != nil {
			return r, err
		}
		p, address, err = startServer(ctx, "pusher", filepath.Join(folder, "pusher.log"), "push", "--listen=127.0.0.1:0", "--every=0s", "--drain=1ms",
			"--url="+pushURL, "--protocol="+string(s.Push), "--senders="+strconv.Itoa(s.Senders), "--series="+strconv.Itoa(s.PushSeries),
			"--histograms="+strconv.Itoa(s.PushHistograms), "--interval="+s.PushInterval.String())
		if err != nil {
			return r, err
		}
		children = append(children, p)
		b.load = "http://" + address
	}
	return b.measure(ctx, c.warmup, c.duration)
}
