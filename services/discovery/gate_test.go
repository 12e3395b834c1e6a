package discovery

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/millrace/millrace/services/discovery/peertest"
)

// gate passes TCP connections on to a server while it is open. While it is shut they are refused.
type gate struct {
	t       *testing.T
	address string
	server  string

	mu       sync.Mutex
	listener net.Listener // nil while shut
	conns    map[net.Conn]bool
	running  sync.WaitGroup
}

func newGate(t *testing.T, server string) *gate {
	t.Helper()
	g := &gate{t: t, address: peertest.FreeAddresses(t, 1)[0], server: server, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		g.shut()
		g.running.Wait()
	})
	g.open()
	return g
}

func (g *gate) open() {
	g.t.Helper()
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.listener = l
	g.mu.Unlock()
	g.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // shut
			}
			g.running.Go(func() { g.pass(l, conn) })
		}
	})
}

func (g *gate) shut() {
	g.mu.Lock()
	if g.listener != nil {
		_ = g.listener.Close() // it is closed once
		g.listener = nil
	}
	g.mu.Unlock()
	g.drop()
}

// drop ends all connections.
func (g *gate) drop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for conn := range g.conns {
		_ = conn.Close() // its end is what is wanted
	}
}

// pass carries a connection that came by a listener, until one of its ends closes or the gate ends it.
func (g *gate) pass(by net.Listener, in net.Conn) {
	defer in.Close()
	out, err := net.DialTimeout("tcp", g.server, 10*time.Second)
	if err != nil {
		return // the client sees a connection that is closed
	}
	defer out.Close()
	g.mu.Lock()
	if g.listener != by {
		g.mu.Unlock()
		return // shut meanwhile
	}
	g.conns[in] = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.conns, in)
	}()
	var both sync.WaitGroup
	both.Go(func() { carry(out, in) })
	both.Go(func() { carry(in, out) })
	both.Wait()
}

func carry(to, from net.Conn) {
	defer to.Close() // which ends the other direction
	_, _ = io.Copy(to, from)
}
