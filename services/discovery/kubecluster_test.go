package discovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/millrace/millrace/services/discovery/peertest"
)

// auditPolicy has the requests of discovery logged when they are answered.
const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  {"level": "Metadata", "users": ["discovery"]}, {"level": "None"}]}`

// kubeCluster is a real API server over a real etcd. Discovery comes by a gate, which the test can shut; what the test does to the objects does not pass it.
type kubeCluster struct {
	t      *testing.T
	dir    string
	server *peertest.Cluster
	gate   *gate
	client rest.Interface
}

// newKubeCluster starts etcd, and an API server that is given more arguments.
func newKubeCluster(t *testing.T, more ...string) *kubeCluster {
	t.Helper()
	k := &kubeCluster{t: t, dir: t.TempDir()}
	write(t, k.file("audit.json"), auditPolicy)
	k.server = peertest.NewCluster(t, kubeToken+",discovery,discovery\n", append([]string{
		"--anonymous-auth=false", "--authorization-mode=AlwaysAllow", "--audit-policy-file=" + k.file("audit.json"), "--audit-log-path=" + k.file("audit.log"),
	}, more...)...)
	k.client = k.server.Admin.CoreV1().RESTClient()
	k.gate = newGate(t, k.server.Address)
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if err := k.client.Post().AbsPath("/api/v1/namespaces").Body(shop).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *kubeCluster) file(name string) string { return filepath.Join(k.dir, name) }

func (k *kubeCluster) access() string {
	return fmt.Sprintf("api_server: %q, authorization: {credentials: %s}, tls_config: {ca_file: %q}",
		"https://"+k.gate.address, kubeToken, k.server.CA)
}

func (k *kubeCluster) path(resource string, o kubeObject) string {
	return kubePath(kubeKinds[resource].GroupVersion(), resource, o.GetNamespace(), o.GetName())
}

// kubePath returns where an object is in the API.
func kubePath(gv schema.GroupVersion, resource, namespace, name string) string {
	path := "/api/"
	if gv.Group != "" {
		path = "/apis/"
	}
	path += gv.String()
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + resource + "/" + name
}

// put makes or changes an object, and then its status as a kubelet does.
func (k *kubeCluster) put(resource string, o kubeObject) {
	k.t.Helper()
	o = o.DeepCopyObject().(kubeObject)
	o.GetObjectKind().SetGroupVersionKind(kubeKinds[resource])
	o.SetUID("") // the server gives one
	body, err := json.Marshal(o)
	if err != nil {
		k.t.Fatal(err)
	}
	paths := []string{k.path(resource, o)}
	if resource == "pods" || resource == "nodes" {
		paths = append(paths, paths[0]+"/status")
	}
	for _, path := range paths {
		req := k.client.Patch(types.ApplyPatchType).AbsPath(path).Param("fieldManager", "test").Param("force", "true").Body(body)
		if err := req.Do(k.t.Context()).Error(); err != nil {
			k.t.Fatalf("applying %s: %v\n%s", path, err, body)
		}
	}
}

// remove deletes an object. A pod of a node is marked first, and gone when its kubelet says that it has ended.
func (k *kubeCluster) remove(resource string, o kubeObject) {
	k.t.Helper()
	how := []*metav1.DeleteOptions{{}}
	if resource == "pods" {
		how = append(how, metav1.NewDeleteOptions(0))
	}
	for _, options := range how {
		if err := k.client.Delete().AbsPath(k.path(resource, o)).Body(options).Do(k.t.Context()).Error(); err != nil {
			k.t.Fatal(err)
		}
	}
}

// dropWatches ends all watches. With compact the API server is killed and started again: of what happened before it knows no events.
func (k *kubeCluster) dropWatches(compact bool) {
	k.t.Helper()
	if !compact {
		k.gate.drop()
		return
	}
	k.server.Restart()
}

func (k *kubeCluster) setDown(down bool) {
	k.t.Helper()
	if down {
		k.gate.shut()
	} else {
		k.gate.open()
	}
}

// requests counts by the server's audit log.
func (k *kubeCluster) requests(kind string) int {
	k.t.Helper()
	text, err := os.ReadFile(k.file("audit.log"))
	if err != nil {
		k.t.Fatal(err)
	}
	n := 0
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var e struct {
			Stage, Verb, RequestURI string
			ObjectRef               struct{ Resource string }
			ResponseStatus          struct{ Code int }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			k.t.Fatalf("audit log: %v: %s", err, line)
		}
		verb := e.Verb
		if mustParse(k.t, e.RequestURI).Query().Get("sendInitialEvents") == "true" {
			verb = "streamed list"
		}
		// A watch is answered when it starts, and its end is a line more.
		answered := e.Stage == "ResponseStarted" || e.Verb != "watch"
		if answered && e.ResponseStatus.Code == http.StatusOK && verb+" "+e.ObjectRef.Resource == kind {
			n++
		}
	}
	return n
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
