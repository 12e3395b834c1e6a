package stream

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

func streamConfigs(t *testing.T, c *Conn) map[string]jetstream.StreamConfig {
	t.Helper()
	all := map[string]jetstream.StreamConfig{}
	for info := range c.JS.ListStreams(t.Context()).Info() {
		all[info.Config.Name] = info.Config
	}
	return all
}

func TestEnsureIsIdempotent(t *testing.T) {
	c := newConn(t)
	before := streamConfigs(t, c)
	if len(before) != 11 {
		t.Errorf("%d streams, want 6 and those of 5 buckets", len(before))
	}
	publish(t, c, c.Frames(1), "kept")
	ensure(t, c)
	if d := cmp.Diff(before, streamConfigs(t, c)); d != "" {
		t.Errorf("a second Ensure changes the streams (-before +after):\n%s", d)
	}
	if msg, err := c.Last(t.Context(), Frames, c.Frames(1)); err != nil || string(msg.Data) != "kept" {
		t.Errorf("message %q after a second Ensure: %v", msg.Data, err)
	}
}

func TestEnsureUpdatesLimits(t *testing.T) {
	c := newConn(t)
	l := testLayout
	l.Deltas = Keep{2 * time.Hour, 4 << 20}
	l.Frames, l.Dicts, l.Rejected = Keep{time.Hour, 1 << 20}, Keep{3 * time.Hour, 2 << 20}, Keep{time.Minute, 3 << 20}
	if err := c.Ensure(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Keep{Targets: {0, -1}, Frames: l.Frames, Deltas: l.Deltas, Dicts: l.Dicts, Relabelled: l.Dicts, Rejected: l.Rejected} {
		cfg := streamConfigs(t, c)[c.Stream(name)]
		if got := (Keep{cfg.MaxAge, cfg.MaxBytes}); got != want {
			t.Errorf("%s keeps %+v, want %+v", name, got, want)
		}
	}
	states, err := c.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range states {
		if s.Stream == Frames && (s.Limit != 1<<20 || s.Age != time.Hour) || s.Stream == Targets && s.Limit != 0 {
			t.Errorf("state %+v", s)
		}
	}
}

func TestEnsureRefusesStreamsThatDisagree(t *testing.T) {
	update := func(name string, change func(*jetstream.StreamConfig)) func(*testing.T, *Conn) {
		return func(t *testing.T, c *Conn) {
			cfg := streamConfigs(t, c)[c.Stream(name)]
			change(&cfg)
			if _, err := c.JS.UpdateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		spoil  func(*testing.T, *Conn)
		layout Layout
		want   []string
	}{
		"partitions": {
			layout: Layout{Partitions: 3, Replicas: 1}, want: []string{`"2"`, `"3"`, "millrace.streams.partitions"},
		},
		"format": {
			spoil:  update(Frames, func(cfg *jetstream.StreamConfig) { cfg.Metadata[metaFormat] = "2" }),
			layout: testLayout, want: []string{"test_FRAMES", metaFormat, `"2"`},
		},
		"a stream of somebody else": {
			spoil:  update(Dicts, func(cfg *jetstream.StreamConfig) { delete(cfg.Metadata, metaPartitions) }),
			layout: testLayout, want: []string{"test_DICTS", metaPartitions},
		},
		"subjects of another prefix": {
			spoil:  update(Rejected, func(cfg *jetstream.StreamConfig) { cfg.Subjects = []string{"other.rejected.>"} }),
			layout: testLayout, want: []string{"test_REJECTED", "other.rejected.>", "millrace.nats.prefix"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConn(t)
			if test.spoil != nil {
				test.spoil(t, c)
			}
			before := streamConfigs(t, c)
			err := c.Ensure(t.Context(), test.layout)
			if !errors.Is(err, ErrDisagrees) {
				t.Fatalf("error %v, want ErrDisagrees", err)
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not have %q", err, part)
				}
			}
			if d := cmp.Diff(before, streamConfigs(t, c)); d != "" {
				t.Errorf("streams were changed all the same (-before +after):\n%s", d)
			}
		})
	}
}

func TestFleetsShareAServerByTheirPrefixes(t *testing.T) {
	s := startServer(t, serverConfig(t.TempDir()))
	defer s.Shutdown()
	a, b := connect(t, Config{Names: Names{"a"}, Server: s}), connect(t, Config{Names: Names{"b"}, Server: s})
	ensure(t, a)
	if err := b.Ensure(t.Context(), Layout{Partitions: 7, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	publish(t, a, a.Frames(0), "of a")
	publish(t, b, b.Frames(0), "of b")
	for _, c := range []*Conn{a, b} {
		if msg, err := c.Last(t.Context(), Frames, c.Frames(0)); err != nil || string(msg.Data) != "of "+c.Prefix {
			t.Errorf("fleet %s reads %q: %v", c.Prefix, msg.Data, err)
		}
	}
}

func TestOldServersAreRefused(t *testing.T) {
	for version, ok := range map[string]bool{"2.10.29": false, "1.4.1": false, "2.11.0": true, "2.12.1-beta": true, "3.0.0": true} {
		c := connect(t, Config{URL: talker(t, version, false)})
		err := c.checkServer()
		if ok && err != nil || !ok && !errors.Is(err, ErrServer) {
			t.Errorf("version %s: %v", version, err)
		}
		if !ok && !strings.Contains(err.Error(), version) {
			t.Errorf("error %q does not name the version %s", err, version)
		}
	}
	if err := connect(t, Config{URL: talker(t, "next", false)}).checkServer(); err == nil || !strings.Contains(err.Error(), `"next"`) {
		t.Errorf("a version that is none: %v", err)
	}
}

func TestCheckMakesNothing(t *testing.T) {
	s := startServer(t, serverConfig(t.TempDir()))
	t.Cleanup(s.Shutdown)
	c := connect(t, Config{Server: s})
	if err := c.Check(t.Context(), testLayout); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), c.Stream(Targets)) {
		t.Errorf("without streams: %v", err)
	}
	if all := streamConfigs(t, c); len(all) != 0 {
		t.Errorf("a check has made %v", all)
	}
	ensure(t, c)
	before := streamConfigs(t, c)
	l := testLayout
	l.Frames.Age = time.Hour
	if err := c.Check(t.Context(), l); err != nil {
		t.Errorf("with other limits: %v", err)
	}
	if d := cmp.Diff(before, streamConfigs(t, c)); d != "" {
		t.Errorf("a check changes the streams (-before +after):\n%s", d)
	}
	l.Partitions = 3
	if err := c.Check(t.Context(), l); !errors.Is(err, ErrDisagrees) {
		t.Errorf("with other partitions: %v", err)
	}
	if err := c.JS.DeleteKeyValue(t.Context(), c.Bucket(Leases)); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context(), testLayout); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), c.Bucket(Leases)) {
		t.Errorf("without a bucket: %v", err)
	}
}

func TestAnswersComeToTheInbox(t *testing.T) {
	s := startServer(t, serverConfig(t.TempDir()))
	t.Cleanup(s.Shutdown)
	c := connect(t, Config{Server: s, Inbox: Names{Prefix: "test"}.Inbox("relabel", "writer")})
	if inbox := c.NC.NewInbox(); !strings.HasPrefix(inbox, "_INBOX.test.relabel-writer.") {
		t.Errorf("answers come to %s", inbox)
	}
}
