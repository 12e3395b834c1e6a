package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	promcommon "github.com/prometheus/common/config"
	"github.com/prometheus/common/promslog"

	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/remotewrite"
	"github.com/millrace/millrace/pkg/rules"
	"github.com/millrace/millrace/services/relabel"
	"github.com/millrace/millrace/services/writer"
)

// errNotReady is returned by a reload that comes before the services run.
var errNotReady = errors.New("still starting; try again when /-/ready says so")

// reload reads the configuration file again and makes it the running one, or leaves all as it was.
func (p *process) reload(ctx context.Context) (err error) {
	p.reloading.Lock()
	defer p.reloading.Unlock()
	defer func() { p.metrics.reloaded(err) }()
	if p.waiting.Load() != nil {
		return errNotReady
	}
	next, err := p.load()
	if err != nil {
		return err
	}
	old := p.cfg.Load()
	if !reflect.DeepEqual(old.Millrace, next.Millrace) {
		return fmt.Errorf("%s: the millrace block has changed, which takes a restart; nothing of the new file is applied", next.Path)
	}
	if err := applicable(next); err != nil {
		return err
	}
	if err := p.apply(ctx, next); err != nil {
		return err
	}
	p.cfg.Store(&loaded{next, time.Now()})
	p.fleet.SetConfigHash(next.Hash)
	for _, w := range next.Warnings() {
		p.log.Warn(w)
	}
	p.log.Info("Reloaded the configuration", "config", next.Path)
	return nil
}

// applicable tries what the services would only find out while they apply a configuration, so that none is applied by half: the clients
// of scrapes and endpoints, with the files that they name.
func applicable(cfg *config.Config) error {
	for _, s := range cfg.ScrapeConfigs {
		if _, err := promcommon.NewClientFromConfig(s.HTTPClientConfig, s.JobName); err != nil {
			return fmt.Errorf("%s: scrape config %q: %w", cfg.Path, s.JobName, err)
		}
	}
	for _, e := range cfg.Endpoints {
		if _, err := remotewrite.NewClient(e.Name, e.RemoteWriteConfig); err != nil {
			return fmt.Errorf("%s: remote_write %q: %w", cfg.Path, e.Name, err)
		}
		r := rules.Rules{External: e.ExternalLabels, Relabel: e.WriteRelabelConfigs, Limits: limitsHash(&cfg.Millrace.Cardinality)}
		if _, err := r.Hash(); err != nil {
			return fmt.Errorf("%s: remote_write %q: %w", cfg.Path, e.Name, err)
		}
	}
	return nil
}

// apply gives the services a configuration.
func (p *process) apply(ctx context.Context, cfg *config.Config) error {
	var toRelabel []relabel.Endpoint
	var toWriter []writer.Endpoint
	for _, e := range cfg.Endpoints {
		r := rules.Rules{External: e.ExternalLabels, Relabel: e.WriteRelabelConfigs, Limits: limitsHash(&cfg.Millrace.Cardinality)}
		toRelabel = append(toRelabel, relabel.Endpoint{Name: e.Name, Rules: r})
		w := writer.Endpoint{Name: e.Name, Rules: r, RetryOn429: e.RetryOn429, RemoteWriteConfig: e.RemoteWriteConfig}
		if fresh := &cfg.Millrace.Writer.FreshFirst; fresh.Has(e) {
			w.FreshFirst = &writer.FreshFirst{After: time.Duration(fresh.After), Share: fresh.BacklogShare}
		}
		toWriter = append(toWriter, w)
	}
	if p.writer != nil {
		p.writer.SetExternalLabels(cfg.Prometheus.GlobalConfig.ExternalLabels)
		if err := p.writer.ApplyConfig(ctx, toWriter); err != nil {
			return err
		}
	}
	if p.relabel != nil {
		if err := p.relabel.ApplyConfig(toRelabel); err != nil {
			return err
		}
	}
	if p.ingest != nil {
		p.ingest.ApplyConfig(cfg.Prometheus.OTLPConfig)
	}
	if p.scraper != nil {
		if err := p.scraper.ApplyConfig(cfg.Prometheus.GlobalConfig, cfg.ScrapeConfigs); err != nil {
			return err
		}
	}
	if p.discovery != nil {
		return p.discovery.ApplyConfig(cfg.ScrapeConfigs)
	}
	return nil
}

// checkConfigs is `millrace check config`.
func checkConfigs(files []string, stdout, stderr io.Writer) error {
	log := promslog.New(&promslog.Config{Writer: stderr})
	var failed error
	for _, f := range files {
		cfg, err := config.Load(f, log)
		if err == nil {
			err = applicable(cfg)
		}
		if err != nil {
			for _, e := range messages(err) {
				fmt.Fprintln(stderr, e)
			}
			failed = usageError{errors.New("the configuration has errors")}
			continue
		}
		for _, w := range cfg.Warnings() {
			fmt.Fprintf(stdout, "%s: warning: %s\n", f, w)
		}
		fmt.Fprintf(stdout, "%s: ok: %d scrape configs, %d remote_write endpoints\n", f, len(cfg.ScrapeConfigs), len(cfg.Endpoints))
	}
	return failed
}

// messages returns one line for each error.
func messages(err error) []string {
	var lines []string
	for _, e := range config.AllErrors(err) {
		lines = append(lines, e.Error())
	}
	if len(lines) == 0 {
		lines = []string{err.Error()}
	}
	return lines
}
