package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace/millrace/pkg/stream"
)

// Config configures a [Fleet].
type Config struct {
	// Conn reaches the buckets, which exist.
	Conn *stream.Conn
	// Self describes this process. ConfigHash may change later, see [Fleet.SetConfigHash].
	Self Member
	// TTL is how long after its last sign of life a member counts as alive. It is that of the bucket `members`.
	TTL time.Duration
	// Logger and Registerer receive log lines and metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Fleet is the actor that keeps this process's membership and follows that of the others. Services claim shares with [Fleet.Claim].
type Fleet struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	self    Member
	members map[string]Member    // by ID; nil until they are known
	leases  map[string]Lease     // by key; nil until they are known
	changed chan struct{}        // closed and replaced when members or leases change
	claims  map[string]*Claim    // by service
	renewed time.Time            // when the entry was last known to be written
	mended  time.Time            // when that worked again after it had not for a while
	doubted map[string]time.Time // members whose entry has expired while nobody could write: until when they are kept
	pauses  int                  // how often the process was paused for longer than the TTL
	reason  string               // on what the fleet waits; "" while all is well
}

// New returns a fleet with no members. Run it as an actor.
func New(cfg Config) *Fleet {
	f := &Fleet{
		cfg: cfg, log: cfg.Logger, self: cfg.Self, changed: make(chan struct{}), claims: map[string]*Claim{}, doubted: map[string]time.Time{},
		reason: "the members and leases",
	}
	f.metrics = newMetrics(f, cfg.Registerer)
	return f
}

// Signs of life and questions for them.
const (
	// renewals is how often a member writes its entry within the TTL.
	renewals = 4
	// pingEvery is the time between two looks at the neighbours; a member that nobody finds listening pings times in a row is gone.
	pingEvery   = 250 * time.Millisecond
	pings       = 2
	asked       = 2 // neighbours
	requestTime = 2 * time.Second
	// answerTime is how long a NATS server may take to say that it is there.
	answerTime = 500 * time.Millisecond
)

// Serve is a member until ctx ends, and then takes itself out. The claims should have ended before.
func (f *Fleet) Serve(ctx context.Context) error {
	conn := f.cfg.Conn
	sub, err := conn.NC.Subscribe(conn.Ping(f.cfg.Self.ID), func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		return fmt.Errorf("listening for other members: %w", err)
	}
	defer sub.Unsubscribe()
	members, leases, err := f.buckets(ctx)
	if err != nil {
		return err
	}
	following, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing() // ends the subscriptions
	watching, err := f.watch(following, members, leases)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	f.renew(ctx, members)
	defer f.leave(members)

	var looking sync.WaitGroup
	defer looking.Wait()
	look, stopLooking := context.WithCancel(ctx)
	defer stopLooking()
	looking.Go(func() { f.lookAround(look, members) })
	tick := time.NewTicker(f.cfg.TTL / renewals)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-watching.members.Updates():
			if !ok {
				return ended(ctx, "members")
			}
			if f.memberChanged(e); e != nil && e.Key() == f.cfg.Self.ID && e.Operation() != jetstream.KeyValuePut {
				f.renew(ctx, members) // another has taken this one for dead
			}
		case e, ok := <-watching.leases.Updates():
			if !ok {
				return ended(ctx, "leases")
			}
			f.leaseChanged(e)
		case <-tick.C:
			if pause := time.Since(last); pause > f.cfg.TTL {
				f.paused(pause)
			}
			last = time.Now()
			f.renew(ctx, members)
			f.settleDoubts()
		}
	}
}

// ended is the error of a subscription that ends by itself.
func ended(ctx context.Context, bucket string) error {
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("following the %s: the subscription has ended", bucket)
}

func (f *Fleet) buckets(ctx context.Context) (members, leases jetstream.KeyValue, err error) {
	conn := f.cfg.Conn
	if members, err = conn.JS.KeyValue(ctx, conn.Bucket(stream.Members)); err != nil {
		return nil, nil, fmt.Errorf("opening the bucket %s: %w", conn.Bucket(stream.Members), err)
	}
	if leases, err = conn.JS.KeyValue(ctx, conn.Bucket(stream.Leases)); err != nil {
		return nil, nil, fmt.Errorf("opening the bucket %s: %w", conn.Bucket(stream.Leases), err)
	}
	return members, leases, nil
}

// watching is what follows the two buckets.
type watching struct{ members, leases jetstream.KeyWatcher }

func (f *Fleet) watch(ctx context.Context, members, leases jetstream.KeyValue) (w watching, err error) {
	f.mu.Lock()
	f.members, f.leases = nil, nil
	f.mu.Unlock()
	if w.members, err = members.WatchAll(ctx); err != nil {
		return w, fmt.Errorf("following the members: %w", err)
	}
	if w.leases, err = leases.WatchAll(ctx); err != nil {
		return w, fmt.Errorf("following the leases: %w", err)
	}
	// What is there before is read at once: a claim that knows only a part would act on it.
	known := map[string]Member{}
	for {
		e, err := first(ctx, w.members)
		if err != nil {
			return w, err
		}
		if e == nil {
			break
		}
		f.readMember(known, e)
	}
	held := map[string]Lease{}
	for {
		e, err := first(ctx, w.leases)
		if err != nil {
			return w, err
		}
		if e == nil {
			break
		}
		f.readLease(held, e)
	}
	f.mu.Lock()
	f.members, f.leases, f.reason = known, held, ""
	f.mu.Unlock()
	f.tell()
	return w, nil
}

// first returns one of the entries that were there before, and nil behind the last one.
func first(ctx context.Context, w jetstream.KeyWatcher) (jetstream.KeyValueEntry, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case e, ok := <-w.Updates():
		if !ok {
			return nil, errors.New("following a bucket: the subscription has ended")
		}
		return e, nil
	}
}

// tell wakes the claims.
func (f *Fleet) tell() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Fleet) readMember(into map[string]Member, e jetstream.KeyValueEntry) {
	if e.Operation() != jetstream.KeyValuePut {
		delete(into, e.Key())
		return
	}
	var m Member
	if err := decode(e.Value(), memberVersion, "member", &m); err != nil {
		f.log.Warn("Ignoring a member that cannot be read", "member", e.Key(), "err", err)
		return
	}
	m.revision, m.Seen = e.Revision(), e.Created()
	into[e.Key()] = m
}

func (f *Fleet) readLease(into map[string]Lease, e jetstream.KeyValueEntry) {
	if _, _, ok := splitKey(e.Key()); !ok {
		return // of an earlier version
	}
	if have, ok := into[e.Key()]; ok && have.Epoch >= e.Revision() {
		return // older than what this process has written itself
	}
	l := Lease{Epoch: e.Revision()}
	if e.Operation() == jetstream.KeyValuePut {
		if err := decode(e.Value(), leaseVersion, "lease", &l); err != nil {
			f.log.Warn("Ignoring a lease that cannot be read", "lease", e.Key(), "err", err)
		}
	}
	into[e.Key()] = l
}

func (f *Fleet) memberChanged(e jetstream.KeyValueEntry) {
	if e == nil {
		return
	}
	f.mu.Lock()
	before, was := f.members[e.Key()]
	if was && e.Operation() == jetstream.KeyValuePurge && f.disturbed() {
		f.doubted[e.Key()] = time.Now().Add(f.cfg.TTL)
		f.mu.Unlock()
		return
	}
	delete(f.doubted, e.Key())
	f.readMember(f.members, e)
	now, is := f.members[e.Key()]
	f.mu.Unlock()
	switch {
	case is && !was:
		f.log.Info("A member has come", "member", now.ID, "host", now.Host, "services", strings.Join(now.Services, ","))
	case was && !is:
		if e.Operation() == jetstream.KeyValuePurge {
			f.metrics.expired.Inc()
		}
		f.log.Info("A member has gone", "member", before.ID, "host", before.Host, "services", strings.Join(before.Services, ","))
	case is && now.ConfigHash == before.ConfigHash:
		return // a sign of life
	}
	if is {
		f.compareConfig(now)
	}
	f.tell()
}

// disturbed reports whether JetStream did not take this member's own signs of life lately, as while it chooses another leader. Then it did not take those of others either, and an entry that
// expires says nothing about its member. The fleet's lock is held.
func (f *Fleet) disturbed() bool {
	return time.Since(f.renewed) > f.cfg.TTL/2 || time.Since(f.mended) < f.cfg.TTL
}

// settleDoubts removes the members that have given no sign of life since JetStream takes them again.
func (f *Fleet) settleDoubts() {
	var gone []Member
	f.mu.Lock()
	for id, until := range f.doubted {
		if time.Now().After(until) && time.Since(f.renewed) < f.cfg.TTL/2 {
			gone = append(gone, f.members[id])
			delete(f.doubted, id)
			delete(f.members, id)
		}
	}
	f.mu.Unlock()
	for _, m := range gone {
		f.metrics.expired.Inc()
		f.log.Info("A member has gone", "member", m.ID, "host", m.Host, "services", strings.Join(m.Services, ","))
	}
	if len(gone) > 0 {
		f.tell()
	}
}

// compareConfig says so where a member runs another configuration than this one. For a moment after a change that is so.
func (f *Fleet) compareConfig(m Member) {
	if self := f.Self(); m.ID != self.ID && m.ConfigHash != self.ConfigHash {
		f.log.Warn("A member runs another configuration; give all the same, or each applies its own", "member", m.ID, "host", m.Host, "config", m.ConfigHash, "own_config", self.ConfigHash)
	}
}

func (f *Fleet) leaseChanged(e jetstream.KeyValueEntry) {
	if e == nil {
		return
	}
	f.mu.Lock()
	f.readLease(f.leases, e)
	f.mu.Unlock()
	f.tell()
}

// renew writes this member's entry. Where that fails it is tried at the next tick.
func (f *Fleet) renew(ctx context.Context, members jetstream.KeyValue) {
	ctx, cancel := context.WithTimeout(ctx, min(requestTime, f.cfg.TTL/renewals))
	defer cancel()
	f.mu.Lock()
	self := f.self
	f.mu.Unlock()
	start := time.Now()
	if _, err := members.Put(ctx, self.ID, encode(memberVersion, &self)); err != nil {
		f.mu.Lock()
		f.reason = "NATS to store its sign of life: " + err.Error()
		late := !f.renewed.IsZero() && time.Since(f.renewed) > f.cfg.TTL
		f.mu.Unlock()
		if late {
			f.metrics.late.Inc()
		}
		f.log.Debug("Cannot store the sign of life, trying again", "err", err)
		f.lookForAnotherServer(ctx)
		return
	}
	f.mu.Lock()
	if time.Since(f.renewed) > f.cfg.TTL/2 && !f.renewed.IsZero() {
		f.mended = time.Now()
	}
	f.renewed, f.reason = start, ""
	f.mu.Unlock()
}

// lookForAnotherServer leaves a NATS server that does not answer any more, as one does that was cut off from the network: by itself the client notices that only after half a minute.
func (f *Fleet) lookForAnotherServer(ctx context.Context) {
	nc := f.cfg.Conn.NC
	if !nc.IsConnected() || errors.Is(context.Cause(ctx), context.Canceled) || nc.FlushTimeout(answerTime) == nil {
		return
	}
	f.log.Warn("The NATS server does not answer; trying another", "url", nc.ConnectedUrlRedacted())
	if err := nc.ForceReconnect(); err != nil {
		f.log.Warn("Cannot look for another NATS server", "err", err)
	}
}

// leave takes this member out, so that others take over at once.
func (f *Fleet) leave(members jetstream.KeyValue) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	if err := members.Delete(ctx, f.cfg.Self.ID); err != nil {
		f.log.Warn("Cannot take this process out of the members; the others wait until its time has passed", "err", err)
	}
}

// paused notes that this process did not run for so long that others may have taken its leases: the claims give them up.
func (f *Fleet) paused(pause time.Duration) {
	f.log.Warn("The process did not run for longer than its leases hold; it gives them up", "pause", pause, "lease_ttl", f.cfg.TTL)
	f.mu.Lock()
	f.pauses++
	f.mu.Unlock()
	f.tell()
}

// lookAround asks the neighbours again and again whether they are there, and removes those of whom NATS says that they are not.
func (f *Fleet) lookAround(ctx context.Context, members jetstream.KeyValue) {
	missed := map[string]int{} // pings in a row that nobody has received, by member
	checked := map[string]time.Time{}
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		f.mu.Lock()
		list := neighbours(f.cfg.Self.ID, slices.Collect(maps.Keys(f.members)), asked)
		f.mu.Unlock()
		maps.DeleteFunc(missed, func(id string, _ int) bool { return !slices.Contains(list, id) })
		for _, id := range list {
			if !f.absent(ctx, id) {
				missed[id] = 0
			} else if missed[id]++; missed[id] == pings {
				missed[id] = 0
				f.remove(ctx, members, id)
			}
		}
		f.recheck(ctx, members, checked)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// absent reports whether NATS knows nobody who listens to pings of a member.
func (f *Fleet) absent(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, pingEvery)
	defer cancel()
	_, err := f.cfg.Conn.NC.RequestWithContext(ctx, f.cfg.Conn.Ping(id), nil)
	return errors.Is(err, nats.ErrNoResponders)
}

// remove takes out a member that is gone, unless it has given a sign of life since.
func (f *Fleet) remove(ctx context.Context, members jetstream.KeyValue, id string) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	f.mu.Lock()
	m := f.members[id]
	f.mu.Unlock()
	if err := members.Delete(ctx, id, jetstream.LastRevision(m.revision)); err != nil {
		return // it has, or another was faster
	}
	f.metrics.removed.Inc()
	f.log.Warn("A member is not there any more; its shares go to others", "member", id, "host", m.Host)
}

// SetConfigHash notes another configuration of this process.
func (f *Fleet) SetConfigHash(hash string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.self.ConfigHash = hash
}

// Self returns this process's own description.
func (f *Fleet) Self() Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.self
}

// Members returns the members that are alive, in the order of their IDs.
func (f *Fleet) Members() []Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.members), func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
}

// Owners returns the lease of each share of a service that has an owner.
func (f *Fleet) Owners(service string) map[int]Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	owners := map[int]Lease{}
	for key, l := range f.leases {
		name, share, ok := splitKey(key)
		if ok && name == service && l.Owner != "" {
			owners[share] = l
		}
	}
	return owners
}

// Waiting says on what the fleet waits; "" means that all is well.
func (f *Fleet) Waiting() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reason
}

// leaseKey is the key of a share's lease.
func leaseKey(service string, share int) string { return service + "." + strconv.Itoa(share) }

func splitKey(key string) (service string, share int, ok bool) {
	service, number, ok := strings.Cut(key, ".")
	if !ok {
		return "", 0, false
	}
	share, err := strconv.Atoi(number)
	return service, share, err == nil
}
