package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// peerProgram returns the program that an environment variable names. Without it the test is skipped; CI builds the programs first, so there it fails.
func peerProgram(t testing.TB, env string) string {
	t.Helper()
	program := os.Getenv(env)
	if program == "" {
		require(t, errors.New(env+" is not set; .ci/peers builds what it is to name"), "NOT RUN AGAINST THE REAL ONE HERE")
	}
	return program
}

// startPeer runs a server of others until the test ends.
func startPeer(t testing.TB, program string, args ...string) *proc {
	t.Helper()
	p := &proc{t: t, name: filepath.Base(program), Dir: t.TempDir(), cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.start()
	return p
}

// await waits until the server does as check says, and fails the test where it ends before.
func (p *proc) await(what string, check func() error) {
	p.t.Helper()
	eventually(p.t, 2*startTimeout, p.name+": "+what, func() error {
		select {
		case <-p.done:
			p.t.Fatalf("%s ended before: %v", p.name, p.err)
		default:
		}
		return check()
	})
}

// peerAddresses returns n addresses with free ports on a loopback address of this process alone, so that nobody's connections take them meanwhile.
func peerAddresses(t testing.TB, n int) []string {
	t.Helper()
	pid := os.Getpid()
	var free []string
	for range n {
		l, err := net.Listen("tcp", fmt.Sprintf("127.78.%d.%d:0", pid>>8&0xff, pid&0xff))
		require(t, err, "a loopback address of one's own")
		defer l.Close() // after all are found, so that they differ
		free = append(free, l.Addr().String())
	}
	return free
}

// hostPort takes an address apart.
func hostPort(t testing.TB, address string) (host string, port int) {
	t.Helper()
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	if port, err = strconv.Atoi(text); err != nil {
		t.Fatal(err)
	}
	return host, port
}

// answers is nil where a URL is answered 200.
func answers(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// TestMigrationFromAlloysConsul has a Consul agent with two services on two nodes, of which one has the tag.
func TestMigrationFromAlloysConsul(t *testing.T) {
	program := peerProgram(t, "MILLRACE_TEST_CONSUL")
	free := peerAddresses(t, 4)
	var ports [4]int
	host := ""
	for i := range free {
		host, ports[i] = hostPort(t, free[i])
	}
	agent := startPeer(t, program, "agent", "-dev", "-bind="+host, "-client="+host, "-hcl="+fmt.Sprintf(
		"ports { http = %d, dns = -1, grpc = -1, grpc_tls = -1, server = %d, serf_lan = %d, serf_wan = -1 }", ports[0], ports[1], ports[2]))
	client, err := consulapi.NewClient(&consulapi.Config{Address: free[0]})
	if err != nil {
		t.Fatal(err)
	}
	tagged, plain := node(t, textType), node(t, textType)
	agent.await("takes services", func() error {
		for i, s := range []struct {
			address string
			tags    []string
		}{{tagged, []string{"metrics"}}, {plain, nil}} {
			address, port := hostPort(t, s.address)
			if _, err := client.Catalog().Register(&consulapi.CatalogRegistration{
				Node: fmt.Sprintf("node-%d", i), Address: address, Service: &consulapi.AgentService{ID: "web", Service: "web", Port: port, Tags: s.tags},
			}, nil); err != nil {
				return err
			}
		}
		return nil
	})
	migration{
		config: example(t, "alloy/consul.yml"), endpoint: prometheusEndpoint, places: []string{"consul.example:8500", free[0]},
		want: []string{
			fmt.Sprintf(`{__name__="up", instance=%q, job="apps", node="node-0", service="web"}`, tagged),
			fmt.Sprintf(`{__name__="demo_requests_total", instance=%q, job="apps", node="node-0", path="/", service="web"}`, tagged),
		},
		never: []string{"node-1"},
	}.run(t)
}

// TestMigrationFromAlloysKubernetes has an API server with two running pods, of which one has the annotation.
func TestMigrationFromAlloysKubernetes(t *testing.T) {
	etcd, server := peerProgram(t, "MILLRACE_TEST_ETCD"), peerProgram(t, "MILLRACE_TEST_KUBE_APISERVER")
	access, pods := kubeCluster(t, etcd, server)
	annotated, plain := node(t, textType), node(t, textType)
	for name, address := range map[string]string{"annotated": annotated, "plain": plain} {
		runningPod(t, pods, name, address)
	}
	migration{
		config: example(t, "alloy/kubernetes.yml"), endpoint: prometheusEndpoint,
		places: []string{"kubernetes_sd_configs:\n      - role: pod\n", "kubernetes_sd_configs:\n      - role: pod\n" + access},
		want: []string{
			fmt.Sprintf(`{__name__="up", instance=%q, job="pods", namespace="shop", pod="annotated"}`, annotated),
			fmt.Sprintf(`{__name__="demo_requests_total", instance=%q, job="pods", namespace="shop", path="/", pod="annotated"}`, annotated),
		},
		never: []string{`pod="plain"`},
	}.run(t)
}

// kubeToken is that of the test and of discovery.
const kubeToken = "t0ken"

// kubeCluster starts an API server over etcd, with the namespace shop. It returns what kubernetes_sd_configs says to reach it, indented.
func kubeCluster(t *testing.T, etcd, server string) (access string, clients *kubernetes.Clientset) {
	t.Helper()
	free, dir := peerAddresses(t, 3), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	store, members := "http://"+free[1], "http://"+free[2]
	startPeer(t, etcd, "--data-dir="+file("etcd"), "--unsafe-no-fsync", "--listen-client-urls="+store, "--advertise-client-urls="+store,
		"--listen-peer-urls="+members, "--initial-advertise-peer-urls="+members, "--initial-cluster=default="+members,
	).await("is healthy", func() error { return answers(store + "/health") })
	host, port := hostPort(t, free[0])
	writeFile(t, file("tokens"), kubeToken+",test,test\n")
	writeFile(t, file("accounts.key"), accountsKey(t))
	apiServer := startPeer(t, server,
		"--etcd-servers="+store, "--bind-address="+host, "--advertise-address="+host, "--secure-port="+strconv.Itoa(port),
		"--cert-dir="+file("certs"), "--token-auth-file="+file("tokens"), "--anonymous-auth=false", "--authorization-mode=AlwaysAllow",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-signing-key-file="+file("accounts.key"),
		"--service-account-key-file="+file("accounts.key"), "--disable-admission-plugins=ServiceAccount",
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
	)
	// Its own certificate, with its key written last.
	apiServer.await("has a certificate", func() error {
		_, err := os.Stat(file("certs/apiserver.key"))
		return err
	})
	clients, err := kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + free[0], BearerToken: kubeToken, TLSClientConfig: rest.TLSClientConfig{CAFile: file("certs/apiserver.crt")},
	})
	if err != nil {
		t.Fatal(err)
	}
	apiServer.await("takes the namespace", func() error {
		_, err := clients.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, metav1.CreateOptions{})
		return err
	})
	access = fmt.Sprintf("        api_server: %q\n        authorization: {credentials: %s}\n        tls_config: {ca_file: %q}\n",
		"https://"+free[0], kubeToken, file("certs/apiserver.crt"))
	return access, clients
}

// accountsKey returns a new private key in PEM.
func accountsKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// runningPod makes a pod and says of it what its kubelet would. The one named annotated has the annotation.
func runningPod(t *testing.T, clients *kubernetes.Clientset, name, address string) {
	t.Helper()
	ip, port := hostPort(t, address)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{"prometheus.io/scrape": strconv.FormatBool(name == "annotated")}},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{
			Name: "main", Image: "image", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(port), Protocol: corev1.ProtocolTCP}},
		}}},
	}
	pods := clients.CoreV1().Pods("shop")
	made, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	made.Status.Phase, made.Status.PodIP, made.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	if _, err := pods.UpdateStatus(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}
