package helm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// These name the programs of a real API server, which .ci/peers builds.
const (
	etcdEnv      = "MILLRACE_TEST_ETCD"
	apiServerEnv = "MILLRACE_TEST_KUBE_APISERVER"
	adminToken   = "adm1n"
	// startTime is how long the API server may take to be ready.
	startTime = 2 * time.Minute
)

// cluster is a real API server over a real etcd, without anything that would run what it holds.
type cluster struct {
	address, ca string
	client      *kubernetes.Clientset
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	etcd, server := os.Getenv(etcdEnv), os.Getenv(apiServerEnv)
	if etcd == "" || server == "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s or %s is not set: .ci/peers builds what they are to name", etcdEnv, apiServerEnv)
		}
		t.Skipf("NOT TESTED AGAINST A REAL API SERVER HERE: %s or %s is not set; .ci/peers builds what they are to name", etcdEnv, apiServerEnv)
	}
	dir := t.TempDir()
	free := freeAddresses(t, 3)
	clients, peers := "http://"+free[0], "http://"+free[1]
	start(t, etcd, "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--listen-client-urls="+clients, "--advertise-client-urls="+clients,
		"--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers)
	await(t, "etcd is healthy", func() bool {
		resp, err := http.Get(clients + "/health")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	accounts, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens")
	for file, content := range map[string][]byte{
		accounts: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), tokens: []byte(adminToken + `,admin,admin,"system:masters"` + "\n"),
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host, port, err := net.SplitHostPort(free[2])
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(dir, "certs")
	start(t, server, "--etcd-servers="+clients, "--bind-address="+host, "--advertise-address="+host, "--secure-port="+port, "--cert-dir="+certs,
		"--token-auth-file="+tokens, "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+accounts, "--service-account-key-file="+accounts, "--disable-admission-plugins=ServiceAccount",
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none")
	await(t, "the API server has a certificate", func() bool {
		_, err := os.Stat(filepath.Join(certs, "apiserver.key"))
		return err == nil
	})
	c := &cluster{address: "https://" + free[2], ca: filepath.Join(certs, "apiserver.crt")}
	if c.client, err = kubernetes.NewForConfig(&rest.Config{Host: c.address, BearerToken: adminToken, TLSClientConfig: rest.TLSClientConfig{CAFile: c.ca}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the API server is ready", func() bool {
		return c.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error() == nil
	})
	return c
}

// start runs a program until the test ends. A failed test shows what it printed.
func start(t *testing.T, program string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("the end of what %s printed:\n%s", program, text[max(0, len(text)-8<<10):])
		}
	})
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(startTime); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, startTime)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func freeAddresses(t *testing.T, n int) (free []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // after all are found, so that they differ
		free = append(free, l.Addr().String())
	}
	return free
}

// TestAPIServerTakesTheChart installs the chart with helm and checks what a real API server makes of it.
func TestAPIServerTakesTheChart(t *testing.T) {
	c := startCluster(t)
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "millrace", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HELM_CACHE_HOME", t.TempDir())
	for _, settings := range [][]string{nil, {"--set=nats.auth.secret=users", "--set=nats.tls.secret=ca", "--set=scraper.autoscaling.enabled=false", "--set=ingest.service.type=LoadBalancer"}} {
		out, err := helm(t, append([]string{
			"upgrade", "--install", "millrace", "millrace", "--namespace=millrace", "--kube-apiserver=" + c.address, "--kube-ca-file=" + c.ca, "--kube-token=" + adminToken,
		}, settings...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	deployments, err := c.client.AppsV1().Deployments("millrace").List(ctx, metav1.ListOptions{})
	if err != nil || len(deployments.Items) != len(services) {
		t.Fatalf("%d deployments: %v", len(deployments.Items), err)
	}
	for _, d := range deployments.Items {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: d.Name + "-", Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
		if _, err := c.client.CoreV1().Pods("millrace").Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}); err != nil {
			t.Errorf("a pod of %s in a namespace that is restricted: %v", d.Name, err)
		}
	}
	for _, review := range []struct {
		service string
		what    authorizationv1.ResourceAttributes
		may     bool
	}{
		{"discovery", authorizationv1.ResourceAttributes{Verb: "watch", Resource: "pods"}, true},
		{"discovery", authorizationv1.ResourceAttributes{Verb: "list", Resource: "endpointslices", Group: "discovery.k8s.io"}, true},
		{"discovery", authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets"}, false},
		{"discovery", authorizationv1.ResourceAttributes{Verb: "create", Resource: "pods", Namespace: "millrace"}, false},
		{"scraper", authorizationv1.ResourceAttributes{Verb: "get", Resource: "nodes", Subresource: "metrics"}, true},
		{"scraper", authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}, false},
		{"ingest", authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}, false},
		{"writer", authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}, false},
	} {
		r, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:millrace:millrace-" + review.service, ResourceAttributes: &review.what,
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Status.Allowed != review.may {
			t.Errorf("%s may %s %s: %t, want %t", review.service, review.what.Verb, review.what.Resource, r.Status.Allowed, review.may)
		}
	}
}
