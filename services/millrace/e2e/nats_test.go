package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/pkg/stream"
)

const natsPackage = "github.com/nats-io/nats-server/v2"

var natsBinary = sync.OnceValues(func() (string, error) { return goBuild(natsPackage, "nats-server", false) })

// natsNode is a NATS server in a process of its own.
type natsNode struct {
	t       testing.TB
	name    string
	args    []string
	log     string
	monitor string
	cmd     *exec.Cmd
}

// natsCluster is some NATS servers with JetStream that sync every message.
type natsCluster struct {
	t     testing.TB
	nodes []*natsNode
	// URL lists all nodes.
	URL string
}

// startNATS starts a cluster of n servers, which end with the test.
func startNATS(t testing.TB, n int) *natsCluster {
	t.Helper()
	binary := build(t, natsBinary)
	c := &natsCluster{t: t}
	var urls, routes []string
	var clients, clusters []int
	for range n {
		clients, clusters = append(clients, freePort(t)), append(clusters, freePort(t))
	}
	for i := range n {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", clients[i]))
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", clusters[i]))
	}
	c.URL = strings.Join(urls, ",")
	for i := range n {
		dir := t.TempDir()
		monitor := freePort(t)
		config := fmt.Sprintf("server_name: n%d\nlisten: 127.0.0.1:%d\nhttp: 127.0.0.1:%d\njetstream: {store_dir: %q, sync_interval: always}\n", i, clients[i], monitor, dir)
		if n > 1 {
			config += fmt.Sprintf("cluster: {name: test, listen: 127.0.0.1:%d, routes: [%s]}\n", clusters[i], strings.Join(routes, ", "))
		}
		file := filepath.Join(dir, "nats.conf")
		writeFile(t, file, config)
		node := &natsNode{t: t, name: fmt.Sprintf("n%d", i), args: []string{binary, "-c", file}, log: filepath.Join(dir, "nats.log"), monitor: fmt.Sprintf("http://127.0.0.1:%d", monitor)}
		node.start()
		t.Cleanup(node.kill)
		c.nodes = append(c.nodes, node)
	}
	c.ready()
	return c
}

// ready waits until JetStream works on all nodes.
func (c *natsCluster) ready() {
	c.t.Helper()
	for i, node := range c.nodes {
		eventually(c.t, 60*time.Second, fmt.Sprintf("NATS node %d", i), func() error {
			resp, err := http.Get(node.monitor + "/healthz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", resp.Status, body)
			}
			return nil
		})
	}
}

// leader returns the node that leads the stream FRAMES.
func (c *natsCluster) leader() (node *natsNode) {
	t := c.t.(*testing.T)
	t.Helper()
	eventually(t, 60*time.Second, "a leader of FRAMES", func() error {
		leader := ""
		for _, s := range statusOf(t, "--nats.url="+c.URL).Streams {
			if s.Name == stream.Frames {
				leader = s.Leader
			}
		}
		for _, n := range c.nodes {
			if n.name == leader {
				node = n
				return nil
			}
		}
		return fmt.Errorf("it is %q", leader)
	})
	return node
}

func (n *natsNode) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(n.args[0], n.args[1:]...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
}

// kill ends the server with -9.
func (n *natsNode) kill() {
	if n.cmd.Process != nil {
		_ = n.cmd.Process.Signal(syscall.SIGKILL)
		_ = n.cmd.Wait()
	}
}
