package scraper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
	"unique"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/common/model"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/millrace/millrace/pkg/frame"
	"github.com/millrace/millrace/pkg/stream"
)

// keeper is the actor that keeps what is known of sources in the bucket `sources`, so that whoever scrapes a target next goes on with its dictionaries, and ends
// the series that have vanished meanwhile.
type keeper struct {
	svc *Service
	log *slog.Logger

	mu      sync.Mutex
	changed map[*source]bool // not stored yet
	order   []*source        // the same, the oldest first
	taken   []int            // shards to look for orphans in
	wake    chan struct{}    // something has changed
}

func newKeeper(s *Service) *keeper {
	return &keeper{svc: s, log: s.cfg.Logger, changed: map[*source]bool{}, wake: make(chan struct{}, 1)}
}

// Sources are stored one at a time, at most storedRate a second.
const storedRate = 50

// Serve stores what has changed until ctx ends.
func (k *keeper) Serve(ctx context.Context) error {
	refresh := time.NewTicker(max(k.svc.cfg.DictAge/8, time.Second))
	defer refresh.Stop()
	var orphans, pace <-chan time.Time
	var shards []int
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-orphans:
			orphans = nil
			k.endOrphans(ctx, shards)
			shards = nil
		case <-refresh.C:
			for _, s := range k.svc.sources.olderThan(k.svc.cfg.DictAge / 2) {
				k.note(s)
			}
		case <-k.wake:
		case <-pace:
			pace = nil
			k.storeNext(ctx)
		}
		k.mu.Lock()
		if len(k.taken) > 0 {
			shards, k.taken = append(shards, k.taken...), nil
			orphans = time.After(orphanGrace)
		}
		if pace == nil && len(k.order) > 0 {
			pace = time.After(time.Second / storedRate)
		}
		k.mu.Unlock()
	}
}

// storeNext stores the source that has waited longest.
func (k *keeper) storeNext(ctx context.Context) {
	k.mu.Lock()
	var next *source
	if len(k.order) > 0 {
		next, k.order = k.order[0], k.order[1:]
		delete(k.changed, next)
	}
	k.mu.Unlock()
	if next == nil {
		return
	}
	if err := k.store(ctx, next); err != nil && ctx.Err() == nil {
		k.log.Debug("Cannot store what is known of a source, trying again", "source", fmt.Sprintf("%016x", next.id), "err", err)
		k.note(next)
	}
}

// rouse makes the actor look at what has changed.
func (k *keeper) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// note makes sure that a source is stored again.
func (k *keeper) note(s *source) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.changed[s] {
		k.changed[s] = true
		k.order = append(k.order, s)
		k.rouse()
	}
}

// flush stores the sources of some shards now.
func (k *keeper) flush(ctx context.Context, shards []int) {
	given := map[int]bool{}
	for _, s := range shards {
		given[s] = true
	}
	k.mu.Lock()
	var list, rest []*source
	for _, s := range k.order {
		if given[stream.ShardOf(s.id)] {
			list = append(list, s)
			delete(k.changed, s)
		} else {
			rest = append(rest, s)
		}
	}
	k.order = rest
	k.mu.Unlock()
	for _, s := range list {
		if err := k.store(ctx, s); err != nil {
			k.log.Warn("Cannot store what is known of a source; the next owner may miss series that vanish now", "source", fmt.Sprintf("%016x", s.id), "err", err)
		}
	}
}

// leave gives back the view of a loop that ends here and goes on elsewhere. What it knows is stored at the next flush.
func (k *keeper) leave(s *source, v *view) {
	if k.svc.epochOf(s.id) != 0 {
		b := s.record() // after the first of several loops has left, it stands for all
		s.mu.Lock()
		s.left = b
		s.mu.Unlock()
		k.note(s)
	}
	k.svc.sources.detach(s, v)
}

// end gives back the view of a target that is gone for good.
func (k *keeper) end(ctx context.Context, s *source, v *view) {
	if k.svc.sources.detach(s, v); k.svc.sources.has(s) {
		k.note(s)
		return
	}
	k.forget(s)
	if err := k.delete(ctx, sourceKey(s.id)); err != nil && ctx.Err() == nil {
		k.log.Debug("Cannot remove what is known of a source; it passes with time", "source", fmt.Sprintf("%016x", s.id), "err", err)
	}
}

func (k *keeper) forget(s *source) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.changed[s] {
		return
	}
	delete(k.changed, s)
	for i := range k.order {
		if k.order[i] == s {
			k.order = append(k.order[:i], k.order[i+1:]...)
			return
		}
	}
}

const sourceVersion = 1

// sourceRecord is what the bucket holds of a source, behind a version byte.
type sourceRecord struct {
	// Dicts are the names of its dictionaries, 16 bytes each, in the order of its series.
	Dicts []byte `msgpack:"dicts"`
	// Live has a bit for each series that the target exposed last, eight to a byte, the lowest first.
	Live []byte `msgpack:"live"`
	// Time is that of its newest scrape, in milliseconds. Earlier builds stored that of its newest sample, which a target may give.
	Time int64 `msgpack:"time"`
}

func sourceKey(id uint64) string { return fmt.Sprintf("%d.%016x", stream.ShardOf(id), id) }

// record returns what is to be stored of a source; nil where there is nothing yet.
func (s *source) record() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dicts) == 0 {
		return nil
	}
	s.storedAt = time.Now()
	if s.left != nil {
		return s.left
	}
	r := sourceRecord{Time: s.scraped}
	for i := range s.dicts {
		r.Dicts = append(r.Dicts, s.dicts[i].id[:]...)
	}
	r.Live = make([]byte, (s.sealed+7)/8)
	set := func(i uint32) {
		if i < dropped {
			if i = s.resolveSealed(i); int(i) < s.sealed {
				r.Live[i/8] |= 1 << (i % 8)
			}
		}
	}
	for v := range s.views {
		v.exposed.each(set)
		for _, i := range v.reports {
			set(i)
		}
	}
	b, err := msgpack.Marshal(&r)
	if err != nil {
		panic(err) // bytes and a number
	}
	return append([]byte{sourceVersion}, b...)
}

// maxRecord is the largest record that is read, in bytes.
const maxRecord = 1 << 20

func decodeRecord(b []byte) (r sourceRecord, err error) {
	if len(b) == 0 || len(b) > maxRecord {
		return r, fmt.Errorf("record of %d bytes", len(b))
	}
	if b[0] != sourceVersion {
		return r, fmt.Errorf("record of version %d, this build reads version %d", b[0], sourceVersion)
	}
	if len(b) < 2 || b[1]&0xf0 != 0x80 {
		return r, errors.New("record is not a map")
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields(true) // to pass over one, the decoder would take what memory its length claims
	err = dec.Decode(&r)
	if err == nil && len(r.Dicts)%16 != 0 {
		err = fmt.Errorf("names of dictionaries in %d bytes", len(r.Dicts))
	}
	return r, err
}

func (k *keeper) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	conn := k.svc.cfg.Conn
	kv, err := conn.JS.KeyValue(ctx, conn.Bucket(stream.Sources))
	if err != nil {
		return nil, fmt.Errorf("opening the bucket %s: %w", conn.Bucket(stream.Sources), err)
	}
	return kv, nil
}

// requestTime bounds each question to the bucket.
const requestTime = 2 * time.Second

func (k *keeper) store(ctx context.Context, s *source) error {
	b := s.record()
	if b == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	kv, err := k.bucket(ctx)
	if err != nil {
		return err
	}
	_, err = kv.Put(ctx, sourceKey(s.id), b)
	return err
}

func (k *keeper) delete(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	kv, err := k.bucket(ctx)
	if err != nil {
		return err
	}
	return kv.Purge(ctx, key)
}

// restore gives a source that is new in this process what its last owner has left. Where that cannot be had, the source begins anew: its series get new dictionaries, and those
// that have vanished meanwhile no staleness markers.
func (k *keeper) restore(ctx context.Context, s *source, v *view) {
	s.mu.Lock()
	fresh := !s.restored
	s.restored = true
	s.mu.Unlock()
	if !fresh || k.svc.cfg.Conn == nil {
		return
	}
	if err := k.tryRestore(ctx, s, v); err != nil && ctx.Err() == nil {
		k.log.Warn("Cannot read what the last owner knew of a source; it begins anew", "source", fmt.Sprintf("%016x", s.id), "err", err)
	}
}

func (k *keeper) tryRestore(ctx context.Context, s *source, v *view) error {
	ctx, cancel := context.WithTimeout(ctx, 2*requestTime)
	defer cancel()
	kv, err := k.bucket(ctx)
	if err != nil {
		return err
	}
	entry, err := kv.Get(ctx, sourceKey(s.id))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r, err := decodeRecord(entry.Value())
	if err != nil {
		return err
	}
	conn := k.svc.cfg.Conn
	var dicts []dict
	for b := r.Dicts; len(b) > 0; b = b[16:] {
		id := frame.DictID(b[:16])
		msg, err := conn.Last(ctx, stream.Dicts, conn.Dict(s.partition, id))
		if err != nil {
			return err
		}
		dicts = append(dicts, dict{id: id, msg: msg.Data})
	}
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.series) > 0 {
		return nil // a scrape was faster
	}
	for _, d := range dicts {
		if err := s.restore(d); err != nil {
			s.clear()
			return err
		}
	}
	s.scraped = lastScrape(r.Time, time.Now())
	for i := range min(s.sealed, 8*len(r.Live)) {
		if r.Live[i/8]&(1<<(i%8)) != 0 {
			s.series[i].last = s.scraped
			if !s.isReport(uint32(i)) {
				v.exposed.set(uint32(i))
			}
		}
	}
	return nil
}

// maxSkew is how far the clocks of two owners may be apart.
const maxSkew = 5 * time.Second

// lastScrape returns when a source was scraped last, in milliseconds, by its record. A time that is a little ahead may be right by the clock of the last owner, and a scrape before it the
// same beat again. One that is further ahead is no scrape's, and would keep all of the source's samples back until it has passed.
func lastScrape(recorded int64, now time.Time) int64 {
	if recorded > now.Add(maxSkew).UnixMilli() {
		return now.UnixMilli() - 1
	}
	return recorded
}

// restore adds the series of a dictionary.
func (s *source) restore(d dict) error {
	read, err := frame.ReadDictionary(d.msg, d.id)
	if err != nil {
		return err
	}
	s.series = slices.Grow(s.series, len(read.Series))
	for i := range read.Series {
		x := &read.Series[i]
		m := unique.Make(metric{x.Labels.Get(model.MetricNameLabel), x.Family, x.Metadata})
		s.enter(s.hasher.key(x.Labels), s.numberOf(m))
	}
	d.start, d.n = s.sealed, len(read.Series)
	s.dicts = append(s.dicts, d)
	s.sealed = len(s.series)
	return nil
}

// isReport reports whether a series is one that tells of the scrape itself.
func (s *source) isReport(i uint32) bool {
	m := s.metricOf(i)
	for k := range reportSamples {
		if reportSamples[k].name == m.name && m.family == m.name {
			return m.Help == reportSamples[k].help
		}
	}
	return false
}
