package replay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/stream"
)

// Errors of the manager.
var (
	// ErrUnknown is returned for a name that no replay has.
	ErrUnknown = errors.New("there is no replay of this name")
	// ErrTaken is returned where a replay of the same name is another one.
	ErrTaken = errors.New("another replay has this name")
	// ErrMany is returned where as many replays run as may: each takes memory in the writers.
	ErrMany = fmt.Errorf("%d replays run, and no more may; wait for one, or stop it", maxRunning)
)

// maxRunning is how many replays may run at a time.
const maxRunning = 16

// Manager starts, shows and stops replays. It only writes and reads the buckets: the writer service sends. It is safe for concurrent use.
type Manager struct {
	// Conn reaches the streams and buckets.
	Conn *stream.Conn
	// Partitions is the number of partitions of the streams.
	Partitions int
	// Endpoints returns the names of the configuration's endpoints.
	Endpoints func() []string
}

// keepEnded is how long the record of a replay that is over, or stopped, is kept.
const keepEnded = 7 * 24 * time.Hour

// Start makes a replay, or lets the one of the same name go on. With hold it only makes it: the answer tells what is to be expected, and another call without hold starts it. A
// wrong spec is a [*FieldError], a name that another replay has [ErrTaken].
func (m *Manager) Start(ctx context.Context, spec Spec, hold bool) (Status, error) {
	kv, err := m.bucket(ctx)
	if err != nil {
		return Status{}, err
	}
	if spec.Name == "" {
		spec.Name = fmt.Sprintf("replay-%s-%04x", time.Now().UTC().Format("20060102-150405"), rand.Uint32N(1<<16))
	}
	for try := 1; ; try++ {
		st, err := m.tryStart(ctx, kv, spec, hold)
		late := errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
		if !late || try == tries {
			return st, err
		}
		select { // any replica of the bucket answers, also one that has not heard of what was just written
		case <-ctx.Done():
			return st, err
		case <-time.After(retry):
		}
	}
}

// How often a write is tried that another one has come before, and how long is between.
const (
	tries = 20
	retry = 100 * time.Millisecond
)

func (m *Manager) tryStart(ctx context.Context, kv jetstream.KeyValue, spec Spec, hold bool) (Status, error) {
	rec, revision, err := m.get(ctx, kv, spec.Name)
	switch {
	case err == nil:
		return m.resume(ctx, kv, rec, revision, spec, hold)
	case !errors.Is(err, ErrUnknown):
		return Status{}, err
	}
	if only := (Spec{Name: spec.Name, Rate: spec.Rate}); spec.equal(&only) {
		return Status{}, wrong("name", "say with --from, --to and --endpoint or --url what is to be replayed", "there is no replay %q that could go on", spec.Name)
	}
	if _, err := spec.Select(time.Now()); err != nil {
		return Status{}, err
	}
	if known := m.Endpoints(); spec.Endpoint != "" && !slices.Contains(known, spec.Endpoint) {
		remedy := "the configuration has none; give --url"
		if len(known) > 0 {
			remedy = "choose from " + strings.Join(known, ", ") + ", or give --url"
		}
		return Status{}, wrong("endpoint", remedy, "there is no endpoint %q", spec.Endpoint)
	}
	if rec, err = plan(ctx, m.Conn, spec, m.Partitions, time.Now()); err != nil {
		return Status{}, fmt.Errorf("looking for what the replay %q has to read: %w", spec.Name, err)
	}
	if err := m.room(ctx, kv, hold); err != nil {
		return Status{}, err
	}
	rec.Stopped = hold
	data, err := rec.encode()
	if err != nil {
		return Status{}, err
	}
	if _, err := kv.Create(ctx, spec.Name, data); err != nil {
		return Status{}, fmt.Errorf("storing the replay %q: %w", spec.Name, err)
	}
	m.prune(ctx, kv)
	return m.status(ctx, rec)
}

// resume lets a replay go on.
func (m *Manager) resume(ctx context.Context, kv jetstream.KeyValue, rec *Record, revision uint64, spec Spec, hold bool) (Status, error) {
	if !spec.continues(&rec.Spec) {
		return Status{}, fmt.Errorf("replay %q: %w; choose another, or ask for the same: %s", spec.Name, ErrTaken, rec.Spec.words())
	}
	rate := rec.Spec.Rate
	if spec.From != "" || spec.Rate != 0 || spec.Rejected { // it is asked for in full, or for another rate
		rate = spec.Rate
	}
	if stopped := rec.Stopped && hold; stopped != rec.Stopped || rate != rec.Spec.Rate {
		if err := m.room(ctx, kv, stopped || !rec.Stopped); err != nil {
			return Status{}, err
		}
		rec.Stopped, rec.Spec.Rate = stopped, rate
		if _, err := rec.Selection(); err != nil {
			return Status{}, err
		}
		if err := m.put(ctx, kv, rec, revision); err != nil {
			return Status{}, err
		}
	}
	return m.status(ctx, rec)
}

// room returns ErrMany where no other replay may run, unless none is to.
func (m *Manager) room(ctx context.Context, kv jetstream.KeyValue, none bool) error {
	if none {
		return nil
	}
	running := 0
	return m.each(ctx, kv, func(rec *Record, _ uint64) error {
		if rec.Stopped {
			return nil
		}
		st, err := m.status(ctx, rec)
		if st.State == Running {
			running++
		}
		if err == nil && running >= maxRunning {
			err = ErrMany
		}
		return err
	})
}

// words are the spec as flags.
func (s *Spec) words() string {
	var flags []string
	add := func(name, value string) {
		if value != "" {
			flags = append(flags, "--"+name+"="+value)
		}
	}
	add("from", s.From)
	add("to", s.To)
	for _, m := range s.Match {
		add("match", m)
	}
	add("endpoint", s.Endpoint)
	add("url", s.URL)
	if s.DryRun {
		flags = append(flags, "--dry-run")
	}
	if s.Rejected {
		flags = append(flags, "--rejected")
	}
	if s.Raw {
		flags = append(flags, "--raw")
	}
	return strings.Join(flags, " ")
}

// Stop stops a replay, which goes on when it is started again. One that is stopped or over is removed.
func (m *Manager) Stop(ctx context.Context, name string) (Status, error) {
	kv, err := m.bucket(ctx)
	if err != nil {
		return Status{}, err
	}
	rec, revision, err := m.get(ctx, kv, name)
	if err != nil {
		return Status{}, err
	}
	st, err := m.status(ctx, rec)
	if err != nil {
		return Status{}, err
	}
	if st.State == Running {
		rec.Stopped, st.State = true, Stopped
		return st, m.put(ctx, kv, rec, revision)
	}
	st.State = Removed
	return st, m.remove(ctx, kv, rec, revision)
}

// Get returns how a replay stands.
func (m *Manager) Get(ctx context.Context, name string) (Status, error) {
	kv, err := m.bucket(ctx)
	if err != nil {
		return Status{}, err
	}
	rec, _, err := m.get(ctx, kv, name)
	if err != nil {
		return Status{}, err
	}
	return m.status(ctx, rec)
}

// List returns how all replays stand, the newest first.
func (m *Manager) List(ctx context.Context) ([]Status, error) {
	kv, err := m.bucket(ctx)
	if err != nil {
		return nil, err
	}
	var records []*Record
	err = m.each(ctx, kv, func(rec *Record, _ uint64) error {
		records = append(records, rec)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b *Record) int { return b.Created.Compare(a.Created) })
	list := make([]Status, len(records))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, rec := range records {
		g.Go(func() (err error) {
			list[i], err = m.status(ctx, rec)
			return err
		})
	}
	return list, g.Wait()
}

// atOnce is of how many replays the positions are looked up at a time: each partition has one.
const atOnce = 8

func (m *Manager) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := m.Conn.JS.KeyValue(ctx, m.Conn.Bucket(stream.Replays))
	if err != nil {
		return nil, fmt.Errorf("opening the bucket %s: %w", m.Conn.Bucket(stream.Replays), err)
	}
	return kv, nil
}

func (m *Manager) get(ctx context.Context, kv jetstream.KeyValue, name string) (*Record, uint64, error) {
	if !namePattern.MatchString(name) {
		return nil, 0, wrong("name", "use 1 to 64 letters, digits, - and _", "%q cannot be a replay's name", name)
	}
	entry, err := kv.Get(ctx, name)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, fmt.Errorf("replay %q: %w", name, ErrUnknown)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the replay %q: %w", name, err)
	}
	rec, err := Decode(entry.Value())
	if err != nil {
		return nil, 0, fmt.Errorf("reading the replay %q: %w", name, err)
	}
	return rec, entry.Revision(), nil
}

func (m *Manager) put(ctx context.Context, kv jetstream.KeyValue, rec *Record, revision uint64) error {
	data, err := rec.encode()
	if err == nil {
		_, err = kv.Update(ctx, rec.Spec.Name, data, revision)
	}
	if err != nil {
		return fmt.Errorf("storing the replay %q: %w", rec.Spec.Name, err)
	}
	return nil
}

// each calls f with the replays. Entries that cannot be read are passed over: a newer Millrace may have written them.
func (m *Manager) each(ctx context.Context, kv jetstream.KeyValue, f func(*Record, uint64) error) error {
	w, err := kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("reading the replays: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-w.Updates():
			if e == nil {
				return nil
			}
			rec, err := Decode(e.Value())
			if err != nil {
				continue
			}
			if err := f(rec, e.Revision()); err != nil {
				return err
			}
		}
	}
}

func (m *Manager) remove(ctx context.Context, kv jetstream.KeyValue, rec *Record, revision uint64) error {
	if err := kv.Delete(ctx, rec.Spec.Name, jetstream.LastRevision(revision)); err != nil {
		return fmt.Errorf("removing the replay %q: %w", rec.Spec.Name, err)
	}
	return m.forget(ctx, rec)
}

// forget removes the positions.
func (m *Manager) forget(ctx context.Context, rec *Record) error {
	for part := range rec.Parts {
		key := rec.Position(part)
		_, _, found, err := m.Conn.StoredPosition(ctx, key)
		if err == nil && !found {
			continue
		}
		if err := m.Conn.RemovePosition(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// prune removes what ended long ago. That it fails is no reason not to start another.
func (m *Manager) prune(ctx context.Context, kv jetstream.KeyValue) {
	_ = m.each(ctx, kv, func(rec *Record, revision uint64) error {
		if time.Since(rec.Created) < keepEnded {
			return nil
		}
		if st, err := m.status(ctx, rec); err != nil || st.State == Running {
			return err
		}
		return m.remove(ctx, kv, rec, revision)
	})
}
