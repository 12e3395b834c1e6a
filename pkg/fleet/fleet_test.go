package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/pkg/stream"
	"github.com/millrace/millrace/pkg/stream/streamtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*Server).delayedAPIResponder"))
}

const (
	shares  = 64
	service = "scraper"
)

// world is a NATS server with members on it.
type world struct {
	t      *testing.T
	server *stream.Server
	ttl    time.Duration

	mu     sync.Mutex
	owners map[int]string // who works on a share
	epochs map[int]uint64 // the greatest so far
	faults []string
}

func newWorld(t *testing.T, ttl time.Duration) *world {
	t.Helper()
	w := &world{t: t, server: streamtest.Server(t, t.TempDir()), ttl: ttl, owners: map[int]string{}, epochs: map[int]uint64{}}
	if err := w.connect().Ensure(t.Context(), stream.Layout{Partitions: 2, Replicas: 1, LeaseTTL: ttl}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) connect() *stream.Conn {
	w.t.Helper()
	return streamtest.Connect(w.t, w.server, slog.New(slog.DiscardHandler))
}

// check fails the test for what has gone wrong so far.
func (w *world) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		w.t.Error(f)
	}
	w.faults = nil
}

// share returns how many shares a member works on.
func (w *world) share(id string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, owner := range w.owners {
		if owner == id {
			n++
		}
	}
	return n
}

// copyOwners returns who works on what.
func (w *world) copyOwners() map[int]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := map[int]string{}
	for s, o := range w.owners {
		c[s] = o
	}
	return c
}

// member is a fleet with a claim, as a process has it.
type member struct {
	*Fleet
	w     *world
	id    string
	conn  *stream.Conn
	reg   *prometheus.Registry
	claim *Claim
	end   func()
	dead  bool
}

func (w *world) join(id string) *member {
	w.t.Helper()
	return w.joinOn(id, w.connect())
}

func (w *world) joinOn(id string, conn *stream.Conn) *member {
	w.t.Helper()
	m := &member{w: w, id: id, conn: conn, reg: prometheus.NewPedanticRegistry()}
	m.Fleet = New(Config{
		Conn: m.conn, Self: Member{ID: id, Host: "host", Services: []string{service}}, TTL: w.ttl, Logger: slog.New(slog.DiscardHandler), Registerer: m.reg,
	})
	m.claim = m.Claim(service, shares, m)
	claiming, stopClaim := context.WithCancel(context.Background())
	living, stopFleet := context.WithCancel(context.Background())
	claimEnded, fleetEnded := make(chan error, 1), make(chan error, 1)
	go func() { fleetEnded <- m.Fleet.Serve(living) }()
	go func() { claimEnded <- m.claim.Serve(claiming) }()
	m.end = sync.OnceFunc(func() {
		stopClaim()
		if err := <-claimEnded; err != nil {
			w.t.Errorf("the claim of %s: %v", id, err)
		}
		stopFleet()
		if err := <-fleetEnded; err != nil && m.conn.NC.IsConnected() {
			w.t.Errorf("the member %s: %v", id, err)
		}
	})
	w.t.Cleanup(m.end)
	return m
}

// Take notes the shares, and whether another works on them.
func (m *member) Take(taken map[int]uint64) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.dead {
		return
	}
	for s, epoch := range taken {
		if owner := m.w.owners[s]; owner != "" {
			m.w.faults = append(m.w.faults, fmt.Sprintf("%s takes share %d while %s works on it", m.id, s, owner))
		}
		if epoch <= m.w.epochs[s] {
			m.w.faults = append(m.w.faults, fmt.Sprintf("%s owns share %d with epoch %d after %d", m.id, s, epoch, m.w.epochs[s]))
		}
		m.w.owners[s], m.w.epochs[s] = m.id, epoch
	}
}

// Give forgets the shares.
func (m *member) Give(given []int, _ bool) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for _, s := range given {
		if m.w.owners[s] == m.id {
			m.w.owners[s] = ""
		}
	}
}

// kill ends a member as the end of its process does: its connection is gone, and nothing is given back.
func (m *member) kill() {
	m.conn.NC.Close()
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.dead = true
	for s, owner := range m.w.owners {
		if owner == m.id {
			m.w.owners[s] = ""
		}
	}
}

// settled waits until the members own all shares, each its part.
func (w *world) settled(members ...string) {
	w.t.Helper()
	await.True(w.t, fmt.Sprintf("shares of %v", members), func() bool {
		count := map[string]int{}
		for _, owner := range w.copyOwners() {
			count[owner]++
		}
		sum := 0
		for _, id := range members {
			n := count[id]
			if n < shares/len(members) || n > (shares+len(members)-1)/len(members) {
				return false
			}
			sum += n
		}
		return sum == shares
	})
	w.check()
}

func TestSharesAreSpreadOverMembers(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	a := w.join("a")
	w.settled("a")
	b := w.join("b")
	w.settled("a", "b")
	if n := w.share("a"); n == 0 || n == shares {
		t.Errorf("a has %d of %d shares", n, shares)
	}
	before := w.copyOwners()
	w.join("c")
	w.settled("a", "b", "c")
	for s, owner := range w.copyOwners() {
		if owner != before[s] && owner != "c" {
			t.Errorf("share %d moved from %s to %s when c came", s, before[s], owner)
		}
	}
	b.end()
	w.settled("a", "c")
	a.end()
	w.settled("c")
	if got := len(a.Members()); got == 0 {
		t.Error("a does not know the members")
	}
}

func TestAKilledMemberIsNoticedLongBeforeItsTimeIsOver(t *testing.T) {
	w := newWorld(t, time.Hour)
	w.join("a")
	b := w.join("b")
	w.settled("a", "b")
	b.kill()
	w.settled("a")
}

func TestASilentMemberIsGivenUpWhenItsTimeIsOver(t *testing.T) {
	w := newWorld(t, time.Second)
	a := w.join("a")
	w.settled("a")
	// A member that listens and says nothing more, as one that hangs.
	conn := w.connect()
	sub, err := conn.NC.SubscribeSync(conn.Ping("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	members, err := conn.JS.KeyValue(t.Context(), conn.Bucket(stream.Members))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := members.Put(t.Context(), "b", encode(memberVersion, &Member{ID: "b", Services: []string{service}})); err != nil {
		t.Fatal(err)
	}
	await.True(t, "the second member", func() bool { return len(a.Members()) == 2 })
	await.True(t, "its end", func() bool { return len(a.Members()) == 1 })
	w.settled("a")
	if n := testutil.ToFloat64(a.metrics.expired); n != 1 {
		t.Errorf("%v members are counted as expired", n)
	}
}

// TestAMemberThatHasGoneWithoutWordIsForgotten has a fleet know a member whose end its watcher was not told.
func TestAMemberThatHasGoneWithoutWordIsForgotten(t *testing.T) {
	w := newWorld(t, time.Second)
	a := w.join("a")
	w.settled("a")
	a.Fleet.mu.Lock()
	a.Fleet.members["b"] = Member{ID: "b", Services: []string{service}, Seen: time.Now(), revision: 1}
	a.Fleet.mu.Unlock()
	await.True(t, "its end", func() bool { return len(a.Members()) == 1 })
	w.join("c")
	w.settled("a", "c")
}

// entry is an update of a bucket.
type entry struct {
	jetstream.KeyValueEntry
	key string
	op  jetstream.KeyValueOp
}

func (e entry) Key() string                     { return e.key }
func (e entry) Operation() jetstream.KeyValueOp { return e.op }

// TestNobodyIsGivenUpBecauseJetStreamWasAway has entries expire while no member could write its own.
func TestNobodyIsGivenUpBecauseJetStreamWasAway(t *testing.T) {
	newFleet := func() *Fleet {
		f := New(Config{Self: Member{ID: "a"}, TTL: 5 * time.Second, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
		f.members = map[string]Member{"a": {ID: "a"}, "b": {ID: "b"}}
		f.renewed = time.Now()
		return f
	}
	expired, removed := entry{key: "b", op: jetstream.KeyValuePurge}, entry{key: "b", op: jetstream.KeyValueDelete}

	f := newFleet()
	if f.memberChanged(expired); len(f.Members()) != 1 {
		t.Error("an entry that expires in quiet times leaves its member")
	}
	for name, disturb := range map[string]func(*Fleet){
		"during the outage": func(f *Fleet) { f.renewed = time.Now().Add(-4 * time.Second) },
		"soon after":        func(f *Fleet) { f.mended = time.Now().Add(-time.Second) },
	} {
		f := newFleet()
		disturb(f)
		if f.memberChanged(expired); len(f.Members()) != 2 {
			t.Errorf("%s: an entry that expires takes its member", name)
		}
		f.renewed = time.Now()
		if f.settleDoubts(); len(f.Members()) != 2 {
			t.Errorf("%s: the member had no time to come back", name)
		}
		f.doubted["b"] = time.Now().Add(-time.Millisecond)
		if f.settleDoubts(); len(f.Members()) != 1 {
			t.Errorf("%s: a member that does not come back stays", name)
		}
	}
	f = newFleet()
	f.mended = time.Now()
	f.memberChanged(expired)
	if f.memberChanged(removed); len(f.Members()) != 1 || len(f.doubted) != 0 {
		t.Error("a member that others have found gone stays")
	}
}

func TestAMemberThatWasPausedGivesUpItsShares(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	a := w.join("a")
	w.settled("a")
	before := a.claim.Held()
	a.paused(time.Minute)
	await.True(t, "new epochs", func() bool {
		held := a.claim.Held()
		for s, epoch := range before {
			if held[s] <= epoch {
				return false
			}
		}
		return true
	})
	w.settled("a")
}

func TestAMemberTakenForDeadComesBack(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	a := w.join("a")
	w.join("b")
	w.settled("a", "b")
	members, err := a.conn.JS.KeyValue(t.Context(), a.conn.Bucket(stream.Members))
	if err != nil {
		t.Fatal(err)
	}
	if err := members.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.owners = map[int]string{} // taking over too early is harmless; it is not looked at here
	w.mu.Unlock()
	await.True(t, "b", func() bool {
		for _, m := range a.Members() {
			if m.ID == "b" && m.revision > 0 {
				return true
			}
		}
		return false
	})
}

func TestMembersThatComeAndGoLeaveNothingDouble(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	w.join("a")
	w.settled("a")
	for round := range 3 {
		var list []*member
		names := []string{"a"}
		for i := range 4 {
			id := fmt.Sprintf("m%d-%d", round, i)
			list = append(list, w.join(id))
			names = append(names, id)
		}
		w.settled(names...)
		for i, m := range list {
			if i%2 == 0 {
				m.end()
			} else {
				m.kill()
			}
		}
		w.settled("a")
	}
}

func TestMetricsAreClean(t *testing.T) {
	w := newWorld(t, 5*time.Second)
	a := w.join("a")
	w.settled("a")
	problems, err := testutil.GatherAndLint(a.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
	a.SetConfigHash("other")
	await.True(t, "another hash", func() bool { m := a.Members(); return len(m) == 1 && m[0].ConfigHash == "other" })
}

// TestSharesMoveNoMoreThanTheyMust lets members come and go in a simulation.
func TestSharesMoveNoMoreThanTheyMust(t *testing.T) {
	const shares = 256
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		owners := make([]string, shares)
		members := []string{"m0"}
		owners = spread(service, owners, members)
		for step := range 20 {
			gone := ""
			if len(members) > 1 && rnd.IntN(3) == 0 {
				i := rnd.IntN(len(members))
				gone = members[i]
				members = slices.Delete(slices.Clone(members), i, i+1)
			} else {
				members = append(slices.Clone(members), fmt.Sprintf("m%d-%x", step, rnd.Uint32()))
			}
			next := spread(service, owners, members)
			count := map[string]int{}
			moved := 0
			for s, owner := range next {
				count[owner]++
				if owner != owners[s] {
					moved++
					if gone != "" && owners[s] != gone && shares%len(members) == 0 && shares%(len(members)+1) == 0 {
						t.Errorf("share %d moved from %s to %s when %s went", s, owners[s], owner, gone)
					}
				}
			}
			for _, m := range members {
				if c := count[m]; c < shares/len(members) || c > shares/len(members)+1 {
					t.Errorf("%s has %d of %d shares, %d members", m, c, shares, len(members))
				}
			}
			if gone == "" && moved > shares/len(members)+1 {
				t.Errorf("%d shares moved to the one that came, its part is %d", moved, shares/len(members))
			}
			if again := spread(service, next, members); !slices.Equal(again, next) {
				t.Error("what is spread is spread differently again")
			}
			owners = next
		}
	}
}

func TestNeighboursGoRound(t *testing.T) {
	members := []string{"c", "a", "d", "b"}
	for id, want := range map[string][]string{"a": {"b", "c"}, "c": {"d", "a"}, "d": {"a", "b"}, "bb": {"c", "d"}} {
		if got := neighbours(id, members, 2); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("neighbours of %s are %v, want %v", id, got, want)
		}
	}
	if got := neighbours("a", []string{"a"}, 2); len(got) != 0 {
		t.Errorf("a lone member has the neighbours %v", got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(memberVersion, &Member{ID: "a", Services: []string{service}}))
	f.Add(encode(leaseVersion, &Lease{Owner: "a"}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var m Member
		_ = decode(b, memberVersion, "member", &m)
		var l Lease
		_ = decode(b, leaseVersion, "lease", &l)
	})
}
