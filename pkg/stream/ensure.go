package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrDisagrees is returned where an existing stream does not fit the configuration and cannot be changed to.
var ErrDisagrees = errors.New("the stream disagrees with the configuration")

// ErrServer is returned where the NATS server lacks what the streams need.
var ErrServer = errors.New("the NATS server is too old")

// Layout says what streams there are to be.
type Layout struct {
	// Partitions is fixed when the streams are made.
	Partitions int
	// Replicas of each stream and bucket: 1, 3 or 5.
	Replicas int
	// LeaseTTL is how long an entry of Members lasts.
	LeaseTTL time.Duration
	// Frames, Dicts and Rejected say how long messages are kept. Relabelled is kept like Dicts.
	Frames, Dicts, Rejected Keep
}

// Keep bounds a stream. The oldest messages go first.
type Keep struct {
	Age   time.Duration
	Bytes int64
}

const (
	metaPartitions = "millrace.partitions"
	metaFormat     = "millrace.format"

	// format is the version of the streams' layout: subjects and what their messages mean.
	format = "1"
)

// Ensure makes the streams and buckets that do not exist and updates the limits of those that do. It is idempotent. A stream with another number of
// partitions, another format, or subjects of another prefix is left as it is, with an error wrapping [ErrDisagrees].
func (c *Conn) Ensure(ctx context.Context, l Layout) error {
	if err := c.checkServer(); err != nil {
		return err
	}
	meta := map[string]string{metaPartitions: strconv.Itoa(l.Partitions), metaFormat: format}
	base := jetstream.StreamConfig{
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage,
		Replicas: l.Replicas, AllowDirect: true, DenyDelete: false, Duplicates: time.Second, Metadata: meta,
	}
	config := func(name string, k Keep, lastOnly bool, subjects ...string) jetstream.StreamConfig {
		s := base
		s.Name, s.Subjects, s.MaxAge, s.MaxBytes = c.Stream(name), subjects, k.Age, k.Bytes
		s.MaxMsgs, s.MaxMsgSize, s.MaxConsumers, s.MaxMsgsPerSubject = -1, -1, -1, -1
		if s.MaxBytes == 0 {
			s.MaxBytes = -1
		}
		if lastOnly {
			s.MaxMsgsPerSubject = 1
		}
		return s
	}
	targets := config(Targets, Keep{}, true, c.Prefix+".targets.>")
	targets.AllowMsgTTL = true // a removed target's last message ends by itself
	for _, s := range []jetstream.StreamConfig{
		targets,
		config(Dicts, l.Dicts, true, c.Prefix+".dicts.>"),
		config(Relabelled, l.Dicts, true, c.Prefix+".relabelled.>"),
		config(Frames, l.Frames, false, c.Prefix+".frames.*"),
		config(Rejected, l.Rejected, false, c.Prefix+".rejected.>"),
	} {
		if err := c.ensureStream(ctx, s); err != nil {
			return err
		}
	}
	for _, b := range []jetstream.KeyValueConfig{
		{Bucket: positions}, {Bucket: Leases}, {Bucket: Sources, TTL: l.Dicts.Age},
		{Bucket: Members, TTL: l.LeaseTTL, LimitMarkerTTL: time.Minute}, // who follows the bucket learns by a marker that an entry has expired
	} {
		b.Bucket, b.History, b.Storage, b.Replicas = c.Bucket(b.Bucket), 1, jetstream.FileStorage, l.Replicas
		if _, err := c.JS.CreateOrUpdateKeyValue(ctx, b); err != nil {
			return fmt.Errorf("making the bucket %s: %w", b.Bucket, err)
		}
	}
	return nil
}

func (c *Conn) ensureStream(ctx context.Context, want jetstream.StreamConfig) error {
	have, err := c.JS.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if _, err := c.JS.CreateStream(ctx, want); err != nil {
			return fmt.Errorf("making the stream %s: %w", want.Name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking up the stream %s: %w", want.Name, err)
	}
	cfg := have.CachedInfo().Config
	for _, key := range []string{metaFormat, metaPartitions} {
		if got := cfg.Metadata[key]; got != want.Metadata[key] {
			return fmt.Errorf("stream %s has %s=%q, the configuration wants %q: %w; partitions and format are fixed when the streams are made: "+
				"set millrace.streams.partitions to what the streams have, or choose another millrace.nats.prefix or storage path",
				want.Name, key, got, want.Metadata[key], ErrDisagrees)
		}
	}
	if len(cfg.Subjects) != 1 || cfg.Subjects[0] != want.Subjects[0] {
		return fmt.Errorf("stream %s has the subjects %q, the configuration wants %q: %w; choose another millrace.nats.prefix",
			want.Name, cfg.Subjects, want.Subjects, ErrDisagrees)
	}
	if _, err := c.JS.UpdateStream(ctx, want); err != nil {
		return fmt.Errorf("updating the stream %s: %w", want.Name, err)
	}
	return nil
}

// checkServer refuses servers that lack what the streams use: TTLs of single messages came with 2.11.
func (c *Conn) checkServer() error {
	v := c.NC.ConnectedServerVersion()
	var major, minor int
	if _, err := fmt.Sscanf(v, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("NATS server at %s has the version %q: %w", c.NC.ConnectedUrlRedacted(), v, err)
	}
	if major < 2 || major == 2 && minor < 11 {
		return fmt.Errorf("%w: %s is version %s; Millrace needs 2.11 or newer", ErrServer, c.NC.ConnectedUrlRedacted(), v)
	}
	return nil
}

// State is what a stream holds.
type State struct {
	// Stream is the stream's name without the prefix.
	Stream string
	// Messages and Bytes are what is stored now; Limit is the most bytes, 0 for none.
	Messages, Bytes, Limit uint64
	// Age is how long a message is kept; 0 for ever.
	Age time.Duration
	// First and Last are sequence numbers; Oldest is when the message at First was stored.
	First, Last uint64
	Oldest      time.Time
}

// States returns the state of all streams.
func (c *Conn) States(ctx context.Context) ([]State, error) {
	var states []State
	for _, name := range []string{Targets, Dicts, Relabelled, Frames, Rejected} {
		s, err := c.JS.Stream(ctx, c.Stream(name))
		if err != nil {
			return nil, fmt.Errorf("looking up the stream %s: %w", c.Stream(name), err)
		}
		info := s.CachedInfo()
		states = append(states, State{
			Stream: name, Messages: info.State.Msgs, Bytes: info.State.Bytes, Limit: uint64(max(info.Config.MaxBytes, 0)), Age: info.Config.MaxAge,
			First: info.State.FirstSeq, Last: info.State.LastSeq, Oldest: info.State.FirstTime,
		})
	}
	return states, nil
}
