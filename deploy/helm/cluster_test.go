package helm

import (
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace/millrace/services/discovery/peertest"
)

// TestAPIServerTakesTheChart installs the chart with helm and checks what a real API server makes of it.
func TestAPIServerTakesTheChart(t *testing.T) {
	c := peertest.NewCluster(t, "", "--authorization-mode=RBAC")
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "millrace", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if _, err := c.Admin.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HELM_CACHE_HOME", t.TempDir())
	for _, settings := range [][]string{nil, {"--set=nats.auth.secret=users", "--set=nats.tls.secret=ca", "--set=scraper.autoscaling.enabled=false", "--set=ingest.service.type=LoadBalancer"}} {
		out, err := helm(t, append([]string{
			"upgrade", "--install", "millrace", "millrace", "--namespace=millrace", "--kube-apiserver=https://" + c.Address, "--kube-ca-file=" + c.CA, "--kube-token=" + peertest.AdminToken,
		}, settings...)...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	deployments, err := c.Admin.AppsV1().Deployments("millrace").List(ctx, metav1.ListOptions{})
	if err != nil || len(deployments.Items) != len(services) {
		t.Fatalf("%d deployments: %v", len(deployments.Items), err)
	}
	for _, d := range deployments.Items {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: d.Name + "-", Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec}
		if _, err := c.Admin.CoreV1().Pods("millrace").Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}); err != nil {
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
		r, err := c.Admin.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
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
