package discovery

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/millrace/millrace/pkg/await"
)

// resolverEnv tells a test that runs again in its own mount namespace at which address its DNS server is to listen.
const resolverEnv = "MILLRACE_TEST_RESOLVER"

// TestDNSDiscovery runs itself again in a mount namespace in which /etc/resolv.conf names the test's own server: Prometheus reads no other file.
// That takes root on Linux, which CI has.
func TestDNSDiscovery(t *testing.T) {
	if addr := os.Getenv(resolverEnv); addr != "" {
		testDNSDiscovery(t, addr)
		return
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// Port 53 of an address of loopback that nobody else uses, as resolv.conf cannot name a port.
	const addr = "127.53.53.53"
	if err := os.WriteFile(conf, []byte("nameserver "+addr+"\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := canRedirectDNS(conf, addr); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("DNS discovery cannot be tested here: %v", err)
		}
		t.Skipf("DNS DISCOVERY IS NOT TESTED HERE: %v; run as root on Linux", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := inNamespace(conf, self, "-test.run=^TestDNSDiscovery$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), resolverEnv+"="+addr)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestDNSDiscovery") {
		t.Fatalf("in the mount namespace: %v\n%s", err, out)
	}
}

// inNamespace returns a command that runs with another resolv.conf.
func inNamespace(conf, program string, args ...string) *exec.Cmd {
	script := `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`
	return exec.Command("unshare", append([]string{"-m", "--propagation", "private", "sh", "-c", script, "sh", conf, program}, args...)...)
}

func canRedirectDNS(conf, addr string) error {
	l, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
	if err != nil {
		return err
	}
	l.Close()
	if out, err := inNamespace(conf, "true").CombinedOutput(); err != nil {
		return fmt.Errorf("unshare: %w: %s", err, out)
	}
	return nil
}

// zone is a DNS server.
type zone struct {
	mu      sync.Mutex
	records map[string][]string // by "name type", as in a zone file
	broken  map[string]bool     // names that are answered with SERVFAIL
	queries int
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.queries++
	name, kind := q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype]
	m := new(dns.Msg).SetReply(q)
	list, ok := z.records[name+" "+kind]
	switch {
	case z.broken[name]:
		m.Rcode = dns.RcodeServerFailure
	case !ok:
		m.Rcode = dns.RcodeNameError
	}
	for _, text := range list {
		rr, err := dns.NewRR(name + " 1 IN " + kind + " " + text)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	_ = w.WriteMsg(m) // the client asks again
}

func (z *zone) set(key string, records ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[key] = records
}

func (z *zone) setBroken(name string, broken bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.broken[name], z.queries = broken, 0
}

func (z *zone) asked() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.queries
}

func serveDNS(t *testing.T, addr string) *zone {
	t.Helper()
	z := &zone{records: map[string][]string{}, broken: map[string]bool{}}
	conn, err := net.ListenPacket("udp", net.JoinHostPort(addr, "53"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: conn, Handler: z}
	done := make(chan error, 1)
	started := make(chan struct{})
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { done <- srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := srv.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return z
}

func testDNSDiscovery(t *testing.T, addr string) {
	checkLeaks(t)
	f := newBed(t)
	z := serveDNS(t, addr)
	z.set("_web._tcp.example.test. SRV", "0 0 8080 h1.example.test.", "0 0 8081 h2.example.test.")
	z.set("db.example.test. A", "10.0.0.1", "10.0.0.2")
	const config = `
- job_name: srv
  dns_sd_configs: [{names: [_web._tcp.example.test], refresh_interval: 100ms}]
- job_name: a
  dns_sd_configs: [{names: [db.example.test], type: A, port: 9100, refresh_interval: 100ms}]
  relabel_configs: [{source_labels: [__meta_dns_name], target_label: name}]
`
	first := f.start(config)
	f.wait(address, "srv h1.example.test:8080", "srv h2.example.test:8081", "a 10.0.0.1:9100", "a 10.0.0.2:9100")
	for _, got := range f.targets() {
		if got.Job == "a" && got.Labels.Get("name") != "db.example.test" {
			t.Errorf("labels are %s", got.Labels)
		}
	}
	z.set("_web._tcp.example.test. SRV", "0 0 8081 h2.example.test.", "0 0 8082 h3.example.test.")
	z.set("db.example.test. A", "10.0.0.2")
	f.wait(address, "srv h2.example.test:8081", "srv h3.example.test:8082", "a 10.0.0.2:9100")

	// A server that fails takes nothing away, nor does a restart meanwhile.
	z.setBroken("db.example.test.", true)
	await.True(t, "queries", func() bool { return z.asked() > 4 })
	first.stop()
	second := f.start(config)
	await.True(t, "the jobs that work have a result", func() bool {
		st := second.Status()
		return len(st.Jobs) == 2 && st.Jobs[1].Waiting == "" && st.Jobs[1].Held == 0
	})
	f.wait(address, "srv h2.example.test:8081", "srv h3.example.test:8082", "a 10.0.0.2:9100")
	if st := second.Status().Jobs[0]; st.Held != 1 || st.Waiting == "" {
		t.Errorf("the job whose name cannot be resolved stands at %+v, want one target held", st)
	}
	z.setBroken("db.example.test.", false)
	z.set("db.example.test. A", "10.0.0.3")
	f.wait(address, "srv h2.example.test:8081", "srv h3.example.test:8082", "a 10.0.0.3:9100")
}
