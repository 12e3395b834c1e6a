package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/config"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/services/ingest"
	"github.com/millrace/millrace/services/ingest/delta"
	"github.com/millrace/millrace/services/ingest/door"
)

// doors are the ways in for pushes. They are made before there is a stream, so that bad files and addresses are known at once, and
// opened when the services run.
type doors struct {
	taker lateTaker
	otlp  []otlpDoor
}

// otlpDoor is a listener for OTLP.
type otlpDoor struct {
	name    string
	address string
	spare   bool // nobody asked for the address: if another process has it, Millrace works without
	door    interface {
		actor.Actor
		Listen() error
	}
}

// lateTaker takes pushes as soon as there is a service for them.
type lateTaker struct {
	service atomic.Pointer[ingest.Service]
	pushes  atomic.Uint64 // that have come
}

// Take implements [door.Taker].
func (t *lateTaker) Take(ctx context.Context, p *door.Push) (door.Outcome, error) {
	t.pushes.Add(1)
	if s := t.service.Load(); s != nil {
		return s.Take(ctx, p)
	}
	return door.Outcome{}, &door.Refusal{Kind: door.Unavailable, RetryAfter: time.Second, Message: "Millrace is starting; try again"}
}

// makeDoors makes the doors of the configuration. The handler takes remote_write; it is nil where that is off.
func (p *process) makeDoors() (remoteWrite http.Handler, err error) {
	if !p.has("ingest") {
		if p.opts.remoteWrite {
			return nil, fmt.Errorf("--web.enable-remote-write-receiver needs the service ingest: add it to --services=%s", p.opts.services)
		}
		return nil, nil
	}
	i := &p.cfg.Load().Millrace.Ingest
	tenant := ""
	if i.Tenant.Label != "" {
		tenant = i.Tenant.Header
	}
	metrics, err := door.NewMetrics(p.reg)
	if err != nil {
		return nil, err
	}
	newConfig := func(name, listen string, tls config.ServerTLS, d *config.Door) door.Config {
		return door.Config{
			Name: name, Listen: listen, TLS: door.TLSFiles{Cert: tls.CertFile, Key: tls.KeyFile, ClientCA: tls.ClientCAFile},
			Auth: door.Auth{
				Username: d.BasicAuth.Username, Password: string(d.BasicAuth.Password), PasswordFile: d.BasicAuth.PasswordFile,
				BearerToken: string(d.BearerToken), BearerTokenFile: d.BearerTokenFile,
			},
			Limits: limits(d), TenantHeader: tenant, Taker: &p.doors.taker, Metrics: metrics, Logger: p.log.With("service", "ingest", "door", name),
		}
	}
	if l := i.OTLP.GRPC; l.Listen != "" {
		d, err := door.NewGRPC(newConfig("otlp_grpc", l.Listen, l.TLS, &l.Door))
		if err != nil {
			return nil, fmt.Errorf("millrace.ingest.otlp.grpc: %w", err)
		}
		p.doors.otlp = append(p.doors.otlp, otlpDoor{"otlp_grpc", l.Listen, l.Listen == config.DefaultOTLPGRPC, d})
	}
	if l := i.OTLP.HTTP; l.Listen != "" {
		d, err := door.NewHTTP(newConfig("otlp_http", l.Listen, l.TLS, &l.Door))
		if err != nil {
			return nil, fmt.Errorf("millrace.ingest.otlp.http: %w", err)
		}
		p.doors.otlp = append(p.doors.otlp, otlpDoor{"otlp_http", l.Listen, l.Listen == config.DefaultOTLPHTTP, d})
	}
	if !p.opts.remoteWrite {
		return nil, nil
	}
	remoteWrite, err = door.NewRemoteWrite(newConfig("remote_write", "", config.ServerTLS{}, &i.RemoteWrite))
	if err != nil {
		return nil, fmt.Errorf("millrace.ingest.remote_write: %w", err)
	}
	return remoteWrite, nil
}

func limits(d *config.Door) door.Limits {
	return door.Limits{
		MaxBodyBytes: int64(d.MaxBodyBytes), MaxDecompressedBytes: int64(d.MaxDecompressedBytes), MaxInFlightBytes: int64(d.MaxInFlightBytes),
		MaxConcurrentRequests: d.MaxConcurrentRequests, MaxSeriesPerRequest: d.MaxSeriesPerRequest, MaxLabelNames: d.MaxLabelNames,
		MaxLabelNameBytes: int(d.MaxLabelNameBytes), MaxLabelValueBytes: int(d.MaxLabelValueBytes), MaxSamplesPerSecond: d.MaxSamplesPerSecond,
		ReadTimeout: time.Duration(d.ReadTimeout), IdleTimeout: time.Duration(d.IdleTimeout),
	}
}

// openDoors opens the listeners and hands them to the supervisor.
func (p *process) openDoors() error {
	if p.ingest == nil {
		return nil
	}
	p.doors.taker.service.Store(p.ingest)
	for _, d := range p.doors.otlp {
		if err := d.door.Listen(); err != nil {
			if !d.spare {
				return usageError{err}
			}
			p.log.Warn("OTLP is not received at its usual address, trying again", "door", d.name, "err", err, "remedy", "set millrace.ingest."+keyOf(d.name)+`.listen to another address, or to "" for none`)
		} else {
			p.log.Info("Receiving OTLP", "door", d.name, "address", d.address)
		}
		p.system.Spawn("door "+d.name, d.door)
	}
	return nil
}

func keyOf(door string) string {
	return map[string]string{"otlp_grpc": "otlp.grpc", "otlp_http": "otlp.http"}[door]
}

// makeIngest makes the service that takes pushes, and the one that makes deltas cumulative.
func (p *process) makeIngest(conn *stream.Conn, m *config.Millrace) {
	i := &m.Ingest
	log := p.log.With("service", "ingest")
	p.ingest = ingest.New(ingest.Config{
		Partitions: m.Streams.Partitions, Frames: p.publishers, Deltas: p.deltas, Linger: max(time.Duration(i.Linger)-timerSlack, 0), MaxPendingBytes: int64(i.MaxPendingBytes),
		MaxSeries: i.MaxSeries, SeriesIdle: time.Duration(i.SeriesIdle), ForgetEach: m.Cardinality.Enabled(), OutOfOrderWindow: time.Duration(i.OutOfOrderWindow), AckTimeout: time.Duration(i.AckTimeout),
		TenantLabel: i.Tenant.Label, Registerer: p.reg,
	})
	if p.deltas != nil {
		p.delta = delta.New(delta.Config{
			Conn: conn, Partitions: m.Streams.Partitions, Fleet: p.fleet, Publisher: stream.NewPublisher(), MaxStale: time.Duration(i.Delta.MaxStale),
			MaxStreams: i.Delta.MaxStreams, DictAge: time.Duration(m.Streams.Dictionaries.MaxAge), Logger: log, Registerer: p.reg,
		}, p.system)
	}
}
