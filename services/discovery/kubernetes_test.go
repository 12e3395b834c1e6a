package discovery

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace/millrace/pkg/await"
)

// kubeServer is an API server, with what the test does to its objects and to the way there.
type kubeServer interface {
	// access returns what kubernetes_sd_configs says to reach it.
	access() string
	// put makes or changes an object, its status included.
	put(resource string, o kubeObject)
	// remove deletes an object.
	remove(resource string, o kubeObject)
	// dropWatches ends all watches. With compact the events so far are forgotten, so that watches which were behind are told that their version
	// is gone.
	dropWatches(compact bool)
	// setDown makes all requests of discovery fail and ends its watches.
	setDown(down bool)
	// requests returns how many requests of discovery it has served of a kind: "list pods", "watch pods", "streamed list pods".
	requests(kind string) int
}

func pod(name, ip, app string, port int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "uid-1", Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{
			Name: "main", Image: "img", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, HostIP: "10.0.0.1"},
	}
}

func service(name string, port int32) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.10", Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "http", Port: port}}},
	}
}

func node(name, ip string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
		},
	}
}

func slice(service string, ips ...string) *discoveryv1.EndpointSlice {
	name, port, ready := "http", int32(80), true
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: service + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}

// kubeJob leaves out the namespace in which an API server has a service for itself.
func kubeJob(name string, k kubeServer, more string) string {
	return fmt.Sprintf(`
- job_name: %s
  kubernetes_sd_configs: [{%s, %s}]
  relabel_configs: [{source_labels: [__meta_kubernetes_namespace], regex: default, action: drop}]
`, name, k.access(), more)
}

func kubeJobs(k kubeServer) string {
	return kubeJob("pods", k, "role: pod, namespaces: {names: [shop]}, selectors: [{role: pod, label: app=web, field: status.phase=Running}]") +
		kubeJob("services", k, "role: service") + kubeJob("nodes", k, "role: node") + kubeJob("slices", k, "role: endpointslice")
}

func TestKubernetesDiscovery(t *testing.T) {
	for name, set := range map[string]func(*kubeAPI){
		"streamed lists in protobuf":                func(*kubeAPI) {},
		"streamed lists in JSON":                    func(k *kubeAPI) { k.onlyJSON = true },
		"an API server without them, in JSON":       func(k *kubeAPI) { k.onlyJSON, k.noStreamedLists = true, true },
		"an API server without them, with protobuf": func(k *kubeAPI) { k.noStreamedLists = true },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKubeAPI(t)
			set(k)
			testKubernetes(t, k)
			kind := "streamed list pods"
			if k.noStreamedLists {
				kind = "list pods"
			}
			expectRequests(t, k, kind)
			if k.requests("expired watch pods") == 0 {
				t.Error("no watch met an expired version")
			}
		})
	}
}

func TestKubernetesDiscoveryWithARealAPIServer(t *testing.T) {
	for name, c := range map[string]struct{ flag, lists string }{
		"streamed lists":             {"--feature-gates=WatchList=true", "streamed list pods"},
		"an API server without them": {"--feature-gates=WatchList=false", "list pods"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKubeCluster(t, c.flag)
			testKubernetes(t, k)
			expectRequests(t, k, c.lists)
		})
	}
}

// expectRequests fails the test where pods were not listed the way that the test is for. Two of the jobs list them when they start, and at least one of
// these again after the expired version, and after the restart.
func expectRequests(t *testing.T, k kubeServer, kind string) {
	t.Helper()
	if n := k.requests(kind); n < 4 {
		t.Errorf("%d requests were a %s: the test has not tested what it says", n, kind)
	}
}

// testKubernetes lets pods, services, endpoints and nodes come, move and go, and expects the targets to follow.
func testKubernetes(t *testing.T, k kubeServer) {
	f := newBed(t)
	k.put("pods", pod("web-1", "10.1.0.1", "web", 80))
	k.put("pods", pod("web-2", "10.1.0.2", "web", 80))
	k.put("pods", pod("db-1", "10.1.0.9", "db", 5432))
	k.put("services", service("front", 80))
	k.put("nodes", node("node-1", "10.0.0.1"))
	k.put("endpointslices", slice("front", "10.1.0.1", "10.1.0.2"))
	first := f.start(kubeJobs(k))
	const front, node1 = "services front.shop.svc:80", "nodes 10.0.0.1:10250"
	f.wait(address, "pods 10.1.0.1:80", "pods 10.1.0.2:80", front, node1, "slices 10.1.0.1:80", "slices 10.1.0.2:80")

	k.put("pods", pod("web-3", "", "web", 80)) // comes, without an address at first
	k.put("pods", pod("web-3", "10.1.0.3", "web", 80))
	k.put("endpointslices", slice("front", "10.1.0.2", "10.1.0.3"))
	k.put("nodes", node("node-2", "10.0.0.2"))
	f.wait(address, "pods 10.1.0.1:80", "pods 10.1.0.2:80", "pods 10.1.0.3:80", front, node1, "nodes 10.0.0.2:10250", "slices 10.1.0.2:80", "slices 10.1.0.3:80")

	k.put("pods", pod("web-2", "10.1.0.22", "web", 80)) // moves
	k.put("pods", pod("web-3", "10.1.0.3", "db", 80))   // is no longer selected
	k.remove("pods", pod("web-1", "", "", 0))           // goes
	k.put("services", service("front", 8080))
	k.remove("nodes", node("node-2", ""))
	k.remove("endpointslices", slice("front"))
	const front2 = "services front.shop.svc:8080"
	f.wait(address, "pods 10.1.0.22:80", front2, node1)

	k.dropWatches(false)
	k.put("pods", pod("web-4", "10.1.0.4", "web", 80))
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.4:80", front2, node1)

	again := pod("web-4", "10.1.0.44", "web", 80) // on another node
	again.Spec.NodeName = "node-3"
	k.remove("pods", again)
	k.put("pods", again)
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.44:80", front2, node1)
	for _, got := range f.targets() {
		on := got.Discovered.Get("__meta_kubernetes_pod_node_name")
		if got.Labels.Get("__address__") == "10.1.0.44:80" && on != "node-3" {
			t.Errorf("the pod that is on another node now is said to be on %q", on)
		}
	}

	// While no watch runs, something goes and its event is forgotten: the client has to list again.
	k.setDown(true)
	k.remove("pods", pod("web-4", "", "", 0))
	k.put("pods", pod("web-5", "10.1.0.5", "web", 80))
	k.dropWatches(true)
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.44:80", front2, node1) // an API server that is down takes nothing away
	k.setDown(false)
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.5:80", front2, node1)

	first.stop()
	k.remove("pods", pod("web-5", "", "", 0))
	k.setDown(true)
	second := f.start(kubeJobs(k))
	await.True(t, "the restarted service has applied its configuration", func() bool { return len(second.Status().Jobs) == 4 })
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.5:80", front2, node1)
	k.setDown(false)
	k.put("pods", pod("web-6", "10.1.0.6", "web", 80))
	f.wait(address, "pods 10.1.0.22:80", "pods 10.1.0.6:80", front2, node1)
	for _, stayed := range []string{"-10.1.0.22:80", "-front.shop.svc:8080", "-10.0.0.1:10250"} {
		if slices.Contains(f.history(), stayed) {
			t.Errorf("a target that stayed was removed for a moment: %v", f.history())
		}
	}
}
