package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/millrace/millrace/pkg/actor"
	"github.com/millrace/millrace/pkg/stream"
)

// Holder does the work of shares. Its methods are called one at a time.
type Holder interface {
	// Take is told of shares that this process owns from now on, with their epochs.
	Take(shares map[int]uint64)
	// Give ends the work on shares, and returns when nothing of it is under way any more; then another process may begin. Where lost is true, another may
	// have begun already, and nothing need be finished.
	Give(shares []int, lost bool)
}

// Claim is the actor that owns the shares of one service in this process. Make it with [Fleet.Claim].
type Claim struct {
	fleet   *Fleet
	service string
	shares  int
	holder  Holder

	mu   sync.Mutex
	held map[int]uint64 // epochs by share

	pauses int // of the fleet, that this claim has heeded
}

// Claim returns an actor that owns this process's part of a service's shares, which are numbered from 0.
func (f *Fleet) Claim(service string, shares int, h Holder) *Claim {
	c := &Claim{fleet: f, service: service, shares: shares, holder: h, held: map[int]uint64{}}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims[service] = c
	for _, counter := range []*prometheus.CounterVec{f.metrics.taken, f.metrics.given, f.metrics.lost} {
		counter.WithLabelValues(service) // one that begins at 0 lets queries see the first
	}
	return c
}

// Hold owns this process's part of a service's shares until ctx ends, and then gives it back; the claim is an actor of a part of system. work, which serves the holder, begins before and ends after that.
func (f *Fleet) Hold(ctx context.Context, system *actor.System, service string, shares int, h Holder, work func(context.Context) error) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	worked := make(chan error, 1)
	go func() { worked <- work(working) }()
	claims := system.Detached("claims")
	claims.Spawn("claim "+service, f.Claim(service, shares, h))
	err := claims.Serve(ctx)
	stop()
	return errors.Join(err, <-worked)
}

// Held returns the epochs of the shares that are owned now.
func (c *Claim) Held() map[int]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := make(map[int]uint64, len(c.held))
	for share, epoch := range c.held {
		held[share] = epoch
	}
	return held
}

const (
	// settle is how long a claim waits for more changes before it acts.
	settle = 20 * time.Millisecond
	// retry is how long it waits after a failure.
	retry = 500 * time.Millisecond
	// parallel is how many leases are written at a time.
	parallel = 16
)

// Serve takes and gives shares until ctx ends, and then gives all back.
func (c *Claim) Serve(ctx context.Context) error {
	conn := c.fleet.cfg.Conn
	leases, err := conn.JS.KeyValue(ctx, conn.Bucket(stream.Leases))
	if err != nil {
		return fmt.Errorf("opening the bucket %s: %w", conn.Bucket(stream.Leases), err)
	}
	defer c.giveAll(leases)
	for {
		changed, again := c.act(ctx, leases)
		var timer <-chan time.Time
		if again {
			timer = time.After(retry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer:
			continue
		case <-changed:
		}
		select { // more will follow
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
	}
}

// act brings the shares that are held to what the members and leases say now. It returns the channel that tells of the next change; again
// means that something has failed.
func (c *Claim) act(ctx context.Context, leases jetstream.KeyValue) (changed <-chan struct{}, again bool) {
	f := c.fleet
	f.mu.Lock()
	changed = f.changed
	paused := f.pauses != c.pauses
	c.pauses = f.pauses
	var lost, give []int
	take, left := map[int]Lease{}, map[int]uint64{}
	if f.members != nil && f.leases != nil {
		leases := make([]Lease, c.shares)
		owners := make([]string, c.shares)
		for share := range owners {
			leases[share] = f.leases[leaseKey(c.service, share)]
			owners[share] = leases[share].Owner
		}
		for share, to := range spread(c.service, owners, c.members()) {
			lease := leases[share]
			epoch, mine := c.held[share]
			wanted := to == f.cfg.Self.ID
			_, alive := f.members[lease.Owner]
			switch {
			case mine && (paused || lease.Owner != f.cfg.Self.ID || lease.Epoch != epoch):
				lost = append(lost, share)
			case mine && !wanted:
				give = append(give, share)
			case !mine && wanted && (!alive || lease.Owner == f.cfg.Self.ID):
				take[share] = lease
			case !mine && lease.Owner == f.cfg.Self.ID: // it could not be freed, or nobody said that it was taken
				left[share] = lease.Epoch
			}
		}
	}
	f.mu.Unlock()
	if len(lost) > 0 {
		f.metrics.lost.WithLabelValues(c.service).Add(float64(len(lost)))
		f.log.Warn("Shares are owned by another now", "service", c.service, "shares", len(lost))
		c.holder.Give(lost, true)
		c.drop(lost)
		again = true // whether they are to be taken again is seen then
	}
	if len(give) > 0 {
		again = c.give(ctx, leases, give) || again
	}
	if len(left) > 0 {
		again = c.release(ctx, leases, left) || again
	}
	if len(take) > 0 {
		again = c.take(ctx, leases, take) || again
	}
	return changed, again
}

// members returns the IDs of those that run the service, this one among them. The fleet's lock is held.
func (c *Claim) members() []string {
	ids := []string{c.fleet.cfg.Self.ID}
	for id, m := range c.fleet.members {
		if id != c.fleet.cfg.Self.ID && slices.Contains(m.Services, c.service) {
			ids = append(ids, id)
		}
	}
	return ids
}

// holds reports whether this process works on a share.
func (c *Claim) holds(share int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.held[share]
	return ok
}

func (c *Claim) drop(shares []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range shares {
		delete(c.held, s)
	}
}

// give ends the work on shares and frees their leases.
func (c *Claim) give(ctx context.Context, leases jetstream.KeyValue, shares []int) (failed bool) {
	start := time.Now()
	held := c.Held()
	c.holder.Give(shares, false)
	c.drop(shares)
	maps.DeleteFunc(held, func(share int, _ uint64) bool { return !slices.Contains(shares, share) })
	failed = c.release(ctx, leases, held)
	c.fleet.metrics.given.WithLabelValues(c.service).Add(float64(len(shares)))
	c.fleet.log.Info("Shares have been handed on", "service", c.service, "shares", len(shares), "took", time.Since(start).Round(time.Millisecond))
	return failed
}

// release frees leases of shares on which this process does not work, given their epochs. Until that has worked nobody else can take them: act comes back to those that are left.
func (c *Claim) release(ctx context.Context, leases jetstream.KeyValue, epochs map[int]uint64) (failed bool) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for share, epoch := range epochs {
		g.Go(func() error { return c.free(ctx, leases, share, epoch) })
	}
	if err := g.Wait(); err != nil {
		c.fleet.log.Warn("Cannot free leases; the others wait until that works or this process is gone", "service", c.service, "err", err)
		return true
	}
	return false
}

func (c *Claim) free(ctx context.Context, leases jetstream.KeyValue, share int, epoch uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	key := leaseKey(c.service, share)
	err := leases.Delete(ctx, key, jetstream.LastRevision(epoch))
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return nil // whose it is comes by the watch
	}
	if err != nil {
		return fmt.Errorf("freeing the lease of share %d: %w", share, err)
	}
	f := c.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.leases[key].Epoch == epoch {
		f.leases[key] = Lease{Epoch: epoch} // or act would free it again before the watch tells
	}
	return nil
}

// take takes leases that nobody alive holds, and hands those to the holder that nobody else was faster to take.
func (c *Claim) take(ctx context.Context, leases jetstream.KeyValue, shares map[int]Lease) (failed bool) {
	var mu sync.Mutex
	taken := map[int]uint64{}
	var g errgroup.Group
	g.SetLimit(parallel)
	value := encode(leaseVersion, &Lease{Owner: c.fleet.cfg.Self.ID})
	for share, before := range shares {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, requestTime)
			defer cancel()
			key := leaseKey(c.service, share)
			epoch, err := leases.Update(ctx, key, value, before.Epoch)
			if errors.Is(err, jetstream.ErrKeyRevisionMismatch) || errors.Is(err, jetstream.ErrKeyExists) {
				return nil // whose it is comes by the watch
			}
			if err != nil {
				return fmt.Errorf("taking the lease of share %d: %w", share, err)
			}
			mu.Lock()
			defer mu.Unlock()
			taken[share] = epoch
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		c.fleet.log.Warn("Cannot take leases, trying again", "service", c.service, "err", err)
		failed = true
	}
	if len(taken) == 0 {
		return failed
	}
	f := c.fleet
	f.mu.Lock()
	for share, epoch := range taken {
		key := leaseKey(c.service, share)
		if f.leases != nil && f.leases[key].Epoch < epoch {
			f.leases[key] = Lease{Owner: f.cfg.Self.ID, Epoch: epoch}
		}
	}
	f.mu.Unlock()
	c.mu.Lock()
	for share, epoch := range taken {
		c.held[share] = epoch
	}
	c.mu.Unlock()
	f.metrics.taken.WithLabelValues(c.service).Add(float64(len(taken)))
	f.log.Info("Shares have been taken", "service", c.service, "shares", len(taken))
	c.holder.Take(taken)
	return failed
}

// giveAll ends the work on all shares when the claim ends.
func (c *Claim) giveAll(leases jetstream.KeyValue) {
	var shares []int
	for share := range c.Held() {
		shares = append(shares, share)
	}
	if len(shares) == 0 {
		return
	}
	slices.Sort(shares)
	ctx, cancel := context.WithTimeout(context.Background(), 2*requestTime)
	defer cancel()
	c.give(ctx, leases, shares)
}
