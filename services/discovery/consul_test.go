package discovery

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/millrace/millrace/pkg/await"
	"github.com/millrace/millrace/services/discovery/peertest"
)

const (
	consulToken = "t0ken"
	// consulEnv names a Consul program; with it the same test runs against a real agent as well.
	consulEnv = "MILLRACE_TEST_CONSUL"
)

// consulAgent speaks the part of Consul's HTTP API that discovery uses and the test needs, with blocking queries and an index per service.
type consulAgent struct {
	t *testing.T

	mu      sync.Mutex
	changed chan struct{} // replaced and closed at each change
	index   uint64
	// entries are by node and service ID. services has the index of each service's last change; extinct the one at which a service last ended.
	entries  map[string]*api.ServiceEntry
	services map[string]uint64
	extinct  uint64
	failing  bool
	blocked  int // queries that wait now
	failures int // queries refused while failing
}

func newConsulAgent(t *testing.T) (*consulAgent, string) {
	t.Helper()
	a := &consulAgent{
		t: t, changed: make(chan struct{}), index: 10, extinct: 10,
		entries: map[string]*api.ServiceEntry{}, services: map[string]uint64{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/agent/self", func(w http.ResponseWriter, _ *http.Request) {
		a.answer(w, map[string]any{"Config": map[string]any{"Datacenter": "dc1", "NodeName": "agent"}})
	})
	mux.HandleFunc("GET /v1/catalog/services", a.catalog)
	mux.HandleFunc("GET /v1/health/service/{name}", a.health)
	mux.HandleFunc("PUT /v1/catalog/register", a.register)
	mux.HandleFunc("PUT /v1/catalog/deregister", a.deregister)
	srv := httptest.NewServer(a.guard(mux))
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections) // first: blocking queries
	return a, strings.TrimPrefix(srv.URL, "http://")
}

// guard refuses requests without the token, and all while the agent is failing.
func (a *consulAgent) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Consul-Token") != consulToken {
			http.Error(w, "Permission denied: token with AccessorID '00000000' lacks permission", http.StatusForbidden)
			return
		}
		a.mu.Lock()
		failing := a.failing && r.Method == http.MethodGet
		if failing {
			a.failures++
		}
		a.mu.Unlock()
		if failing {
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *consulAgent) setFailing(failing bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failing, a.failures = failing, 0
	a.wake()
}

func (a *consulAgent) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// block waits, as a query with ?index= does, until what index returns exceeds it; then it sets the headers of the answer. The
// caller holds the lock, and again when block returns.
func (a *consulAgent) block(w http.ResponseWriter, r *http.Request, index func() uint64) {
	min, err := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	if err == nil && min > 0 {
		wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
		if err != nil {
			wait = 5 * time.Minute
		}
		timeout := time.NewTimer(wait)
		defer timeout.Stop()
		for expired := false; index() <= min && !expired && !a.failing; {
			changed := a.changed
			a.blocked++
			a.mu.Unlock()
			select {
			case <-changed:
			case <-timeout.C:
				expired = true
			case <-r.Context().Done():
				expired = true
			}
			a.mu.Lock()
			a.blocked--
		}
	}
	w.Header().Set("X-Consul-Index", strconv.FormatUint(index(), 10))
	w.Header().Set("X-Consul-Knownleader", "true")
	w.Header().Set("X-Consul-Lastcontact", "0")
}

func (a *consulAgent) catalog(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.block(w, r, func() uint64 { return a.index })
	services := map[string][]string{}
	for _, e := range a.entries {
		tags := services[e.Service.Service]
		for _, tag := range e.Service.Tags {
			if !slices.Contains(tags, tag) {
				tags = append(tags, tag)
			}
		}
		services[e.Service.Service] = tags
	}
	a.answer(w, services)
}

func (a *consulAgent) health(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := r.PathValue("name")
	a.block(w, r, func() uint64 {
		if index, ok := a.services[name]; ok {
			return index
		}
		return a.extinct
	})
	entries := []*api.ServiceEntry{}
	for _, e := range a.entries {
		hasAll := !slices.ContainsFunc(r.URL.Query()["tag"], func(tag string) bool { return !slices.Contains(e.Service.Tags, tag) })
		if e.Service.Service == name && hasAll {
			entries = append(entries, e)
		}
	}
	a.answer(w, entries)
}

func (a *consulAgent) register(w http.ResponseWriter, r *http.Request) {
	var reg api.CatalogRegistration
	if err := json.NewDecoder(r.Body).Decode(&reg); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index++
	a.services[reg.Service.Service] = a.index
	a.entries[reg.Node+"/"+reg.Service.ID] = &api.ServiceEntry{
		Node: &api.Node{Node: reg.Node, Address: reg.Address, Datacenter: "dc1", Meta: reg.NodeMeta}, Service: reg.Service,
		Checks: api.HealthChecks{},
	}
	a.wake()
	a.answer(w, true)
}

func (a *consulAgent) deregister(w http.ResponseWriter, r *http.Request) {
	var dereg api.CatalogDeregistration
	if err := json.NewDecoder(r.Body).Decode(&dereg); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := dereg.Node + "/" + dereg.ServiceID
	if e := a.entries[key]; e != nil {
		name := e.Service.Service
		delete(a.entries, key)
		a.index++
		a.services[name] = a.index
		last := true
		for _, other := range a.entries {
			last = last && other.Service.Service != name
		}
		if last {
			delete(a.services, name)
			a.extinct = a.index
		}
		a.wake()
	}
	a.answer(w, true)
}

func (a *consulAgent) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.t.Logf("answering a Consul request: %v", err) // the client has gone
	}
}

// consulCatalog registers services over the HTTP API.
type consulCatalog struct {
	t       *testing.T
	catalog *api.Catalog
}

func (c consulCatalog) put(service, node, address string, port int, tags ...string) {
	c.t.Helper()
	_, err := c.catalog.Register(&api.CatalogRegistration{
		Node: node, Address: address, NodeMeta: map[string]string{"rack": "r1"},
		Service: &api.AgentService{ID: service + "-1", Service: service, Port: port, Tags: tags},
	}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c consulCatalog) remove(service, node string) {
	c.t.Helper()
	if _, err := c.catalog.Deregister(&api.CatalogDeregistration{Node: node, ServiceID: service + "-1"}, nil); err != nil {
		c.t.Fatal(err)
	}
}

func consulJob(name, server string) string {
	return fmt.Sprintf(`
- job_name: %s
  consul_sd_configs: [{server: %q, token: %s, tags: [metrics], refresh_interval: 100ms}]
  relabel_configs:
  - {source_labels: [__meta_consul_service], target_label: service}
  - {source_labels: [__meta_consul_metadata_rack], target_label: rack}
`, name, server, consulToken)
}

// testConsul lets services come, move and go, and expects the targets to follow.
func testConsul(t *testing.T, f *bed, server string) {
	client, err := api.NewClient(&api.Config{Address: server, Token: consulToken})
	if err != nil {
		t.Fatal(err)
	}
	c := consulCatalog{t: t, catalog: client.Catalog()}
	c.put("web", "n1", "10.1.0.1", 80, "metrics")
	c.put("web", "n2", "10.1.0.2", 80, "metrics", "blue")
	c.put("silent", "n3", "10.1.0.3", 80)
	first := f.start(consulJob("c", server))
	f.wait(address, "c 10.1.0.1:80", "c 10.1.0.2:80")
	for _, got := range f.targets() {
		if got.Labels.Get("service") != "web" || got.Labels.Get("rack") != "r1" {
			t.Errorf("labels are %s", got.Labels)
		}
	}
	c.put("db", "n3", "10.1.0.3", 5432, "metrics") // comes
	f.wait(address, "c 10.1.0.1:80", "c 10.1.0.2:80", "c 10.1.0.3:5432")
	c.put("web", "n2", "10.1.0.2", 8080, "metrics") // moves
	f.wait(address, "c 10.1.0.1:80", "c 10.1.0.2:8080", "c 10.1.0.3:5432")
	c.remove("web", "n1") // goes
	f.wait(address, "c 10.1.0.2:8080", "c 10.1.0.3:5432")
	c.remove("db", "n3") // the last of its service goes
	f.wait(address, "c 10.1.0.2:8080")
	first.stop()
	c.put("db", "n4", "10.1.0.4", 5432, "metrics")
	f.start(consulJob("c", server))
	f.wait(address, "c 10.1.0.2:8080", "c 10.1.0.4:5432")
	if n := slices.Index(f.history(), "-10.1.0.2:8080"); n >= 0 {
		t.Errorf("the target that stayed was removed for a moment: %v", f.history())
	}
}

func TestConsulDiscovery(t *testing.T) {
	a, server := newConsulAgent(t)
	f := newBed(t)
	testConsul(t, f, server)
	await.True(t, "queries block while nothing changes", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.blocked >= 3
	})
	// An agent that fails takes nothing away.
	a.setFailing(true)
	await.True(t, "queries fail", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.failures > 1
	})
	f.wait(address, "c 10.1.0.2:8080", "c 10.1.0.4:5432")
}

func TestConsulDiscoveryWithARealAgent(t *testing.T) {
	program := peertest.Program(t, consulEnv)
	free := peertest.FreeAddresses(t, 3)
	port := func(i int) string { return mustParse(t, "//"+free[i]).Port() }
	hcl := fmt.Sprintf(`ports { http = %s, dns = -1, grpc = -1, grpc_tls = -1, server = %s, serf_lan = %s, serf_wan = -1 }`, port(0), port(1), port(2))
	agent := peertest.Start(t, program, "agent", "-dev", "-bind="+peertest.Loopback(), "-client="+peertest.Loopback(), "-hcl="+hcl)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	agent.Await("has a leader", func() bool {
		resp, err := http.Get("http://" + free[0] + "/v1/status/leader")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && len(b) > len(`""`)+1 && resp.StatusCode == http.StatusOK
	})
	testConsul(t, newBed(t), free[0])
}
