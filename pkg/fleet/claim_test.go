package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
)

// faults are what goes wrong in the bucket of leases as one member sees it, as while JetStream chooses another leader.
type faults struct {
	refused atomic.Bool // no lease is freed
	unacked atomic.Bool // leases are taken, but no acknowledgement comes

	seen atomic.Int64 // how often something went wrong
}

var errFault = errors.New("JetStream is away")

// faultyJetStream opens buckets with faults.
type faultyJetStream struct {
	jetstream.JetStream
	*faults
}

func (j faultyJetStream) KeyValue(ctx context.Context, bucket string) (jetstream.KeyValue, error) {
	kv, err := j.JetStream.KeyValue(ctx, bucket)
	if !strings.HasSuffix(bucket, stream.Leases) {
		return kv, err
	}
	return faultyBucket{kv, j.faults}, err
}

type faultyBucket struct {
	jetstream.KeyValue
	*faults
}

func (b faultyBucket) Delete(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	if b.refused.Load() {
		b.seen.Add(1)
		return errFault
	}
	return b.KeyValue.Delete(ctx, key, opts...)
}

func (b faultyBucket) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	epoch, err := b.KeyValue.Update(ctx, key, value, revision)
	if b.unacked.Load() && err == nil {
		b.seen.Add(1)
		return 0, errFault
	}
	return epoch, err
}

// TestALeaseThatItsOwnerDoesNotHoldIsFreed has a member own leases of shares that it neither works on nor is to have.
func TestALeaseThatItsOwnerDoesNotHoldIsFreed(t *testing.T) {
	join := func(w *world, id string, f *faults) *member {
		conn := w.connect()
		conn.JS = faultyJetStream{conn.JS, f}
		return w.joinOn(id, conn)
	}
	told := func(t *testing.T, m *member, free int) {
		t.Helper()
		await.True(t, fmt.Sprintf("%d free shares", free), func() bool { return m.free()[service] == free })
	}
	t.Run("it could not be freed", func(t *testing.T) {
		w, f := newWorld(t, 5*time.Second), &faults{}
		a := join(w, "a", f)
		w.settled("a")
		f.refused.Store(true)
		w.join("b")
		await.True(t, "shares that are given in vain", func() bool { return len(a.claim.Held()) == shares/2 && f.seen.Load() >= shares/2 })
		told(t, a, shares/2)
		f.refused.Store(false)
		w.settled("a", "b")
		told(t, a, 0)
	})
	t.Run("nobody said that it was taken", func(t *testing.T) {
		w, f := newWorld(t, 5*time.Second), &faults{}
		f.unacked.Store(true)
		a := join(w, "a", f)
		await.True(t, "leases that are taken in vain", func() bool { return len(a.Owners(service)) == shares })
		told(t, a, shares)
		w.join("b")
		await.True(t, "the second member", func() bool { return len(a.Members()) == 2 })
		before := f.seen.Load()
		await.True(t, "what was under way when it came", func() bool { return f.seen.Load() > before+shares })
		f.unacked.Store(false)
		w.settled("a", "b")
		told(t, a, 0)
	})
}
