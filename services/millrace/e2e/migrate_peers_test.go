package e2e_test

import (
	"fmt"
	"net"
	"strconv"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/millrace/millrace/services/discovery/peertest"
)

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

// TestMigrationFromAlloysConsul has a Consul agent with two services on two nodes, of which one has the tag.
func TestMigrationFromAlloysConsul(t *testing.T) {
	program := peertest.Program(t, "MILLRACE_TEST_CONSUL")
	free := peertest.FreeAddresses(t, 3)
	var ports [3]int
	host := ""
	for i := range free {
		host, ports[i] = hostPort(t, free[i])
	}
	agent := peertest.Start(t, program, "agent", "-dev", "-bind="+host, "-client="+host, "-hcl="+fmt.Sprintf(
		"ports { http = %d, dns = -1, grpc = -1, grpc_tls = -1, server = %d, serf_lan = %d, serf_wan = -1 }", ports[0], ports[1], ports[2]))
	client, err := consulapi.NewClient(&consulapi.Config{Address: free[0]})
	if err != nil {
		t.Fatal(err)
	}
	tagged, plain := node(t, textType), node(t, textType)
	agent.Await("takes services", func() bool {
		for i, s := range []struct {
			address string
			tags    []string
		}{{tagged, []string{"metrics"}}, {plain, nil}} {
			address, port := hostPort(t, s.address)
			if _, err := client.Catalog().Register(&consulapi.CatalogRegistration{
				Node: fmt.Sprintf("node-%d", i), Address: address, Service: &consulapi.AgentService{ID: "web", Service: "web", Port: port, Tags: s.tags},
			}, nil); err != nil {
				return false
			}
		}
		return true
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
	const token = "t0ken" // discovery's
	cluster := peertest.NewCluster(t, token+",test,test\n", "--anonymous-auth=false", "--authorization-mode=AlwaysAllow")
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := cluster.Admin.CoreV1().Namespaces().Create(t.Context(), shop, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	access := fmt.Sprintf("        api_server: %q\n        authorization: {credentials: %s}\n        tls_config: {ca_file: %q}\n", "https://"+cluster.Address, token, cluster.CA)
	annotated, plain := node(t, textType), node(t, textType)
	for name, address := range map[string]string{"annotated": annotated, "plain": plain} {
		runningPod(t, cluster.Admin, name, address)
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
