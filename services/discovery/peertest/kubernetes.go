package peertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// These name the programs of an API server.
const (
	etcdEnv          = "MILLRACE_TEST_ETCD"
	kubeAPIServerEnv = "MILLRACE_TEST_KUBE_APISERVER"
)

// AdminToken is that of the user admin, who is in the group system:masters.
const AdminToken = "adm1n"

// Cluster is a real API server over a real etcd. No scheduler, kubelet or controller runs: the test says what they would.
type Cluster struct {
	// Address is where the server listens, with TLS; CA is the file with its certificate.
	Address, CA string
	// Admin is a client of the user admin.
	Admin *kubernetes.Clientset

	t       testing.TB
	program string
	args    []string
	server  *Peer
}

// NewCluster starts etcd and an API server until the test ends. tokens are lines of its token file besides that of admin, and more its further arguments. Where the programs are
// not named, the test is skipped, or fails in CI.
func NewCluster(t testing.TB, tokens string, more ...string) *Cluster {
	t.Helper()
	etcd, server := Program(t, etcdEnv), Program(t, kubeAPIServerEnv)
	free, dir := FreeAddresses(t, 3), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	clients, peers := "http://"+free[1], "http://"+free[2]
	store := Start(t, etcd, "--data-dir="+file("etcd"), "--unsafe-no-fsync", "--listen-client-urls="+clients, "--advertise-client-urls="+clients,
		"--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers)
	store.Await("is healthy", func() bool {
		resp, err := http.Get(clients + "/health")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	accounts := file("accounts.key")
	for path, content := range map[string][]byte{accounts: signingKey(t), file("tokens"): []byte(tokens + AdminToken + `,admin,admin,"system:masters"` + "\n")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host, port, err := net.SplitHostPort(free[0])
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, Address: free[0], CA: file("certs/apiserver.crt"), program: server, args: append([]string{
		"--etcd-servers=" + clients, "--bind-address=" + host, "--advertise-address=" + host, "--secure-port=" + port,
		"--cert-dir=" + file("certs"), "--token-auth-file=" + file("tokens"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-signing-key-file=" + accounts,
		"--service-account-key-file=" + accounts, "--disable-admission-plugins=ServiceAccount",
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none",
	}, more...)}
	c.serve()
	return c
}

// Restart kills the API server and starts it again. It returns when that is ready.
func (c *Cluster) Restart() {
	c.t.Helper()
	c.server.Kill()
	c.serve()
}

// serve starts the API server and waits until it is ready.
func (c *Cluster) serve() {
	c.t.Helper()
	c.server = Start(c.t, c.program, c.args...)
	// Its own certificate, with its key written last.
	c.server.Await("has a certificate", func() bool {
		_, err := os.Stat(filepath.Join(filepath.Dir(c.CA), "apiserver.key"))
		return err == nil
	})
	if c.Admin == nil {
		var err error
		if c.Admin, err = kubernetes.NewForConfig(&rest.Config{Host: "https://" + c.Address, BearerToken: AdminToken, TLSClientConfig: rest.TLSClientConfig{CAFile: c.CA}}); err != nil {
			c.t.Fatal(err)
		}
	}
	c.server.Await("is ready", func() bool {
		return c.Admin.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(c.t.Context()).Error() == nil
	})
}

// signingKey returns a new private key in PEM.
func signingKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}
