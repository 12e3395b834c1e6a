package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/millrace/millrace/bench/pusher"
)

// pushCommand plays applications that push.
type pushCommand struct {
	listen, protocol, log string
	every, duration       time.Duration
	config                pusher.Config
}

// protocols are the names of all protocols.
func protocols() []string {
	var names []string
	for _, p := range pusher.Protocols() {
		names = append(names, string(p))
	}
	return names
}

func addPush(app *kingpin.Application) *pushCommand {
	c := &pushCommand{config: pusher.Config{Headers: map[string]string{}}}
	cmd := app.Command("push", "Push samples that are numbered, by OTLP or remote_write.")
	cmd.Flag("url", "Where to push, for example http://127.0.0.1:4318/v1/metrics; for gRPC http://127.0.0.1:4317.").Required().StringVar(&c.config.URL)
	cmd.Flag("protocol", "How to push: "+strings.Join(protocols(), ", ")+".").Default(string(pusher.OTLPHTTP)).EnumVar(&c.protocol, protocols()...)
	cmd.Flag("senders", "Number of applications that push.").Default("100").IntVar(&c.config.Senders)
	cmd.Flag("series", "Series per sender: samples that a push becomes at the receiver.").Default("500").IntVar(&c.config.Series)
	cmd.Flag("histograms", "Classic histograms among them, of 13 series each.").IntVar(&c.config.Histograms)
	cmd.Flag("delta", "Push sums and histograms of OTLP with delta temporality.").BoolVar(&c.config.Delta)
	cmd.Flag("interval", "Time from one push of a sender to its next.").Default("1s").DurationVar(&c.config.Interval)
	cmd.Flag("timeout", "How long a sender waits for an answer.").Default("10s").DurationVar(&c.config.Timeout)
	cmd.Flag("queue", "Pushes of a sender that may wait for their answer; others are not made meanwhile.").Default("60").IntVar(&c.config.QueueLimit)
	cmd.Flag("drain", "How long to go on at the end to get answers to the pushes that were made.").Default("10s").DurationVar(&c.config.Drain)
	cmd.Flag("header", "Header of each request, NAME=VALUE. Repeatable.").StringMapVar(&c.config.Headers)
	cmd.Flag("duration", "End after this time; 0s is never.").Default("0s").DurationVar(&c.duration)
	cmd.Flag("log", "Write what was acknowledged to this file at the end, for the receiver's POST /complete.").StringVar(&c.log)
	cmd.Flag("listen", "Address to serve /stats, /served and /window on.").Default("127.0.0.1:9477").StringVar(&c.listen)
	cmd.Flag("every", "How often to print a line; 0s is never.").Default("5s").DurationVar(&c.every)
	return c
}

func (c *pushCommand) serve(ctx context.Context) error {
	c.config.Protocol = pusher.Protocol(c.protocol)
	p, err := pusher.New(c.config)
	if err != nil {
		return err
	}
	if c.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.duration)
		defer cancel()
	}
	// What was acknowledged can be asked for until the last answer is there.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	err = listenAndServe(serving, c.listen, p, func(serving context.Context, _ string) error {
		if c.every > 0 {
			go printPushes(serving, p, c.every)
		}
		go func() {
			p.Run(ctx)
			stop()
		}()
		return nil
	})
	if err != nil {
		return err
	}
	s := p.Stats()
	fmt.Printf("acknowledged %d pushes, %d samples; refused %d, rejected samples %d, skipped %d, unanswered %d; repeated %d; failures %v\n",
		s.Acknowledged, s.Samples, s.Refused, s.Rejected, s.Skipped, s.Unanswered, s.Repeated, s.Failures)
	return c.writeLog(p)
}

// writeLog writes what was acknowledged.
func (c *pushCommand) writeLog(p *pusher.Pusher) error {
	if c.log == "" {
		return nil
	}
	data, err := json.Marshal(p.Log())
	if err != nil {
		return fmt.Errorf("encoding the log: %w", err)
	}
	if err := os.WriteFile(c.log, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	return nil
}

// printPushes prints what was acknowledged, every so often.
func printPushes(ctx context.Context, p *pusher.Pusher, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	before := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s := p.Stats()
		fmt.Printf("%s  %8.0f samples/s acknowledged  answer p50 %7.2f ms  p99 %7.2f ms  max %7.2f ms  repeated %d  refused %d  skipped %d\n",
			time.Now().Format(time.TimeOnly), float64(s.Samples-before)/every.Seconds(), 1e3*s.Answer.P50, 1e3*s.Answer.P99, 1e3*s.Answer.Max,
			s.Repeated, s.Refused, s.Skipped)
		if s.LastFailure != "" {
			fmt.Printf("          last failure: %s\n", s.LastFailure)
		}
		p.ResetWindow()
		before = s.Samples
	}
}
