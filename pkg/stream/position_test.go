package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/millrace/millrace/pkg/await"
)

// lagging is a bucket whose next reads are answered by a replica that does not have the last write yet.
type lagging struct {
	jetstream.KeyValue
	reads int
	entry jetstream.KeyValueEntry // what the replica has; nil for nothing
}

func (l *lagging) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	if l.reads == 0 {
		return l.KeyValue.Get(ctx, key)
	}
	l.reads--
	if l.entry == nil {
		return nil, jetstream.ErrKeyNotFound
	}
	return l.entry, nil
}

func positionsOf(t *testing.T, c *Conn) jetstream.KeyValue {
	t.Helper()
	kv, err := c.JS.KeyValue(t.Context(), c.Bucket(positions))
	if err != nil {
		t.Fatal(err)
	}
	return kv
}

// TestTheFirstToMakeAPositionHasMadeIt has two readers make a position at once, where the second one's reads do not show yet what the first has written.
func TestTheFirstToMakeAPositionHasMadeIt(t *testing.T) {
	kv := positionsOf(t, newConn(t))
	if err := newPositionEntry(kv, "reader.0", 0).store(patient(t), Position{Seq: 1}, nil, nil); err != nil {
		t.Fatal(err)
	}
	second := newPositionEntry(&lagging{KeyValue: kv, reads: 4}, "reader.0", 0)
	if _, found, err := second.load(patient(t)); found || err != nil {
		t.Fatalf("found %t, error %v", found, err)
	}
	if err := second.store(patient(t), Position{Seq: 2}, nil, nil); !errors.Is(err, ErrMoved) {
		t.Errorf("the second reader is told %v, want that the position is another's", err)
	}
	first := newPositionEntry(kv, "reader.0", 0)
	if pos, _, err := first.load(patient(t)); err != nil || pos.Seq != 1 {
		t.Errorf("the position is %+v, error %v", pos, err)
	}
}

// TestAReaderFindsItsOwnWriteBehindAReplicaThatLags has a write stored whose answer was lost, while reads still show the entry before it.
func TestAReaderFindsItsOwnWriteBehindAReplicaThatLags(t *testing.T) {
	kv := positionsOf(t, newConn(t))
	replica := &lagging{KeyValue: kv}
	for key, own := range map[string]bool{"its_own": true, "another": false} {
		t.Run("over an entry of "+key, func(t *testing.T) {
			e := newPositionEntry(replica, key, 0)
			before := e
			if !own {
				before = newPositionEntry(kv, key, 0)
			}
			if err := before.store(patient(t), Position{Seq: 1}, nil, nil); err != nil {
				t.Fatal(err)
			}
			if _, _, err := e.load(patient(t)); err != nil {
				t.Fatal(err)
			}
			var err error
			if replica.entry, err = kv.Get(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			if _, err := kv.Put(t.Context(), key, encodePosition(storedPosition{Seq: 2, Owner: e.owner})); err != nil {
				t.Fatal(err)
			}
			replica.reads = 3
			if err := e.store(patient(t), Position{Seq: 3}, nil, nil); err != nil {
				t.Fatal(err)
			}
			if pos, _, err := e.load(patient(t)); err != nil || pos.Seq != 3 {
				t.Errorf("the position is %+v, error %v", pos, err)
			}
		})
	}
}

// TestReadersMakePositionsAtOnceInACluster starts two readers of the same mailboxes at two nodes, as two writers of a fleet that starts.
func TestReadersMakePositionsAtOnceInACluster(t *testing.T) {
	conns := cluster(t)
	layout := testLayout
	layout.Replicas = len(conns)
	await.True(t, "the streams", func() bool { return conns[0].Ensure(t.Context(), layout) == nil })
	const mailboxes = 100
	errs := make(chan error)
	for _, c := range conns {
		go func() {
			for n := range mailboxes {
				cfg := MailboxConfig{Stream: Frames, Filter: c.Frames(0), Key: fmt.Sprintf("reader.%d", n), FromEnd: true}
				if err := c.MakePosition(t.Context(), cfg); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range conns {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// cluster returns a connection to each of three NATS servers that make a cluster.
func cluster(t *testing.T) (conns []*Conn) {
	t.Helper()
	const nodes = 3
	dir := t.TempDir() // removed after the servers have ended
	var servers []*server.Server
	t.Cleanup(func() {
		for _, s := range servers {
			s.Shutdown()
			s.WaitForShutdown()
		}
	})
	var ports []int
	var routes []*url.URL
	for range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		l.Close()
	}
	for n, port := range ports {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprintf("n%d", n), Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: filepath.Join(dir, strconv.Itoa(n)), NoSigs: true, NoLog: true,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		s.Start()
	}
	for n, s := range servers {
		if !s.ReadyForConnections(time.Minute) {
			t.Fatalf("node %d does not take connections", n)
		}
	}
	for _, s := range servers {
		conns = append(conns, connect(t, Config{URL: s.ClientURL()}))
	}
	return conns
}
