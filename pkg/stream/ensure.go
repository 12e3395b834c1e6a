package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrDisagrees is returned where an existing stream does not fit the configuration and cannot be changed to.
var ErrDisagrees = errors.New("the stream disagrees with the configuration")

// ErrMissing is returned by [Conn.Check] for a stream or bucket that does not exist.
var ErrMissing = errors.New("it does not exist")

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
	// Frames, Deltas, Dicts and Rejected say how long messages are kept. Relabelled is kept like Dicts.
	Frames, Deltas, Dicts, Rejected Keep
	// Verdicts is whether there are limits on series, whose verdicts are kept like Dicts.
	Verdicts bool
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
	for _, s := range c.streams(l) {
		if err := c.ensureStream(ctx, s); err != nil {
			return err
		}
	}
	for _, b := range c.buckets(l) {
		if _, err := c.JS.CreateOrUpdateStream(ctx, b); err != nil {
			return fmt.Errorf("making the bucket %s: %w", strings.TrimPrefix(b.Name, bucketPrefix), err)
		}
	}
	return nil
}

// Check is [Conn.Ensure] for those who only use the streams and buckets: it makes and changes none, so that it needs no right to. What does not exist
// is an error wrapping [ErrMissing]; other limits than the configuration's are none.
func (c *Conn) Check(ctx context.Context, l Layout) error {
	if err := c.checkServer(); err != nil {
		return err
	}
	for _, want := range c.streams(l) {
		have, err := c.JS.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("stream %s: %w", want.Name, ErrMissing)
		}
		if err != nil {
			return fmt.Errorf("looking up the stream %s: %w", want.Name, err)
		}
		if err := agrees(have.CachedInfo().Config, want); err != nil {
			return err
		}
	}
	for _, b := range c.buckets(l) {
		name := strings.TrimPrefix(b.Name, bucketPrefix)
		_, err := c.JS.KeyValue(ctx, name)
		if errors.Is(err, jetstream.ErrBucketNotFound) {
			return fmt.Errorf("bucket %s: %w", name, ErrMissing)
		}
		if err != nil {
			return fmt.Errorf("looking up the bucket %s: %w", name, err)
		}
	}
	return nil
}

// streams returns the configurations of the streams.
func (c *Conn) streams(l Layout) []jetstream.StreamConfig {
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
	list := []jetstream.StreamConfig{
		targets,
		config(Dicts, l.Dicts, true, c.Prefix+".dicts.>"),
		config(Relabelled, l.Dicts, true, c.Prefix+".relabelled.>"),
		config(Frames, l.Frames, false, c.Prefix+".frames.*"),
		config(Deltas, l.Deltas, false, c.Prefix+".deltas.*"),
		config(Rejected, l.Rejected, false, c.Prefix+".rejected.>"),
	}
	if l.Verdicts {
		list = append(list, config(Verdicts, Keep{Age: l.Dicts.Age}, false, c.Prefix+".verdicts.*"))
	}
	return list
}

// bucketPrefix begins the names of the streams that are key-value buckets.
const bucketPrefix = "KV_"

// buckets returns the configurations of the streams that are key-value buckets. They are those of the client's own buckets, but without roll-ups where
// several services write: a user of NATS who may write one key could remove all others with one.
func (c *Conn) buckets(l Layout) []jetstream.StreamConfig {
	bucket := func(name string, ttl, marker time.Duration, rollup bool) jetstream.StreamConfig {
		name = c.Bucket(name)
		duplicates := 2 * time.Minute
		if ttl > 0 {
			duplicates = min(duplicates, ttl)
		}
		return jetstream.StreamConfig{
			Name: bucketPrefix + name, Subjects: []string{"$KV." + name + ".>"}, Storage: jetstream.FileStorage, Replicas: l.Replicas,
			MaxMsgsPerSubject: 1, MaxAge: ttl, MaxBytes: -1, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, Discard: jetstream.DiscardNew,
			DenyDelete: true, AllowDirect: true, Duplicates: duplicates,
			AllowRollup: rollup, AllowMsgTTL: marker > 0, SubjectDeleteMarkerTTL: marker,
		}
	}
	return []jetstream.StreamConfig{
		bucket(positions, 0, 0, false), bucket(Leases, 0, 0, false), bucket(Replays, 0, 0, false),
		bucket(Sources, l.Dicts.Age, 0, true),          // only scrapers write it, and they purge
		bucket(Members, l.LeaseTTL, time.Minute, true), // who follows the bucket learns by a marker, which takes roll-ups, that an entry has expired
	}
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
	if err := agrees(have.CachedInfo().Config, want); err != nil {
		return err
	}
	if _, err := c.JS.UpdateStream(ctx, want); err != nil {
		return fmt.Errorf("updating the stream %s: %w", want.Name, err)
	}
	return nil
}

// Partitions returns the number of partitions of the streams that exist.
func (c *Conn) Partitions(ctx context.Context) (int, error) {
	if err := c.checkServer(); err != nil {
		return 0, err
	}
	info, err := c.streamInfo(ctx, Frames)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(info.Config.Metadata[metaPartitions])
	if err != nil || n < 1 {
		return 0, fmt.Errorf("stream %s has %s=%q, which is no number of partitions", c.Stream(Frames), metaPartitions, info.Config.Metadata[metaPartitions])
	}
	return n, nil
}

// agrees tells whether a stream fits the configuration in what is fixed when it is made.
func agrees(cfg, want jetstream.StreamConfig) error {
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
